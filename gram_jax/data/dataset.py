"""The index of a labeled dataset: what its images are, what they are called, which split they belong to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.errors import InputError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labeled images by reference, with class names and a template.

    Attributes:
      name: a short name for tables, without any path of this machine, for example "glyphs:greek_small/serif".
      references: one entry an image: whatever ``read`` understands, JSON values.
      labels: int32 ``[images]``, indices into ``class_names``.
      splits: one of "train", "val", "test" for each image.
      class_names: in label order.
      template: a text with one "{}" for the class name.
      read: turns a reference into something that ``Clip.preprocess`` takes.
      domain: the visual domain, "" for the ordinary one.
      seed: the seed of images that are drawn when they are read; None where they lie in files.
      about: what a report says of it, JSON values: "source", "split" (where the splits come from) and "notes" (what is
        odd about it). No part of ``content_hash``.
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

    def __len__(self) -> int:
        return len(self.references)

    def select(self, split: str) -> np.ndarray:
        """The positions of a split's images, in order.

        Args:
          split: "train", "val" or "test".

        Returns:
          int64 ``[images of the split]``.

        Raises:
          InputError: where the dataset has no such split.

        Example:
          >>> toy = Dataset("toy", (0, 1), np.array([0, 1]), np.array(["train", "test"]), ("a", "b"), "{}", str)
          >>> toy.select("test").tolist()
          [1]
        """
        found = np.flatnonzero(self.splits == split)
        if not len(found):
            raise InputError(
                f"dataset {self.name!r} has no images of split {split!r}; it has {sorted(set(self.splits))}"
            )
        return found

    def images(self, positions: Sequence[int]) -> list[Any]:
        """Reads the images at the given positions."""
        return [self.read(self.references[position]) for position in positions]

    def lazy_images(self, positions: Sequence[int]) -> Sequence[Any]:
        """The images at the given positions, each read when it is asked for: a split larger than memory.

        Args:
          positions: positions in the dataset.

        Returns:
          A sequence as long as ``positions``.

        Example:
          >>> toy = Dataset("toy", ("a", "b"), np.array([0, 0]), np.array(["test"] * 2), ("x",), "{}", str.upper)
          >>> list(toy.lazy_images([1, 0]))
          ['B', 'A']
        """
        return _LazyImages(self, np.asarray(positions, np.int64))

    def take(self, positions: Sequence[int]) -> Dataset:
        """The dataset of the images at the given positions, in that order; classes stay."""
        positions = np.asarray(positions, np.int64)
        references = tuple(self.references[position] for position in positions)
        return dataclasses.replace(
            self, references=references, labels=self.labels[positions], splits=self.splits[positions]
        )

    def item_number(self, position: int) -> int:
        """Returns the number that seeds an image's views: the same in every part of a dataset."""
        text = json.dumps([self.name, self.references[position]])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")

    @property
    def content_hash(self) -> str:
        """SHA-256 over all but ``read`` and ``about``: what a result must be traced to."""
        content = [
            self.name,
            self.domain,
            self.seed,
            list(self.references),
            self.labels.tolist(),
            self.splits.tolist(),
            list(self.class_names),
            self.template,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _LazyImages(Sequence):
    """Images of a dataset that are read one by one."""

    def __init__(self, dataset: Dataset, positions: np.ndarray):
        self._dataset, self._positions = dataset, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _LazyImages(self._dataset, self._positions[index])
        return self._dataset.read(self._dataset.references[self._positions[index]])


def base_and_new(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the base and of the new classes.

    Base is the first ceil(n / 2) labels, new the rest.

    Args:
      num_classes: the number of classes, at least 2.

    Returns:
      Two int arrays.

    Raises:
      InputError: for fewer than two classes.

    Example:
      >>> [half.tolist() for half in base_and_new(5)]
      [[0, 1, 2], [3, 4]]

    Reference:
      Zhou et al., "Conditional Prompt Learning for Vision-Language Models" (2022); CoOp's ``subsample_classes``.
    """
    if num_classes < 2:
        raise InputError(f"{num_classes} classes cannot be split into base and new; at least 2 are needed")
    labels, middle = np.arange(num_classes), -(-num_classes // 2)
    return labels[:middle], labels[middle:]


def restrict(dataset: Dataset, labels: Sequence[int]) -> Dataset:
    """The images of some classes alone, relabeled from 0 in the given order.

    Args:
      dataset: the dataset.
      labels: the classes that stay, for example a half of ``base_and_new``.

    Returns:
      A ``Dataset`` of those classes.

    Raises:
      InputError: for no labels, labels given twice, or labels that the dataset does not have.

    Example:
      >>> from gram_jax.data import glyphs
      >>> base, new = (restrict(glyphs.labeled("chess"), half) for half in base_and_new(12))
      >>> new.class_names[0], len(new), int(new.labels.max())
      ('black king', 360, 5)

    Reference:
      CoOp's ``subsample_classes``: new classes are relabeled from 0.
    """
    labels = np.asarray(labels, np.int64)
    if not len(labels) or len(set(labels.tolist())) < len(labels) or labels.min() < 0:
        raise InputError(f"the labels {labels.tolist()} are not a choice of classes; give each label once, from 0")
    if labels.max() >= len(dataset.class_names):
        raise InputError(
            f"dataset {dataset.name!r} has {len(dataset.class_names)} classes; there is no label {labels.max()}"
        )
    kept = dataset.take(np.flatnonzero(np.isin(dataset.labels, labels)))
    position = {label: number for number, label in enumerate(labels.tolist())}
    relabeled = np.array([position[label] for label in kept.labels.tolist()], np.int32)
    return dataclasses.replace(kept, labels=relabeled, class_names=tuple(dataset.class_names[i] for i in labels))


def long_tail(num_classes: int, ratio: float, largest: int) -> np.ndarray:
    """How many images each class keeps in a long-tailed draw.

    n_k = round(largest * ratio^(k / (K - 1))): exponential from the first class to the last.

    Args:
      num_classes: K, at least 2.
      ratio: smallest over largest class, in (0, 1]; 1 is balanced.
      largest: images of the first class.

    Returns:
      int64 ``[K]``, each at least 1.

    Raises:
      InputError: where a setting is out of range.

    Example:
      >>> long_tail(5, 0.25, 16).tolist()
      [16, 11, 8, 6, 4]

    Reference:
      The exponential profile of imbalanced prompt tuning (tau in {1, 0.25, 0.06}, 16 images at most).
    """
    if num_classes < 2 or largest < 1 or not 0.0 < ratio <= 1.0:
        raise InputError(
            f"a long tail over {num_classes} classes from {largest} images with ratio {ratio} is not defined; "
            "give at least 2 classes, 1 image, and a ratio in (0, 1]"
        )
    return np.maximum(1, np.rint(largest * ratio ** (np.arange(num_classes) / (num_classes - 1)))).astype(np.int64)
