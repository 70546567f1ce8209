"""Pairs in a folder: images, each with a .txt or .json of the same stem."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

from gram_jax.data.pairs import base
from gram_jax.data.pairs.base import Pair, Reading, Skipped
from gram_jax.data.readers.files import SUFFIXES
from gram_jax.errors import InputError


def plan(source: str, root: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields one unit per `reading.unit_pairs` images, in the order of sorted names."""
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root!r}; check the path")
    shared = {"kind": source, "root": root, "key": reading.caption_column, "max_bytes": reading.max_bytes}
    images = _images(root, "")
    names = list(itertools.islice(images, reading.unit_pairs))
    if not names:
        raise InputError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}); check the path")
    while names:
        yield {**shared, "names": names, "count": len(names)}
        names = list(itertools.islice(images, reading.unit_pairs))


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Yields the pairs of a list of image files."""
    for name in unit["names"]:
        path = os.path.join(unit["root"], name)
        image = base.read_file(path, name, unit["max_bytes"], base.NO_IMAGE)
        yield base.make_pair(name, image, _caption(os.path.splitext(path)[0], name, unit["key"]))


def _caption(stem: str, name: str, key: str) -> bytes | str | Skipped | None:
    if os.path.exists(f"{stem}.txt"):
        return base.read_file(f"{stem}.txt", name, base.MAX_TEXT_BYTES, base.NO_CAPTION)
    if not os.path.exists(f"{stem}.json"):
        return None
    content = base.read_file(f"{stem}.json", name, base.MAX_TEXT_BYTES, base.NO_CAPTION)
    return content if isinstance(content, Skipped) else base.caption_from_json(name, content, key)


def _images(root: str, below: str) -> Iterator[str]:
    """Yields image files by name, those of a folder before those of its subfolders; links to folders are skipped."""
    with os.scandir(os.path.join(root, below)) as listing:
        entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing)
    for name, is_folder in entries:
        if not is_folder and not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
            yield os.path.join(below, name)
    for name, is_folder in entries:
        if is_folder and not name.startswith("."):
            yield from _images(root, os.path.join(below, name))
