"""What identifies the content of an image file, wherever it is stored."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
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
        if many:
            return f"{status.st_size} {status.st_mtime_ns}"
        return _digest(name, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    except OSError as error:
        return f"error {error.errno}"


@functools.lru_cache(maxsize=2 * _HASHED)
def _digest(name: str, size: int, *version: int) -> str:
    """Returns a hash of a file's size and of three blocks; `version` tells whether it was hashed before."""
    del version
    digest = hashlib.blake2b(str(size).encode(), digest_size=12)
    if os.path.isfile(name):
        with open(name, "rb", buffering=0) as file:
            for start in dict.fromkeys((0, max(0, (size - _BLOCK) // 2), max(0, size - _BLOCK))):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def content_of_all(root: str, paths: Iterable[str]) -> str:
    """Returns a hash of the sizes and times of files below a folder: it changes if one of them is replaced."""
    return hashlib.sha256("\n".join(content_of(root, True, path) for path in paths).encode()).hexdigest()


def files_below(root: Path, number: int) -> Files:
    """Returns how `number` image files below a folder are read, by their relative paths."""
    many = number > _HASHED
    return Files(functools.partial(os.path.join, str(root)), functools.partial(content_of, str(root), many))
