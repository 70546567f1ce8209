"""What tuned prompts say of images, in batches of a few sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gram_jax.clip import Classes, Clip
from gram_jax.errors import InputError
from gram_jax.tuning.step import Tuning

Array = jax.Array
PyTree = Any

_IMAGES = 256  # sets of images are filled up to this many, or twice, four times, ... as many


def predict(
    tuning: Tuning,
    prompts: PyTree,
    clip: Clip,
    classes: Classes | Array,
    valid: np.ndarray,
    images: Any,
    *,
    batch_size: int = 4096,
    reduce: Callable[[np.ndarray], PyTree] | None = None,
) -> PyTree:
    """Logits of every run on the same images, batch by batch.

    Batches are filled up to a few sizes, so that sets of images of all lengths share compiled programs.

    Args:
      tuning: as `make_tuning` builds it.
      prompts: the runs' prompts `[runs, ...]`.
      clip: the frozen clip.
      classes: as `pad_classes` returns them.
      valid: as `pad_classes` returns it, bool `[classes]`.
      images: frozen image features `[images, embed_dim]`, or images; anything of a length whose slices are arrays.
      batch_size: images a step, at least 1.
      reduce: what is kept of a batch's logits, arrays `[runs, images, ...]`; None keeps the logits.

    Returns:
      `[runs, images, number of valid classes]`, on the host; or what `reduce` kept, put together.

    Raises:
      InputError: if there are no images, or the batch size is below 1.

    Example:
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.tuning import make_tuning, pad_classes
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> prompts = jax.tree.map(lambda leaf: leaf[None], tuner.init(jax.random.key(0), clip, None))
      >>> tuning = make_tuning(tuner, regulators.identity())
      >>> predict(tuning, prompts, clip, classes, valid, np.ones((5, 16)) / 4).shape
      (1, 5, 2)

    Reference:
      Our own choice.
    """
    if batch_size < 1 or not len(images):
        raise InputError(
            f"{len(images)} images in batches of {batch_size}: give at least one image, and a batch of at least 1."
        )
    # The smallest of 256, 512, 1024, ... that holds all images.
    size = min(batch_size, _IMAGES * 2 ** max(0, math.ceil(math.log2(len(images) / _IMAGES))))
    parts = []
    for start in range(0, len(images), size):
        chunk = np.asarray(images[start : start + size], np.float32)
        filled = np.pad(chunk, ((0, size - len(chunk)), *((0, 0),) * (chunk.ndim - 1)))
        found = np.asarray(tuning.logits(prompts, clip, classes, filled))[:, : len(chunk), np.asarray(valid)]
        parts.append(found if reduce is None else reduce(found))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts)
