"""Pairs in tar archives in the layout of webdataset and img2dataset; nothing is extracted."""

from __future__ import annotations

import glob
import itertools
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from gram_jax.data.pairs import base
from gram_jax.data.pairs.base import Pair, Reading, Skipped
from gram_jax.data.pairs.tar import Member, members, open_archive
from gram_jax.data.readers.files import SUFFIXES
from gram_jax.errors import examples

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TEXTS = (".txt", ".json")


def plan(source: str, pattern: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields one unit per archive, in the order of the pattern."""
    paths = []
    for name in expand_braces(os.path.expanduser(pattern)):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches:
            raise FileNotFoundError(f"no archive matches {name!r}; check the path")
        paths.extend(matches)
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} archives are missing: {examples(missing)}")
    shared = {"kind": source, "key": reading.caption_column, "max_bytes": reading.max_bytes}
    yield from ({**shared, **base.file_state(path)} for path in paths)


def expand_braces(pattern: str) -> list[str]:
    """Returns the texts to which a shell expands braces: "{00..02}" counts, "{a,b}" lists, several multiply.

    Example:
      >>> expand_braces("{train,val}/{008..010}.tar")[2:4]
      ['train/010.tar', 'val/008.tar']
    """
    pieces = _BRACES.split(pattern)
    choices = [[piece] if even % 2 == 0 else _choices(piece) for even, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = (int(end) for end in match.groups())
        step = 1 if first <= last else -1
        # As in a shell, numbers have the same width if an end has leading zeros.
        padded = any(len(end) > 1 and end.startswith("0") for end in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        return [str(number).zfill(width) for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else ["{" + inside + "}"]


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Yields the pairs of an archive; the members of a sample are adjacent, as in webdataset.

    A damaged archive gives the pairs before the damage.
    """
    path = base.check_state(unit)
    key, last, damage = "", "its begin", None
    sample: dict[str, Any] = {}
    try:
        for name, content in _contents(str(path), path.name, unit["max_bytes"]):
            last, (stem, suffix) = name, _split(name)
            if stem != key:
                if sample:
                    yield _pair(path.name, key, sample, unit["key"])
                key, sample = stem, {}
            if suffix in SUFFIXES:
                sample.setdefault("image", (name, content))
            else:
                sample[suffix] = content
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is not None:  # an error of the disk, not of a decompressor
            raise
        damage = Skipped(path.name, base.DAMAGED, f"it cannot be read after {last} ({error}); download it again")
    if sample:
        pair = _pair(path.name, key, sample, unit["key"])
        if damage is None or isinstance(pair, Pair):
            yield pair
    if damage is not None:
        yield damage


def _pair(archive: str, key: str, sample: dict[str, Any], caption_key: str) -> Pair | Skipped:
    name, image = sample.get("image", (key, None))
    name = f"{archive}/{name}"
    caption = sample.get(".txt", sample.get(".json"))
    if ".txt" not in sample and isinstance(caption, bytes):
        caption = base.caption_from_json(name, caption, caption_key)
    return base.make_pair(name, image, caption)


def _split(name: str) -> tuple[str, str]:
    """Returns the key of a sample (the path up to the first dot of the file name) and the last suffix."""
    folder, _, file = name.rpartition("/")
    stem = file.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem, os.path.splitext(file)[1].lower()


def _contents(path: str, archive: str, max_bytes: int) -> Iterator[tuple[str, bytes | Skipped]]:
    """Yields the names and contents of the images and texts of an archive."""
    with open_archive(path) as file:
        for member in members(file):
            suffix = os.path.splitext(member.name)[1].lower()
            hidden = os.path.basename(member.name).startswith(".")
            if member.is_folder or hidden or (suffix not in SUFFIXES and suffix not in _TEXTS):
                continue
            problem = _problem(member, max_bytes if suffix in SUFFIXES else base.MAX_TEXT_BYTES)
            skipped = Skipped(f"{archive}/{member.name}", base.REFUSED, problem)
            yield member.name, skipped if problem else member.read()


def _problem(member: Member, limit: int) -> str:
    if not member.is_file:
        return "a link or a special file"
    if member.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.name):
        return "its name leads out of the archive"
    return f"{member.size} bytes, the limit is {limit}" if member.size > limit else ""
