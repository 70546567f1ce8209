"""One run on pairs: a prompt is tuned on images of seen pairs, then all candidate pairs are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import meta as meta_learning
from gram_jax import regulators, tuning
from gram_jax.artifacts import LoadedMeta
from gram_jax.batching import padded_batches
from gram_jax.clip import Clip
from gram_jax.clip import logits as cosines
from gram_jax.data import Dataset
from gram_jax.data.compositions import Compositions, PairDataset, balance, count_images, feasibility
from gram_jax.errors import InputError, require_int, require_number
from gram_jax.evaluation.compositional import (
    Curve,
    ImageScores,
    Measures,
    calibrate,
    image_scores,
    join_scores,
    measure,
    thresholds,
)
from gram_jax.evaluation.encoder import Encoder
from gram_jax.objectives import pair_loss, pair_outputs
from gram_jax.regulators import Regulator
from gram_jax.tuners import PairClasses, Prompt, Tuner, frozen_outputs, pair_classes
from gram_jax.tuning import Recurrent, Tuning, tune_in_phases

_FEATURE_BATCH, _PIXEL_BATCH = 1024, 64  # images that are scored at once
JOINT = Recurrent(0, "objects", 0.0, 0.0, True)


@dataclasses.dataclass(frozen=True)
class PairPlan:
    """The settings of a run: Adam at a constant rate, with coupled weight decay, as the field's codes have it."""

    learning_rate: float = 1e-3
    steps: int = 300
    batch_size: int = 64
    weight_decay: float = 1e-5
    schedule: Recurrent = JOINT

    def __post_init__(self) -> None:
        require_number("learning_rate", self.learning_rate, above=0)
        require_number("weight_decay", self.weight_decay, least=0)
        for name in ("steps", "batch_size"):
            require_int(name, getattr(self, name))

    def compile(self, tuner: Tuner, meta: LoadedMeta | None = None) -> Tuning:
        """Returns the step of a tuner, which runs share, under GRAM's regulator if `meta` is given.

        It is compiled when it is first taken.
        """
        regulator = regulators.identity() if meta is None else on_context(meta.regulator)
        loss = pair_loss(tuner)
        return tuning.make_tuning(tuner, regulator, loss=loss, optimizer="adam", weight_decay=self.weight_decay)


def on_context(regulator: Regulator) -> Regulator:
    """Returns the regulator that acts on the context of a prompt alone; learned tokens of names have raw gradients."""

    def apply(phi: Any, grads: Any, context: Any) -> Any:
        return {**grads, **regulator.apply(phi, {"context": grads["context"]}, context)}

    return regulator._replace(apply=apply)


class Measured(NamedTuple):
    """The result of a run in one world."""

    measures: Measures
    curve: Curve
    threshold: float | None = None  # of feasibility, in the open world


def tune_pairs(
    encoder: Encoder,
    tuner: Tuner,
    compiled: Tuning,
    plan: PairPlan,
    data: PairDataset,
    seed: int,
    meta: LoadedMeta | None = None,
) -> Prompt:
    """Returns a prompt that is tuned on the training images of a dataset; no other image is read.

    Args:
      encoder: the encoder of the images.
      tuner, compiled, plan: the tuner, `plan.compile(tuner, meta)`, and the settings.
      data, seed: the dataset; the seed of the initialization, the order of the images, and the dropout.
      meta: GRAM on top: the context begins at the initialization for the training images and the seen pairs, and the
        regulator acts on its gradients. Tokens of attributes and objects, which belong to one list of names, begin at
        the names and have raw gradients.
    """
    seen, places = data.compositions.only(data.compositions.seen)
    train = data.dataset.take(data.dataset.select("train"))
    classes, labels = classes_of(encoder.clip, seen, data.dataset), places[train.labels]
    own = classes if tuner.needs_pairs else classes.names
    prompt = tuner.init(jax.random.key(seed), encoder.clip, own)  # type: ignore[arg-type]  # tuners of pairs
    batches = _batches(encoder, tuner, plan, train, classes, labels, seen, seed)
    phi, length = regulators.identity().init(jax.random.key(0), prompt), (plan.steps, plan.learning_rate)
    if meta is not None:
        prompt, context = _from_meta(encoder, meta, prompt, train, seen.names)
        phi, read = meta.meta.phi, meta_learning.regulator_context(meta.meta, meta.regulator, context)
        batches = (batch if read is None else batch | {"context": read[None]} for batch in batches)
    prompt, losses = tune_in_phases(compiled, prompt, phi, encoder.clip, batches, plan.schedule, *length)
    if not np.all(np.isfinite(losses)):
        step = int(np.argmin(np.isfinite(losses)))
        raise InputError(f"the loss of {tuner.name} is not finite at step {step}, seed {seed}; lower its learning rate")
    return prompt


def _from_meta(
    encoder: Encoder, meta: LoadedMeta, prompt: Prompt, train: Dataset, names: Sequence[str]
) -> tuple[Prompt, jax.Array]:
    """Returns a prompt whose context is GRAM's initialization of a task, and the context of the task."""
    features, texts = encoder.features(train), encoder.texts(names)
    task = meta_learning.task_context(encoder.clip, jnp.asarray(features), jnp.asarray(texts))
    initial = meta_learning.initial_prompt(meta.meta, task)
    shapes = jax.tree.map(jnp.shape, (initial, {name: prompt[name] for name in prompt if name == "context"}))
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the meta checkpoint is of {meta.tuner} with {shapes[0]}, the tuner learns {shapes[1]}; meta-train "
            "coop(init_text='a photo of') for the contexts of coop and csp"
        )
    return {**prompt, **initial}, task


