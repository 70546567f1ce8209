"""Splits: the published rules where none is given, and the way from items to a ``Dataset``."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gram_jax.data.dataset import SPLITS, Dataset
from gram_jax.data.readers.files import examples
from gram_jax.errors import InputError

T = TypeVar("T")

TRAIN_SHARE, VAL_SHARE = 0.5, 0.2  # of a class where nothing is split; the rest is test
HELD_OUT_SHARE = 0.2  # of a class's training images, where only val is missing
# What the splits of other people's data are called.
ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
DIVIDED = "each class divided 50/20/30 into train, val and test"


class Item(NamedTuple):
    """One labeled image."""

    reference: Any
    label: int


class Roles(NamedTuple):
    """What the splits that were found are used as, whether they are to be divided, and how a report says it."""

    of: dict[str, str]
    divided: bool
    said: str


def divide(classes: Mapping[Any, Sequence[T]], rng: random.Random, what: str) -> dict[str, list[T]]:
    """Divides every class into train, val and test, 50/20/30.

    Class after class, in the given order: its images are shuffled; the first round(n / 2) are train, the next
    round(n / 5) val, the rest test.

    Args:
      classes: the images of each class.
      rng: one generator for all classes.
      what: the dataset, for messages.

    Returns:
      The images of each split.

    Raises:
      InputError: where a class has so few images that a split of it would be empty: fewer than four.

    Example:
      >>> parts = divide({"cat": range(10), "dog": range(10, 20)}, random.Random(0), "toy")
      >>> [len(part) for part in parts.values()], sorted(sum(parts.values(), [])) == list(range(20))
      ([10, 4, 6], True)

    Reference:
      The public code of Zhou et al., "Learning to Prompt for Vision-Language Models" (2022), whose splits of
      Caltech101, DTD, EuroSAT, Flowers102 and Food101 were made so.
    """
    parts: dict[str, list[T]] = {split: [] for split in SPLITS}
    for name, items in classes.items():
        shuffled = list(items)
        rng.shuffle(shuffled)
        train, val = round(len(shuffled) * TRAIN_SHARE), round(len(shuffled) * VAL_SHARE)
        if not (train and val and len(shuffled) - train - val):
            raise InputError(
                f"{what}: class {name!r} has {len(shuffled)} images, too few to divide into train, val and test; give "
                "at least 4, or give the splits yourself"
            )
        parts["train"] += shuffled[:train]
        parts["val"] += shuffled[train : train + val]
        parts["test"] += shuffled[train + val :]
    return parts


def hold_out(classes: Mapping[Any, Sequence[T]], rng: random.Random, what: str) -> tuple[list[T], list[T]]:
    """Takes a fifth of every class's training images for val.

    Class after class, in the given order: its images are shuffled; the first round(n / 5) are val, the rest train.

    Args:
      classes: the training images of each class.
      rng: one generator for all classes.
      what: the dataset, for messages.

    Returns:
      The images of train, and those of val.

    Raises:
      InputError: where a class has so few images that val would be empty: fewer than three.

    Example:
      >>> [len(part) for part in hold_out({"cat": range(10), "dog": range(8)}, random.Random(0), "toy")]
      [14, 4]

    Reference:
      The same public code, whose splits of OxfordPets, StanfordCars, SUN397 and UCF101 were made so.
    """
    train: list[T] = []
    held: list[T] = []
    for name, items in classes.items():
        count = round(len(items) * HELD_OUT_SHARE)
        if not count:
            raise InputError(
                f"{what}: class {name!r} has {len(items)} training images, too few to take a fifth of them for val"
            )
        shuffled = list(items)
        rng.shuffle(shuffled)
        held += shuffled[:count]
        train += shuffled[count:]
    return train, held


def group(items: Sequence[Item]) -> dict[int, list[Item]]:
    """Items by label, in the order in which labels first appear.

    Args:
      items: labeled images.

    Returns:
      The items of each label.

    Example:
      >>> list(group([Item("a.jpg", 3), Item("b.jpg", 0), Item("c.jpg", 3)]))
      [3, 0]

    Reference:
      Our own choice.
    """
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(item.label, []).append(item)
    return found


def assign_roles(found: Collection[str], what: str) -> Roles:
    """What splits of any usual name are used as.

    "train", "val" (or "valid", "validation") and "test" are what they say. Where there is no test split, validation
    serves as one, as in ImageNet, and there is no val. Where there is only a training split, it is to be divided.

    Args:
      found: the names of the splits that there are, keys of ``ROLES``.
      what: the dataset, for messages.

    Returns:
      Roles by name.

    Raises:
      InputError: for two names of one role.

    Example:
      >>> assign_roles(["train", "validation"], "toy").of
      {'train': 'train', 'validation': 'test'}

    Reference:
      Our own choice.
    """
    of = {name: ROLES[name] for name in found}
    if len(set(of.values())) < len(of):
        raise InputError(f"{what} has the splits {', '.join(sorted(of))}, of which two mean the same; remove one")
    if set(of.values()) == {"train"}:
        return Roles(of, True, DIVIDED)
    if "test" not in of.values():
        serving = next(name for name, role in of.items() if role == "val")
        return Roles(of | {serving: "test"}, False, f"as given; {serving} serves as test, so there is no val split")
    return Roles(of, False, "as given")


def build(
    name: str,
    items: Mapping[str, Sequence[Item]],
    class_names: Sequence[str],
    template: str,
    read: Callable[[Any], Any],
    about: Mapping[str, Any],
    domain: str = "",
) -> Dataset:
    """A dataset of labeled items: train first, then val, then test, each in its given order.

    Args:
      name: its name.
      items: the images of each split.
      class_names: in label order; underscores become spaces.
      template: a text with one "{}".
      read: turns a reference into an image.
      about: what a report says of it; what is odd about the classes is added to its "notes".
      domain: the visual domain.

    Returns:
      A ``Dataset``.

    Raises:
      InputError: for a name or template that is no Unicode text, as "\\ud800" in JSON makes it.

    Example:
      >>> build("toy", {"test": [Item("a.jpg", 0)]}, ["big_cat"], "{}", str, {}).class_names
      ('big cat',)

    Reference:
      Our own choice.
    """
    readable = tuple(" ".join(each.replace("_", " ").split()) for each in class_names)
    for text in (*readable, template):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{name}: {text!r} is no text, it holds half of a Unicode pair; correct the file")
    flat = [(item, split) for split in SPLITS for item in items.get(split, ())]
    trained = {item.label for item in items.get("train", ())}
    notes = list(about.get("notes", ()))
    if doubled := sorted(each for each, count in Counter(readable).items() if count > 1):
        notes.append(f"names that more than one class has: {examples(doubled)}")
    if trained and (untrained := [each for label, each in enumerate(readable) if label not in trained]):
        notes.append(f"classes without a training image: {examples(untrained)}")
    return Dataset(
        name=name,
        references=tuple(item.reference for item, _ in flat),
        labels=np.array([item.label for item, _ in flat], np.int32),
        splits=np.array([split for _, split in flat]),
        class_names=readable,
        template=template,
        read=read,
        domain=domain,
        about={**about, "notes": notes},
    )
