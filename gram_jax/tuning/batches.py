"""The order in which a tuning run sees its images."""

from __future__ import annotations

import numpy as np

from gram_jax.errors import InputError


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
      InputError: if a number is out of range.

    Example:
      >>> drawn = batches(seed=0, count=4, batch_size=6, steps=2)
      >>> sorted(drawn.ravel().tolist())
      [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]

    Reference:
      Our own choice; public code drops the rest of an epoch instead, see ``epoch_batches``.
    """
    if count < 1 or batch_size < 1 or steps < 0:
        raise InputError(
            f"{steps} batches of {batch_size} out of {count} items cannot be drawn; give at least 1 item, 1 item a "
            "batch, and 0 steps or more."
        )
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // count)
    order = [rng.permutation(count) for _ in range(epochs)]
    stream = np.concatenate(order) if order else np.empty(0, np.int64)
    return stream[: steps * batch_size].reshape(steps, batch_size)


def epoch_batches(seed: int, count: int, batch_size: int, epochs: int) -> np.ndarray:
    """The items of every batch of whole epochs: each epoch is a permutation whose rest, too small a batch, is dropped.

    Where there are fewer items than a batch has, an epoch is one batch of all of them.

    Args:
      seed: seed of the order.
      count: number of items, at least 1.
      batch_size: items a batch, at least 1.
      epochs: number of epochs, 0 or more.

    Returns:
      int64 ``[epochs * max(1, count // batch_size), min(batch_size, count)]``, from 0 to ``count - 1``.

    Raises:
      InputError: if a number is out of range.

    Example:
      >>> epoch_batches(seed=0, count=7, batch_size=3, epochs=4).shape
      (8, 3)

    Reference:
      The loader of Dassl: shuffled, ``drop_last`` where there is at least one whole batch. Its order is PyTorch's.
    """
    if count < 1 or batch_size < 1 or epochs < 0:
        raise InputError(
            f"{epochs} epochs in batches of {batch_size} out of {count} items cannot be drawn; give at least 1 item, 1 "
            "item a batch, and 0 epochs or more."
        )
    rng = np.random.default_rng(seed)
    size = min(batch_size, count)
    kept = count // size * size
    order = [rng.permutation(count)[:kept] for _ in range(epochs)]
    return np.array(order, np.int64).reshape(-1, size)
