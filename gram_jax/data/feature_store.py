"""Frozen features on disk: of the images of a dataset, or of the images and captions of a corpus; computed once.

The folder of a store holds store.json (the identity of the features) and files rows-HASH.npy with the features of some
items each. Files are only added, each appears whole or not at all, and several processes may add to one store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gram_jax.batching import map_batches, padded_batches, round_up
from gram_jax.data import augmentation
from gram_jax.data.corpus import Corpus
from gram_jax.data.dataset import Dataset
from gram_jax.data.lazy import LazyRows
from gram_jax.data.prefetch import ordered
from gram_jax.errors import InputError, require_int, require_known
from gram_jax.io import is_remote, read_json, write_json, write_npy

if TYPE_CHECKING:
    from gram_jax.clip.model import Clip

FORMAT = 2
ABOUT = "store.json"
DTYPES = ("float16", "float32")
MAX_WIDTH = 1 << 20  # the longest axis of an item's features
_SAMPLE = 8  # images whose pixels enter the key
_TOLD_AFTER = 5.0  # seconds of encoding from which the time spent waiting is told
_FILE_ROWS = 4096  # items between two writes: a killed run may have to encode so many again


class StoreError(InputError):
    """A feature store is stale, incomplete or damaged; the message names the store, the difference and the remedy."""


def feature_key(clip: Clip, source: Corpus | Dataset) -> dict[str, Any]:
    """Returns everything that the frozen features of a source depend on.

    Args:
      clip, source: the clip, with tokenizer and image transform, and the corpus or dataset.

    Returns:
      JSON values: "clip" (the hash of its weights), "compute_dtype", "transform" (its version), "tokenizer" (its hash;
      None for a dataset, which has no captions), "source_hash", "items", and "sample", a hash of the pixels of a few
      images: the source hash covers references, which may lead to other images in another folder.

    Example:
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> feature_key(tiny_clip(), load_corpus(pairs=3))["items"]
      3
    """
    from gram_jax.clip.formats.weights import weights_hash
    from gram_jax.clip.images import ImageTransform

    if clip.transform is None or clip.tokenizer is None:
        raise InputError("this clip lacks its image transform or its tokenizer; use clip.replace(...)")
    if not len(source):
        raise InputError(f"{source.name!r} has no items; there is nothing to store")
    decode, sample = ImageTransform(size=None, crop=None), hashlib.sha256()
    for item in np.linspace(0, len(source) - 1, _SAMPLE).round().astype(int).tolist():
        pixels = decode.pixels(source.images([item])[0], f"image {item} of {source.name}")
        sample.update(f"{pixels.shape}".encode() + pixels.tobytes())
    return {
        "clip": weights_hash(clip.params),
        "compute_dtype": clip.config.compute_dtype,
        "transform": clip.transform.version,
        "tokenizer": clip.tokenizer.content_hash if isinstance(source, Corpus) else None,
        "source_hash": source.content_hash,
        "items": len(source),
        "sample": sample.hexdigest(),
    }


class FeatureBank:
    """The features of the items of a source, each computed once; made by `open_bank`.

    Args:
      items, shape: the number of items, and the shape of the features of one.
      folder: the folder that keeps the features; None keeps them in memory only.
      dtype, source: the precision of the files (rows are float32), and the corpus or the whole dataset.
    """

    def __init__(
        self, items: int, shape: tuple[int, ...], folder: Path | None = None, dtype: str = "float32", source: Any = None
    ):
        self.shape, self.folder, self.source = shape, folder, source
        self._dtype = np.dtype([("item", "<i8"), ("features", np.dtype(dtype).newbyteorder("<"), shape)])
        self._blocks: list[np.ndarray] = []
        self._block = np.full(items, -1)  # the block that holds the features of each item; -1 for none
        self._row = np.zeros(items, np.int64)  # the row in its block
        self._positions: dict[str, int] | None = None
        for path in sorted(folder.glob("rows-*.npy")) if folder else ():
            self._add(self._read(path))

    def missing(self) -> np.ndarray:
        """Returns the numbers of the items without features, int `[items]`."""
        return np.flatnonzero(self._block < 0)

    def positions(self, part: Dataset) -> np.ndarray:
        """Returns the positions, in the whole dataset, of the images of a part of it (see `Dataset.take`)."""
        if self._positions is None:
            self._positions = {json.dumps(each): place for place, each in enumerate(self.source.references)}
        return np.array([self._positions[json.dumps(each)] for each in part.references], np.int64)

    def rows(
        self,
        items: np.ndarray,
        encode: Callable[[Any], Any] | None = None,
        batch_size: int = 256,
        *,
        read: Callable[[np.ndarray], Any] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> np.ndarray:
        """Returns the features of some items, float32 `[items, *shape]`; computes and keeps those that are missing.

        `encode` maps exactly `batch_size` items to features `[batch_size, *shape]`; the last batch repeats its last
        item. It may be None if no features are missing. `read`, if given, makes its argument of the items: threads call
        it ahead, for one batch each, while `encode` is busy. `log` then receives a line about the time spent waiting.
        """
        items = np.asarray(items, np.int64)
        missing = np.unique(items[self._block[items] < 0])
        if not len(missing):
            return self.stored(items)
        if encode is None:
            raise StoreError(f"the feature store {self.folder} lacks {len(missing)} of the items")
        count = round_up(_FILE_ROWS, batch_size)
        if read is None:
            for chunk in (missing[begin : begin + count] for begin in range(0, len(missing), count)):
                self.keep(chunk, map_batches(encode, chunk, batch_size))
            return self.stored(items)
        ahead = [batch for batch, _ in padded_batches(missing, batch_size)]
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ordered(lambda index: read(ahead[index]), len(ahead), workers=threads, prefetch=threads) as inputs:
            for begin in range(0, len(missing), count):
                chunk = missing[begin : begin + count]
                parts = [np.asarray(encode(next(inputs))) for _ in range(-(-len(chunk) // batch_size))]
                self.keep(chunk, np.concatenate(parts)[: len(chunk)])
            if log and inputs.elapsed >= _TOLD_AFTER:
                log(
                    f"{self.source.name}: {len(missing)} images in {inputs.elapsed:.0f} s, of which "
                    f"{100 * inputs.share:.0f} % was waiting for {threads} threads that read them"
                )
        return self.stored(items)

    def stored(self, items: np.ndarray, *index: int) -> np.ndarray:
        """Returns the features of items that are not missing, float32, or the part of each at an index."""
        features = np.empty((len(items), *self.shape[len(index) :]), np.float32)
        blocks, rows = self._block[items], self._row[items]
        for block in np.unique(blocks):
            here = blocks == block
            features[here] = self._blocks[block]["features"][(rows[here], *index)]
        return features

    def keep(self, items: np.ndarray, features: np.ndarray) -> None:
        """Adds the features `[items, *shape]` of some items, and writes them if the bank has a folder.

        Raises InputError if features are not finite.
        """
        bad = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(1))
        if len(bad):
            raise InputError(
                f"the features of {len(bad)} items of {self.source.name!r} are not finite, the first of item "
                f"{items[bad[0]]}, {self.source.references[items[bad[0]]]}; check the weights of the clip and that item"
            )
        block = np.empty(len(items), self._dtype)
        block["item"], block["features"] = items, features
        if self.folder:
            digest = hashlib.blake2b(block["item"].tobytes(), digest_size=8).hexdigest()
            write_npy(self.folder / f"rows-{digest}.npy", block)
        self._add(block)

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
            raise StoreError(f"{path} holds {block.dtype} {block.shape}, expected {self._dtype}; delete this file")
        items = block["item"]
        if not len(items) or items.min() < 0 or items.max() >= len(self._block):
            raise StoreError(f"{path} holds items outside 0 to {len(self._block) - 1}; delete this file")
        return block


def open_bank(
    clip: Clip,
    source: Corpus | Dataset,
    folder: str | os.PathLike[str] | None = None,
    *,
    views: int = 0,
    view_seed: int = 0,
    dtype: str = "float32",
    separate: bool = False,
) -> FeatureBank:
    """Opens the features of a corpus or a dataset, or begins to collect them.

    Args:
      clip, source: the clip, with tokenizer and image transform, and the corpus or the whole dataset.
      folder: the store of a corpus; or a folder of stores, one for each dataset and number of views, see `store_name`.
        Made if need be. None keeps the features in memory only.
      views, view_seed: the number of augmented views of each image of a dataset and their seed; 0 for the images.
      dtype: "float16" or "float32", the precision of the files.
      separate: keep features of other clips and of other images in stores of their own, whose names end in a hash,
        instead of refusing them.

    Returns:
      A `FeatureBank`. The features of an item have the shape `[embed_dim]` for an image, `[views, embed_dim]` for
      views, `[2, embed_dim]` for the image and the caption of a pair.

    Raises:
      StoreError: the store has other features (other weights, another transform, other images), which the message
        names, or is damaged.

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
    require_known("dtype", dtype, DTYPES)
    lead = (2,) if isinstance(source, Corpus) else (views,) if views else ()
    shape = (*lead, clip.config.embed_dim)
    if folder is None:
        return FeatureBank(len(source), shape, source=source)
    if is_remote(folder):
        raise InputError(f"the feature store {folder} is mapped into memory and must be in a local or mounted folder")
    about = {
        "format": FORMAT,
        **feature_key(clip, source),
        "source": source.name,
        "shape": list(shape),
        "dtype": dtype,
        "views": {"count": views, "seed": view_seed, "version": augmentation.VERSION} if views else None,
    }
    path = Path(folder).expanduser()
    if isinstance(source, Dataset):
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        path /= store_name(source, views) + (f"-{digest[:12]}" if separate else "")
    if (path / ABOUT).exists():
        _compare(path, _read_about(path), about)
    elif any(path.glob("rows-*.npy")):
        raise StoreError(f"the feature store {path} lacks {ABOUT}; delete the folder")
    else:
        write_json(path / ABOUT, about)
    return FeatureBank(len(source), shape, path, dtype, source)


