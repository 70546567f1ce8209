"""Where the members of an uncompressed zip archive lie, for reading them in place through a memory map.

`zipfile` would read the whole directory before it can be judged; here its size is checked first.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from gram_jax.errors import InputError

MAX_MEMBERS = 100_000
_END, _END_64, _LOCATOR, _ENTRY, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_COMMENT = 1 << 16  # most bytes behind the end record
_FULL = 0xFFFFFFFF  # the value is in the zip64 extra field


class Member(NamedTuple):
    """A member: the position of its header, its size in bytes, and whether it is stored as it is."""

    header: int
    size: int
    stored: bool


def members(file: mmap.mmap) -> dict[str, Member]:
    """Returns the members of a zip archive by name.

    Raises:
      InputError: the archive is cut or damaged, has too many members, or two of one name.
    """
    position, count = _directory(file)
    if count > MAX_MEMBERS:
        raise InputError(f"the zip archive has {count} members, the limit is {MAX_MEMBERS}")
    found: dict[str, Member] = {}
    for _ in range(count):
        head = file[position : position + 46]
        if len(head) < 46 or head[:4] != _ENTRY:
            raise InputError("the directory of the zip archive is damaged; copy the file again")
        flags, method = struct.unpack_from("<HH", head, 8)
        packed, size, name_size, extra_size, comment_size = struct.unpack_from("<IIHHH", head, 20)
        (header,) = struct.unpack_from("<I", head, 42)
        name_end = position + 46 + name_size
        name = file[position + 46 : name_end].decode("utf-8", "replace")
        position = name_end + extra_size + comment_size
        extra = file[name_end : name_end + extra_size]
        size, packed, header = _zip64([size, packed, header], extra)
        if name in found:
            raise InputError(f"the zip archive has two members {name[:200]!r}; do not trust it")
        found[name] = Member(header, size, method == 0 and not flags & 1 and packed == size)
    return found


def start_of(file: mmap.mmap, name: str, member: Member) -> int:
    """Returns the position of a member's content; raises InputError if it is compressed or exceeds the file."""
    if not member.stored:
        raise InputError(f"{name[:200]!r} is compressed in the zip archive; write the file again with torch.save")
    head = file[member.header : member.header + 30]
    if len(head) < 30 or head[:4] != _LOCAL:
        raise InputError(f"the zip archive is damaged at {name[:200]!r}; copy the file again")
    start = member.header + 30 + sum(struct.unpack_from("<HH", head, 26))
    if start + member.size > len(file):
        raise InputError(f"{name[:200]!r} has {member.size} bytes, more than the file holds; copy the file again")
    return start


def _directory(file: mmap.mmap) -> tuple[int, int]:
    """Returns the position of the directory and its number of entries."""
    end = file.rfind(_END, max(0, len(file) - _COMMENT - 22))
    if end < 0 or end + 22 > len(file):
        raise InputError("the zip archive has no end, so the file is incomplete; copy it again")
    (count,) = struct.unpack_from("<H", file, end + 10)
    (position,) = struct.unpack_from("<I", file, end + 16)
    if file[max(0, end - 20) : end][:4] == _LOCATOR:
        (end_64,) = struct.unpack_from("<Q", file, end - 12)
        record = file[end_64 : end_64 + 56]
        if len(record) < 56 or record[:4] != _END_64:
            raise InputError("the zip archive has a damaged end; copy the file again")
        (count,) = struct.unpack_from("<Q", record, 32)
        (position,) = struct.unpack_from("<Q", record, 48)
    return position, count


def _zip64(values: list[int], extra: bytes) -> list[int]:
    """Returns the values with those that do not fit 32 bits replaced by the ones of the zip64 extra field."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            large = [index for index, value in enumerate(values) if value == _FULL]
            content = extra[position + 4 : position + 4 + size]
            if len(content) < 8 * len(large):
                raise InputError("the directory of the zip archive is damaged; copy the file again")
            for place, index in enumerate(large):
                (values[index],) = struct.unpack_from("<Q", content, 8 * place)
            break
        position += 4 + size
    return values
