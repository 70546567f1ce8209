"""Draws of labeled images: few shots per class, and long tails."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from gram_jax.data import Dataset, long_tail
from gram_jax.errors import InputError, require_int

VAL_SHOTS = 4  # validation images per class, at most
RULE = "random.Random(seed): classes as they first appear in train, a sample without replacement of each"


def few_shot(dataset: Dataset, shots: int, seed: int, split: str = "train", *, take_all: bool = False) -> np.ndarray:
    """Draws the same number of images of every class, as CoOp does.

    One generator samples without replacement from each class, in the order in which classes first appear in the split.
    For base-to-new, draw on all classes first and restrict afterwards.

    Args:
      dataset, split: what is drawn from.
      shots: images per class; InputError if a class has fewer.
      seed: the seed of the draw.
      take_all: take all images of a class that has fewer, as Dassl does, instead.

    Returns:
      int64 ``[classes * shots]``, positions in the dataset, class after class.

    Example:
      >>> from gram_jax.data import glyphs
      >>> chess = glyphs.labeled("chess")
      >>> drawn = few_shot(chess, shots=2, seed=1)
      >>> chess.labels[drawn[:6]].tolist(), set(chess.splits[drawn].tolist())
      ([0, 0, 1, 1, 2, 2], {'train'})

    Reference:
      ``generate_fewshot_dataset`` of the public code of "Learning to Prompt for Vision-Language Models", on Python's
      own ``random``.
    """
    return _few_shot(dataset, shots, random.Random(seed), split, take_all)


def few_shot_and_val(
    dataset: Dataset, shots: int, seed: int, *, take_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draws training images as `few_shot` does, then min(shots, 4) validation images per class, or all if fewer exist.

    Args:
      dataset, shots, seed, take_all: as in `few_shot`; the dataset must have a val split.

    Returns:
      Two int64 arrays of positions in the dataset, class after class.

    Reference:
      The datasets of the public code of "Learning to Prompt for Vision-Language Models", which keep both draws in one
      file shot_K-seed_S.pkl.
    """
    rng = random.Random(seed)
    train = _few_shot(dataset, shots, rng, "train", take_all)
    val: list[int] = []
    for members in _by_class(dataset, "val").values():
        count = min(shots, VAL_SHOTS)
        val += rng.sample(members, count) if len(members) >= count else members
    return train, np.array(val, np.int64)


def long_tail_draw(
    dataset: Dataset, ratio: float, largest: int, seed: int, labels: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """Draws a long tail of training images: of class k in the given order, the first n_k of its few-shot draw.

    n_k = round(largest * ratio^(k / (K - 1))), at least 1. So a long tail is a part of every longer one of the same
    seed, and ratio 1 is `few_shot`.

    Args:
      dataset, seed: as in `few_shot`.
      ratio: images of the smallest class over those of the largest, in (0, 1].
      largest: images of the first class; every class must have as many.
      labels: the K classes, the largest first; all in label order by default. Other classes get no image.

    Returns:
      int64 positions in the dataset, class after class, in the order of `few_shot`.

    Example:
      >>> from gram_jax.data import glyphs
      >>> chess = glyphs.labeled("chess")
      >>> drawn = long_tail_draw(chess, 0.25, 16, seed=1, labels=[4, 2, 0])
      >>> np.bincount(chess.labels[drawn]).tolist()
      [4, 0, 8, 0, 16]

    Reference:
      Imbalanced prompt tuning (CPT, arXiv 2605.11939): exponential down-sampling, ratio in {1, 0.25, 0.06}, at most 16
      images. The choice of images and classes is ours.
    """
    count = len(dataset.class_names)
    order = list(range(count)) if labels is None else [int(label) for label in labels]
    if len(set(order)) < len(order) or not all(0 <= label < count for label in order):
        raise InputError(f"labels {order}: give labels of the {count} classes of {dataset.name!r}, each once, from 0")
    sizes = dict(zip(order, long_tail(len(order), ratio, largest).tolist(), strict=True))
    drawn = few_shot(dataset, largest, seed).reshape(count, largest)  # [classes, shots], each row of one class
    return np.concatenate([members[: sizes.get(int(dataset.labels[members[0]]), 0)] for members in drawn])


def _few_shot(dataset: Dataset, shots: int, rng: random.Random, split: str, take_all: bool) -> np.ndarray:
    require_int("shots", shots)
    items = _by_class(dataset, split)
    for label, name in enumerate(() if take_all else dataset.class_names):
        if (count := len(items.get(label, ()))) < shots:
            raise InputError(
                f"shots={shots}: class {name!r} of {dataset.name!r} has {count} images of split {split!r}; give at "
                f"most {count}, or leave the class out"
            )
    drawn = (members if len(members) < shots else rng.sample(members, shots) for members in items.values())
    return np.array([position for members in drawn for position in members], np.int64)


def _by_class(dataset: Dataset, split: str) -> dict[int, list[int]]:
    """Returns the positions of a split's images by label, labels in the order in which they first appear."""
    items: dict[int, list[int]] = {}
    for position in dataset.select(split).tolist():
        items.setdefault(int(dataset.labels[position]), []).append(position)
    return items
