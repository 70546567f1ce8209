"""Splits: the published rules for datasets without splits, and the construction of a `Dataset` from items."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gram_jax.data.account import Account
from gram_jax.data.content import Files
from gram_jax.data.dataset import SPLITS, Dataset
from gram_jax.data.spellings import odd_names, require_distinct, require_names, role_of
from gram_jax.errors import InputError, examples

T = TypeVar("T")

TRAIN_SHARE, VAL_SHARE = 0.5, 0.2  # of each class, if no split is given; the rest is test
HELD_OUT_SHARE = 0.2  # of each class's training images, if only val is missing
DIVIDED = "each class divided 50/20/30 into train, val and test"


class Item(NamedTuple):
    """One labeled image."""

    reference: Any
    label: int


class Roles(NamedTuple):
    """The role of each given split, whether only training images are given (and divided), and a phrase for reports."""

    of: dict[str, str]
    divided: bool
    remark: str


def divide(classes: Mapping[Any, Sequence[T]], rng: random.Random, what: str) -> dict[str, list[T]]:
    """Divides every class into train, val and test, 50/20/30.

    Class after class, in the given order: shuffles its images; the first round(n / 2) are train, the next round(n / 5)
    val, the rest test. Raises InputError if a class has fewer than four images.

    Example:
      >>> parts = divide({"cat": range(10), "dog": range(10, 20)}, random.Random(0), "toy")
      >>> [len(part) for part in parts.values()], sorted(sum(parts.values(), [])) == list(range(20))
      ([10, 4, 6], True)

    Reference:
      The public code of Zhou et al., "Learning to Prompt for Vision-Language Models" (2022): its splits of Caltech101,
      DTD, EuroSAT, Flowers102 and Food101.
    """
    parts: dict[str, list[T]] = {split: [] for split in SPLITS}
    for name, items in classes.items():
        shuffled = list(items)
        rng.shuffle(shuffled)
        train, val = round(len(shuffled) * TRAIN_SHARE), round(len(shuffled) * VAL_SHARE)
        if not (train and val and len(shuffled) - train - val):
            raise InputError(
                f"{what}: class {name!r} has {len(shuffled)} images, too few to divide into train, val and test; give "
                "at least 4, or give the splits"
            )
        parts["train"] += shuffled[:train]
        parts["val"] += shuffled[train : train + val]
        parts["test"] += shuffled[train + val :]
    return parts


def hold_out(classes: Mapping[Any, Sequence[T]], rng: random.Random, what: str) -> tuple[list[T], list[T]]:
    """Moves a fifth of every class's training images to val; returns train and val.

    Class after class, in the given order: shuffles its images; the first round(n / 5) are val, the rest train. Raises
    InputError if a class has fewer than three images.

    Reference:
      The same public code: its splits of OxfordPets, StanfordCars, SUN397 and UCF101.
    """
    train: list[T] = []
    held: list[T] = []
    for name, items in classes.items():
        count = round(len(items) * HELD_OUT_SHARE)
        if not count:
            raise InputError(f"{what}: class {name!r} has {len(items)} training images; val needs at least 3 of them")
        shuffled = list(items)
        rng.shuffle(shuffled)
        held += shuffled[:count]
        train += shuffled[count:]
    return train, held


def group(items: Sequence[Item]) -> dict[int, list[Item]]:
    """Groups items by label, in the order in which labels first appear."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def assign_roles(given: Collection[str], what: str) -> Roles:
    """Assigns given splits, spelled as ``spellings.role_of`` understands, to train, val and test.

    Without a test split, validation serves as test, as in ImageNet, and there is no val. A training split alone is to
    be divided.

    Example:
      >>> assign_roles(["train", "validation"], "toy").of
      {'train': 'train', 'validation': 'test'}
    """
    of = {name: role for name in given if (role := role_of(name))}
    if len(set(of.values())) < len(of):
        raise InputError(f"{what} has the splits {', '.join(sorted(of))}, two of which mean the same; remove one")
    if set(of.values()) == {"train"}:
        return Roles(of, True, DIVIDED)
    if "test" not in of.values():
        serving = next(name for name, role in of.items() if role == "val")
        return Roles(of | {serving: "test"}, False, f"as given; {serving} serves as test, so there is no val split")
    return Roles(of, False, "as given")


def arrange(
    given: Mapping[str, Sequence[Item]], class_names: Sequence[str], seed: int, what: str
) -> tuple[dict[str, list[Item]], str]:
    """Turns given splits into train, val and test; divides them if only training images are given.

    The names of given splits are those that `assign_roles` understands. Returns the items of each split, and a phrase
    for reports, which begins with "made" if the images were divided.
    """
    roles = assign_roles(list(given), what)
    if not roles.divided:
        return {roles.of[split]: list(items) for split, items in given.items()}, roles.remark
    (pile,) = given.values()
    counts = Counter(class_names)
    classes = {
        class_names[label] if counts[class_names[label]] == 1 else f"{class_names[label]}, label {label}": items
        for label, items in sorted(group(pile).items())
    }
    parts = divide(classes, random.Random(seed), what)
    return parts, f"made, because none is given: {roles.remark}; seed {seed}"


def build(
    name: str,
    items: Mapping[str, Sequence[Item]],
    class_names: Sequence[str],
    template: str,
    files: Files,
    about: Mapping[str, Any],
    *,
    domain: str = "",
    published: bool = False,
) -> Dataset:
    """Builds a dataset of labeled items: train first, then val, then test, each in its given order.

    Underscores in class names become spaces. Anything unusual about the classes is added to the "notes" of `about`, the
    number of images to its "account". Names that a clip cannot tell apart, and WordNet ids, raise InputError, unless
    the names are `published` ones, which are used as they are.
    """
    readable = tuple(" ".join(each.replace("_", " ").split()) for each in class_names)
    for text in (*readable, template):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(
                f"{name}: {text!r} is no UTF-8 text (it contains half of a Unicode surrogate pair); rename it"
            )
    if not published:
        require_names(readable, name)
        require_distinct(readable, name)
    flat = [(item, split) for split in SPLITS for item in items.get(split, ())]
    account = Account({"images": len(flat)})
    account.add(about.get("account", Account()))
    notes = [*about.get("notes", ()), *_oddities(readable, items.get("train", ()))]
    return Dataset(
        name=name,
        references=tuple(item.reference for item, _ in flat),
        labels=np.array([item.label for item, _ in flat], np.int32),
        splits=np.array([split for _, split in flat]),
        class_names=readable,
        template=template,
        read=files.read,
        domain=domain,
        about={**about, "notes": notes, "account": account.to_json()},
        content=files.content,
    )


def _oddities(class_names: Sequence[str], train: Sequence[Item]) -> list[str]:
    notes, trained = [], {item.label for item in train}
    if doubled := sorted(name for name, count in Counter(class_names).items() if count > 1):
        notes.append(f"names of several classes: {examples(doubled)}")
    notes += odd_names(class_names)
    if trained and (untrained := [name for label, name in enumerate(class_names) if label not in trained]):
        notes.append(f"classes without a training image: {examples(untrained)}")
    return notes
