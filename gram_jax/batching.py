"""Padding arrays to the shapes of compiled programs, and running functions batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `number`.

    Example:
      >>> round_up(13, 8), round_up(16, 8)
      (16, 16)
    """
    return -(-number // multiple) * multiple


def pad_to(array: Any, *lengths: int, fill: Any = None) -> np.ndarray:
    """Pads the leading axes of an array at their ends, on the host.

    Args:
      array: an array or nested lists.
      lengths: the new length of each leading axis, at least the present one.
      fill: the value to pad with; None repeats the last entry.

    Example:
      >>> pad_to([1, 2, 3], 5).tolist(), pad_to([[1], [2]], 2, 3, fill=0).tolist()
      ([1, 2, 3, 3, 3], [[1, 0, 0], [2, 0, 0]])
    """
    array = np.asarray(array)
    widths = [(0, new - old) for old, new in zip(array.shape, lengths, strict=False)]
    widths += [(0, 0)] * (array.ndim - len(widths))
    return np.pad(array, widths, mode="edge") if fill is None else np.pad(array, widths, constant_values=fill)


def padded_batches(items: Any, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of exactly `size` rows, so that one compiled program serves all of them, and their counts.

    The last row fills up the last batch, whose first `count` rows are real.

    Args:
      items: an array, or a lazy sequence whose slices are arrays, `[rows, ...]`.
      size: rows in a batch.
    """
    for begin in range(0, len(items), size):
        chunk = np.asarray(items[begin : begin + size])
        yield pad_to(chunk, size), len(chunk)


def map_batches(function: Callable[[np.ndarray], Any], items: Sequence[Any] | np.ndarray, size: int) -> Any:
    """Applies a function batch by batch and joins what it returns, a pytree of arrays `[rows, ...]`, on the host.

    Args:
      function: maps `[size, ...]` to a pytree of arrays `[size, ...]`.
      items, size: as in `padded_batches`, with at least one row.

    Example:
      >>> map_batches(lambda rows: 2 * rows, np.arange(5), 2).tolist()
      [0, 2, 4, 6, 8]
    """
    import jax  # late: the rest of the module needs NumPy only

    parts = [
        jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], function(batch))
        for batch, count in padded_batches(items, size)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
