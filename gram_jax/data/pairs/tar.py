"""The members of a tar archive, as a stream that is safe to read from untrusted files.

`tarfile` reads extended headers into memory whatever size they claim, and takes some damaged headers for the end of the
archive. Here it only parses single headers; every size is checked before anything is read, and nothing is extracted.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

MAX_EXTENDED = 1 << 20  # bytes of an extended header
MAX_HEADERS = 100  # extended headers of one member
MAX_GLOBAL = 1000  # entries of headers that apply to all following members
_BLOCK, _CHUNK = tarfile.BLOCKSIZE, 1 << 16
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00\x80": lzma.open,
}


class Member(NamedTuple):
    """A member of an archive: a regular file, a folder, or something else (a link, a device, a sparse file)."""

    name: str  # bytes that are not UTF-8 become surrogates
    size: int  # bytes
    is_file: bool
    is_folder: bool
    file: BinaryIO | _Counted

    def read(self) -> bytes:
        """Returns the content; it can be read once, before the next member."""
        return _exactly(self.file, self.size)


def open_archive(path: str) -> BinaryIO:
    """Opens an archive, plain or compressed (gzip, bzip2, xz), for reading."""
    with open(path, "rb") as file:
        begin = file.read(6)
    if begin.startswith(b"PK"):
        raise tarfile.ReadError("it is a zip archive: unpack it, and give folder:PATH")
    opener: Callable[..., Any] = next((each for magic, each in _OPENERS.items() if begin.startswith(magic)), open)
    return opener(path, "rb")


def members(file: BinaryIO) -> Iterator[Member]:
    """Yields the members of an archive in order; each must be read before the next one is requested.

    A damaged archive or a header above a limit raises tarfile.ReadError; decompressors raise EOFError, OSError,
    zlib.error or lzma.LZMAError.
    """
    common: dict[str, str] = {}
    first = True
    while (header := _next_header(file, common, first)) is not None:
        first = False
        info, entries = header
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in entries)
        size = _number(entries["size"]) if "size" in entries else info.size
        if size < 0:
            raise tarfile.ReadError(f"a member of {size} bytes")
        # Links, folders and devices have no content, whatever size they claim.
        stored = size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
        content = _Counted(file)
        yield Member(entries.get("path", info.name), size, info.isreg() and not sparse, info.isdir(), content)
        _skip(file, stored + -stored % _BLOCK - content.position)


class _Counted:
    """Counts the bytes that are read from a stream."""

    def __init__(self, file: BinaryIO):
        self._file, self.position = file, 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.position += len(content)
        return content


def _next_header(file: BinaryIO, common: dict[str, str], first: bool) -> tuple[tarfile.TarInfo, dict[str, str]] | None:
    """Returns the header of the next member and the entries of its extended headers, or None at the end."""
    entries: dict[str, str] = {}
    for number in range(MAX_HEADERS):
        block = file.read(_BLOCK)
        if not block.strip(b"\0") and len(block) in (0, _BLOCK):
            if number or (first and not block):
                raise tarfile.ReadError("the archive ends without a member")
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, ArithmeticError) as error:
            raise tarfile.ReadError(f"a header cannot be read: {error}") from error
        if info.type in _PAX:
            entries_of = common if info.type == tarfile.XGLTYPE else entries
            entries_of |= _pax_entries(_extended(file, info))
            if len(common) > MAX_GLOBAL:
                raise tarfile.ReadError(f"more than {MAX_GLOBAL} entries in headers for all members")
        elif info.type in _LONG:
            name = _extended(file, info).partition(b"\0")[0].decode("utf-8", "surrogateescape")
            if info.type == tarfile.GNUTYPE_LONGNAME:
                entries["path"] = name
        else:
            if info.type == tarfile.GNUTYPE_SPARSE:
                more = block[482]
                while more:  # blocks of the map; each tells whether another one follows
                    more = _exactly(file, _BLOCK)[504]
            return info, common | entries
    raise tarfile.ReadError(f"a member has more than {MAX_HEADERS} headers")


def _extended(file: BinaryIO, info: tarfile.TarInfo) -> bytes:
    if not 0 <= info.size <= MAX_EXTENDED:
        raise tarfile.ReadError(f"a header of {info.size} bytes, the limit is {MAX_EXTENDED}")
    return _exactly(file, info.size + -info.size % _BLOCK)[: info.size]


def _pax_entries(content: bytes) -> dict[str, str]:
    """Returns the entries of a pax header, a sequence of "LENGTH KEY=VALUE\\n"."""
    entries, position = {}, 0
    while position < len(content) and content[position]:
        digits = content[position : position + 20].partition(b" ")[0]
        end = position + _number(digits.decode("ascii", "replace"))
        key, separator, value = content[position + len(digits) + 1 : end - 1].partition(b"=")
        if not separator or end > len(content) or content[end - 1 : end] != b"\n":
            raise tarfile.ReadError("an extended header is invalid")
        entries[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        position = end
    return entries


def _number(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise tarfile.ReadError(f"a header holds {digits[:20]!r} for a number")
    return int(digits)


def _exactly(file: BinaryIO | _Counted, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _skip(file: BinaryIO, size: int) -> None:
    """Reads on in chunks: a claimed size may exceed the memory and the archive."""
    while size > 0:
        size -= len(_exactly(file, min(_CHUNK, size)))
