"""Frozen image features of a labeled dataset: computed when first needed, kept in memory or in a folder.

The folder holds store.json (the identity of the features) and files rows-HASH.npy, each of which holds the features of
some images. Files are only added, each appears whole or not at all, and several processes may add to one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gram_jax.batching import map_batches, round_up
from gram_jax.data import augmentation
from gram_jax.data.dataset import Dataset
from gram_jax.data.feature_key import ABOUT, FORMAT, StoreError, compare_about, feature_key, read_about
from gram_jax.errors import InputError, require_int
from gram_jax.io import is_remote, write_json, write_npy

if TYPE_CHECKING:
    from gram_jax.clip.model import Clip

_FILE_ROWS = 4096  # images between two writes: what a killed run may have to encode again


class FeatureBank:
    """The features of a dataset's images, each computed once; made by `open_bank`.

    Attributes:
      dataset: the whole dataset.
      shape: the shape of the features of one image.
      folder: the folder that keeps the features; None keeps them in memory only.
    """

    def __init__(self, dataset: Dataset, shape: tuple[int, ...], folder: Path | None = None):
        self.dataset, self.shape, self.folder = dataset, shape, folder
        self._blocks: list[np.ndarray] = []
        self._block = np.full(len(dataset), -1)  # the block that holds the features of each image; -1 for none
        self._row = np.zeros(len(dataset), np.int64)  # the row in its block
        self._positions: dict[str, int] | None = None
        for path in sorted(folder.glob("rows-*.npy")) if folder else ():
            self._add(self._read(path))

    def missing(self) -> np.ndarray:
        """Returns the positions of the images without features, int `[images]`."""
        return np.flatnonzero(self._block < 0)

    def positions(self, part: Dataset) -> np.ndarray:
        """Returns the positions, in the whole dataset, of the images of a part of it (see `Dataset.take`)."""
        if self._positions is None:
            self._positions = {json.dumps(each): place for place, each in enumerate(self.dataset.references)}
        return np.array([self._positions[json.dumps(each)] for each in part.references], np.int64)

    def rows(
        self, positions: np.ndarray, encode: Callable[[np.ndarray], np.ndarray], batch_size: int = 256
    ) -> np.ndarray:
        """Returns the features of some images; computes and keeps those that are missing.

        Args:
          positions: int `[images]`, positions in the dataset.
          encode: maps exactly `batch_size` positions to features `[batch_size, *shape]`. The last batch repeats its
            last position.
          batch_size: images in a batch.

        Returns:
          float32 `[images, *shape]`.

        Raises:
          InputError: features are not finite; the message names the image.
        """
        positions = np.asarray(positions, np.int64)
        missing = np.unique(positions[self._block[positions] < 0])
        rows = round_up(_FILE_ROWS, batch_size)
        for chunk in (missing[begin : begin + rows] for begin in range(0, len(missing), rows)):
            self.keep(chunk, map_batches(encode, chunk, batch_size))
        features = np.empty((len(positions), *self.shape), np.float32)
        blocks, rows = self._block[positions], self._row[positions]
        for block in np.unique(blocks):
            here = blocks == block
            features[here] = self._blocks[block]["features"][rows[here]]
        return features

    def keep(self, positions: np.ndarray, features: np.ndarray) -> None:
        """Adds the features of some images, and writes them if the bank has a folder.

        Args:
          positions: int `[images]`, positions in the dataset.
          features: float `[images, *shape]`.

        Raises:
          InputError: features are not finite; the message names the image.
        """
        bad = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(1))
        if len(bad):
            raise InputError(
                f"the features of {len(bad)} images of {self.dataset.name!r} are not finite, the first of image "
                f"{self.dataset.references[positions[bad[0]]]}; check the weights of the clip and that image"
            )
        block = np.empty(len(positions), self._dtype)
        block["item"], block["features"] = positions, features
        if self.folder:
            digest = hashlib.blake2b(block["item"].tobytes(), digest_size=8).hexdigest()
            write_npy(self.folder / f"rows-{digest}.npy", block)
        self._add(block)

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype([("item", "<i8"), ("features", "<f4", self.shape)])

    def _add(self, block: np.ndarray) -> None:
        self._block[block["item"]] = len(self._blocks)
        self._row[block["item"]] = np.arange(len(block))
        self._blocks.append(block)

    def _read(self, path: Path) -> np.ndarray:
        """Maps a file into memory; never a pickle or an archive, which `np.load` would open."""
        try:
            block = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # Python's own parser reads the header; it can raise anything
            raise StoreError(f"{path} cannot be read ({error}); delete this file") from error
        if block.dtype != self._dtype or block.ndim != 1:
            raise StoreError(f"{path} holds {block.dtype}, expected {self._dtype}; delete this file")
        items = block["item"]
        if not len(items) or items.min() < 0 or items.max() >= len(self.dataset):
            raise StoreError(f"{path} holds images outside 0 to {len(self.dataset) - 1}; delete this file")
        return block


def open_bank(
    clip: Clip,
    dataset: Dataset,
    folder: str | os.PathLike[str] | None = None,
    *,
    views: int = 0,
    view_seed: int = 0,
) -> FeatureBank:
    """Opens the features of a dataset's images, or begins to collect them.

    Args:
      clip: the clip, with tokenizer and image transform.
      dataset: the whole dataset, not a part of it.
      folder: a folder of stores, one for each dataset, or for each number of views of it; made if need be. None keeps
        the features in memory only.
      views: 0 for the images themselves, or the number of augmented views of each image.
      view_seed: the seed of the views.

    Returns:
      A `FeatureBank` of features `[embed_dim]`, or of views `[views, embed_dim]`, for each image.

    Raises:
      StoreError: the store has other features (other weights, another transform, other images), which the message
        names, or is damaged.
      InputError: the folder is remote.

    Example:
      >>> import tempfile
      >>> from gram_jax.data import load_dataset
      >>> from gram_jax.testing import tiny_clip
      >>> bank = open_bank(tiny_clip(), load_dataset("glyphs:chess"), tempfile.mkdtemp())
      >>> features = bank.rows([3, 5], lambda positions: np.ones((2, 16)), batch_size=2)
      >>> features.shape, len(bank.missing())
      ((2, 16), 718)
    """
    require_int("views", views, 0)
    shape = (views, clip.config.embed_dim) if views else (clip.config.embed_dim,)
    if folder is None:
        return FeatureBank(dataset, shape)
    if is_remote(folder):
        raise InputError(f"the feature store {folder} is mapped into memory and must be in a local or mounted folder")
    path = Path(folder).expanduser() / store_name(dataset, views)
    about = {
        "format": FORMAT,
        **feature_key(clip, dataset),
        "source": dataset.name,
        "shape": list(shape),
        "views": {"count": views, "seed": view_seed, "version": augmentation.VERSION} if views else None,
    }
    if (path / ABOUT).exists():
        compare_about(path, read_about(path), about)
    elif any(path.glob("rows-*.npy")):
        raise StoreError(f"the feature store {path} lacks {ABOUT}; delete the folder")
    else:
        write_json(path / ABOUT, about)
    return FeatureBank(dataset, shape, path)


def store_name(dataset: Dataset, views: int = 0) -> str:
    """Returns the name of a dataset's folder in a folder of stores.

    Example:
      >>> from gram_jax.data import load_dataset
      >>> store_name(load_dataset("glyphs:chess/noise"), views=8)
      'glyphs-chess-noise-views-8'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", dataset.name).strip("-.") + (f"-views-{views}" if views else "")


def dataset_features(
    folder: str | os.PathLike[str],
    clip: Clip,
    dataset: Dataset,
    encode: Callable[[np.ndarray], np.ndarray],
    batch_size: int = 256,
) -> np.ndarray:
    """Returns the features of all images of a dataset: reads those that are stored, computes and stores the others.

    Args:
      folder: the folder of stores.
      clip: the clip.
      dataset: the dataset.
      encode: maps `batch_size` positions to features `[batch_size, embed_dim]`.
      batch_size: images in a batch.

    Returns:
      float32 `[images, embed_dim]`.

    Raises:
      StoreError: the store does not fit, see `open_bank`.
    """
    return open_bank(clip, dataset, folder).rows(np.arange(len(dataset)), encode, batch_size)
