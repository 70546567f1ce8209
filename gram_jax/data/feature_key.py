"""What frozen features depend on, so that those of something else are never taken for them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from gram_jax.data.corpus import Corpus
from gram_jax.data.dataset import Dataset
from gram_jax.errors import InputError

if TYPE_CHECKING:
    from gram_jax.clip.model import Clip

_SAMPLE = 8  # images that a source is recognized by


def feature_key(clip: Clip, source: Corpus | Dataset) -> dict[str, Any]:
    """What frozen features depend on: for `open_store`, what a store must agree in.

    Args:
      clip: the clip, with tokenizer and image transform.
      source: the corpus or dataset.

    Returns:
      JSON values: "clip" (the hash of its weights), "compute_dtype", "transform" (its version), "tokenizer" (its hash;
      None for a dataset, which has no captions), "source_hash", "items", and "sample", a hash of the pixels of a few
      images: a source hash vouches for references, which lead to other images in another folder.

    Raises:
      InputError: the clip lacks its transform or its tokenizer, or the source is empty.
      ImageError: one of these images cannot be read.

    Example:
      >>> from gram_jax.data import load_corpus
      >>> from gram_jax.testing import tiny_clip
      >>> feature_key(tiny_clip(), load_corpus(pairs=3))["items"]
      3

    Reference:
      Our own choice.
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
    """SHA-256 over the decoded pixels of a few images, evenly spread."""
    from gram_jax.clip.images import ImageTransform

    if not len(source):
        raise InputError(f"{source.name!r} has no items; there is nothing to keep features of")
    decode, hasher = ImageTransform(size=None, crop=None), hashlib.sha256()
    for item in np.linspace(0, len(source) - 1, _SAMPLE).round().astype(int).tolist():
        pixels = decode.pixels(source.images([item])[0], f"image {item} of {source.name}")
        hasher.update(f"{pixels.shape}".encode() + pixels.tobytes())
    return hasher.hexdigest()
