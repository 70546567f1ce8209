"""The workloads of the benchmark: their inputs, and the sides that this library contributes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gram_jax as gram
from gram_jax import meta, regulators, tasks, tuning
from gram_jax.clip import Classes, Clip, encode_image

from . import inputs, shortcuts, torch_workloads
from .inputs import Array, Problem, Setup
from .sides import Builder, Side, compiled_side, plain_side

OURS, TORCH, FRUGAL = "gram_jax", "pytorch", "pytorch, features kept and texts cut"


class Workload(NamedTuple):
    """A row of the benchmark: its title in tables, and functions.

    `side` builds this library's side; if None, `shortcuts` returns builders of its sides by name, each with one more
    shortcut. `problem` makes the inputs; None if PyTorch does not compute it. `estimate` returns the bytes that this
    library's side needs, if the compiler does not report them.
    """

    title: str
    side: Callable[[Setup, Any], Side] | None = None
    problem: Callable[[Setup], Problem] | None = None
    shortcuts: Callable[[Setup, Problem], dict[str, Callable[[], Side]]] | None = None
    estimate: Callable[[Setup], float] = lambda setup: 0.0


def builders(name: str, setup: Setup, compare: bool = True) -> dict[str, Builder]:
    """Returns the sides of a workload by name, not built yet; `compare` adds PyTorch's side where there is one."""
    workload = WORKLOADS[name]
    problem = workload.problem(setup) if workload.problem else None
    if workload.shortcuts:
        return {label: Builder(build) for label, build in workload.shortcuts(setup, problem).items()}
    sides = {OURS: Builder(functools.partial(workload.side, setup, problem), workload.estimate(setup))}
    if compare and problem is not None:
        for label, frugal in ((TORCH, False), (FRUGAL, True)):
            build = functools.partial(torch_workloads.side, name, setup, problem, frugal)
            sides[label] = Builder(build, torch_workloads.graph_bytes(name, setup, problem, frugal))
    return sides


def tuning_step(setup: Setup, problem: Problem) -> Side:
    """Returns a step of `tuning.make_tuning`: loss, gradient, update."""
    regulator = regulators.identity()
    step = tuning.make_tuning(problem.tuner, regulator)
    phi = regulator.init(jax.random.key(0), problem.prompt)
    batch = inputs.with_features(setup, problem)["support"]
    batch = batch | {name: batch[name][None] for name in ("images", "labels")}
    function = jax.jit(lambda state, clip, batch: step.step(state, phi, clip, batch, inputs.RATE, 1))
    arguments = (step.init(jax.tree.map(lambda leaf: leaf[None], problem.prompt)), setup.clip, batch)
    return compiled_side(function, lambda: arguments, lambda out: (out[1]["loss"][0], out[1]["gradient_norm"][0]))


def meta_step(setup: Setup, problem: Problem) -> Side:
    """Returns a step of `meta.make_meta_step` with the affine regulator."""
    regulator = regulators.affine()
    at_once = 1 if problem.tuner.needs_pixels else None  # activations of pixels fill the memory
    settings = {"steps": problem.steps, "gradient": problem.gradient, "tasks_at_once": at_once}
    loss, optimizer = tuning.classification_loss(problem.tuner), optax.sgd(inputs.RATE)
    step = meta.make_meta_step(loss, regulator, optimizer, devices=jax.devices()[:1], **settings)
    phi = regulator.init(jax.random.key(0), problem.prompt)
    learned = meta.init_meta(problem.prompt, phi, inputs.INNER_RATE)
    frozen, stacked = step.place(setup.clip), meta.Task(**inputs.with_features(setup, problem))

    def values(out: tuple[Any, dict[str, Array]]) -> tuple[Array, ...]:
        metrics = out[1]
        return jnp.mean(metrics["loss"]), metrics["prompt_gradient_norm"], metrics["phi_gradient_norm"]

    return compiled_side(step.update, lambda: (step.init(learned), frozen, stacked), values)


def test_time_step(setup: Setup, problem: Problem) -> Side:
    """Returns test-time tuning on one image by `tuning.make_test_time_tuning`; its views are encoded once."""
    tune = tuning.make_test_time_tuning(problem.tuner, share=inputs.CONFIDENT, weight_decay=inputs.DECAY)

    @jax.jit
    def step(prompt: Any, clip: Clip, classes: Classes, views: Array) -> tuning.TestTimeTuning:
        batch = {"views": encode_image(clip, views)[None], "classes": classes}
        return tune(prompt, None, clip, batch, inputs.TEST_TIME_RATE)

    batch = problem.batches["support"]
    arguments = (problem.prompt, setup.clip, batch["classes"], batch["images"])
    return compiled_side(
        step, lambda: arguments, lambda out: (out.losses[0, 0], jnp.max(jax.nn.softmax(out.logits[0])))
    )


def classification(setup: Setup, problem: Problem) -> Side:
    """Returns the loss of a batch of test images, from pixels, with many classes under a prompt."""
    loss = jax.jit(tuning.classification_loss(problem.tuner))
    arguments = (problem.prompt, setup.clip, problem.batches["support"])
    return compiled_side(loss, lambda: arguments, lambda out: (out,))