def store_name(dataset: Dataset, views: int = 0) -> str:
    """Returns the name of a dataset's store in a folder of stores.

    Args:
      dataset, views: the dataset, and the number of augmented views of each image; 0 for the images themselves.

    Example:
      >>> from gram_jax.data import load_dataset
      >>> store_name(load_dataset("glyphs:chess/noise"), views=8)
      'glyphs-chess-noise-views-8'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", dataset.name).strip("-.") + (f"-views-{views}" if views else "")


class Store(NamedTuple):
    """Normalized frozen features of the images and captions of a corpus, float32 `[items, embed_dim]` each."""

    about: Mapping[str, Any]
    images: LazyRows
    texts: LazyRows


def open_store(path: str | os.PathLike[str], expect: Mapping[str, Any] | None = None) -> Store:
    """Returns the complete store of a corpus, whose rows are read when they are indexed.

    Args:
      path: the folder.
      expect: fields in which the store must agree, usually `feature_key(clip, corpus)`; None checks nothing.

    Raises:
      FileNotFoundError: there is no store.
      StoreError: it is stale (the message names the fields that differ), incomplete or damaged.

    Example:
      >>> open_store("/no/such/folder")
      Traceback (most recent call last):
      FileNotFoundError: /no/such/folder holds no feature store (store.json is missing); write one with ...
    """
    folder = Path(path).expanduser()
    about = _read_about(folder)
    _compare(folder, about, expect or {})
    items, shape = about["items"], tuple(about["shape"])
    if len(shape) != 2 or shape[0] != 2:
        raise StoreError(f"the feature store {folder} has the shape {list(shape)}: no captions; give a corpus's store")
    # The files limit the size of the bank, because store.json may be damaged.
    size = min(items, sum(path.stat().st_size for path in folder.glob("rows-*.npy")))
    bank = FeatureBank(size, shape, folder, about["dtype"])
    if missing := items - size + len(bank.missing()):
        raise StoreError(
            f"the feature store {folder} lacks {missing} of {items} items; run experiments.embed_corpus again with the "
            "same flags to complete it"
        )
    images = LazyRows((items, shape[1]), lambda rows: bank.stored(rows, 0))
    return Store(about, images, LazyRows(images.shape, lambda rows: bank.stored(rows, 1)))


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no feature store ({ABOUT} is missing); write one with experiments.embed_corpus"
        )
    try:
        about = read_json(path)
        if about["format"] != FORMAT:
            raise InputError(f"format {about['format']!r:.50}, expected {FORMAT}")
        sizes = [about["items"], *about["shape"]]
        if any(type(size) is not int or size < 1 for size in sizes) or max(about["shape"]) > MAX_WIDTH:
            raise InputError(f"sizes {str(sizes)[:200]}")
        require_known("dtype", about["dtype"], DTYPES)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} describes no feature store ({error}); delete the folder, write it again") from error
    return about


def _compare(folder: Path, about: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises StoreError if a field differs from the expected one; the same images may have several names."""

    def short(value: Any) -> str:
        text = json.dumps(value)
        return f"{text[:13]}..." if isinstance(value, str) and len(value) == 64 else text[:200]

    differing = [
        f"{name} is {short(about.get(name))}, expected {short(value)}"
        for name, value in expected.items()
        if name != "source" and about.get(name) != value
    ]
    if differing:
        raise StoreError(
            f"the feature store {folder} does not fit: {'; '.join(differing)}; use another folder, or delete this one "
            "and write it again"
        )
