"""The workloads of `experiments.benchmark` as this library does them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache

import gram_jax as gram
from gram_jax import meta, regulators, tasks
from gram_jax import tuning as tuning_lib
from gram_jax.clip import Clip, TextPrompt, encode_classes, encode_image, logits, text
from gram_jax.clip.modules import layer_norm, make_block, project, run_layers, take_token
from gram_jax.clip.tokenizer import Classes

from .gauge import Side, compiled, plain
from .workload_inputs import (
    Array,
    Problem,
    Setup,
    as_tuner_takes,
    cocoop,
    coop,
    corpus_on_disk,
    episodic,
    ivlp,
    single,
    vpt,
)

Makers = dict[str, Callable[[], Side]]

OURS, TORCH = "gram_jax", "pytorch"
RATE, INNER_RATE = 2e-3, 0.1
_CACHING = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
TEST_TIME_RATE, CONFIDENT, DECAY = 5e-3, 0.1, 1e-2


class Workload(NamedTuple):
    """A row of the benchmark: what it is, its inputs, and how this library does it.

    Attributes:
      title: for tables.
      sides: `sides(setup, problem)`, by name what builds a way to do it.
      problem: its inputs; None where PyTorch has no part in it.
      estimate: bytes that it takes where no compiler says so.
    """

    title: str
    sides: Callable[[Setup, Problem | None], Makers]
    problem: Callable[[Setup], Problem] | None = None
    estimate: Callable[[Setup], float] = lambda setup: 0.0


def tuning(setup: Setup, problem: Problem) -> Makers:
    """A step of `tuning_lib.make_tuning`: loss, gradient, update."""

    def make() -> Side:
        regulator = regulators.identity()
        step = tuning_lib.make_tuning(problem.tuner, regulator)
        state = step.init(jax.tree.map(lambda leaf: leaf[None], problem.prompt))
        phi = regulator.init(jax.random.key(0), problem.prompt)
        batch = dict(as_tuner_takes(setup, problem)["support"])
        batch |= {name: batch[name][None] for name in ("images", "labels")}
        function = jax.jit(lambda state, clip, batch: step.step(state, phi, clip, batch, RATE, 1))
        arguments = (state, setup.clip, batch)
        return compiled(function, lambda: arguments, lambda out: (out[1]["loss"][0], out[1]["gradient_norm"][0]))

    return {OURS: make}


def meta_learning(setup: Setup, problem: Problem) -> Makers:
    """A step of `meta.make_meta_step` with the affine regulator."""

    def make() -> Side:
        regulator = regulators.affine()
        step = meta.make_meta_step(
            tuning_lib.classification_loss(problem.tuner),
            regulator,
            optax.sgd(RATE),
            steps=problem.steps,
            gradient=problem.gradient,
            devices=jax.devices()[:1],
            tasks_at_once=1 if problem.tuner.needs_pixels else None,  # pixels fill the memory, class names do not
        )
        phi = regulator.init(jax.random.key(0), problem.prompt)
        start = meta.init_meta(problem.prompt, phi, INNER_RATE)
        frozen = step.place(setup.clip)
        stacked = meta.Task(**as_tuner_takes(setup, problem))

        def values(out: tuple[Any, dict[str, Array]]) -> tuple[Array, ...]:
            metrics = out[1]
            return jnp.mean(metrics["loss"]), metrics["prompt_gradient_norm"], metrics["phi_gradient_norm"]

        return compiled(step.update, lambda: (step.init(start), frozen, stacked), values)

    return {OURS: make}


def one_image(setup: Setup, problem: Problem) -> Makers:
    """Test-time tuning of an image by `tuning_lib.make_test_time_tuning`, its views encoded once."""
    tune = tuning_lib.make_test_time_tuning(problem.tuner, share=CONFIDENT, weight_decay=DECAY)

    @jax.jit
    def step(prompt: Any, clip: Clip, classes: Classes, views: Array) -> tuning_lib.TestTimeTuning:
        batch = {"views": encode_image(clip, views)[None], "classes": classes}
        return tune(prompt, None, clip, batch, TEST_TIME_RATE)

    batch = problem.batches["support"]
    arguments = (problem.prompt, setup.clip, batch["classes"], batch["images"])

    def values(found: tuning_lib.TestTimeTuning) -> tuple[Array, Array]:
        return found.losses[0, 0], jnp.max(jax.nn.softmax(found.logits[0]))

    return {OURS: lambda: compiled(step, lambda: arguments, values)}


def classification(setup: Setup, problem: Problem) -> Makers:
    """A batch of test images, from pixels, against many classes under a prompt."""
    loss = jax.jit(tuning_lib.classification_loss(problem.tuner))
    arguments = (problem.prompt, setup.clip, problem.batches["support"])
    return {OURS: lambda: compiled(loss, lambda: arguments, lambda out: (out,))}


def speed_rules(setup: Setup, problem: Problem) -> Makers:
    """The CoOp step with one shortcut after the other."""
    batch, length = problem.batches["support"], setup.clip.config.text.context_length
    short = batch["classes"]
    fill = ((0, 0), (0, length - 1 - setup.sizes.context - short.tail_ids.shape[-1]))
    whole = short.replace(tail_ids=jnp.pad(short.tail_ids, fill, mode="edge"))
    stored = as_tuner_takes(setup, problem)["support"]["images"]

    def make(
        classes: Classes, features: Callable[..., Array], images: Array, cached: bool = False, **settings: Any
    ) -> Callable[[], Side]:
        def loss(prompt: Any, clip: Clip, classes: Classes, images: Array) -> Array:
            images = encode_image(clip, images) if images.ndim == 4 else images
            found = features(clip, classes, TextPrompt(prompt["context"]))
            scores = logits(images, found, clip.params["logit_scale"])
            return optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"]).mean()

        clip = setup.clip.replace(config=dataclasses.replace(setup.clip.config, **settings))

        def build() -> Side:
            step = jax.jit(jax.value_and_grad(functools.partial(loss)))  # a function of its own, compiled anew
            arguments = (problem.prompt, clip, classes, images)
            return compiled(step, lambda: arguments, lambda out: (out[0], optax.tree.norm(out[1])))

        return functools.partial(from_cache, build, setup.folder / "compilation_cache") if cached else build

    def end_row(clip: Clip, classes: Classes, prompt: TextPrompt) -> Array:
        return _unit(text.class_features(clip.params["text"], clip.config, classes, prompt, share_prefix=False))

    unrolled = functools.partial(every_row, unrolled=True)
    return {
        f"{length} tokens, images in every step, layers written out": make(whole, unrolled, batch["images"]),
        "text layers in a loop": make(whole, every_row, batch["images"]),
        "image features stored": make(whole, every_row, stored),
        "cut to the longest class": make(short, every_row, stored),
        "last layer: end token only": make(short, end_row, stored),
        "shared prefix": make(short, encode_classes, stored),
        "the same, from the compilation cache": make(short, encode_classes, stored, cached=True),
        f"{setup.sizes.class_chunk} classes at a time, recomputed": make(
            short, encode_classes, stored, class_chunk=setup.sizes.class_chunk
        ),
        "layers recomputed as well": make(
            short, encode_classes, stored, class_chunk=setup.sizes.class_chunk, remat=True
        ),
    }


def image_rules(setup: Setup, problem: Problem) -> Makers:
    """The VPT step with class texts in every step, and with stored ones."""
    batch = problem.batches["support"]
    loss = tuning_lib.classification_loss(problem.tuner)
    step = jax.jit(jax.value_and_grad(loss))

    def make(classes: Any) -> Callable[[], Side]:
        arguments = (problem.prompt, setup.clip, batch | {"classes": classes})
        return lambda: compiled(step, lambda: arguments, lambda out: (out[0], optax.tree.norm(out[1])))

    texts = jax.jit(encode_classes)(setup.clip, batch["classes"])
    return {"class texts in every step": make(batch["classes"]), "text features stored": make(texts)}


def from_cache(build: Callable[[], Side], folder: Any) -> Side:
    """Builds a side for the second time with compiled programs kept in a folder."""
    before = {name: getattr(jax.config, name) for name in _CACHING}
    for name, value in zip(_CACHING, (str(folder), 0.0, -1), strict=True):
        jax.config.update(name, value)
    try:
        for _ in range(2):
            compilation_cache.reset_cache()  # opened anew, so that nothing is taken from memory
            side = build()
        return side
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def every_row(clip: Clip, classes: Classes, prompt: TextPrompt, unrolled: bool = False) -> Array:
    """Text features without a shortcut: every class runs all its tokens through all layers."""
    params, config = clip.params["text"], clip.config.text
    start, tail = text.embed(params, classes.token_ids[:, :1]), text.embed(params, classes.tail_ids)
    context = jnp.broadcast_to(prompt.context, (len(tail), *prompt.context.shape))
    x = jnp.concatenate([start, context, tail], axis=1)
    x = x + params["position_embedding"][: x.shape[1]]
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    block = make_block(config, clip.config.compute_dtype)

    def step(x: Array, layer: Any, deep: None) -> Array:
        del deep
        return block.apply({"params": layer}, x, mask)[0]

    if unrolled:
        for number in range(config.layers):
            x = step(x, jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"]), None)
    else:
        x = run_layers(step, x, params["layers"], 0, config.layers)
    x = take_token(x, 1 + prompt.context.shape[0] + classes.tail_eot)[:, 0]
    x = layer_norm(config.norm_eps).apply({"params": params["final_norm"]}, x)
    return _unit(project(x, params["projection"]))


def _unit(features: Array) -> Array:
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def clustering(setup: Setup, problem: None) -> Makers:
    """Centroids of a sample, and the nearest one of every pair."""
    del problem
    pairs, dim, count, sample = _clusters(setup)

    def make() -> Side:
        rng = np.random.default_rng(4)
        centers = rng.standard_normal((count, dim), np.float32)
        features = np.empty((pairs, dim), np.float32)
        for start in range(0, pairs, 65536):
            part = features[start : start + 65536]
            rng.standard_normal(out=part, dtype=np.float32)
            part += centers[rng.integers(0, count, len(part))]
            part /= np.linalg.norm(part, axis=1, keepdims=True)

        def run() -> tuple[float]:
            centroids = tasks.kmeans(features, count, seed=0, sample=sample)
            return (float(len(np.unique(tasks.assign(features, centroids)))),)

        return plain(run)

    return {OURS: make}


def _clusters(setup: Setup) -> tuple[int, int, int, int]:
    """Pairs, width of their features, clusters, and how many pairs k-means looks at."""
    sizes = setup.sizes
    count = max(1, min(sizes.clusters, sizes.pairs // 10))
    return sizes.pairs, sizes.feature_dim, count, min(sizes.pairs, sizes.sample * count)


def clustering_bytes(setup: Setup) -> float:
    """The features, the sample, and scikit-learn's copy of it."""
    pairs, dim, _, sample = _clusters(setup)
    return 4.0 * dim * (pairs + 2 * sample)


