"""Meta-trains a prompt's start and a gradient regulator on tasks from unlabeled image-text pairs: GRAM.

    python -m experiments.meta_train --tasks=runs/build_tasks/hierarchy.safetensors
    python -m experiments.meta_train --tasks=TASKS --tuner=ivlp --tuner_settings='{"depth": 2, "num_visual": 2}'
    python -m experiments.meta_train --tasks=TASKS --regulator=affine --gradient=exact

Each step draws tasks from a hierarchy that experiments.build_tasks wrote, adapts the prompt to each of them by a few
regulated gradient steps on its support, and moves the start and the regulator against the loss that is left on
queries: on other pairs of the same classes, and across a shift (--cross). The start has an offset for each theme of
the hierarchy, and a task begins at the themes that it is like; --learn=prompt,phi keeps to one start for all tasks.
--regulator=structured regulates each task as the themes that it is like ask for.
Tasks are shared by all devices, with --distributed by those of all hosts: each draws its own share of them
(docs/launching.md).

With the default flags on the mini CLIP a step takes 0.16 s on two cores, after 13 s of compilation, in under 2 GiB: two
minutes in all; --gradient=exact takes several times as long. A tuner that needs pixels (ivlp, vpt) runs the image
transformer for every support image in every inner step: about 1 s a step with --ways=12, --shots=1, --batch_size=4.

Writes WORKDIR/meta.safetensors (kilobytes; what experiments.evaluate takes as --meta), metrics.jsonl and checkpoints:
the same command continues a run that was stopped. Validation tasks are drawn from the same hierarchy with draws of
their own; no label and no downstream image is ever seen.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gram_jax as gram
from gram_jax import evaluation, meta, regulators, runtime, tasks, tuners
from gram_jax import tuning as tuning_lib
from gram_jax.clip import Clip
from gram_jax.data import Corpus, load_corpus, ordered
from gram_jax.errors import InputError
from gram_jax.io import absolute
from gram_jax.meta import Meta, MetaState, MetaStep
from gram_jax.regulators import Regulator
from gram_jax.tasks.episodes import CROSS
from gram_jax.tuners import Tuner

from . import _nans
from ._launch import at_least, json_object, launch, positive, setting

# A resumed run may differ in these.
MAY_CHANGE = (
    *("save_every", "eval_every", "eval_batches", "devices", "mapper", "tasks", "workers", "worker_processes"),
    *("debug_nans", "tasks_at_once"),
)
AHEAD = 2  # batches that are drawn while the device computes
VALIDATION = 1_000_003  # added to the seed of validation draws
RATE = {
    "prompt": "learning_rate",
    "offsets": "offsets_learning_rate",
    "phi": "phi_learning_rate",
    "log_rates": "rates_learning_rate",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of meta-training."""

    tasks: str = setting("runs/build_tasks/hierarchy.safetensors", "the hierarchy that experiments.build_tasks wrote")
    clip: str = setting("mini", 'a folder, a hub name, or "mini"; the one that the hierarchy was built with')
    tuner: str = setting("coop", "the tuner", choices=tuners.NAMES)
    tuner_settings: str = setting('{"init_text": "a photo of a"}', "settings of the tuner, a JSON object")
    regulator: str = setting("gated_low_rank", "the gradient-regulating function", choices=regulators.NAMES)
    regulator_settings: str = setting("{}", "settings of the regulator, a JSON object")
    learn: tuple[str, ...] = setting(
        ("prompt", "phi", "offsets"),
        "what is learned: prompt, phi (the regulator), offsets (a start for each kind of task), log_rates (of adapt)",
    )
    temperature: float = setting(
        0.05, "with offsets or --regulator=structured: how softly a task is related to the themes' prototypes"
    )
    steps: int = setting(600, "outer steps")
    batch_size: int = setting(8, "tasks a step, a multiple of the number of devices")
    ways: int = setting(16, "classes of a task")
    shots: int = setting(2, "support images of each class")
    queries: int = setting(1, "images of each class in the query that is like the support")
    cross: str = setting("class", "what the other query is drawn from", choices=CROSS)
    cross_queries: int = setting(2, "images of each class of that query")
    cross_ways: int = setting(8, "classes of that query; as many as --ways where its classes are those of the support")
    cross_weight: float = setting(1.0, "weight of that query in the loss; 0 leaves it out")
    max_tokens: int = setting(8, "classes with longer texts are left out; 0 keeps 99 % of them")
    curriculum: float = setting(0.0, "share of the steps along which tasks come to be of one theme; 0: from the start")
    inner_steps: int = setting(3, "gradient steps on the support")
    inner_rate: float = setting(0.3, "their step size")
    gradient: str = setting("first_order", "exact, first_order, or how many of the last inner steps are differentiated")
    learning_rate: float = setting(2e-3, "peak learning rate of the start")
    offsets_learning_rate: float = setting(5e-3, "peak learning rate of the offsets")
    phi_learning_rate: float = setting(3e-3, "peak learning rate of the regulator")
    rates_learning_rate: float = setting(1e-2, "peak learning rate of the logarithm of the inner rates")
    clip_norm: float = setting(10.0, "largest norm of the outer gradient")
    seed: int = setting(0, "seed of the start, the regulator and the tasks")
    eval_every: int = setting(50, "steps between validations; 0 for none")
    eval_batches: int = setting(4, "batches of tasks in a validation")
    save_every: int = setting(50, "steps between checkpoints")
    workers: int = setting(2, "threads that draw tasks ahead")
    tasks_at_once: int = setting(
        0, "tasks that a device adapts side by side; 0 for all of its own, 1 for the least memory"
    )
    worker_processes: int = setting(0, "processes that draw tasks instead; they pay where images are read from disk")
    mapper: str = setting(
        "shard_map", "how tasks are mapped over devices; pmap in one process only", choices=("shard_map", "pmap")
    )
    devices: int = setting(0, "how many devices; 0 for all")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    debug_nans: bool = setting(False, "do a step whose loss is not finite again, with checks that tell where it begins")

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "inner_steps", "save_every", "eval_batches", "workers")
        at_least(self, 0, "eval_every", "max_tokens", "devices", "worker_processes", "tasks_at_once")
        positive(self, *RATE.values(), "inner_rate", "clip_norm", "temperature")
        for name in ("tuner_settings", "regulator_settings"):
            json_object(name, getattr(self, name))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with a cosine schedule, a rate for each learned part, after clipping the joint gradient."""
    parts = {
        part: optax.adam(optax.cosine_decay_schedule(getattr(config, flag), config.steps, alpha=0.05))
        for part, flag in RATE.items()
    }

    def labels(learned: dict[str, Any]) -> dict[str, Any]:
        return {part: jax.tree.map(lambda _, part=part: part, tree) for part, tree in learned.items()}

    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.multi_transform(parts, labels))


@functools.lru_cache(maxsize=2)
def make_program(config: Config, prototypes: int = 1) -> tuple[Tuner, Regulator, MetaStep]:
    """The tuner, the regulator and the outer step over the devices that are asked for.

    The same for the same settings: runs that differ in their tasks alone (`tasks` left empty) compile the step once. A
    regulator that reads prototypes has as many as the episodes have themes.
    """
    tuner = tuners.make(config.tuner, **json_object("tuner_settings", config.tuner_settings))
    settings = json_object("regulator_settings", config.regulator_settings)
    if config.regulator == "structured":
        settings = {"prototypes": prototypes, **settings}
    regulator = regulators.make(config.regulator, **settings)
    devices = runtime.all_devices()
    if config.devices and jax.process_count() > 1:
        raise InputError(f"--devices={config.devices}: processes share tasks over all devices of each; leave it out")
    if config.devices > len(devices):
        raise InputError(f"--devices={config.devices}: there are {len(devices)}")
    step = meta.make_meta_step(
        tuning_lib.classification_loss(tuner),
        regulator,
        make_optimizer(config),
        steps=config.inner_steps,
        gradient=int(config.gradient) if config.gradient.isdigit() else config.gradient,
        cross_weight=config.cross_weight,
        learn=config.learn,
        tasks_at_once=config.tasks_at_once or None,
        mapper=config.mapper,
        devices=devices[: config.devices] if config.devices else devices,
    )
    return tuner, regulator, step


def announce(step: MetaStep, state: MetaState, frozen: Clip, batch: Any) -> None:
    """Says how much memory a step is going to take; it is compiled here, and not again when it is taken."""
    began = time.monotonic()
    needed = tuning_lib.memory_bytes(step.update.lower(state, frozen, batch).compile())
    if runtime.is_main():
        line = runtime.memory_line(needed, step.devices, runtime.available_memory())
        print(f"{line}; compiled in {time.monotonic() - began:.1f} s", flush=True)


def reader(hierarchy: tasks.Hierarchy, tuner: Tuner, clip: Clip, corpus: Corpus | None) -> Callable[[np.ndarray], Any]:
    """How members of the hierarchy become what the tuner takes: frozen features, or transformed pixels."""
    if not tuner.needs_pixels:
        return lambda rows: hierarchy.image_features[rows]
    about = hierarchy.about
    if corpus is None:
        corpus = load_corpus(about["corpus"], pairs=about["pairs"], seed=about["seed"])
    if corpus.content_hash != about["content_hash"]:
        raise InputError(
            f"the hierarchy was built from a corpus of hash {about['content_hash'][:12]}, and this one has "
            f"{corpus.content_hash[:12]}; build the tasks again"
        )

    transform = clip.transform

    def pixels(rows: np.ndarray) -> np.ndarray:
        images = transform(corpus.images(hierarchy.members[rows.ravel()].tolist()))
        return images.reshape(*rows.shape, *images.shape[1:])

    return pixels


def content_hash(hierarchy: tasks.Hierarchy) -> str:
    """SHA-256 over all that tasks are drawn from."""
    digest = hashlib.sha256(json.dumps([hierarchy.texts, dict(hierarchy.about)], sort_keys=True).encode())
    for array in (hierarchy.members, hierarchy.classes, hierarchy.domains, hierarchy.themes, hierarchy.image_features):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def validate(config: Config, step: MetaStep, state: MetaState, frozen: Any, draw: Callable[..., Any]) -> dict:
    """Mean losses on validation tasks; the step that measures them is thrown away."""
    found: dict[str, list[float]] = {}
    for index in range(config.eval_batches):
        _, metrics = step(jax.tree.map(jnp.copy, state), frozen, draw(config.seed + VALIDATION, index, 1.0))
        for name, value in losses(metrics).items():
            found.setdefault(f"val_{name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def losses(metrics: dict[str, Any]) -> dict[str, float]:
    """Losses averaged over tasks: of the support before the first and the last inner step, and of the queries."""
    named = {"support": metrics["support"][:, 0], "adapted": metrics["support"][:, -1], "same": metrics["same"]}
    if "cross" in metrics:
        named["cross"] = metrics["cross"]
    return {name: float(np.mean(value)) for name, value in named.items()}


def train(
    config: Config, workdir: Any, clip: Clip, hierarchy: tasks.Hierarchy, *, corpus: Corpus | None = None
) -> tuple[Meta, tuple[evaluation.Row, ...]]:
    """Meta-trains, or goes on; writes and returns what was learned, and the validation losses."""
    workdir = absolute(workdir)
    tuner, regulator, step = make_program(dataclasses.replace(config, tasks=""))
    if config.batch_size % step.devices:
        raise InputError(f"--batch_size={config.batch_size}: it must be a multiple of the {step.devices} devices")
    if config.tasks_at_once and config.batch_size // step.devices % config.tasks_at_once:
        raise InputError(
            f"--tasks_at_once={config.tasks_at_once}: a device has {config.batch_size // step.devices} tasks a step, "
            "which is no multiple of it"
        )
    related = "prototypes" in regulator.settings
    # Classes that are called by their centroid have tokens of their own, which belong to these tasks alone.
    task_clip = clip if hierarchy.token_rows is None else tasks.centroid_clip(clip, hierarchy)
    episodes = tasks.make_episodes(
        hierarchy,
        task_clip,
        ways=config.ways,
        shots=config.shots,
        queries=config.queries,
        cross=config.cross,
        cross_queries=config.cross_queries,
        cross_ways=config.cross_ways if config.cross in ("class", "theme") else None,
        max_tokens=config.max_tokens or None,
        curriculum=config.curriculum,
        context=related or regulator.settings.get("context_dim") is not None or "offsets" in config.learn,
    )
    if related:
        tuner, regulator, step = make_program(dataclasses.replace(config, tasks=""), len(episodes.themes))
    prompt = tuner.init(jax.random.key(config.seed), clip, None)
    phi = regulator.init(jax.random.key(config.seed + 1), prompt)
    start = meta.init_meta(prompt, phi, config.inner_rate)
    if related or "offsets" in config.learn:
        prototypes, offsets = episodes.prototypes(), "offsets" in config.learn
        start = meta.with_structure(start, prototypes, config.temperature, offsets=offsets)
    state = step.init(start)
    frozen = step.place(task_clip.replace(transform=None))  # words behind a context are read while tracing
    images = reader(hierarchy, tuner, clip, corpus)
    usable = sum(map(len, episodes.themes))
    print(f"tasks: {len(episodes.themes)} themes, {usable} classes; left out: {episodes.left_out}", flush=True)

    own = runtime.own_rows(step.sharding, config.batch_size)

    def draw(seed: int, index: int, progress: float) -> Any:
        return episodes.batch(seed, index, config.batch_size, progress, images, own)

    def place(batch: Any) -> Any:
        return runtime.global_arrays(step.sharding, batch, config.batch_size)

    settings = dataclasses.asdict(config) | {"hierarchy": content_hash(hierarchy)}

    def record(log: runtime.MetricsLog, done: int, state: MetaState) -> dict[str, float]:
        found = validate(config, step, state, frozen, lambda *drawn: place(draw(*drawn)))
        log.write(done, **found)
        return found

    with runtime.Checkpoints(workdir / "checkpoints", settings, may_change=MAY_CHANGE) as checkpoints:
        restored = checkpoints.restore(state)
        first, state = (restored.step, restored.state) if restored else (0, state)
        with (
            ordered(
                lambda index: draw(config.seed, index, index / config.steps),
                config.steps,
                start=first,
                workers=config.workers,
                prefetch=AHEAD,
                processes=config.worker_processes,
            ) as batches,
            runtime.MetricsLog(workdir / "metrics.jsonl", resumed_at=first if restored else None) as log,
            runtime.Progress(config.steps, "meta-train", initial=first) as progress,
        ):
            if config.eval_every and not first:
                record(log, 0, state)
            for index, batch in enumerate(batches, first):
                batch = place(batch)
                if index == first:
                    announce(step, state, frozen, batch)
                before = jax.tree.map(jnp.copy, state) if config.debug_nans else None
                state, metrics = step(state, frozen, batch)
                done, found = index + 1, losses(metrics)
                norms = {name: value for name, value in metrics.items() if name.endswith("norm")}
                if not _nans.all_finite(metrics["loss"], *norms.values()):
                    bad = np.flatnonzero(~np.isfinite(metrics["loss"])) + index * config.batch_size
                    what = f"loss of step {index} is not finite in tasks {bad.tolist()}"
                    what = what if len(bad) else f"gradient of step {index} is not finite, its loss is"
                    where = _nans.HINT
                    if before is not None:
                        where = _nans.explain(step.update, state=before, frozen=frozen, tasks=batch)
                    raise InputError(
                        f"the {what}; {checkpoints.last_good()}. {where}. Lower --inner_rate or --learning_rate"
                    )
                log.write(done, **found, **norms)
                progress.update(**found)
                if config.eval_every and (done % config.eval_every == 0 or done == config.steps):
                    progress.update(0, **record(log, done, state))
                if done % config.save_every == 0 or done == config.steps:
                    checkpoints.save(done, state)
                checkpoints.exit_if_preempted(done, state)
        print(f"waited for tasks {100 * batches.share:.1f} % of the time", flush=True)
    learned = jax.device_get(state.meta)
    if runtime.is_main():
        notes = {"settings": settings, "tasks": dict(hierarchy.about)}
        gram.save_meta(workdir / "meta.safetensors", learned, tuner, regulator, clip, notes=notes)
    log = runtime.read_metrics(workdir / "metrics.jsonl") if runtime.is_main() else ()
    rows = [
        evaluation.Row(f"{tuner.name}+gram", "meta_train", "corpus", name, value, step=found["step"])
        for found in log
        for name, value in found.items()
        if name.startswith("val_")
    ]
    return learned, tuple(rows)


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Meta-trains on the tasks of a hierarchy and writes the meta checkpoint."""
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    hierarchy = tasks.load_hierarchy(config.tasks, clip=clip)
    _, rows = train(config, workdir, clip, hierarchy)
    print(f"meta checkpoint in {absolute(workdir) / 'meta.safetensors'}", flush=True)
    environment = evaluation.environment(weights=gram.weights_hash(clip.params))
    return evaluation.Results(dataclasses.asdict(config), environment, rows)


if __name__ == "__main__":
    launch(run, Config, distributed="steps")
