"""Predictions of tuned prompts, computed in batches of a few sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.batching import padded_batches
from gram_jax.clip import Classes, Clip
from gram_jax.evaluation.features import require_images
from gram_jax.summary import short
from gram_jax.tuning import Tuning

_IMAGES = 256  # sets of images are filled up to this many, or twice, four times, ... as many


class Predictions(NamedTuple):
    """Predicted labels of images, int `[runs, images]`, and their probabilities, float `[runs, images]`."""

    labels: np.ndarray
    confidence: np.ndarray

    def __repr__(self) -> str:
        return short(self)


def run_count(prompts: Any) -> int:
    """Returns the number of runs of stacked prompts."""
    return len(jax.tree.leaves(prompts)[0])


def summarize_logits(logits: np.ndarray) -> Predictions:
    """Returns the predictions of logits `[runs, images, classes]`; the logits of many classes would fill the memory."""
    best = logits.max(-1, keepdims=True)
    return Predictions(logits.argmax(-1), 1 / np.exp(logits - best).sum(-1))


def predict(
    tuning: Tuning,
    prompts: Any,
    clip: Clip,
    classes: Classes | jax.Array,
    valid: np.ndarray,
    images: Any,
    *,
    batch_size: int = 4096,
) -> np.ndarray:
    """Returns the logits of every run on the same images.

    Batches are filled up to a few sizes, so that sets of images of all lengths share compiled programs.

    Args:
      tuning, clip: the `Tuning` from `make_tuning`, and the frozen clip.
      prompts: the prompts of the runs, `[runs, ...]` each leaf.
      classes, valid: the class list and a bool for each class, from `pad_classes`.
      images: frozen image features `[images, embed_dim]`, or images; any object with a length whose slices are arrays.
      batch_size: images per step.

    Returns:
      `[runs, images, valid classes]`, on the host.

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
    """
    return np.concatenate(list(_batches(tuning, prompts, clip, classes, valid, images, batch_size)), axis=1)


def cross_entropy(
    tuning: Tuning,
    prompt: Any,
    clip: Clip,
    classes: Any,
    valid: np.ndarray,
    images: Any,
    labels: np.ndarray,
    *,
    batch_size: int = 4096,
) -> float:
    """Returns the mean cross-entropy of one prompt on labeled images.

    Args:
      tuning, clip, classes, valid, images, batch_size: as in `predict`.
      prompt: the prompt of one run.
      labels: int `[images]`.
    """
    runs = jax.tree.map(lambda leaf: leaf[None], prompt)
    logits = predict(tuning, runs, clip, classes, valid, images, batch_size=batch_size)[0]
    return float(np.mean(np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(labels)), labels]))


def predict_labels(
    tuning: Tuning, prompts: Any, clip: Clip, classes: Any, valid: np.ndarray, images: Any, *, batch_size: int = 4096
) -> Predictions:
    """Returns the labels that every run predicts, with their probabilities.

    Args:
      tuning, prompts, clip, classes, valid, images, batch_size: as in `predict`.
    """
    parts = map(summarize_logits, _batches(tuning, prompts, clip, classes, valid, images, batch_size))
    return Predictions(*(np.concatenate(field, axis=1) for field in zip(*parts, strict=True)))


def _batches(
    tuning: Tuning, prompts: Any, clip: Clip, classes: Any, valid: np.ndarray, images: Any, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields logits `[runs, images, classes]` batch by batch; each run by itself: none depends on the others."""
    require_images(images, batch_size)
    runs = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 1], prompts) for at in range(run_count(prompts))]
    # The smallest of 256, 512, 1024, ... that holds all images.
    size = min(batch_size, _IMAGES * 2 ** max(0, math.ceil(math.log2(len(images) / _IMAGES))))
    for batch, count in padded_batches(images, size):
        images = jnp.asarray(batch, jnp.float32)
        logits = [np.asarray(tuning.logits(run, clip, classes, images)) for run in runs]
        yield np.concatenate(logits)[:, :count, np.asarray(valid)]
