"""What a tuned prompt makes of images and classes: features to look at, in a t-SNE or against each other."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gram_jax.clip import Classes, Clip
from gram_jax.errors import InputError
from gram_jax.tuners import Tuner

PyTree = Any


def prompted_features(
    tuner: Tuner,
    prompt: PyTree,
    clip: Clip,
    classes: Classes | jax.Array,
    valid: np.ndarray,
    images: Any,
    *,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """The features of images and of classes under one prompt, batch by batch.

    Args:
      tuner: the tuner.
      prompt: one prompt, not a stack of them.
      clip: the frozen clip.
      classes: as `pad_classes` returns them.
      valid: as `pad_classes` returns it, bool `[classes]`.
      images: as the tuner takes them; anything of a length whose slices are arrays.
      batch_size: images a step, at least 1.

    Returns:
      Image features `[images, embed_dim]` and text features `[number of valid classes, embed_dim]`, float32, on the
      host. Text features that depend on the image are averaged over the images.

    Raises:
      InputError: if there are no images, or the batch size is below 1.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.tuning import pad_classes
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner = tiny_clip(text_layers=1), tuners.coop()
      >>> classes, valid = pad_classes(clip, clip.class_tokens(["cat", "dog"]))
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> images, texts = prompted_features(tuner, prompt, clip, classes, valid, np.ones((5, 16)) / 4)
      >>> images.shape, texts.shape
      ((5, 16), (2, 16))

    Reference:
      Our own choice.
    """
    if batch_size < 1 or not len(images):
        raise InputError(
            f"{len(images)} images in batches of {batch_size}: give at least one image, and a batch of at least 1."
        )
    apply = jax.jit(tuner.apply)
    found, texts = [], 0.0
    for start in range(0, len(images), batch_size):
        chunk = np.asarray(images[start : start + batch_size], np.float32)
        filled = np.pad(chunk, ((0, batch_size - len(chunk)), *((0, 0),) * (chunk.ndim - 1)), mode="edge")
        outputs = apply(prompt, clip, classes, filled)
        found.append(np.asarray(outputs.image_features, np.float32)[: len(chunk)])
        of_batch = np.asarray(outputs.text_features, np.float32)
        share = len(chunk) / len(images)
        texts += share * (of_batch if of_batch.ndim == 2 else of_batch[: len(chunk)].mean(0))
    return np.concatenate(found), texts[np.asarray(valid)].astype(np.float32)
