"""The feature store: frozen features of a corpus or a dataset on disk, computed once, never used where they do not fit.

A folder of store.json (what the features are of) and shards PART-00000-of-00003.npy, of the parts "images", "texts"
(corpora) and "views" (where asked for). A shard appears whole or not at all; the store is complete when all are there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gram_jax.data import augmentation as views
from gram_jax.data.corpus import Corpus
from gram_jax.data.dataset import Dataset
from gram_jax.data.feature_key import feature_key
from gram_jax.errors import InputError

if TYPE_CHECKING:
    from gram_jax.clip.model import Clip

FORMAT = 1
ABOUT = "store.json"
DTYPES = ("float16", "float32")
MAX_SHARDS = 1_000_000
_REMEDY = "write it anew with experiments.embed_corpus, in another --workdir"


class StoreError(InputError):
    """A feature store is stale, incomplete or damaged; the message says which, and names what differs."""


class Rows:
    """The rows of a part of a store, mapped into memory: only what is asked for is read.

    Indexed by a number, a slice, or an array of numbers or booleans, it gives float32 arrays, whatever the files hold.

    Attributes:
      shape: of the whole part.
    """

    def __init__(self, shards: list[np.ndarray], shard_rows: int):
        self._shards, self._shard_rows = shards, shard_rows
        self.shape = (sum(map(len, shards)), *shards[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.arange(len(self))[key]
        flat = np.ravel(rows)
        found = np.empty((len(flat), *self.shape[1:]), np.float32)
        numbers = flat // self._shard_rows
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self._shards[number][flat[here] - number * self._shard_rows]
        return found.reshape(*np.shape(rows), *self.shape[1:])


@dataclasses.dataclass(frozen=True)
class Store:
    """Frozen features, normalized, in random access.

    Attributes:
      about: what they are of, see `describe_store`.
      images: image features `[items, embed_dim]`.
      texts: text features of the captions `[items, embed_dim]`; None for a dataset.
      views: features of augmented views `[items, views, embed_dim]`; None where there are none.
    """

    about: Mapping[str, Any]
    images: Rows
    texts: Rows | None
    views: Rows | None

    def __len__(self) -> int:
        return len(self.images)


def describe_store(
    clip: Clip,
    source: Corpus | Dataset,
    *,
    dtype: str = "float16",
    num_views: int = 0,
    view_seed: int = 0,
    shard_rows: int = 8192,
) -> dict[str, Any]:
    """What store.json says of a store.

    Args:
      clip: the clip.
      source: the corpus or dataset.
      dtype: "float16" or "float32", of the files.
      num_views: augmented views of each image.
      view_seed: their seed, see `augmentation.augmented_view`.
      shard_rows: items of a shard.

    Returns:
      JSON values: `feature_key` and the settings; "parts" holds the shape of an item in each part.

    Raises:
      ValueError, ImageError: a setting is out of range; or as `feature_key`.

    Example:
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> describe_store(tiny_clip(), load_corpus(pairs=3), num_views=2)["parts"]
      {'images': [16], 'texts': [16], 'views': [2, 16]}

    Reference:
      Our own choice.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; a store holds {' or '.join(DTYPES)}")
    if num_views < 0 or shard_rows < 1:
        raise InputError(f"num_views is {num_views} and shard_rows {shard_rows}; give at least 0 and 1")
    if len(source) > MAX_SHARDS * shard_rows:
        raise InputError(
            f"shard_rows is {shard_rows}: {len(source)} items would be more than {MAX_SHARDS} shards; give more"
        )
    parts = {"images": [clip.config.embed_dim]}
    if isinstance(source, Corpus):
        parts["texts"] = [clip.config.embed_dim]
    if num_views:
        parts["views"] = [num_views, clip.config.embed_dim]
    return {
        "format": FORMAT,
        **feature_key(clip, source),
        "source": source.name,
        "dtype": dtype,
        "parts": parts,
        "views": {"count": num_views, "seed": view_seed, "version": views.VERSION} if num_views else None,
        "shard_rows": shard_rows,
    }


