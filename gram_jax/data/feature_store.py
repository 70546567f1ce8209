"""The feature store of a corpus: frozen image and text features on disk, computed once.

A folder of store.json (the identity of the features) and shards images-00000-of-00003.npy and texts-00000-of-00003.npy.
A shard appears whole or not at all; the store is complete when all shards exist. `feature_bank` keeps the features of
labeled datasets.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gram_jax.data.corpus import Corpus
from gram_jax.data.feature_key import ABOUT, FORMAT, StoreError, compare_about, feature_key, read_about
from gram_jax.data.lazy import LazyRows
from gram_jax.errors import InputError, require_int, require_known
from gram_jax.io import write_json, write_npy

if TYPE_CHECKING:
    from gram_jax.clip.model import Clip

PARTS = ("images", "texts")
DTYPES = ("float16", "float32")
MAX_SHARDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Store:
    """Normalized frozen features of a corpus, mapped into memory; rows are float32, whatever the files hold.

    Attributes:
      about: the description, see `describe_store`.
      images: image features `[items, embed_dim]`.
      texts: text features of the captions `[items, embed_dim]`.
    """

    about: Mapping[str, Any]
    images: LazyRows
    texts: LazyRows

    def __len__(self) -> int:
        return len(self.images)


def describe_store(clip: Clip, corpus: Corpus, *, dtype: str = "float16", shard_rows: int = 8192) -> dict[str, Any]:
    """Returns the description of a store, the content of its store.json.

    Args:
      clip: the clip.
      corpus: the corpus.
      dtype: "float16" or "float32", the precision of the files.
      shard_rows: items of a shard.

    Returns:
      JSON values: `feature_key` and the settings.

    Raises:
      InputError: a setting is out of range; or as `feature_key`.
      ImageError: as `feature_key`.

    Example:
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> about = describe_store(tiny_clip(), load_corpus(pairs=3))
      >>> about["items"], about["parts"]
      (3, {'images': [16], 'texts': [16]})
    """
    require_known("dtype", dtype, DTYPES)
    require_int("shard_rows", shard_rows)
    if len(corpus) > MAX_SHARDS * shard_rows:
        raise InputError(f"shard_rows={shard_rows}: {len(corpus)} items need more than {MAX_SHARDS} shards; raise it")
    return {
        "format": FORMAT,
        **feature_key(clip, corpus),
        "source": corpus.name,
        "dtype": dtype,
        "parts": {name: [clip.config.embed_dim] for name in PARTS},
        "shard_rows": shard_rows,
    }


def begin_store(path: str | os.PathLike[str], about: Mapping[str, Any]) -> list[int]:
    """Begins a store, or continues one with the same description; every process of a run may call it.

    Args:
      path: the folder; made if need be.
      about: from `describe_store`.

    Returns:
      The numbers of the missing shards.

    Raises:
      StoreError: the folder holds another store; the message names the fields that differ.

    Example:
      >>> import tempfile
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> begin_store(tempfile.mkdtemp(), describe_store(tiny_clip(), load_corpus(pairs=3), shard_rows=2))
      [0, 1]
    """
    folder = Path(path).expanduser()
    if (folder / ABOUT).exists():
        compare_about(folder, _read_about(folder), about)
    else:
        write_json(folder / ABOUT, dict(about))
    return _missing(folder, about)


def shard_range(about: Mapping[str, Any], number: int) -> range:
    """Returns the item numbers of a shard.

    Args:
      about: from `describe_store`.
      number: the number of the shard.

    Example:
      >>> shard_range({"items": 5, "shard_rows": 3}, 1)
      range(3, 5)
    """
    start = number * about["shard_rows"]
    return range(start, min(start + about["shard_rows"], about["items"]))


def write_store_shard(
    path: str | os.PathLike[str], about: Mapping[str, Any], number: int, arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes a shard of a store that was begun; each file appears whole or not at all.

    Args:
      path: the folder.
      about: from `describe_store`.
      number: the number of the shard.
      arrays: "images" and "texts", float `[items of the shard, embed_dim]`.

    Raises:
      InputError: an array is missing, has another shape, or is not finite; the message names the item.

    Example:
      >>> import tempfile
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> folder, clip, corpus = tempfile.mkdtemp(), tiny_clip(), load_corpus(pairs=3)
      >>> about = describe_store(clip, corpus)
      >>> _ = begin_store(folder, about)
      >>> write_store_shard(folder, about, 0, {"images": np.zeros((3, 16)), "texts": np.ones((3, 16))})
      >>> open_store(folder, feature_key(clip, corpus)).texts[1].sum()
      np.float32(16.0)
    """
    folder, items = Path(path).expanduser(), shard_range(about, number)
    if set(arrays) != set(PARTS):
        raise InputError(f"a shard holds {', '.join(PARTS)}; found {', '.join(sorted(arrays))}")
    for name in PARTS:
        array, expected = np.asarray(arrays[name]), (len(items), *about["parts"][name])
        if array.shape != expected:
            raise InputError(f"{name} of shard {number} must have shape {list(expected)}, found {list(array.shape)}")
        bad = np.flatnonzero(~np.isfinite(array).all(1))
        if len(bad):
            raise InputError(
                f"the features of {len(bad)} {name} of {about['source']!r} are not finite, the first of item "
                f"{items[bad[0]]}; check the weights of the clip and that input"
            )
    for name in PARTS:
        write_npy(_file(folder, about, name, number), np.asarray(arrays[name], about["dtype"]))


