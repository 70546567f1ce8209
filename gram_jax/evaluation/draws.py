"""Which images a learner sees: few-shot draws of a dataset, and the order in which its batches come."""

from __future__ import annotations

import random

import numpy as np

from gram_jax.data import Dataset


def few_shot(dataset: Dataset, shots: int, seed: int, split: str = "train") -> np.ndarray:
    """Draws the same number of images of every class.

    The draw is CoOp's: one generator, classes in the order in which they first appear in the split, and for each of
    them a sample without replacement. For base-to-new, draw on all classes first and restrict afterwards.

    Args:
      dataset: the dataset.
      shots: images a class, at least 1.
      seed: seed of the draw.
      split: what is drawn from.

    Returns:
      int64 ``[classes * shots]``, positions in the dataset, class after class.

    Raises:
      ValueError: if ``shots`` is no positive number, or a class, which the message names, has fewer images.

    Example:
      >>> from gram_jax.data import glyphs
      >>> chess = glyphs.labelled("chess")
      >>> drawn = few_shot(chess, shots=2, seed=1)
      >>> chess.labels[drawn[:6]].tolist(), set(chess.splits[drawn].tolist())
      ([0, 0, 1, 1, 2, 2], {'train'})

    Reference:
      ``generate_fewshot_dataset`` of the public code of "Learning to Prompt for Vision-Language Models", on Python's
      own ``random``.
    """
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise ValueError(f"shots is {shots!r}; give a number of images a class, at least 1.")
    items: dict[int, list[int]] = {}
    for position in dataset.select(split).tolist():
        items.setdefault(int(dataset.labels[position]), []).append(position)
    for label, name in enumerate(dataset.class_names):
        found = len(items.get(label, ()))
        if found < shots:
            raise ValueError(
                f"class {name!r} of {dataset.name!r} has {found} images of split {split!r}, and {shots} shots are "
                f"asked for; ask for at most {found}, or leave the class out."
            )
    rng = random.Random(seed)
    return np.array([position for members in items.values() for position in rng.sample(members, shots)], np.int64)


def batches(seed: int, count: int, batch_size: int, steps: int) -> np.ndarray:
    """The items of every batch: permutations of all items, one after the other, cut into batches.

    So after any number of steps no item was seen more than once more often than another, also where a batch is
    larger than the whole set. Batches of fewer steps are the first ones of more steps.

    Args:
      seed: seed of the order.
      count: number of items, at least 1.
      batch_size: items a batch, at least 1.
      steps: number of batches, 0 or more.

    Returns:
      int64 ``[steps, batch_size]``, from 0 to ``count - 1``.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> drawn = batches(seed=0, count=4, batch_size=6, steps=2)
      >>> sorted(drawn.ravel().tolist())
      [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]

    Reference:
      Our own choice; public code drops the rest of an epoch instead.
    """
    if count < 1 or batch_size < 1 or steps < 0:
        raise ValueError(
            f"{steps} batches of {batch_size} out of {count} items cannot be drawn; give at least 1 item, 1 item a "
            "batch, and 0 steps or more."
        )
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // count)
    order = [rng.permutation(count) for _ in range(epochs)]
    stream = np.concatenate(order) if order else np.empty(0, np.int64)
    return stream[: steps * batch_size].reshape(steps, batch_size)