def begin_store(path: str | os.PathLike[str], about: Mapping[str, Any]) -> list[int]:
    """Begins a store, or continues one of the same description; every process of a run may call it.

    Args:
      path: the folder; made if need be.
      about: from `describe_store`.

    Returns:
      The numbers of the shards that are missing.

    Raises:
      StoreError: the folder holds another store; the fields that differ are named.

    Example:
      >>> import tempfile
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> begin_store(tempfile.mkdtemp(), describe_store(tiny_clip(), load_corpus(pairs=3), shard_rows=2))
      [0, 1]

    Reference:
      Our own choice.
    """
    folder = Path(path).expanduser()
    if (folder / ABOUT).exists():
        _compare(folder, _read_about(folder), about)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{ABOUT}.{uuid.uuid4().hex}.part"  # processes of several hosts may write it at once
        part.write_text(json.dumps(dict(about), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(folder / ABOUT)
    return _missing(folder, about)


def shard_range(about: Mapping[str, Any], number: int) -> range:
    """The items of a shard.

    Args:
      about: from `describe_store`.
      number: the number of the shard.

    Returns:
      A range of item numbers.

    Example:
      >>> shard_range({"items": 5, "shard_rows": 3}, 1)
      range(3, 5)

    Reference:
      Our own choice.
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
      arrays: by part, float `[items of the shard, *shape of an item]`.

    Raises:
      InputError: a part is missing, has another shape, or is not finite; the message names the item.
      StoreError: a file cannot be written, for example to a full disk.

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

    Reference:
      Our own choice.
    """
    folder, items = Path(path).expanduser(), shard_range(about, number)
    if set(arrays) != set(about["parts"]):
        raise InputError(f"a shard of this store has the parts {sorted(about['parts'])}, found {sorted(arrays)}")
    for name, shape in about["parts"].items():
        array, expected = np.asarray(arrays[name]), (len(items), *shape)
        if array.shape != expected:
            raise InputError(f"{name} of shard {number} must have shape {list(expected)}, found {list(array.shape)}")
        bad = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
        if len(bad):
            raise InputError(
                f"{len(bad)} {name} of {about['source']!r} have features that are not finite, the first is item "
                f"{items[bad[0]]}; check the weights of the clip and that input"
            )
    for name in about["parts"]:
        target = _file(folder, about, name, number)
        part = target.with_name(f"{target.name}.part")
        try:
            with open(part, "wb") as file:
                np.save(file, np.asarray(arrays[name], about["dtype"]))
            part.replace(target)
        except OSError as error:
            raise StoreError(f"{target} cannot be written ({error}); the shards before it are kept") from error


def open_store(path: str | os.PathLike[str], expect: Mapping[str, Any] | None = None) -> Store:
    """Opens a complete store.

    Args:
      path: the folder.
      expect: fields that the store must agree in, usually `feature_key(clip, source)`; None only to look at it.

    Returns:
      The `Store`; nothing is read until it is indexed.

    Raises:
      FileNotFoundError: there is no store.
      StoreError: it is stale (a field differs, which the message names), incomplete or damaged.

    Example:
      >>> open_store("/no/such/folder")
      Traceback (most recent call last):
      FileNotFoundError: /no/such/folder holds no feature store (store.json is missing); write one with ...

    Reference:
      Our own choice.
    """
    folder = Path(path).expanduser()
    about = _read_about(folder)
    _compare(folder, about, expect or {})
    if missing := _missing(folder, about):
        raise StoreError(
            f"the feature store {folder} lacks {len(missing)} of {_count(about)} shards; run the same command of "
            "experiments.embed_corpus again, which continues"
        )
    found = {}
    for name, shape in about["parts"].items():
        shards = [_map(folder, about, name, number, shape) for number in range(_count(about))]
        found[name] = Rows(shards, about["shard_rows"])
    return Store(about, found["images"], found.get("texts"), found.get("views"))


def _map(folder: Path, about: Mapping[str, Any], name: str, number: int, shape: list[int]) -> np.ndarray:
    path = _file(folder, about, name, number)
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never a pickle or an archive, which np.load would open
    except Exception as error:  # its header is read by Python's own parser, which fails in every way there is
        raise StoreError(
            f"{path} cannot be read ({error}); delete it and run experiments.embed_corpus again"
        ) from error
    expected = (len(shard_range(about, number)), *shape)
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
    there = set(os.listdir(folder))
    parts = about["parts"]
    return [
        number
        for number in range(_count(about))
        if not all(_file(folder, about, name, number).name in there for name in parts)
    ]


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no feature store ({ABOUT} is missing); write one with experiments.embed_corpus"
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise InputError(f"it is of version {about['format']}, not {FORMAT}")
        shapes = about["parts"]
        sizes = [about["items"], about["shard_rows"], *(size for shape in shapes.values() for size in shape)]
        if any(type(size) is not int or size < 1 for size in sizes) or _count(about) > MAX_SHARDS:
            raise InputError(f"it has the sizes {str(sizes)[:200]}")
        if about["dtype"] not in DTYPES or "images" not in shapes or not set(shapes) <= {"images", "texts", "views"}:
            raise InputError("it is no description of a store")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} cannot be used ({error}); {_REMEDY}") from error
    return about


def _compare(folder: Path, about: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    """Refuses a store that differs from what is expected; where the source is called something else, it is the same."""
    differing = [
        f"{name} is {_short(about.get(name))}, expected {_short(value)}"
        for name, value in expect.items()
        if name != "source" and about.get(name) != value
    ]
    if differing:
        raise StoreError(f"the feature store {folder} does not fit: {'; '.join(differing)}. {_REMEDY.capitalize()}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:13]}..." if isinstance(value, str) and len(value) == 64 else text
