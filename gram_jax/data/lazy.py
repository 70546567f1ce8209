"""Arrays whose rows are read when they are indexed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class LazyRows:
    """An array, possibly larger than memory, whose rows are read or computed when they are indexed.

    The index is a number, a slice, or an array of numbers or booleans, as in NumPy.

    Args:
      shape: the shape of the whole array.
      read: maps row numbers, int `[rows]`, to rows `[rows, *shape[1:]]`.

    Example:
      >>> squares = LazyRows((10,), lambda rows: rows**2)
      >>> squares[3:6].tolist(), int(squares[-1]), len(squares)
      ([9, 16, 25], 81, 10)
    """

    def __init__(self, shape: tuple[int, ...], read: Callable[[np.ndarray], np.ndarray]):
        self.shape, self._read = shape, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.arange(len(self))[key]
        return self._read(np.ravel(rows)).reshape((*np.shape(rows), *self.shape[1:]))
