"""Image-text pairs as they lie on disk, read as a stream: encoded images, captions, and names for the log.

A specification is first divided into units (JSON values, a few thousand pairs each), which any process can read on its
own, in any order: that is what makes preparing a corpus parallel and resumable.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.errors import InputError

KINDS = ("csv", "tsv", "webdataset", "folder", "tfds", "glyphs")
CAPTION_KEYS = ("caption", "captions", "text", "title")  # where a caption stands unless it is said
MAX_TEXT_BYTES = 1 << 20  # of a .txt or .json beside an image

# Why an entry is no pair.
NO_IMAGE, NO_CAPTION, BROKEN_IMAGE = "no image", "no caption", "broken image"
REFUSED, DAMAGED = "refused", "damaged archive"
# What the entry of a list may do wrong. Other errors are the disk's, and end the reading: pairs are not lost to them.
_WRONG_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


class Pair(NamedTuple):
    """An image-text pair as it was found.

    Attributes:
      name: where it came from, for logs: "00003.tar/000030012.jpg".
      image: the encoded image, untouched.
      caption: the text, without white space around it.
    """

    name: str
    image: bytes
    caption: str


class Skipped(NamedTuple):
    """An entry that is no pair.

    Attributes:
      name: where it stands.
      reason: what it is counted as: "no image", "no caption", "broken image", "refused" (a member of an archive that
        nobody should trust, or that is too large), "damaged archive".
      detail: what was found.
    """

    name: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a specification is read.

    Attributes:
      image_column: the column of paths (csv, tsv) or the feature of images (tfds); "" finds it by its usual names.
      caption_column: the column (csv, tsv), feature (tfds) or JSON key (webdataset, folder) of captions; "" likewise.
      max_bytes: encoded images above this size are refused; bytes.
      unit_pairs: pairs of a unit, at most; an archive is one unit whatever its size.
      data_dir: the folder of TFDS datasets; "" for TFDS's own.
      pairs: how many pairs are drawn (glyphs).
      seed: the seed of what is drawn (glyphs).
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
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")


def plan_units(spec: str, reading: Reading | None = None) -> Iterator[dict[str, Any]]:
    """Divides a specification into units that `read_unit` reads.

    What is wrong with the whole (no such file, no such column, no archive of that name) is found here; memory does not
    grow with the number of pairs.

    Args:
      spec: one of

        * "csv:FILE", "tsv:FILE": a header, a column of paths (absolute, or relative to FILE), a column of captions.
          Fields of a csv may be quoted; a tab separated file has no quotes, as the format says.
        * "webdataset:FILES": tar archives of KEY.jpg (png, webp, ...) and KEY.txt or KEY.json, as img2dataset writes
          them; FILES may hold braces and wildcards: "/data/{00000..00331}.tar", "/data/*.tar".
        * "folder:PATH": images anywhere below PATH, each with a .txt or .json of the same stem.
        * "tfds:NAME[:VERSION][:SPLIT]" or "tfds:FOLDER[:SPLIT]": a TFDS dataset that was prepared as array_record.
        * "glyphs": the embedded world.

      reading: how; defaults as `Reading` states them.

    Returns:
      An iterator of JSON objects.

    Raises:
      InputError: the specification cannot be read; the message says what there is.
      FileNotFoundError: a file or folder is missing.

    Example:
      >>> [unit["count"] for unit in plan_units("glyphs", Reading(pairs=5, unit_pairs=2))]
      [2, 2, 1]

    Reference:
      The layout of archives is img2dataset's.
    """
    reading = reading or Reading()
    kind, separator, rest = spec.partition(":")
    if kind not in KINDS or bool(separator) != (kind != "glyphs") or (separator and not rest):
        raise InputError(
            f"the source of pairs {spec!r} is not known; give csv:FILE, tsv:FILE, webdataset:FILES, folder:PATH, "
            "tfds:NAME or glyphs"
        )
    return _module(kind).plan(kind, rest, reading)


def read_unit(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Reads the pairs of a unit, in order; what is no pair comes as `Skipped`.

    Args:
      unit: from `plan_units`, as it is or through JSON.

    Returns:
      An iterator of `Pair` and `Skipped`.

    Raises:
      InputError: a file was changed since it was planned.
      FileNotFoundError: the file of the unit is gone.

    Example:
      >>> (unit,) = plan_units("glyphs", Reading(pairs=2))
      >>> [pair.name for pair in read_unit(unit)]
      ['glyphs/0/0', 'glyphs/0/1']

    Reference:
      Our own choice.
    """
    return _module(unit["kind"]).read(unit)