def clustering(setup: Setup, _: None) -> Side:
    """Returns k-means on a sample of pairs, and the assignment of all pairs."""
    pairs, dim, count, sample = _clusters(setup)
    rng = np.random.default_rng(4)
    centers = rng.standard_normal((count, dim), np.float32)
    features = np.empty((pairs, dim), np.float32)
    for start in range(0, pairs, 65536):
        part = rng.standard_normal(out=features[start : start + 65536], dtype=np.float32)
        part += centers[rng.integers(0, count, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)

    def run() -> tuple[float]:
        centroids = tasks.kmeans(features, count, seed=0, sample=sample)
        return (float(len(np.unique(tasks.assign(features, centroids)))),)

    return plain_side(run)


def _clusters(setup: Setup) -> tuple[int, int, int, int]:
    """Returns the numbers of pairs, of their features, of clusters, and of pairs that k-means uses."""
    sizes = setup.sizes
    count = max(1, min(sizes.clusters, sizes.pairs // 10))
    return sizes.pairs, sizes.feature_dim, count, min(sizes.pairs, sizes.sample * count)


def clustering_bytes(setup: Setup) -> float:
    """Returns the bytes of the features, of the sample, and of scikit-learn's copy of it."""
    pairs, dim, _, sample = _clusters(setup)
    return 4.0 * dim * (pairs + 2 * sample)


def episode_input(setup: Setup, _: None) -> Side:
    """Returns the input of a meta step: tasks are drawn, their images read from disk, decoded and transformed."""
    corpus, hierarchy = inputs.corpus_on_disk(setup)
    sizes, side, mini = setup.sizes, setup.clip.config.vision.image_size, gram.load_clip("mini")
    clip = Clip({}, mini.config, mini.tokenizer, dataclasses.replace(mini.transform, size=side, crop=(side, side)))
    settings = {name: getattr(sizes, name) for name in ("ways", "shots", "queries", "cross_queries")}
    episodes = tasks.make_episodes(hierarchy, clip, tasks.EpisodeConfig(**settings))

    def pixels(rows: np.ndarray) -> np.ndarray:
        images = clip.preprocess(corpus.images(hierarchy.members[rows.ravel()].tolist()))
        return images.reshape(*rows.shape, *images.shape[1:])

    numbers = itertools.count()

    def run() -> tuple[float]:
        batch = episodes.batch(0, next(numbers), sizes.tasks, 1.0, pixels)
        return (float(batch.support["images"].shape[1]),)

    return plain_side(run)


def _meta_workloads() -> Iterator[tuple[str, Workload]]:
    for family, tuner, title in (("gram", "coop", "GRAM, textual (CoOp)"), ("unigram", "ivlp", "UNIGRAM (IVLP)")):
        for gradient, steps in itertools.product(("exact", "first_order"), (1, 5)):
            label = f"{title}, {gradient.replace('_', ' ')}, {steps} inner step{'s' * (steps > 1)}"
            problem = functools.partial(inputs.episodic, tuner, steps, gradient)
            yield f"{family}_{gradient}_{steps}", Workload(label, meta_step, problem)


def _problem(tuner: str, images: str | int, classes: str = "classes", listed: str = "") -> Callable[[Setup], Problem]:
    """Returns a function that makes a problem on one batch, see `inputs.one_batch`; sizes may be names of `Sizes`."""

    def problem(setup: Setup) -> Problem:
        count = images if isinstance(images, int) else getattr(setup.sizes, images)
        return inputs.one_batch(tuner, setup, count, getattr(setup.sizes, classes), listed)

    return problem


WORKLOADS: dict[str, Workload] = {
    "coop": Workload("CoOp step, names of Food-101", tuning_step, _problem("coop", "batch", listed="food101")),
    "coop_1000": Workload(
        "CoOp step, names of ImageNet", tuning_step, _problem("coop", "batch", "many_classes", "imagenet")
    ),
    "cocoop": Workload("CoCoOp step, names of Food-101", tuning_step, _problem("cocoop", 1, listed="food101")),
    "ivlp": Workload("IVLP step", tuning_step, _problem("ivlp", "deep_batch")),
    **dict(_meta_workloads()),
    "test_time": Workload("test-time tuning of an image", test_time_step, _problem("coop", "views")),
    "evaluation": Workload(
        "test images against many classes", classification, _problem("coop", "batch", "many_classes")
    ),
    "rules": Workload("the CoOp step, rule by rule", None, _problem("coop", "batch"), shortcuts.text_shortcuts),
    "image_rules": Workload(
        "the VPT step, rule by rule", None, _problem("vpt", "deep_batch"), shortcuts.image_shortcuts
    ),
    "clustering": Workload("clustering of pairs", clustering, estimate=clustering_bytes),
    "episodes": Workload("a meta batch of pixels from disk", episode_input),
}
SHORTCUTS = tuple(name for name, workload in WORKLOADS.items() if workload.shortcuts)
