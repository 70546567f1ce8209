"""Labeled datasets by reference: images, labels, splits, class names and a template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.errors import InputError, require_int
from gram_jax.summary import short_repr

SPLITS = ("train", "val", "test")


class Images:
    """Images that are read one by one: a sequence of ``read(reference)``."""

    references: tuple[Any, ...]
    read: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, position: int) -> Any:
        return self.read(self.references[position])

    def images(self, positions: Sequence[int]) -> list[Any]:
        """Reads the images at the given positions."""
        return [self[position] for position in positions]


@dataclasses.dataclass(frozen=True)
class Dataset(Images):
    """Labeled images by reference, with class names and a template; ``dataset[3]`` reads image 3.

    Attributes:
      name: a short name for tables, without a path of this machine, for example "glyphs:greek_small/serif".
      references: one JSON value for each image.
      labels: int32 ``[images]``, indices into ``class_names``.
      splits: "train", "val" or "test" for each image.
      class_names: in label order.
      template: a text with one "{}" for the class name.
      read: turns a reference into an image that ``Clip.preprocess`` accepts.
      domain: the visual domain, "" for the ordinary one.
      seed: the seed of drawn images; None for images in files.
      about: JSON values for reports: "source", "split" (the origin of the splits), "notes" (what is unusual) and
        "account" (what was left out). Not part of ``content_hash``.
      content: maps a reference to a text that identifies the content of the image, so that a replaced photo is another
        dataset; None for drawn images.
    """

    name: str
    references: tuple[Any, ...]
    labels: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    template: str
    read: Callable[[Any], Any]
    domain: str = ""
    seed: int | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    content: Callable[[Any], str] | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        counts = len(self.references), len(self.labels), len(self.splits)
        if len(set(counts)) > 1:
            raise InputError(
                f"dataset {self.name!r} has {counts[0]} references, {counts[1]} labels and {counts[2]} splits; give "
                "one of each for every image"
            )
        if len(self.labels) and not 0 <= np.min(self.labels) <= np.max(self.labels) < len(self.class_names):
            raise InputError(
                f"dataset {self.name!r} has labels from {np.min(self.labels)} to {np.max(self.labels)} and "
                f"{len(self.class_names)} class names; every label needs a name"
            )

    def select(self, split: str) -> np.ndarray:
        """Returns the positions of a split's images in order, int64; raises InputError if there are none.

        Example:
          >>> toy = Dataset("toy", (0, 1), np.array([0, 1]), np.array(["train", "test"]), ("a", "b"), "{}", str)
          >>> toy.select("test").tolist()
          [1]
        """
        positions = np.flatnonzero(self.splits == split)
        if not len(positions):
            existing = ", ".join(sorted(set(self.splits.tolist()))) or "none"
            raise InputError(f"dataset {self.name!r} has no images of split {split!r}; its splits are: {existing}")
        return positions

    def take(self, positions: Sequence[int] | np.ndarray) -> Dataset:
        """Returns the dataset of the images at the given positions, in that order; all classes remain."""
        chosen = np.asarray(positions, np.int64)
        references = tuple(self.references[position] for position in chosen)
        return dataclasses.replace(self, references=references, labels=self.labels[chosen], splits=self.splits[chosen])

    def item_number(self, position: int) -> int:
        """Returns the number that seeds an image's views: the same in every part of a dataset."""
        text = json.dumps([self.name, self.references[position]])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")

    @property
    def content_hash(self) -> str:
        """The SHA-256 over all fields except ``read`` and ``about``, and over what identifies the images' content."""
        lists = [list(self.references), self.labels.tolist(), self.splits.tolist(), list(self.class_names)]
        content = [self.name, self.domain, self.seed, *lists, self.template]
        if self.content is not None:
            content.append([self.content(reference) for reference in self.references])
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def base_and_new(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels of the base classes (the first ceil(n / 2) of n >= 2) and of the new classes (the others).

    Args:
      num_classes: n.

    Example:
      >>> [half.tolist() for half in base_and_new(5)]
      [[0, 1, 2], [3, 4]]

    Reference:
      Zhou et al., "Conditional Prompt Learning for Vision-Language Models" (2022); CoOp's ``subsample_classes``.
    """
    require_int("num_classes", num_classes, 2)
    labels, middle = np.arange(num_classes), -(-num_classes // 2)
    return labels[:middle], labels[middle:]


def restrict(dataset: Dataset, labels: Sequence[int] | np.ndarray) -> Dataset:
    """Returns the images of some classes, relabeled from 0 in the given order.

    Args:
      dataset: the dataset.
      labels: the classes to keep, each once, for example a half of ``base_and_new``.

    Example:
      >>> from gram_jax.data import glyphs
      >>> base, new = (restrict(glyphs.labeled("chess"), half) for half in base_and_new(12))
      >>> new.class_names[0], len(new), int(new.labels.max())
      ('black king', 360, 5)

    Reference:
      CoOp's ``subsample_classes``.
    """
    chosen, classes = np.asarray(labels, np.int64), len(dataset.class_names)
    if not len(chosen) or len(np.unique(chosen)) < len(chosen) or chosen.min() < 0 or chosen.max() >= classes:
        raise InputError(
            f"labels={chosen.tolist()}: give some of the labels 0 to {classes - 1} of {dataset.name!r}, each once"
        )
    kept = dataset.take(np.flatnonzero(np.isin(dataset.labels, chosen)))
    relabeled = np.zeros(classes, np.int32)
    relabeled[chosen] = np.arange(len(chosen))
    names = tuple(dataset.class_names[label] for label in chosen)
    return dataclasses.replace(kept, labels=relabeled[kept.labels], class_names=names)


def long_tail(num_classes: int, ratio: float, largest: int) -> np.ndarray:
    """Returns the number of images that each class keeps in a long-tailed draw, int64 ``[K]``.

    n_k = max(1, round(largest * ratio^(k / (K - 1)))): exponential from the first class to the last.

    Args:
      num_classes: K, at least 2.
      ratio: smallest over largest class, in (0, 1]; 1 is balanced.
      largest: images of the first class.

    Example:
      >>> long_tail(5, 0.25, 16).tolist()
      [16, 11, 8, 6, 4]

    Reference:
      The exponential profile of imbalanced prompt tuning (tau in {1, 0.25, 0.06}, 16 images at most).
    """
    require_int("num_classes", num_classes, 2)
    require_int("largest", largest)
    if not 0.0 < ratio <= 1.0:
        raise InputError(f"ratio={ratio}: it must be above 0 and at most 1")
    return np.maximum(1, np.rint(largest * ratio ** (np.arange(num_classes) / (num_classes - 1)))).astype(np.int64)
