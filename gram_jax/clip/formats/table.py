"""The parts of a naming: which tensor of a file is which leaf of the parameter tree, and in which layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from gram_jax.clip.config import ClipConfig
from gram_jax.errors import InputError

Path = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]
CHANNELS = 3


class WeightsError(InputError):
    """Weights that cannot be read or do not fit the configuration; the message lists all problems."""


class Row(NamedTuple):
    """One leaf of the parameter tree and its tensors in a file.

    Attributes:
      name: the tensor's name; with `{}` for the layer, there is one tensor per index of the leaf's first axis.
      path: the keys of the leaf.
      layout: "same", "transposed" (kernels are [out, in] in the file), "patches" (the file has a convolution kernel
        [out, channel, row, column]; the leaf's rows are ordered by (row, column, channel)), "convolution" (the same,
        and the leaf is [row, column, channel, out]), "scalar" ([1] in the file), "probe" (a vector that is
        [1, 1, width] in the file) or "single" (one axis of length 1 comes first in the file).
      part: None, or which part of the tensor's first axis the leaf is, such as 0 query, 1 key, 2 value. The rows of the
        parts of a tensor follow each other.
      parts: the number of those parts, all of one size.
      start: the number in the name of the leaf's first layer.
    """

    name: str
    path: Path
    layout: str = "same"
    part: int | None = None
    start: int = 0
    parts: int = 3

    def names(self, layers: int) -> list[str]:
        """Returns the names of the leaf's tensors, one per layer if there are several."""
        if "{}" not in self.name:
            return [self.name]
        return [self.name.format(index) for index in range(self.start, self.start + layers)]


class Naming(NamedTuple):
    """The names that one family of files gives to the tensors of one architecture.

    Attributes:
      name: what messages call it.
      mark: a tensor that files with this naming have, and files with the namings before it in the list do not.
      rows: one row per leaf of the parameter tree, or three for a fused tensor.
      constants: endings of the names of tensors that are no weights; they are skipped.
      sizes: builds the configuration from the shapes of the tensors and the name of the activation, for files without
        a configuration; None if the shapes do not decide it.
      optional: leaves that some members of the family lack.
    """

    name: str
    mark: str
    rows: tuple[Row, ...]
    constants: tuple[str, ...] = ()
    sizes: Callable[[Shapes, str], ClipConfig] | None = None
    optional: frozenset[Path] = frozenset()

    def covers(self, paths: Collection[Path]) -> bool:
        """Returns whether a parameter tree with these leaves can be written under these names."""
        named = {row.path for row in self.rows}
        return set(paths) <= named and named - set(paths) <= self.optional


def to_file(array: np.ndarray, layout: str) -> np.ndarray:
    """Returns a view of one leaf, or of one of its layers, in the layout of the file."""
    if layout == "transposed":
        return array.T
    if layout == "patches":
        rows, width = array.shape
        side = math.isqrt(rows // CHANNELS)
        if side * side * CHANNELS != rows:
            raise WeightsError(f"the patch embedding has {rows} rows: only square patches of RGB images are supported")
        return array.reshape(side, side, CHANNELS, width).transpose(3, 2, 0, 1)
    if layout == "convolution":
        return array.transpose(3, 2, 0, 1)
    if layout in ("scalar", "probe"):
        return array.reshape((1,) if layout == "scalar" else (1, 1, -1))
    if layout == "single":
        return array[None]
    return array


def from_file(array: np.ndarray, layout: str, part: int | None = None, parts: int = 3) -> np.ndarray:
    """Returns a view of a file's tensor, or of one part of it, in the layout of the parameter tree."""
    if part is not None:
        size = array.shape[0] // parts
        array = array[part * size : (part + 1) * size]
    if layout == "transposed":
        return array.T
    if layout == "patches":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    if layout == "convolution":
        return array.transpose(2, 3, 1, 0)
    return array