def open_store(path: str | os.PathLike[str], expect: Mapping[str, Any] | None = None) -> Store:
    """Opens a complete store.

    Args:
      path: the folder.
      expect: fields in which the store must agree, usually `feature_key(clip, corpus)`; None checks nothing.

    Returns:
      The `Store`; rows are read when they are indexed.

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
    compare_about(folder, about, expect or {})
    if missing := _missing(folder, about):
        raise StoreError(
            f"the feature store {folder} lacks {len(missing)} of {_count(about)} shards; run experiments.embed_corpus "
            "again with the same flags to complete it"
        )
    images, texts = (_rows(folder, about, name) for name in PARTS)
    return Store(about, images, texts)


def _rows(folder: Path, about: Mapping[str, Any], name: str) -> LazyRows:
    shards = [_map(folder, about, name, number) for number in range(_count(about))]
    shape = (about["items"], *about["parts"][name])

    def read(items: np.ndarray) -> np.ndarray:
        rows = np.empty((len(items), shape[1]), np.float32)
        numbers, places = np.divmod(items, about["shard_rows"])
        for number in np.unique(numbers):
            here = numbers == number
            rows[here] = shards[number][places[here]]
        return rows

    return LazyRows(shape, read)


def _map(folder: Path, about: Mapping[str, Any], name: str, number: int) -> np.ndarray:
    path = _file(folder, about, name, number)
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never a pickle or an archive, which np.load would open
    except Exception as error:  # Python's own parser reads the header; it can raise anything
        raise StoreError(
            f"{path} cannot be read ({error}); delete it and run experiments.embed_corpus again"
        ) from error
    expected = (len(shard_range(about, number)), *about["parts"][name])
    if array.shape != expected or array.dtype != about["dtype"]:
        raise StoreError(
            f"{path} holds {array.dtype} {list(array.shape)} instead of {about['dtype']} {list(expected)}; delete it "
            "and run experiments.embed_corpus again"
        )
    return array


def _count(about: Mapping[str, Any]) -> int:
    return -(-about["items"] // about["shard_rows"])


def _file(folder: Path, about: Mapping[str, Any], name: str, number: int) -> Path:
    return folder / f"{name}-{number:05d}-of-{_count(about):05d}.npy"


def _missing(folder: Path, about: Mapping[str, Any]) -> list[int]:
    existing = set(os.listdir(folder))
    return [
        number
        for number in range(_count(about))
        if not all(_file(folder, about, name, number).name in existing for name in PARTS)
    ]


def _read_about(folder: Path) -> dict[str, Any]:
    about = read_about(folder)
    try:
        dims = [dim for name in PARTS for (dim,) in [about["parts"][name]]]
        sizes = [about["items"], about["shard_rows"], *dims]
        if any(type(size) is not int or size < 1 for size in sizes) or _count(about) > MAX_SHARDS:
            raise InputError(f"sizes {str(sizes)[:200]}")
        require_known("dtype", about["dtype"], DTYPES)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder / ABOUT} does not describe the features of a corpus ({error}); delete the folder and run "
            "experiments.embed_corpus again"
        ) from error
    return about
