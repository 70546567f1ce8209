"""Pairs in tar archives, as webdataset and img2dataset lay them out; nothing is ever extracted."""

from __future__ import annotations

import functools
import glob
import itertools
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from gram_jax.data.pairs.reading import (
    DAMAGED,
    MAX_TEXT_BYTES,
    REFUSED,
    Pair,
    Reading,
    Skipped,
    caption_from_json,
    check_state,
    file_state,
    make_pair,
)
from gram_jax.data.readers.files import SUFFIXES

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TEXTS = (".txt", ".json")
MAX_HEADER = 1 << 20  # bytes of a header that says more of the member behind it
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_CHUNK = 1 << 16
_MAX_GLOBAL = 1000  # entries of headers that hold for all members


def plan(kind: str, pattern: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """One unit for every archive, in the order of the pattern.

    Raises:
      FileNotFoundError: no archive fits the pattern, or one that it names is missing.
    """
    paths = []
    for name in expand_braces(os.path.expanduser(pattern)):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not found:
            raise FileNotFoundError(f"no archive fits {name!r}; check the path")
        paths.extend(found)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} archives are missing ({shown}); check the pattern")
    shared = {"kind": kind, "key": reading.caption_column, "max_bytes": reading.max_bytes}
    return ({**shared, **file_state(path)} for path in paths)


def expand_braces(pattern: str) -> list[str]:
    """What a shell makes of braces: "{00..02}" counts, "{a,b}" lists, several multiply.

    Args:
      pattern: a text.

    Returns:
      The texts, in order.

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
        # As in a shell, numbers have a common width if one of the ends has leading zeros.
        padded = any(len(end) > 1 and end.startswith("0") for end in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        return [str(number).zfill(width) for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else ["{" + inside + "}"]


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """The pairs of an archive; members of one sample stand together, as webdataset has it.

    Of an archive that is damaged, the pairs before the damage.
    """
    path = check_state(unit)
    key, sample, last, damage = None, {}, "its beginning", None
    try:
        for name, content in _members(str(path), path.name, unit["max_bytes"]):
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
        if getattr(error, "errno", None) is not None:  # the disk's error, not that of a decompressor
            raise
        damage = Skipped(path.name, DAMAGED, f"it cannot be read behind {last} ({error}); download it again")
    if sample:
        found = _pair(path.name, key, sample, unit["key"])
        if damage is None or isinstance(found, Pair):
            yield found
    if damage is not None:
        yield damage


def _pair(archive: str, key: str, sample: dict[str, Any], caption_key: str) -> Pair | Skipped:
    name, image = sample.get("image", (key, None))
    name = f"{archive}/{name}"
    caption = sample.get(".txt", sample.get(".json"))
    if ".txt" not in sample and isinstance(caption, bytes):
        caption = caption_from_json(name, caption, caption_key)
    return make_pair(name, image, caption)


def _split(name: str) -> tuple[str, str]:
    """The key of a sample, up to the first dot of the file's name, and the last suffix."""
    folder, _, base = name.rpartition("/")
    stem = base.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem, os.path.splitext(base)[1].lower()


class _Header(tarfile.TarInfo):
    """A header that does not pass for the end of the archive when it is damaged, and takes no more memory than it may.

    tarfile reads extended headers whole, whatever their size, and the maps of sparse members, which are refused anyway;
    and where it parses them, numbers that are none end in any error.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from error
        except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise tarfile.ReadError(f"a header cannot be read: {error!r}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise tarfile.ReadError(f"a member of {self.size} bytes")
        if self.type in _EXTENDED and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes, the limit is {MAX_HEADER}")
        if len(archive.pax_headers) > _MAX_GLOBAL:
            raise tarfile.ReadError(f"more than {_MAX_GLOBAL} entries in headers for all members")
        return super()._proc_member(archive)

    def _proc_sparse(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        more = self._sparse_structs[1]
        while more:  # blocks of the map, each of which says whether there is another
            more = bool(archive.fileobj.read(tarfile.BLOCKSIZE)[504])
        self.sparse, self.offset_data = [], archive.fileobj.tell()
        archive.offset = self.offset_data + self._block(self.size)
        return self

    def _proc_gnusparse_00(self, member: tarfile.TarInfo, *_: Any) -> None:
        member.sparse = []  # enough to be refused

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def _skip(stream: Any, position: int) -> int:
    """Reads on to a position; the stream's own way would go on behind the end for as long as a header claims."""
    if position < stream.tell():
        raise tarfile.StreamError("a member of a size that is no size")
    while stream.tell() < position and stream.read(min(_CHUNK, position - stream.tell())):
        pass
    return stream.tell()


def _members(path: str, shown: str, max_bytes: int) -> Iterator[tuple[str, bytes | Skipped]]:
    """The images and texts of an archive, read from its stream."""
    with tarfile.open(path, "r|*", tarinfo=_Header) as archive:
        archive.fileobj.seek = functools.partial(_skip, archive.fileobj)
        for member in archive:
            archive.members = []  # tarfile would keep every header
            suffix = os.path.splitext(member.name)[1].lower()
            if member.isdir() or os.path.basename(member.name).startswith("."):
                continue
            if suffix not in SUFFIXES and suffix not in _TEXTS:
                continue
            problem = _problem(member, max_bytes if suffix in SUFFIXES else MAX_TEXT_BYTES)
            if problem:
                yield member.name, Skipped(f"{shown}/{member.name}", REFUSED, problem)
            else:
                yield member.name, archive.extractfile(member).read()


def _problem(member: tarfile.TarInfo, limit: int) -> str:
    if not member.isreg() or member.issparse():
        return "a link or a special file"
    if member.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.name):
        return "its name leads out of the archive"
    if not 0 <= member.size <= limit:
        return f"{member.size} bytes, the limit is {limit}"
    return ""
