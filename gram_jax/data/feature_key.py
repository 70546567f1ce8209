"""The identity of frozen features: stored features of anything else are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gram_jax.data.corpus import Corpus
from gram_jax.data.dataset import Dataset
from gram_jax.errors import InputError
from gram_jax.io import read_json

if TYPE_CHECKING:
    from gram_jax.clip.model import Clip

FORMAT = 1
ABOUT = "store.json"
_SAMPLE = 8  # images whose pixels enter the key


class StoreError(InputError):
    """A feature store is stale, incomplete or damaged; the message names the store, the difference and the remedy."""


def feature_key(clip: Clip, source: Corpus | Dataset) -> dict[str, Any]:
    """Returns everything that the frozen features of a source depend on.

    Args:
      clip: the clip, with tokenizer and image transform.
      source: the corpus or dataset.

    Returns:
      JSON values: "clip" (the hash of its weights), "compute_dtype", "transform" (its version), "tokenizer" (its hash;
      None for a dataset, which has no captions), "source_hash", "items", and "sample", a hash of the pixels of a few
      images: the source hash covers references, which may lead to other images in another folder.

    Raises:
      InputError: the clip lacks its transform or its tokenizer, or the source is empty.
      ImageError: one of these images cannot be read.

    Example:
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> feature_key(tiny_clip(), load_corpus(pairs=3))["items"]
      3
    """
    from gram_jax.clip.formats.weights import weights_hash

    if clip.transform is None or clip.tokenizer is None:
        raise InputError("this clip lacks its image transform or its tokenizer; use clip.replace(...)")
    return {
        "clip": weights_hash(clip.params),
        "compute_dtype": clip.config.compute_dtype,
        "transform": clip.transform.version,
        "tokenizer": clip.tokenizer.content_hash if isinstance(source, Corpus) else None,
        "source_hash": source.content_hash,
        "items": len(source),
        "sample": _sample(source),
    }


def _sample(source: Corpus | Dataset) -> str:
    """Returns the SHA-256 of the decoded pixels of a few images, evenly spread."""
    from gram_jax.clip.images import ImageTransform

    if not len(source):
        raise InputError(f"{source.name!r} has no items; there is nothing to store")
    decode, hasher = ImageTransform(size=None, crop=None), hashlib.sha256()
    for item in np.linspace(0, len(source) - 1, _SAMPLE).round().astype(int).tolist():
        pixels = decode.pixels(source.images([item])[0], f"image {item} of {source.name}")
        hasher.update(f"{pixels.shape}".encode() + pixels.tobytes())
    return hasher.hexdigest()


def read_about(folder: Path) -> dict[str, Any]:
    """Returns the description of a store.

    Raises:
      FileNotFoundError: there is no store.
      StoreError: the file is damaged or has another version.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no feature store ({ABOUT} is missing); write one with experiments.embed_corpus"
        )
    try:
        about = read_json(path)
    except InputError as error:
        raise StoreError(f"{error}; delete the folder and write the store again") from error
    version = about.get("format") if isinstance(about, dict) else None
    if version != FORMAT:
        raise StoreError(f"{path} has the format {version!r:.50}, not {FORMAT}; delete the folder and write it again")
    return about


def compare_about(folder: Path, about: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises StoreError if a field of a description differs from the expected one.

    The name of the source may differ: the same images may have several names.
    """
    differing = [
        f"{name} is {_short(about.get(name))}, expected {_short(value)}"
        for name, value in expected.items()
        if name != "source" and about.get(name) != value
    ]
    if differing:
        raise StoreError(
            f"the feature store {folder} does not fit: {'; '.join(differing)}; use another folder, or delete this one "
            "and write it again"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:13]}..." if isinstance(value, str) and len(value) == 64 else text[:200]
