"""Folders of images and small text files, with messages that name what is missing."""

from __future__ import annotations

import codecs
import errno
import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.clip.decoding import FOREIGN_SUFFIXES, FORMATS, SNIFFED, format_of
from gram_jax.data.account import Account
from gram_jax.data.spellings import without_ids
from gram_jax.errors import InputError, examples

# The suffixes of the image transform's formats. What has another one is left out and counted.
SUFFIXES = frozenset(
    (
        ".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jif", ".jp2", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
        ".pbm", ".pgm", ".pjp", ".pjpeg", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip
MAX_TEXT = 1 << 30  # bytes of a text file; the longest split file has 100 MB
NO_IMAGES = "files that are no images"
OUTSIDE = "files beside the class folders that are not read"
HIDDEN, LINKS = "hidden files and folders", "links to folders"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_NO_TEXT = {
    b"PK\3\4": "an Excel file or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed (gzip)",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Folders that operating systems add to archives and disks.
_SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"))


class Listing(NamedTuple):
    """The entries of a folder, each list sorted; hidden entries, and folders of the operating system, are apart."""

    folders: list[str]
    images: list[str]
    others: list[str]
    hidden: list[str]


class Found(NamedTuple):
    """An entry below a folder: its relative path, and why it is left out, "" for an image."""

    path: str
    reason: str


def absent(path: Path, wanted: str) -> str:
    """Returns why there is no file, or no folder, at a path; `wanted` is "file" or "folder".

    Example:
      >>> absent(Path(__file__), "folder").endswith("files.py is a file; give the folder that holds it")
      True
    """
    if path.is_dir():
        return f"{path} is a folder; give the file in it, one of {examples(_visible(path)) or 'none'}"
    if path.is_file() and path.suffix.lower() in _ARCHIVES:
        return f"{path} is an archive; unpack it, and give the folder"
    if path.is_file():
        return f"{path} is a file; give the folder that holds it"
    if path.exists():
        return f"{path} is a pipe or a device; give a {wanted}"
    return f"there is no {wanted} {path}{_nearest(path)}"


def local_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Returns the absolute path of an existing local folder; "~" is the home folder. `what` names it in messages."""
    text = os.fspath(path)
    if "://" in text:
        raise InputError(f"{what}: {text!r} is not on this machine; image files are read from local folders")
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{what}: {absent(folder, 'folder')}")
    return folder


def list_folder(folder: Path) -> Listing:
    """Lists the folders, images (by suffix), other files and hidden entries of an existing folder."""
    listing = Listing([], [], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS:
                listing.hidden.append(entry.name)
            elif entry.is_dir():
                listing.folders.append(entry.name)
            else:
                image = os.path.splitext(entry.name)[1].lower() in SUFFIXES
                (listing.images if image else listing.others).append(entry.name)
    return Listing(*map(sorted, listing))


def walk(root: Path, below: str = "", mixed: bool = False) -> Iterator[Found]:
    """Yields everything below a folder by name: the files of a folder before those of its subfolders, or `mixed`.

    Hidden entries, folders of the operating system and links to folders are yielded with a reason, and not entered.
    """
    with os.scandir(root / below) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    folders = []
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS:
            yield Found(path, HIDDEN)
        elif entry.is_dir(follow_symlinks=False):
            if mixed:
                yield from walk(root, path, mixed)
            else:
                folders.append(path)
        elif entry.is_dir():  # it may lead to a folder above
            yield Found(path, LINKS)
        else:
            yield Found(path, why_unread(root / path))
    for path in folders:
        yield from walk(root, path)


def why_unread(path: Path) -> str:
    """Returns why a file is not read as an image, by its suffix and, for an unknown suffix, by its first bytes.

    Example:
      >>> why_unread(Path(__file__)), why_unread(Path("/dev/null"))
      ('files that are no images', 'pipes, devices and broken links')
    """
    if not path.is_file():
        return "pipes, devices and broken links"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return ""
    known = FOREIGN_SUFFIXES.get(suffix, "")
    if not known:
        try:
            with open(path, "rb") as file:
                known = format_of(file.read(SNIFFED))
        except OSError:
            return "files that cannot be opened"
    if not known:
        return NO_IMAGES
    if known in FORMATS:
        return f"{known} images without the suffix of their format; rename them"
    return f"{known} files, which cannot be read; export them as JPEG or PNG"


def class_images(
    root: Path, folder: str, what: str, excluded: Collection[str] = ()
) -> tuple[dict[str, list[str]], Account]:
    """Lists the images of a folder of class folders, which is relative to the dataset's folder ``root``.

    Subfolders of a class folder belong to the class, as in torchvision's ImageFolder. Returns, for each class folder in
    sorted order, its images as sorted paths relative to ``root``; and what is left out.
    """
    top = root / folder
    if not top.is_dir():
        raise InputError(f"{what}: {absent(top, 'folder')}")
    listing = list_folder(top)
    names = [name for name in listing.folders if name not in excluded]
    if not names:
        content = f"{len(listing.images)} images and no class folders" if listing.images else "no class folders"
        raise InputError(f"{what}: {top} holds {content}; put the images of each class in a folder of its own")
    classes: dict[str, list[str]] = {}
    account = Account()
    for name in names:
        found = list(walk(root, f"{folder}/{name}" if folder else name))
        classes[name] = [each.path for each in found if not each.reason]
        if not classes[name]:
            raise InputError(f"{what}: {_without_images(top / name, found)}; fill it or remove it")
        for each in found:
            if each.reason:
                account.leave_out(each.reason, [each.path])
    account.leave_out("folders that are no classes of this dataset", [n for n in listing.folders if n in excluded])
    return classes, account


def _without_images(folder: Path, found: Sequence[Found]) -> str:
    others = [each.path.rpartition("/")[2] for each in found] or list_folder(folder).folders
    content = f"only {examples(others)}" if others else "nothing"
    return f"the class folder {folder} holds no images, {content}"


def as_stored(root: Path, path: str) -> str:
    """Returns a relative path in the form of Unicode in which a file has it; itself if there is no such file."""
    forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.exists(root / form)), path)


def missing(root: Path, paths: Iterable[str]) -> list[str]:
    """Returns those relative paths ("/" between parts) that do not exist; lists every folder once, touches no file.

    Example:
      >>> missing(Path(__file__).parent, ["files.py", "nowhere/else.py"])
      ['nowhere/else.py']
    """
    listed: dict[str, set[str]] = {}
    lost = []
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent not in listed:
            listed[parent] = _entries(root / parent)
        if name not in listed[parent]:
            lost.append(path)
    return lost


def _entries(folder: Path) -> set[str]:
    """Returns the names of everything in a folder but its folders; links may lead to files."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no folder can have this name
        return set()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return set()
        raise


def read_text(path: Path, what: str) -> str:
    """Returns the text of a UTF-8 file (or UTF-16, as Excel writes it) of at most 1 GiB, without a byte order mark."""
    if not path.is_file():
        raise InputError(f"{what}: {absent(path, 'file')}")
    if (size := path.stat().st_size) > MAX_TEXT:
        raise InputError(f"{what}: {path} has {size} bytes, more than the limit {MAX_TEXT} of a text file")
    content = path.read_bytes()
    require_text(content, f"{what}: {path}")
    try:
        text = content.decode("utf-16" if content[:2] in _UTF_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: {path} is no UTF-8 text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise InputError(f"{what}: {path} is no UTF-8 text (it holds null characters); save it as UTF-8")
    return text


def require_text(begin: bytes, what: str, utf_16: bool = True) -> None:
    """Raises InputError if a file that begins so is no text: a spreadsheet, compressed, or, unless allowed, UTF-16."""
    if kind := next((kind for each, kind in _NO_TEXT.items() if begin.startswith(each)), ""):
        remedy = "run git lfs pull" if "LFS" in kind else "save it as CSV, in UTF-8"
        raise InputError(f"{what} is {kind}; {remedy}")
    if not utf_16 and begin[:2] in _UTF_16:
        raise InputError(f"{what} is UTF-16; save it as UTF-8")


def read_lines(path: Path, what: str) -> list[tuple[str, str]]:
    """Returns the lines of a text file that are not blank: the place of each, for messages, and the stripped line."""
    lines = enumerate(map(str.strip, read_text(path, what).splitlines()), 1)
    placed = [(f"{what}: {path}, line {number}", line) for number, line in lines if line]
    if not placed:
        raise InputError(f"{what}: {path} is empty; download it again")
    return placed


def read_json(path: Path, what: str) -> Any:
    """Returns the content of a JSON file."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: {path} is no JSON ({error}); download it again, it may be cut off") from error


def read_class_names(path: Path, what: str) -> dict[str, str]:
    """Returns class names by folder, from lines of a folder, a space or a tab, and a name."""
    names: dict[str, str] = {}
    for where, line in read_lines(path, what):
        # With a tab, the name of a folder may contain spaces.
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if not name.strip():
            raise InputError(f"{where} is {line!r}; expected a folder and its class name")
        if folder in names:
            raise InputError(f"{where} repeats the folder {folder!r}")
        names[folder] = name.strip()
    return names


def read_name_list(path: Path, what: str) -> list[str]:
    """Returns class names from a file with a name in each line, or a folder or id and its name, as in classnames.txt.

    A tab separates a folder from its name; WordNet ids and numbers that count are removed. A JSON file holds a list of
    names, an object of names by folder or number, or one of numbers by name, also in Hugging Face's config.json; a name
    may be the last entry of a list, as in imagenet_class_index.json.
    """
    if path.suffix.lower() == ".json":
        return without_ids(_json_names(path, what))[0]
    if path.suffix.lower() in (".csv", ".tsv", ".yaml", ".yml"):
        raise InputError(f"{what}: {path} is no list of names; give a text file with a name in each line, or JSON")
    lines = [line for _, line in read_lines(path, what)]
    if all("\t" in line for line in lines):
        return without_ids([line.partition("\t")[2].strip() for line in lines])[0]
    return without_ids(lines)[0]


def _json_names(path: Path, what: str) -> list[str]:
    document = read_json(path, what)
    if isinstance(document, dict):
        document = document.get("id2label", document.get("label2id", document))  # Hugging Face's config.json
        if document and all(type(number) is int for number in document.values()):
            document = {str(number): name for name, number in document.items()}
        numbered = all(map(str.isdecimal, document))
        document = [document[key] for key in (sorted(document, key=int) if numbered else document)]
    names = [each[-1] if isinstance(each, list) and each else each for each in document]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{what}: {path} holds {examples(names)}; give a list of names, or names by folder")
    return names


def names_of_folders(folders: Collection[str], names: dict[str, str], path: Path, what: str) -> list[str]:
    """Returns the class name of each folder, from names by folder, which were read from `path`.

    The form of Unicode makes no difference: macOS stores names decomposed.
    """
    composed = {unicodedata.normalize("NFC", folder): name for folder, name in names.items()}
    names = {folder: composed.get(unicodedata.normalize("NFC", folder), "") for folder in folders}
    names = {folder: name for folder, name in names.items() if name}
    if unnamed := [folder for folder in folders if folder not in names]:
        raise InputError(
            f"{what}: {len(unnamed)} class folders have no name in {path}: {examples(unnamed)}; add their names, or "
            "remove the folders"
        )
    return [names[folder] for folder in folders]


def _nearest(path: Path) -> str:
    """Returns the content of the nearest existing folder, which shows where a path went wrong."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    return f"; {folder} holds {examples(_visible(folder)) or 'nothing'}"


def _visible(folder: Path) -> list[str]:
    return sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
