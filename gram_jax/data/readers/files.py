"""What lies on disk: folders of images, small text files, and what of a list is missing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.errors import InputError

# How the formats of the image transform end. A file that ends otherwise is no image, and is counted as skipped.
SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"]
)
MAX_TEXT = 1 << 30  # bytes of a text file; the longest split file has 100 MB
_SHOWN = 3  # examples that a message names


class Listing(NamedTuple):
    """What a folder holds, each in sorted order; hidden entries are left out."""

    folders: list[str]
    images: list[str]
    others: list[str]


def path_of(root: str, reference: str) -> str:
    """The path of an image by its reference, a path relative to the dataset's folder.

    Args:
      root: the dataset's folder.
      reference: a path below it, with "/" between its parts.

    Returns:
      A path.

    Example:
      >>> path_of("/data/dtd", "images/banded/banded_0002.jpg")
      '/data/dtd/images/banded/banded_0002.jpg'

    Reference:
      Our own choice.
    """
    return os.path.join(root, reference)


def local_folder(path: str | os.PathLike[str], what: str) -> Path:
    """A folder that exists.

    Args:
      path: its path; "~" stands for the home folder.
      what: what it is, for messages.

    Returns:
      An absolute path.

    Raises:
      InputError: where there is no such folder, or the path is a remote one.
    """
    text = os.fspath(path)
    if "://" in text:
        raise InputError(f"{what} is {text!r}, which is not on this machine; image files are read from local folders")
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{what}: there is no folder {folder}{_nearest(folder)}")
    return folder


def list_folder(folder: Path) -> Listing:
    """Lists a folder.

    Args:
      folder: a folder that exists.

    Returns:
      Its folders, its images (by the end of their names) and its other files.
    """
    folders, images, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            else:
                (images if os.path.splitext(entry.name)[1].lower() in SUFFIXES else others).append(entry.name)
    return Listing(sorted(folders), sorted(images), sorted(others))


def class_images(
    root: Path, folder: str, what: str, excluded: Collection[str] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """The images of a folder of class folders.

    Args:
      root: the dataset's folder.
      folder: the folder of class folders, relative to it; "" for the root itself.
      what: the dataset, for messages.
      excluded: class folders that are left out.

    Returns:
      For each class folder, in sorted order, its images as sorted paths relative to ``root``; and the paths of files
      in class folders that are no images.

    Raises:
      InputError: where the folder is missing, holds no class folders, or a class folder holds no image.
    """
    top = root / folder
    if not top.is_dir():
        raise InputError(f"{what}: there is no folder {top}{_nearest(top)}")
    listing = list_folder(top)
    names = [name for name in listing.folders if name not in excluded]
    if not names:
        held = f"{len(listing.images)} images lie in it directly" if listing.images else "it is empty"
        raise InputError(f"{what}: {top} holds no class folders, {held}; put the images of each class in a folder")
    found, skipped = {}, []
    for name in names:
        inside = list_folder(top / name)
        prefix = f"{folder}/{name}" if folder else name
        if not inside.images:
            held = f"only {examples(inside.folders + inside.others)}" if inside.folders or inside.others else "nothing"
            raise InputError(f"{what}: the class folder {top / name} holds no images, {held}; fill it or remove it")
        found[name] = [f"{prefix}/{image}" for image in inside.images]
        skipped += [f"{prefix}/{other}" for other in inside.others]
    return found, skipped


def missing(root: Path, paths: Iterable[str]) -> list[str]:
    """Which of many files are not there; every folder is listed once, no file is touched.

    Args:
      root: the folder that the paths are relative to.
      paths: relative paths, "/" between their parts.

    Returns:
      The paths that lead nowhere, in their order.

    Example:
      >>> missing(Path(__file__).parent, ["files.py", "nowhere/else.py"])
      ['nowhere/else.py']

    Reference:
      Our own choice.
    """
    listed: dict[str, set[str]] = {}
    lost = []
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(root / parent))
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name that a folder can have
                listed[parent] = set()
            except OSError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                    raise
                listed[parent] = set()
        if name not in listed[parent]:
            lost.append(path)
    return lost


def read_text(path: Path, what: str) -> str:
    """A small UTF-8 text file.

    Args:
      path: the file.
      what: the dataset, for messages.

    Returns:
      Its text, without a byte order mark.

    Raises:
      InputError: where the file is missing, is no UTF-8 text or has more than 1 GiB.
    """
    if not path.is_file():
        raise InputError(f"{what}: there is no file {path}{_nearest(path)}")
    if (size := path.stat().st_size) > MAX_TEXT:
        raise InputError(f"{what}: {path} has {size} bytes, the limit of a text file is {MAX_TEXT}; get it again")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: {path} is no UTF-8 text ({error}); save it as UTF-8") from error


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a small text file that are not blank, with their numbers from 1.

    Args:
      path: the file.
      what: the dataset, for messages.

    Returns:
      (line number, stripped line) pairs.

    Raises:
      InputError: as ``read_text``, and where every line is blank.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path, what).splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise InputError(f"{what}: {path} is empty; get it again")
    return lines


def read_json(path: Path, what: str) -> Any:
    """A JSON file.

    Args:
      path: the file.
      what: the dataset, for messages.

    Returns:
      What it holds.

    Raises:
      InputError: as ``read_text``, and where the text is no JSON.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: {path} is no JSON ({error}); get it again, it may be cut off") from error


def examples(items: Sequence[Any]) -> str:
    """The first few of many, for messages.

    Args:
      items: anything.

    Returns:
      A text.

    Example:
      >>> examples(["a", "b", "c", "d", "e"])
      "'a', 'b', 'c' and 2 more"

    Reference:
      Our own choice.
    """
    shown = ", ".join(repr(item) for item in items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


def _nearest(path: Path) -> str:
    """What the nearest folder that does exist holds: where a mistaken path went wrong."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    held = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    return f"; {folder} holds {examples(held) if held else 'nothing'}"
