"""Accuracy and neural collapse of a stack of tuned prompts: one pass over the images of each class list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.batching import padded_batches, round_up
from gram_jax.errors import InputError
from gram_jax.evaluation import Encoder, Part, Row, harmonic_mean, neural_collapse
from gram_jax.evaluation.prediction import run_count
from gram_jax.evaluation.tuned import FEATURE_BATCH
from gram_jax.tuners import Tuner

H, ALL_CLASSES = "harmonic_mean", "all"  # a metric, and the split of its rows
_IMAGES = 256  # sets of image features are padded to a multiple of this

Values = dict[str, dict[str, list[float]]]  # by split and metric, a value for each run


class Meter:
    """Measures the prompts of one tuner with shared compiled programs; the encoder reads and encodes the images."""

    def __init__(self, encoder: Encoder, tuner: Tuner):
        self._encoder, self._tuner = encoder, tuner
        self._collapse = jax.jit(jax.vmap(neural_collapse, in_axes=(0, 0, 0, None)))

        @jax.jit
        def outputs(prompts: Any, clip: Any, classes: Any, images: Any, real: Any) -> tuple[jax.Array, ...]:
            def one(prompt: Any) -> tuple[jax.Array, ...]:
                logits, features, texts = tuner.apply(prompt, clip, classes, images)
                if texts.ndim == 3:  # the sum over images
                    texts = jnp.sum(jnp.where(real[:, None, None], texts, 0.0), axis=0)
                return logits, features, texts

            return jax.vmap(one)(prompts)

        self._outputs = outputs

    def measure(self, prompts: Any, parts: Sequence[Part]) -> Values:
        """Returns accuracy and every measure of collapse on each part, and H of the accuracies.

        The prompts are stacked, each leaf `[runs, ...]`; the parts are test images of base and of new classes. Raises
        InputError if a measure is not finite.
        """
        runs = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 1], prompts) for at in range(run_count(prompts))]
        each = [self._measure(run, parts) for run in runs]  # one by one: no run's numbers depend on the others
        return {
            split: {name: [value for own in each for value in own[split][name]] for name in metrics}
            for split, metrics in each[0].items()
        }

    def _measure(self, prompts: Any, parts: Sequence[Part]) -> Values:
        values: Values = {}
        for part in parts:
            outputs, labels = self.features(prompts, part), part.dataset.labels
            measures = {"accuracy": np.mean(outputs[0].argmax(-1) == labels, axis=1)} | self._collapse(*outputs, labels)
            values[part.split] = {name: np.asarray(runs, np.float64).tolist() for name, runs in measures.items()}
            for name, runs in values[part.split].items():
                if not np.isfinite(runs).all():
                    raise InputError(
                        f"{name} of {self._tuner.name} on the {part.split} classes of {part.dataset.name} is not "
                        f"finite: {runs}; lower the learning rate"
                    )
        return values | {ALL_CLASSES: {H: harmonic_mean(*(values[part.split]["accuracy"] for part in parts)).tolist()}}

    def features(self, prompts: Any, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns logits, image features and text features (the normalized mean over images) of every run."""
        encoder, tuner = self._encoder, self._tuner
        classes, valid = encoder.classes(tuner, part.dataset.class_names, part.dataset.template)
        images = encoder.inputs(tuner, part.dataset)
        prompt = jax.tree.map(lambda leaf: leaf[0], prompts)
        by_image = jax.eval_shape(tuner.apply, prompt, encoder.clip, classes, images[:1]).text_features.ndim == 3
        most = encoder.batch_size if tuner.needs_pixels or by_image else FEATURE_BATCH
        size = min(most, round_up(len(images), _IMAGES))
        logits, features, texts = [], [], []
        for batch, count in padded_batches(images, size):
            real = np.arange(size) < count
            outputs = self._outputs(prompts, encoder.clip, classes, batch.astype(np.float32), real)
            own, seen, text = map(np.asarray, outputs)
            logits.append(own[:, :count, valid])
            features.append(seen[:, :count])
            texts.append(text[:, valid])
        text = texts[-1]
        if by_image:
            text = sum(texts)
            text = text / np.linalg.norm(text, axis=-1, keepdims=True)
        return np.concatenate(logits, axis=1), np.concatenate(features, axis=1), text


def rows(
    by_step: dict[str, Values], method: str, dataset: str, protocol: str, shots: int, seeds: Sequence[int]
) -> Iterator[Row]:
    """Yields a row for each step, split, metric and seed."""
    for step, values in by_step.items():
        for split, metrics in values.items():
            for metric, runs in metrics.items():
                for seed, value in zip(seeds, runs, strict=True):
                    yield Row(method, protocol, dataset, metric, value, None, shots, seed, split, int(step))