def episode_input(setup: Setup, problem: None) -> Makers:
    """A meta batch of tasks with their pixels, drawn, read from array_record files, decoded and transformed."""
    del problem

    def make() -> Side:
        corpus, hierarchy = corpus_on_disk(setup)
        side = setup.clip.config.vision.image_size
        mini = gram.load_clip("mini")
        clip = Clip({}, mini.config, mini.tokenizer, dataclasses.replace(mini.transform, size=side, crop=(side, side)))
        sizes = setup.sizes
        episodes = tasks.make_episodes(
            hierarchy,
            clip,
            ways=sizes.ways,
            shots=sizes.shots,
            queries=sizes.queries,
            cross_queries=sizes.cross_queries,
        )

        def pixels(rows: np.ndarray) -> np.ndarray:
            images = clip.preprocess(corpus.images(hierarchy.members[rows.ravel()].tolist()))
            return images.reshape(*rows.shape, *images.shape[1:])

        drawn = iter(range(10**9))

        def run() -> tuple[float]:
            batch = episodes.batch(0, next(drawn), sizes.tasks, 1.0, pixels)
            return (float(batch.support["images"].shape[1]),)

        return plain(run)

    return {OURS: make}


def _meta_workloads() -> dict[str, Workload]:
    found = {}
    for family, title in (("gram", "GRAM, textual (CoOp)"), ("unigram", "UNIGRAM (IVLP)")):
        for gradient, kind in (("exact", "exact"), ("first_order", "first order")):
            for steps in (1, 5):

                def problem(setup: Setup, family: str = family, steps: int = steps, how: str = gradient) -> Problem:
                    tuner = coop(setup) if family == "gram" else ivlp(setup)
                    return episodic(setup, tuner, steps, how)

                label = f"{title}, {kind}, {steps} inner step{'s' * (steps > 1)}"
                found[f"{family}_{gradient}_{steps}"] = Workload(label, meta_learning, problem)
    return found