def _batches(  # long: the parts of a run that its batches depend on
    encoder: Encoder,
    tuner: Tuner,
    plan: PairPlan,
    train: Dataset,
    classes: PairClasses,
    labels: np.ndarray,
    seen: Compositions,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yields the batch of every step."""
    images = encoder.inputs(tuner, train)
    shared: dict[str, Any] = {"classes": classes}
    if plan.schedule.balance:
        weights = balance(count_images(seen, labels), plan.schedule.balance)
        shared["class_weights"] = jnp.asarray(weights[tuple(seen.pairs.T)], jnp.float32)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    for step, items in enumerate(tuning.shuffled_batches(seed, len(train), plan.batch_size, plan.steps)):
        own = {"key": jax.random.fold_in(key, step)} if tuner.needs_pairs else {}
        yield shared | own | {"images": np.asarray(images[items])[None], "labels": labels[items][None]}


def classes_of(clip: Clip, compositions: Compositions, dataset: Dataset) -> PairClasses:
    """Returns the class list of compositions under the template of a dataset."""
    return pair_classes(clip, compositions.attributes, compositions.objects, compositions.pairs, dataset.template)


def measure_pairs(
    encoder: Encoder, tuner: Tuner | None, prompt: Prompt | None, data: PairDataset, split: str, world: str = "closed"
) -> Measured:
    """Measures a prompt on a split.

    In the closed world the candidates are the seen pairs and those of the split's list. In the open world they are all
    pairs whose feasibility is at least a threshold, which is calibrated on the validation images; the vectors of names
    are the frozen text features of the clip under the dataset's template, where published numbers use GloVe.

    Args:
      encoder: the encoder of the images.
      tuner, prompt: a tuner and its prompt; None for the frozen clip under the template.
      data, split, world: the dataset, "val" or "test", and one of `gram_jax.data.compositions.WORLDS`.

    Returns:
      The measures, the curve and, in the open world, the threshold.
    """
    every = data.compositions
    score = _Scorer(encoder, tuner, prompt, data)
    if world == "closed":
        listed, places = every.only(every.candidates(split))
        (scores,) = score(split, listed, places, [np.ones(len(listed.pairs), bool)])
        return Measured(*measure(scores, listed.pairs))
    listed, places = every.open_world()
    feasible = _feasibility(encoder, listed, data.dataset.template)
    tried = thresholds(feasible, listed.seen)
    masks = [listed.seen | (feasible >= threshold) for threshold in tried]
    threshold = calibrate(tried, score("val", listed, places, masks), listed.pairs)
    (scores,) = score(split, listed, places, [listed.seen | (feasible >= threshold)])
    return Measured(*measure(scores, listed.pairs), threshold)


def _feasibility(encoder: Encoder, listed: Compositions, template: str) -> np.ndarray:
    attributes, objects = (encoder.texts(names, template) for names in (listed.attributes, listed.objects))
    return feasibility(attributes, objects, listed.seen.reshape(len(attributes), len(objects))).reshape(-1)


class _Scorer:
    """Scores the images of a split under one prompt."""

    def __init__(self, encoder: Encoder, tuner: Tuner | None, prompt: Prompt | None, data: PairDataset):
        self._encoder, self._tuner, self._prompt, self._data = encoder, tuner, prompt, data

    def __call__(
        self, split: str, listed: Compositions, places: np.ndarray, masks: Sequence[np.ndarray]
    ) -> list[ImageScores]:
        """Returns the reduced scores of all images under each mask of candidates."""
        part = self._data.dataset.take(self._data.dataset.select(split))
        labels, logits = places[part.labels], self._logits(listed)
        tuner, pixels = self._tuner, False
        if tuner is None or not tuner.needs_pixels:
            images = self._encoder.features(part)
        else:
            images, pixels = self._encoder.inputs(tuner, part), True
        parts: list[list[ImageScores]] = [[] for _ in masks]
        done, seen = 0, jnp.asarray(listed.seen)
        for batch, count in padded_batches(images, min(_PIXEL_BATCH if pixels else _FEATURE_BATCH, len(images))):
            scores = logits(jnp.asarray(batch, jnp.float32))[:count]
            own = jnp.asarray(labels[done : done + count])
            for found, mask in zip(parts, masks, strict=True):
                found.append(image_scores(scores, own, seen, jnp.asarray(mask)))
            done += count
        return [join_scores(found) for found in parts]

    def _logits(self, listed: Compositions) -> Callable[[jax.Array], jax.Array]:
        """Returns logits `[images, P]` as a function of images; texts that do not depend on them run once."""
        clip, tuner = self._encoder.clip, self._tuner
        classes = classes_of(clip, listed, self._data.dataset)
        if tuner is not None and tuner.needs_pixels:
            run = jax.jit(
                lambda prompt, clip, classes, images: pair_outputs(tuner, prompt, clip, classes, images).logits
            )
            return lambda images: run(self._prompt, clip, classes, images)
        one = jnp.ones((1, clip.config.embed_dim)) * clip.config.embed_dim**-0.5
        if tuner is None:
            texts = frozen_outputs(clip, classes.names, one).text_features
        else:
            texts = pair_outputs(tuner, self._prompt, clip, classes, one).text_features  # type: ignore[arg-type]
        return lambda images: cosines(images, texts, clip.params["logit_scale"])
