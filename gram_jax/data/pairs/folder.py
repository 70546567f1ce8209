"""Pairs in a folder: images, each with a .txt or .json of the same stem."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gram_jax.data.content import content_of_all
from gram_jax.data.pairs import base
from gram_jax.data.pairs.base import Pair, Reading, Skipped
from gram_jax.data.readers.files import NO_IMAGES, SUFFIXES, Found, absent, walk
from gram_jax.errors import InputError

_TEXTS = (".txt", ".json")


def plan(source: str, root: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields one unit per `reading.unit_pairs` images, in the order of sorted names."""
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        raise FileNotFoundError(absent(Path(root), "folder"))
    shared = {"kind": source, "root": root, "key": reading.caption_column, "max_bytes": reading.max_bytes}
    names: list[str] = []
    unused: list[list[str]] = []
    images = False
    for found in _without_captions(walk(Path(root))):
        images = images or not found.reason
        if found.reason:
            unused.append([found.path, found.reason])
        else:
            names.append(found.path)
        if max(len(names), len(unused)) == reading.unit_pairs:
            yield {**shared, **_unit(root, names), "unused": unused}
            names, unused = [], []
    if not images:
        others = f"; it holds {unused[0][1]}, such as {unused[0][0]}" if unused else ""
        raise InputError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}){others}; check the path")
    if names or unused:
        yield {**shared, **_unit(root, names), "unused": unused}


def _unit(root: str, names: list[str]) -> dict[str, Any]:
    beside = [os.path.splitext(name)[0] + suffix for name in names for suffix in _TEXTS]  # with captions, or missing
    upper = [os.path.splitext(name)[0] + suffix.upper() for name in names for suffix in _TEXTS]
    beside += [name for name in upper if os.path.exists(os.path.join(root, name))]
    return {"names": names, "content": content_of_all(root, [*names, *beside]), "count": len(names)}


def _without_captions(entries: Iterator[Found]) -> Iterator[Found]:
    """Leaves out the .txt and .json files beside images of the same stem."""
    for _, group in itertools.groupby(entries, key=lambda each: os.path.dirname(each.path)):
        inside = list(group)
        stems = {os.path.splitext(each.path)[0] for each in inside if not each.reason}
        for each in inside:
            stem, suffix = os.path.splitext(each.path)
            if not (each.reason == NO_IMAGES and suffix.lower() in _TEXTS and stem in stems):
                yield each


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Yields the pairs of a list of image files, and what was found beside them."""
    for name in unit["names"]:
        path = os.path.join(unit["root"], name)
        image = base.read_file(path, name, unit["max_bytes"], base.NO_IMAGE)
        yield base.make_pair(name, image, _caption(os.path.splitext(path)[0], name, unit["key"]))
    for name, reason in unit.get("unused", ()):
        yield Skipped(name, base.UNUSED, reason)


def _caption(stem: str, name: str, key: str) -> bytes | str | Skipped | None:
    paths = (stem + form for suffix in _TEXTS for form in (suffix, suffix.upper()))
    path = next(filter(os.path.exists, paths), "")
    if not path:
        return None
    content = base.read_file(path, name, base.MAX_TEXT_BYTES, base.NO_CAPTION)
    if isinstance(content, Skipped) or path.lower().endswith(".txt"):
        return content
    return base.caption_from_json(name, content, key)