def read_pairs(spec: str, reading: Reading | None = None) -> Iterator[Pair | Skipped]:
    """Reads all pairs of a specification, in order, in this process.

    Args:
      spec: see `plan_units`.
      reading: how; defaults as `Reading` states them.

    Returns:
      An iterator of `Pair` and `Skipped`.

    Raises:
      ValueError, FileNotFoundError: as `plan_units`.

    Example:
      >>> next(read_pairs("glyphs", Reading(pairs=2))).image[1:4]
      b'PNG'

    Reference:
      Our own choice.
    """
    for unit in plan_units(spec, reading):
        yield from read_unit(unit)


def _module(kind: str) -> Any:
    """The reader of a kind: a module with `plan(kind, rest, reading)` and `read(unit)`."""
    from gram_jax.data.pairs import archives as pair_archives
    from gram_jax.data.pairs import folder as pair_folders
    from gram_jax.data.pairs import records as pair_records
    from gram_jax.data.pairs import tables as pair_tables

    readers = {"webdataset": pair_archives, "folder": pair_folders, "csv": pair_tables, "tsv": pair_tables}
    return readers.get(kind, pair_records)


def make_pair(name: str, image: bytes | Skipped | None, caption: bytes | str | Skipped | None) -> Pair | Skipped:
    """A pair of what was found, or what is wrong with it."""
    for part in (image, caption):
        if isinstance(part, Skipped):
            return part
    if not image:
        return Skipped(name, NO_IMAGE, "there is none" if image is None else "its file is empty")
    if caption is None:
        return Skipped(name, NO_CAPTION, "there is none")
    try:
        text = caption.decode("utf-8-sig") if isinstance(caption, bytes) else caption
        text.encode()  # a text from undecodable bytes holds surrogates
    except UnicodeError as error:
        return Skipped(name, NO_CAPTION, f"it is no UTF-8 text ({error.reason} at {error.start})")
    text = text.strip()
    return Pair(name, image, text) if text else Skipped(name, NO_CAPTION, "it is empty")


def caption_from_json(name: str, content: bytes, key: str) -> str | Skipped:
    """The caption in a JSON object beside an image."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        return Skipped(name, NO_CAPTION, f"its .json cannot be read ({error})")
    keys = (key,) if key else CAPTION_KEYS
    texts = [found[each] for each in keys if isinstance(found.get(each), str)] if isinstance(found, dict) else []
    return texts[0] if texts else Skipped(name, NO_CAPTION, f"its .json holds no text as {' or '.join(keys)}")


def read_file(path: str, name: str, limit: int, reason: str) -> bytes | Skipped:
    """A file of at most so many bytes, or why not.

    Raises:
      OSError: the disk fails, whatever the path.
    """
    try:
        status = os.stat(path)
        # A pipe or a device could be read forever.
        if not os.path.isfile(path):
            return Skipped(name, reason, f"{path} is no file")
        if status.st_size > limit:
            return Skipped(name, REFUSED, f"{path} has {status.st_size} bytes, the limit is {limit}")
        with open(path, "rb") as file:
            content = file.read(status.st_size + 1)
        if len(content) > status.st_size:  # it grows, or is none of a disk's files
            return Skipped(name, REFUSED, f"{path} has more than the {status.st_size} bytes that it claims")
        return content
    except ValueError as error:  # a path with a null byte
        return Skipped(name, reason, f"{path!r}: {error}")
    except OSError as error:
        if error.errno not in _WRONG_PATH:
            raise
        return Skipped(name, reason, f"{path}: {error.strerror}")


def file_state(path: str) -> dict[str, Any]:
    """What tells that a file is still the one that was planned."""
    status = os.stat(path)
    return {"path": os.path.abspath(path), "bytes": status.st_size, "changed": status.st_mtime_ns}


def check_state(unit: dict[str, Any]) -> Path:
    """The file of a unit, if it is still the one that was planned."""
    path = unit["path"]
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} was there when the corpus was planned and is gone; put it back")
    if file_state(path) != {name: unit[name] for name in ("path", "bytes", "changed")}:
        raise InputError(f"{path} was changed since the corpus was planned; begin again in another work directory")
    return Path(path)
