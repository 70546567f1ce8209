"""What the images of a dataset look like once they are decoded: one color, darkness, equal images."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from gram_jax.data.dataset import Dataset
from gram_jax.errors import examples

_ONE_COLOR = 3  # an image whose values differ by less, in each channel, is of one color
_DARK = 64  # a dataset whose brightest value is less is dark
_MOSTLY = 0.9  # the share of dark images from which a dataset is dark


class Suspicion(NamedTuple):
    """Images to look at: what they have in common, and groups of positions in the dataset, such as equal images."""

    title: str
    groups: list[list[int]]


class Looked:
    """Collects what decoded images of a dataset look like, in 100 bytes per image.

    Example:
      >>> toy = Dataset("toy", ("a", "b"), np.array([0, 1]), np.array(["train", "test"]), ("cat", "dog"), "{}", str)
      >>> looked, gradient = Looked(toy), np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
      >>> for position in (0, 1):
      ...     looked.add(position, gradient)
      >>> looked.notes()[0]
      "1 image is in several splits, test accuracy is too high: 'a (train) = b (test)'"
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._positions: dict[bytes, list[int]] = {}  # by digest of the pixels
        self._one_color: list[int] = []
        self._brightest: list[int] = []

    def add(self, position: int, pixels: np.ndarray) -> None:
        """Looks at one image, uint8 `[H, W, 3]`."""
        digest = hashlib.blake2b(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes(), digest_size=12)
        self._positions.setdefault(digest.digest(), []).append(position)
        low, high = pixels.min((0, 1)).astype(int), pixels.max((0, 1)).astype(int)
        if (high - low < _ONE_COLOR).all():
            self._one_color.append(position)
        self._brightest.append(int(high.max()))

    def notes(self) -> list[str]:
        """Returns a note for everything that is unusual."""
        notes = []
        if self._one_color:
            names = [str(self._dataset.references[each]) for each in self._one_color]
            notes.append(f"{_images(len(names))} of one color: {examples(names)}")
        dark = sum(value < _DARK for value in self._brightest)
        if self._brightest and dark >= _MOSTLY * len(self._brightest):
            notes.append(
                f"{dark} of {len(self._brightest)} images are dark, the largest value is {max(self._brightest)} of "
                "255: scale them to the whole range, or set --gray_range"
            )
        return [*notes, *self._equal_images()]

    def suspicious(self) -> list[Suspicion]:
        """Returns the images that are of one color, and those that are equal, by what is wrong with that."""
        splits, labels = self._dataset.splits, self._dataset.labels
        found: dict[str, list[list[int]]] = {
            "Images of one color": [self._one_color] if self._one_color else [],
            "Equal images in several splits": [],
            "Equal images in several classes": [],
            "Equal images in one class and split": [],
        }
        for group in self._positions.values():
            if len(group) > 1:
                apart = len({splits[each] for each in group}) > 1, len({labels[each] for each in group}) > 1
                where = "several splits" if apart[0] else "several classes" if apart[1] else "one class and split"
                found[f"Equal images in {where}"].append(group)
        return [Suspicion(title, groups) for title, groups in found.items() if groups]

    def _equal_images(self) -> list[str]:
        data, groups = self._dataset, [group for group in self._positions.values() if len(group) > 1]

        def shared(values: np.ndarray, meaning: str, named: list[str]) -> list[str]:
            found = [group for group in groups if len({values[each] for each in group}) > 1]
            pairs = []
            for group in found:
                other = next(each for each in group if values[each] != values[group[0]])
                pairs.append(" = ".join(f"{data.references[each]} ({named[each]})" for each in (group[0], other)))
            return [f"{_images(len(found))} in several {meaning}: {examples(pairs)}"] if found else []

        splits = [str(split) for split in data.splits]
        classes = [data.class_names[label] for label in data.labels]
        notes = shared(data.splits, "splits, test accuracy is too high", splits)
        notes += shared(data.labels, "classes, only one of which is right", classes)
        within = Counter(
            (splits[group[0]], classes[group[0]])
            for group in groups
            if len({(splits[each], classes[each]) for each in group}) == 1
        )
        return notes + ([f"{sum(within.values())} images occur again in their class and split"] if within else [])


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"
