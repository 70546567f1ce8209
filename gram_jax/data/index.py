"""The index of a labelled dataset: what its images are, what they are called, which split they belong to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images by reference, with class names and a template.

    Attributes:
      name: the name it was asked for by, for example "glyphs:greek_small/serif".
      references: one entry an image: whatever ``read`` understands, JSON values.
      labels: int32 ``[images]``, indices into ``class_names``.
      splits: one of "train", "val", "test" for each image.
      class_names: in label order.
      template: a text with one "{}" for the class name.
      read: turns a reference into something that ``Clip.preprocess`` takes.
      domain: the visual domain, "" for the ordinary one.
    """

    name: str
    references: tuple[Any, ...]
    labels: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    template: str
    read: Callable[[Any], Any]
    domain: str = ""

    def __len__(self) -> int:
        return len(self.references)

    def select(self, split: str) -> np.ndarray:
        """The positions of a split's images, in order.

        Args:
          split: "train", "val" or "test".

        Returns:
          int64 ``[images of the split]``.

        Raises:
          ValueError: where the dataset has no such split.

        Example:
          >>> toy = Dataset("toy", (0, 1), np.array([0, 1]), np.array(["train", "test"]), ("a", "b"), "{}", str)
          >>> toy.select("test").tolist()
          [1]
        """
        found = np.flatnonzero(self.splits == split)
        if not len(found):
            raise ValueError(
                f"dataset {self.name!r} has no images of split {split!r}; it has {sorted(set(self.splits))}"
            )
        return found

    def images(self, positions: Sequence[int]) -> list[Any]:
        """Reads the images at the given positions."""
        return [self.read(self.references[position]) for position in positions]

    @property
    def content_hash(self) -> str:
        """SHA-256 over references, labels, splits, class names and template: what a result must be traced to."""
        content = [
            list(self.references),
            self.labels.tolist(),
            self.splits.tolist(),
            list(self.class_names),
            self.template,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def base_and_new(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the base and of the new classes.

    Base is the first ceil(n / 2) labels, new the rest.

    Args:
      num_classes: the number of classes, at least 2.

    Returns:
      Two int arrays.

    Raises:
      ValueError: for fewer than two classes.

    Example:
      >>> [half.tolist() for half in base_and_new(5)]
      [[0, 1, 2], [3, 4]]

    Reference:
      Zhou et al., "Conditional Prompt Learning for Vision-Language Models" (2022); CoOp's ``subsample_classes``.
    """
    if num_classes < 2:
        raise ValueError(f"{num_classes} classes cannot be split into base and new; at least 2 are needed")
    labels, middle = np.arange(num_classes), -(-num_classes // 2)
    return labels[:middle], labels[middle:]


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
      ValueError: where a setting is out of range.

    Example:
      >>> long_tail(5, 0.25, 16).tolist()
      [16, 11, 8, 6, 4]

    Reference:
      The exponential profile of imbalanced prompt tuning (tau in {1, 0.25, 0.06}, 16 images at most).
    """
    if num_classes < 2 or largest < 1 or not 0.0 < ratio <= 1.0:
        raise ValueError(
            f"a long tail over {num_classes} classes from {largest} images with ratio {ratio} is not defined; "
            "give at least 2 classes, 1 image, and a ratio in (0, 1]"
        )
    return np.maximum(1, np.rint(largest * ratio ** (np.arange(num_classes) / (num_classes - 1)))).astype(np.int64)