WORKLOADS: dict[str, Workload] = {
    "coop": Workload("CoOp step", tuning, lambda s: single(s, coop(s), s.sizes.batch, s.sizes.classes)),
    "cocoop": Workload("CoCoOp step", tuning, lambda s: single(s, cocoop(s), 1, s.sizes.classes)),
    "ivlp": Workload("IVLP step", tuning, lambda s: single(s, ivlp(s), s.sizes.deep_batch, s.sizes.classes)),
    **_meta_workloads(),
    "test_time": Workload(
        "test-time tuning of an image", one_image, lambda s: single(s, coop(s), s.sizes.views, s.sizes.classes)
    ),
    "evaluation": Workload(
        "test images against many classes",
        classification,
        lambda s: single(s, coop(s), s.sizes.batch, s.sizes.many_classes),
    ),
    "rules": Workload("the CoOp step, rule by rule", speed_rules, lambda s: WORKLOADS["coop"].problem(s)),
    "image_rules": Workload(
        "the VPT step, rule by rule", image_rules, lambda s: single(s, vpt(s), s.sizes.deep_batch, s.sizes.classes)
    ),
    "clustering": Workload("clustering of pairs", clustering, estimate=clustering_bytes),
    "episodes": Workload("a meta batch of pixels from disk", episode_input),
}
