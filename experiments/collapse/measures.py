"""Accuracy and neural collapse of a stack of tuned prompts: one pass over the images of each class list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import evaluation
from gram_jax.errors import InputError
from gram_jax.evaluation import Row
from gram_jax.evaluation.encoder import Encoder
from gram_jax.evaluation.protocols import Part
from gram_jax.evaluation.tuned import FEATURE_BATCH
from gram_jax.tuners import Tuner

H, ALL_CLASSES = "harmonic_mean", "all"  # a metric, and the split of its rows
_IMAGES = 256  # sets of image features are filled up to a multiple of this

# By step and split, the values of every metric, one for each run.
Found = dict[str, dict[str, dict[str, list[float]]]]


class Meter(NamedTuple):
    """The compiled parts of a measurement, shared by all prompts of a tuner.

    Attributes:
      tuner: the tuner.
      outputs: `outputs(prompts, clip, classes, images, there) -> (logits, image features, sum of text features)`, each
        with a leading axis of runs; the sum is over the images that are `there`, bool `[images]`.
      collapse: `neural_collapse` of every run.
      by_image: whether text features are each image's own.
    """

    tuner: Tuner
    outputs: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    collapse: Callable[..., dict[str, jax.Array]]
    by_image: Callable[..., bool]


def meter(encoder: Encoder, tuner: Tuner) -> Meter:
    """Returns the measurement of a tuner's prompts."""

    @jax.jit
    def outputs(prompts: Any, clip: Any, classes: Any, images: Any, there: Any) -> tuple[jax.Array, ...]:
        def one(prompt: Any) -> tuple[jax.Array, ...]:
            found = tuner.apply(prompt, clip, classes, images)
            texts = found.text_features
            if texts.ndim == 3:
                texts = jnp.sum(jnp.where(there[:, None, None], texts, 0.0), axis=0)
            return found.logits, found.image_features, texts

        return jax.vmap(one)(prompts)

    def by_image(prompts: Any, classes: Any, images: Any) -> bool:
        prompt = jax.tree.map(lambda leaf: leaf[0], prompts)
        return jax.eval_shape(tuner.apply, prompt, encoder.clip, classes, images).text_features.ndim == 3

    collapse = jax.jit(jax.vmap(evaluation.neural_collapse, in_axes=(0, 0, 0, None)))
    return Meter(tuner, outputs, collapse, by_image)


def measured(encoder: Encoder, meter: Meter, prompts: Any, parts: Sequence[Part]) -> dict[str, dict[str, list[float]]]:
    """Accuracy and every measure of collapse on each part, and H of the accuracies, one value for each run.

    Args:
      encoder: reads and encodes the images.
      meter: from `meter`.
      prompts: `[runs, ...]`.
      parts: test images of base and of new classes.

    Returns:
      By split and metric, the values of the runs.

    Raises:
      InputError: a measure is not finite; the message names it.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        labels = part.dataset.labels
        logits, images, texts = _features(encoder, meter, prompts, part)
        values = {"accuracy": np.mean(logits.argmax(-1) == labels, axis=1)}
        values |= meter.collapse(logits, images, texts, labels)
        found[part.split] = {name: np.asarray(runs, np.float64).tolist() for name, runs in values.items()}
        for name, runs in found[part.split].items():
            if not all(map(math.isfinite, runs)):
                raise InputError(
                    f"{name} of {meter.tuner.name} on the {part.split} classes of {part.dataset.name} is not finite: "
                    f"{runs}; lower the learning rate"
                )
    accuracies = [found[part.split]["accuracy"] for part in parts]
    return found | {ALL_CLASSES: {H: evaluation.harmonic_mean(*accuracies).tolist()}}


def _features(encoder: Encoder, meter: Meter, prompts: Any, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, image features and text features of every run; text features of each image as their normalized mean."""
    classes, valid = encoder.classes(meter.tuner, part.dataset.class_names)
    images = encoder.inputs(meter.tuner, part.dataset)
    count = len(images)
    by_image = meter.by_image(prompts, classes, images[:1])
    most = encoder.batch_size if meter.tuner.needs_pixels or by_image else FEATURE_BATCH
    size = min(most, -(-count // _IMAGES) * _IMAGES)
    logits, features, total = [], [], 0.0
    for start in range(0, count, size):
        chunk = np.asarray(images[start : start + size], np.float32)
        here = len(chunk)
        filled = np.pad(chunk, ((0, size - here), *((0, 0),) * (chunk.ndim - 1)), mode="edge")
        there = np.arange(size) < here
        own, seen, texts = map(np.asarray, meter.outputs(prompts, encoder.clip, classes, filled, there))
        logits.append(own[:, :here, valid])
        features.append(seen[:, :here])
        total = total + texts if by_image else texts
    texts = total[:, valid]
    if by_image:
        texts = texts / np.linalg.norm(texts, axis=-1, keepdims=True)
    return np.concatenate(logits, axis=1), np.concatenate(features, axis=1), texts


def rows(found: Found, method: str, dataset: str, protocol: str, shots: int, seeds: Sequence[int]) -> Iterator[Row]:
    """The rows of a unit: one for each step, split, metric and seed."""
    for step, splits in found.items():
        for split, metrics in splits.items():
            for metric, values in metrics.items():
                for seed, value in zip(seeds, values, strict=True):
                    yield Row(method, protocol, dataset, metric, value, None, shots, seed, split, int(step))
