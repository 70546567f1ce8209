"""Folders of images and small text files, with messages that name what is missing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.errors import InputError, examples

# The suffixes of the image transform's formats. Files with other suffixes are reported as skipped.
SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"]
)
MAX_TEXT = 1 << 30  # bytes of a text file; the longest split file has 100 MB


class Listing(NamedTuple):
    """The entries of a folder, each list sorted, without hidden entries."""

    folders: list[str]
    images: list[str]
    others: list[str]


def local_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Returns the absolute path of an existing local folder; "~" is the home folder. `what` names it in messages."""
    text = os.fspath(path)
    if "://" in text:
        raise InputError(f"{what}: {text!r} is not on this machine; image files are read from local folders")
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{what}: there is no folder {folder}{_nearest(folder)}")
    return folder


def list_folder(folder: Path) -> Listing:
    """Lists the folders, images (by suffix) and other files of an existing folder."""
    listing = Listing([], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                listing.folders.append(entry.name)
            else:
                image = os.path.splitext(entry.name)[1].lower() in SUFFIXES
                (listing.images if image else listing.others).append(entry.name)
    return Listing(*map(sorted, listing))


def class_images(
    root: Path, folder: str, what: str, excluded: Collection[str] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """Lists the images of a folder of class folders, which is relative to the dataset's folder ``root``.

    Returns, for each class folder in sorted order, its images as sorted paths relative to ``root``; and notes on other
    files.
    """
    top = root / folder
    if not top.is_dir():
        raise InputError(f"{what}: there is no folder {top}{_nearest(top)}")
    listing = list_folder(top)
    names = [name for name in listing.folders if name not in excluded]
    if not names:
        content = f"{len(listing.images)} images and no class folders" if listing.images else "no class folders"
        raise InputError(f"{what}: {top} holds {content}; put the images of each class in a folder of its own")
    classes: dict[str, list[str]] = {}
    skipped = []
    for name in names:
        inside = list_folder(top / name)
        prefix = f"{folder}/{name}" if folder else name
        if not inside.images:
            others = inside.folders + inside.others
            content = f"only {examples(others)}" if others else "nothing"
            raise InputError(f"{what}: the class folder {top / name} holds no images, {content}; fill it or remove it")
        classes[name] = [f"{prefix}/{image}" for image in inside.images]
        skipped += [f"{prefix}/{other}" for other in inside.others]
    return classes, [f"files that are no images: {examples(skipped)}"] if skipped else []


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
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no folder can have this name
        return set()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return set()
        raise


def read_text(path: Path, what: str) -> str:
    """Returns the text of a UTF-8 file of at most 1 GiB, without a byte order mark."""
    if not path.is_file():
        raise InputError(f"{what}: there is no file {path}{_nearest(path)}")
    if (size := path.stat().st_size) > MAX_TEXT:
        raise InputError(f"{what}: {path} has {size} bytes, more than the limit {MAX_TEXT} of a text file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: {path} is no UTF-8 text ({error}); save it as UTF-8") from error


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


def names_of_folders(folders: Collection[str], names: dict[str, str], path: Path, what: str) -> list[str]:
    """Returns the class name of each folder, from names by folder, which were read from `path`."""
    if unnamed := [folder for folder in folders if folder not in names]:
        raise InputError(
            f"{what}: {len(unnamed)} class folders have no name in {path}: {examples(unnamed)}; add their names, or "
            "remove the folders"
        )
    return [names[folder] for folder in folders]


def _nearest(path: Path) -> str:
    """Returns the content of the nearest existing folder, which shows where a path went wrong."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    return f"; {folder} holds {examples(entries) or 'nothing'}"
