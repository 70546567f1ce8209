"""Types and checks that all readers of image-text pairs share."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.spellings import COLUMNS, column_key, find_column, missing_column
from gram_jax.errors import InputError, require_int

CAPTION_KEYS = COLUMNS["caption"]  # default names of captions
MAX_TEXT_BYTES = 1 << 20  # of a .txt or .json beside an image

# Reasons why an entry is skipped.
NO_IMAGE, NO_CAPTION, BROKEN_IMAGE = "no image", "no caption", "broken image"
REFUSED, DAMAGED = "refused", "damaged archive"
MALFORMED, REPEATED, AMBIGUOUS = "malformed row", "repeated", "several images"
UNUSED = "not used"  # what belongs to no pair: counted, but no failure
# Errors caused by a path in a list. Any other OSError is a disk error, which ends the reading: no pair may be lost.
_PATH_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


class Pair(NamedTuple):
    """An image-text pair as it is stored."""

    name: str  # its origin, for logs: "00003.tar/000030012.jpg"
    image: bytes  # encoded, unchanged
    caption: str  # without surrounding white space


class Skipped(NamedTuple):
    """An entry that is not a pair: its origin, the category in which it is counted, and the problem.

    The categories are "no image", "no caption", "broken image", "refused" (unsafe or too large), "damaged archive",
    "malformed row", "repeated" (a name of an archive that occurs again) and "several images" (of one sample). "not
    used" is no failure: the entry belongs to no pair, and `detail` tells why.
    """

    name: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings of the readers.

    Attributes:
      image_column: the column of paths (csv, tsv) or the feature of images (tfds); "" uses common names.
      caption_column: the column (csv, tsv), feature (tfds) or JSON key (webdataset, folder) of captions; "" uses common
        names.
      max_bytes: the size limit of an encoded image; larger ones are refused.
      unit_pairs: the most pairs in a unit; an archive is one unit whatever its size.
      data_dir: the folder of TFDS datasets; "" for TFDS's default.
      pairs, seed: the number of pairs to draw, and their seed (glyphs).
    """

    image_column: str = ""
    caption_column: str = ""
    max_bytes: int = 64 << 20
    unit_pairs: int = 2000
    data_dir: str = ""
    pairs: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "unit_pairs", "pairs"):
            require_int(name, getattr(self, name))


def choose_columns(where: str, names: Sequence[str], reading: Reading, images: Sequence[str]) -> list[str]:
    """Returns the names of the image column and the caption column: the given ones, or the first usual ones.

    Args:
      where: the table, for messages.
      names: all columns.
      reading: settings.
      images: the columns that may hold images.
    """
    columns = []
    for kind, suitable in (("image", images), ("caption", names)):
        given = getattr(reading, f"{kind}_column")
        place = find_column(suitable, kind, given)
        if place is None and not given and kind == "image" and len(images) == 1:
            place = 0
        if place is None:
            if given:
                shown = ", ".join(map(repr, names))
                raise InputError(f"{where} has the columns {shown}, not {given!r}; name one with {kind}_column")
            raise missing_column(where, names, kind, f"{kind}_column")
        columns.append(suitable[place])
    return columns


def make_pair(name: str, image: bytes | Skipped | None, caption: bytes | str | Skipped | None) -> Pair | Skipped:
    """Returns the pair of an image and a caption, or the reason why it is none."""
    if isinstance(image, Skipped):
        return image
    if isinstance(caption, Skipped):
        return caption
    if not image:
        return Skipped(name, NO_IMAGE, "there is no image" if image is None else "its file is empty")
    if caption is None:
        return Skipped(name, NO_CAPTION, "there is no caption")
    try:
        text = caption.decode("utf-8-sig") if isinstance(caption, bytes) else caption
        text.encode()  # text decoded from invalid bytes holds surrogates
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        return Skipped(name, NO_CAPTION, f"it is not UTF-8 text ({error.reason} at {error.start})")
    text = text.strip()
    return Pair(name, image, text) if text else Skipped(name, NO_CAPTION, "it is empty")


def caption_from_json(name: str, content: bytes, key: str) -> str | Skipped:
    """Returns the caption in a JSON object beside an image."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        return Skipped(name, NO_CAPTION, f"its .json cannot be read ({error})")
    keys = (key,) if key else CAPTION_KEYS
    found = {column_key(str(each)): value for each, value in document.items()} if isinstance(document, dict) else {}
    for each in keys:
        if isinstance(found.get(column_key(each)), str):
            return found[column_key(each)]
    return Skipped(name, NO_CAPTION, f"its .json holds no text under {' or '.join(keys)}")


def read_file(path: str, name: str, limit: int, reason: str) -> bytes | Skipped:
    """Returns the content of a file of at most `limit` bytes, or why it is skipped; a failing disk is an OSError."""
    try:
        size = os.stat(path).st_size
        if not os.path.isfile(path):  # a pipe or a device may never end
            return Skipped(name, reason, f"{path} is not a file")
        if size > limit:
            return Skipped(name, REFUSED, f"{path} has {size} bytes, the limit is {limit}")
        with open(path, "rb") as file:
            content = file.read(size + 1)
        if len(content) > size:  # the file grows, or its file system reports no sizes
            return Skipped(name, REFUSED, f"{path} has more than the reported {size} bytes")
        return content
    except ValueError as error:  # a path with a null byte
        return Skipped(name, reason, f"{path!r}: {error}")
    except OSError as error:
        if error.errno not in _PATH_ERRORS:
            raise
        return Skipped(name, reason, f"{path}: {error.strerror}")


def file_state(path: str) -> dict[str, Any]:
    """Returns the values that identify a version of a file."""
    status = os.stat(path)
    return {"path": os.path.abspath(path), "bytes": status.st_size, "changed": status.st_mtime_ns}


def check_state(unit: dict[str, Any]) -> Path:
    """Returns the file of a unit; raises an error if it has changed since it was planned."""
    path = unit["path"]
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} existed when the corpus was planned and is now missing; restore it")
    if file_state(path) != {name: unit[name] for name in ("path", "bytes", "changed")}:
        raise InputError(f"{path} has changed since the corpus was planned; use another --workdir")
    return Path(path)
