"""CoOp's datasets as they are published: split files, and the lists that come with FGVC-Aircraft."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.dataset import SPLITS
from gram_jax.data.readers.coop_layouts import Layout
from gram_jax.data.readers.files import read_json, read_lines
from gram_jax.data.splits import Item
from gram_jax.errors import InputError

_DIGITS = 9  # of a label, at most


class Found(NamedTuple):
    """What was read: items of each split with paths relative to the dataset's folder, names, and where from."""

    items: dict[str, list[Item]]
    class_names: list[str]
    source: str
    split: str
    notes: list[str]


def names_of_labels(pairs: Iterable[tuple[int, str]], what: str) -> list[str]:
    """The class names in label order, from the label and the name that every image comes with.

    Args:
      pairs: (label, name) of every image.
      what: the list they stand in, for messages.

    Returns:
      One name for each label from 0.

    Raises:
      InputError: where a label has two names, or a label below the largest has none.

    Example:
      >>> names_of_labels([(1, "dog"), (0, "cat"), (1, "dog")], "toy")
      ['cat', 'dog']

    Reference:
      Our own choice.
    """
    names: dict[int, str] = {}
    for label, name in pairs:
        if names.setdefault(label, name) != name:
            raise InputError(f"{what}: label {label} is called {names[label]!r} and {name!r}; get the file again")
    if len(names) <= max(names, default=0):
        # Looked for among as many labels as there are, and one: the largest may be any number.
        first = next(label for label in range(len(names) + 1) if label not in names)
        raise InputError(f"{what}: no image has the label {first}, which is left without a name")
    return [names[label] for label in range(len(names))]


def label_of(labels: Mapping[str, int], name: str, where: str) -> int:
    """The label of a class that a list names.

    Args:
      labels: labels by name.
      name: the name.
      where: the place in the list, for messages.

    Returns:
      The label.

    Raises:
      InputError: for a name without a label.
    """
    if name not in labels:
        raise InputError(f"{where}: {name!r} is none of the {len(labels)} classes, so it has no label")
    return labels[name]


def read_split_file(folder: Path, layout: Layout, what: str) -> Found:
    """A published split: train, val and test as lists of [path, label, class name].

    Args:
      folder: the dataset's folder.
      layout: where its images lie.
      what: the dataset, for messages.

    Returns:
      What was read; whether the images are there is not checked here.

    Raises:
      InputError: where the file is no such split.
    """
    path = folder / layout.split_file
    document = read_json(path, what)
    if not isinstance(document, dict) or not all(isinstance(document.get(split), list) for split in SPLITS):
        held = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{what}: {path} holds {held}; a split file holds the lists train, val and test")
    items: dict[str, list[Item]] = {}
    pairs = []
    for split in SPLITS:
        items[split] = []
        for number, entry in enumerate(document[split]):
            image, label, name = _entry(entry, f"{what}: {path}, {split} entry {number}")
            items[split].append(Item(f"{layout.base}/{image}" if layout.base else image, label))
            pairs.append((label, name))
    if not pairs:
        raise InputError(f"{what}: {path} lists no images; get it again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = f"{path.name}, SHA-256 {digest}"
    return Found(items, names_of_labels(pairs, f"{what}: {path}"), source, "as published, from the split file", [])


def _entry(entry: Any, where: str) -> tuple[str, int, str]:
    """One checked line of a split file."""
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[2], str)):
        raise InputError(f"{where} is {entry!r}; expected [path, label, class name]")
    image, label, name = entry
    if isinstance(label, bool) or not str(label).isdecimal() or len(str(label)) > _DIGITS:
        raise InputError(f"{where} has the label {str(label)[:40]!r}; expected a number from 0")
    if image.startswith("/") or ".." in image.split("/"):
        raise InputError(f"{where} has the path {image!r}, which leads out of the dataset's folder")
    if not name.strip():
        raise InputError(f"{where}: the label {label} has no class name")
    return image, int(label), name


def aircraft(folder: Path, what: str) -> Found:
    """FGVC-Aircraft, from its own lists of variants.

    Args:
      folder: the dataset's folder.
      what: the dataset, for messages.

    Returns:
      What was read.

    Raises:
      InputError: where a list is missing or names a variant that variants.txt does not.
    """
    names = [name for _, name in read_lines(folder / "variants.txt", what)]
    labels = {name: label for label, name in enumerate(names)}
    items = {}
    for split in SPLITS:
        path = folder / f"images_variant_{split}.txt"
        items[split] = []
        for number, line in read_lines(path, what):
            image, _, name = line.partition(" ")
            items[split].append(Item(f"images/{image}.jpg", label_of(labels, name, f"{what}: {path}, line {number}")))
    return Found(items, names, "images_variant_*.txt", "as published, from the dataset's own lists", [])
