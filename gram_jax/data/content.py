"""What identifies the content of an image file, wherever it is stored."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_HASHED = 100_000  # up to this number of images, their content is part of a dataset's identity
_BLOCK = 4096  # bytes of each of the three blocks that are hashed


class Files(NamedTuple):
    """How the images of a dataset are read, and what identifies the content of each; see `Dataset`."""

    read: Callable[[Any], Any]
    content: Callable[[Any], str] | None = None


def content_of(root: str, many: bool, path: str) -> str:
    """Returns what identifies the content of a file, wherever it is stored.

    The content is its size and a hash of three blocks: begin, middle and end. Of `many` files it is size and time.
    """
    name = os.path.join(root, path)
    try:
        status = os.stat(name)
        return _content(name, status.st_size, status.st_mtime_ns, many)
    except OSError as error:
        return f"error {error.errno}"


@functools.lru_cache(maxsize=2 * _HASHED)
def _content(name: str, size: int, changed: int, many: bool) -> str:
    if many:
        return f"{size} {changed}"
    digest = hashlib.blake2b(str(size).encode(), digest_size=12)
    if os.path.isfile(name):
        with open(name, "rb", buffering=0) as file:
            for start in dict.fromkeys((0, max(0, (size - _BLOCK) // 2), max(0, size - _BLOCK))):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def files_below(root: Path, number: int) -> Files:
    """Returns how `number` image files below a folder are read, by their relative paths."""
    many = number > _HASHED
    return Files(functools.partial(os.path.join, str(root)), functools.partial(content_of, str(root), many))
