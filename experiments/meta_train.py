"""Meta-trains a prompt initialization and a gradient regulator on tasks from unlabeled image-text pairs (GRAM).

    python -m experiments.meta_train --tasks=runs/build_tasks/hierarchy.safetensors
    python -m experiments.meta_train --tasks=TASKS --tuner="ivlp(depth=2, num_visual=2)"
    python -m experiments.meta_train --tasks=TASKS --regulator="gated_low_rank(rank=8)" --inner_steps=5 --gradient=exact

Each step draws tasks from a hierarchy of experiments.build_tasks. The prompt is adapted to each task by a few regulated
gradient steps on the support. The initialization and the regulator are then updated against the loss on two queries:
other pairs of the same classes, and pairs across a shift (--cross). The initialization has an offset for each theme of
the hierarchy, and a task mixes them by its similarity to the themes; --learn=prompt,phi learns one initialization for
all tasks. --regulator=structured mixes the regulation by the same similarity. All devices, with --distributed those of
all hosts, share the tasks (docs/launching.md).

Meta-training has two stages. The first has inner loops of 3 steps, which learn the initialization quickly
(--warmup_steps). The second has inner loops of --inner_steps, as long as downstream tuning: only these show what tuning
to convergence takes from new classes, and so what the regulator has to prevent. Their gradient is of first order, which
costs one forward and backward pass per inner step and no memory (docs/gram.md).

--meta replaces the first stage by a learned initialization. That of another tuner gives the parts that both have: IVLP
begins with the context of CoOp, and with visual tokens of its own (docs/gram.md).

With the default flags and the mini CLIP, the first stage takes 2 minutes and the second 14 on one core, in under 2 GiB.
A tuner that needs pixels (ivlp, vpt) runs the image transformer for every support image in every inner step: use fewer
of both. --gradient=exact takes several times as long.

Writes WORKDIR/meta.safetensors (kilobytes, for experiments.evaluate --meta), metrics.jsonl and checkpoints. The same
command resumes a stopped run. Validation uses other tasks of the same hierarchy; no label and no downstream image is
used.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lazy_loader
import numpy as np

import gram_jax as gram
from gram_jax import artifacts, evaluation, runtime, tasks, tuning
from gram_jax.data import Corpus, ordered
from gram_jax.errors import InputError
from gram_jax.io import absolute

from . import _nans
from ._launch import launch
from ._meta_settings import WARMUP, Config, make_optimizer, make_regulator

if TYPE_CHECKING:
    from gram_jax.clip import Clip
    from gram_jax.meta import Meta, MetaState, MetaStep, Task
    from gram_jax.regulators import Regulator
    from gram_jax.tuners import Tuner

jax = lazy_loader.load("jax")  # loaded when used, so that --help answers at once

# A resumed run may change these settings.
MAY_CHANGE = (
    *("save_every", "eval_every", "eval_batches", "devices", "mapper", "workers", "worker_processes"),
    *("debug_nans", "tasks_at_once"),
    *("tasks", "clip", "meta"),  # paths; hashes of what they hold are settings, too
)
AHEAD = 2  # batches that are drawn while the device computes
VALIDATION = 1_000_003  # added to the seed of validation draws


@functools.lru_cache(maxsize=2)
def make_program(config: Config, prototypes: int) -> tuple[Tuner, Regulator, MetaStep]:
    """Returns the tuner, the regulator and the outer step on the selected devices.

    The cache lets runs that differ only in their tasks (with the setting `tasks` cleared) share one compiled step.
    """
    tuner, regulator = gram.tuners.parse(config.tuner), make_regulator(config, prototypes)
    devices = runtime.all_devices()
    if config.devices and jax.process_count() > 1:
        raise InputError(f"--devices={config.devices}: several processes share all devices; omit the flag")
    if config.devices > len(devices):
        raise InputError(f"--devices={config.devices}: only {len(devices)} exist")
    step = gram.meta.make_meta_step(
        tuning.classification_loss(tuner),
        regulator,
        make_optimizer(config),
        steps=config.inner_steps,
        schedule=config.inner_schedule,
        gradient=int(config.gradient) if config.gradient.isdigit() else config.gradient,
        cross_weight=config.cross_weight,
        learn=config.learn,
        tasks_at_once=config.tasks_at_once or None,
        mapper=config.mapper,
        devices=devices[: config.devices] if config.devices else devices,
    )
    return tuner, regulator, step


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """The parts of one run: `frozen` is the clip on the devices, `draw(seed, index, progress)` this host's tasks."""

    config: Config
    tuner: Tuner
    regulator: Regulator
    step: MetaStep
    frozen: Clip
    draw: Callable[[int, int, float], Task]
    about: str

    def place(self, batch: Task) -> Task:
        """Puts the shares of all hosts on the devices."""
        return runtime.global_arrays(self.step.sharding, batch, self.config.batch_size)

    def validate(self, meta: Meta) -> dict[str, float]:
        """Returns mean losses on validation tasks."""
        measured = []
        for index in range(self.config.eval_batches):
            batch = self.place(self.draw(self.config.seed + VALIDATION, index, 1.0))
            measured.append(losses(self.step.evaluate(meta, self.frozen, batch)))
        return {f"val_{name}": float(np.mean([each[name] for each in measured])) for name in measured[0]}


def losses(metrics: dict[str, Any]) -> dict[str, float]:
    """Returns losses averaged over tasks: support before the first and the last inner step, and the queries."""
    named = {"support": metrics["support"][:, 0], "adapted": metrics["support"][:, -1], "same": metrics["same"]}
    if "cross" in metrics:
        named["cross"] = metrics["cross"]
    return {name: float(np.mean(value)) for name, value in named.items()}


def prepare(
    config: Config, clip: Clip, hierarchy: tasks.Hierarchy, corpus: Corpus | None
) -> tuple[Training, MetaState]:
    """Builds the source of tasks, the compiled step and the initial state."""
    loaded = gram.load_meta(config.meta, clip) if config.meta else None
    has_offsets = "offsets" in config.learn or (loaded is not None and loaded.meta.offsets is not None)
    reads_context = has_offsets or config.structured or make_regulator(config).settings.get("context_dim") is not None
    if config.cross == "pairs":
        captions = tasks.hierarchy_corpus(hierarchy, corpus).captions
        hierarchy = tasks.pair_hierarchy(hierarchy, [captions[member] for member in hierarchy.members.tolist()])
        print(f"attributes: {hierarchy.about['attributes']}", flush=True)
    # Classes named by tokens of their own need a clip with these tokens, which belong to this hierarchy only.
    task_clip = tasks.centroid_clip(clip, hierarchy)
    names = ("ways", "shots", "queries", "cross", "cross_queries", "cohesive", "curriculum")
    shape = tasks.EpisodeConfig(
        **{name: getattr(config, name) for name in names},
        cross_ways=config.cross_ways if config.cross in ("class", "theme", "pairs") else None,
        max_tokens=config.max_tokens or None,
        fewest_shots=config.fewest_shots or None,
    )
    episodes = tasks.make_episodes(hierarchy, task_clip, shape, context=reads_context)
    prototypes = episodes.prototypes() if config.structured or "offsets" in config.learn else None
    if loaded is not None and loaded.meta.structure is not None:
        prototypes = loaded.meta.structure.prototypes
    count = len(prototypes) if config.structured and prototypes is not None else 1
    tuner, regulator, step = make_program(dataclasses.replace(config, tasks="", meta=""), count)
    share, remainder = divmod(config.batch_size, step.devices)
    if remainder:
        raise InputError(f"--batch_size={config.batch_size}: it must be a multiple of the {step.devices} devices")
    if config.tasks_at_once and share % config.tasks_at_once:
        raise InputError(f"--tasks_at_once={config.tasks_at_once}: it must divide the {share} tasks of a device")
    learned = initial_meta(config, clip, tuner, regulator, prototypes, loaded)
    frozen = step.place(task_clip.replace(transform=None))  # tracing reads the tokenizer, but no transform
    images, rows = image_reader(hierarchy, tuner, clip, corpus), runtime.own_rows(step.sharding, config.batch_size)

    def draw(seed: int, index: int, progress: float) -> Task:
        batch = episodes.batch(seed, index, config.batch_size, progress, images, rows)
        if config.depths == 1:
            return batch
        sizes = {"steps": config.inner_steps, "depths": config.depths}
        drawn = gram.meta.random_depths(seed, index, config.batch_size, **sizes)
        return batch.replace(depths=drawn[rows.start : rows.stop])

    return Training(config, tuner, regulator, step, frozen, draw, episodes.summary()), step.init(learned)


def initial_meta(
    config: Config, clip: Clip, tuner: Tuner, regulator: Regulator, prototypes: np.ndarray | None, loaded: Any
) -> Meta:
    """Returns the state before meta-training: a new one, that of the meta checkpoint --meta, or parts of it."""
    if loaded is not None and (loaded.tuner.name, loaded.tuner.settings) == (tuner.name, tuner.settings):
        prompt, phi = loaded.meta.prompt, loaded.meta.phi
        if (loaded.regulator.name, loaded.regulator.settings) != (regulator.name, regulator.settings):
            phi = regulator.init(jax.random.key(config.seed + 1), prompt)
        return loaded.meta.replace(phi=phi, log_rates=gram.meta.init_meta(prompt, phi, config.inner_rate).log_rates)
    prompt = tuner.init(jax.random.key(config.seed), clip, None)
    learned = gram.meta.init_meta(prompt, regulator.init(jax.random.key(config.seed + 1), prompt), config.inner_rate)
    if prototypes is not None:
        offsets = "offsets" in config.learn or (loaded is not None and loaded.meta.offsets is not None)
        learned = gram.meta.with_structure(learned, prototypes, config.temperature, offsets=offsets)
    if loaded is None:
        return learned
    learned, parts = gram.meta.with_parts_of(learned, loaded.meta)
    if not parts:
        found = f"{loaded.tuner.name}{dict(loaded.tuner.settings)}"
        raise InputError(f"--meta={config.meta} is of {found} and has no part of --tuner={config.tuner}; omit --meta")
    print(f"from the {loaded.tuner.name} of {config.meta}: {', '.join(parts)}", flush=True)
    return learned


def image_reader(
    hierarchy: tasks.Hierarchy, tuner: Tuner, clip: Clip, corpus: Corpus | None
) -> Callable[[np.ndarray], Any]:
    """Returns a function from members of the hierarchy to the tuner's input: frozen features or pixels."""
    if not tuner.needs_pixels:
        return lambda rows: hierarchy.image_features[rows]
    found, transform = tasks.hierarchy_corpus(hierarchy, corpus), clip.transform

    def pixels(rows: np.ndarray) -> np.ndarray:
        images = transform(found.images(hierarchy.members[rows.ravel()].tolist()))
        return images.reshape(*rows.shape, *images.shape[1:])

    return pixels


def optimize(training: Training, state: MetaState, settings: dict[str, Any], workdir: Any) -> MetaState:
    """Runs all steps, or resumes after the last checkpoint; returns the final state."""
    config, step, draw = training.config, training.step, training.draw  # workers receive only config and draw
    workers = {"workers": config.workers, "prefetch": AHEAD, "processes": config.worker_processes}
    with runtime.Checkpoints(workdir / "checkpoints", settings, may_change=MAY_CHANGE) as checkpoints:
        restored = checkpoints.restore(state)
        first, state = (restored.step, restored.state) if restored else (0, state)
        with (
            ordered(lambda i: draw(config.seed, i, i / config.steps), config.steps, start=first, **workers) as batches,
            runtime.MetricsLog(workdir / "metrics.jsonl", resumed_at=first if restored else None) as log,
            runtime.Progress(config.steps, "meta-train", initial=first) as progress,
        ):
            # The initial state is validated after the first step, which donates it, so that the first step comes early.
            initial = jax.tree.map(np.array, state.meta) if config.eval_every and not first else None
            for index, batch in enumerate(batches, first):
                batch = training.place(batch)
                if index == first:
                    announce(step, state, training.frozen, batch)
                before = jax.tree.map(jax.numpy.copy, state) if config.debug_nans else None
                state, metrics = step(state, training.frozen, batch)
                norms = {name: value for name, value in metrics.items() if name.endswith("norm")}
                if not _nans.all_finite(metrics["loss"], *norms.values()):
                    raise non_finite(training, index, metrics["loss"], before, batch, checkpoints.last_good())
                done, measured = index + 1, losses(metrics)
                if index == 0 and initial is not None:
                    log.write(0, **training.validate(step.place(initial)))
                log.write(done, **measured, **norms)
                progress.update(loss=measured["same"])
                if config.eval_every and (done % config.eval_every == 0 or done == config.steps):
                    validated = training.validate(state.meta)
                    log.write(done, **validated)
                    progress.update(0, val=validated["val_same"])
                if done % config.save_every == 0 or done == config.steps:
                    checkpoints.save(done, state)
                checkpoints.exit_if_preempted(done, state)
        print(f"waited for tasks {100 * batches.share:.1f} % of the time", flush=True)
    return state


def announce(step: MetaStep, state: MetaState, frozen: Clip, batch: Task) -> None:
    """Compiles the step, which is not compiled again later, and prints its memory."""
    began = time.monotonic()
    needed = tuning.memory_bytes(step.update.lower(state, frozen, batch).compile())
    if runtime.is_main():
        line = runtime.memory_line(needed, step.devices, runtime.available_memory())
        print(f"{line}; compiled in {time.monotonic() - began:.1f} s", flush=True)


def non_finite(
    training: Training, index: int, loss: Any, before: MetaState | None, batch: Task, last_good: str
) -> InputError:
    """Returns the error of a step that is not finite: the tasks, the last good checkpoint, and the operation."""
    bad = np.flatnonzero(~np.isfinite(loss)) + index * training.config.batch_size
    problem = f"loss of step {index} is not finite in tasks {bad.tolist()}"
    problem = problem if len(bad) else f"gradient of step {index} is not finite, its loss is"
    operation = _nans.HINT
    if before is not None:
        operation = _nans.explain(training.step.update, state=before, frozen=training.frozen, tasks=batch)
    return InputError(f"the {problem}; {last_good}. {operation}. Lower --inner_rate or --learning_rate")


def train(
    config: Config, workdir: Any, clip: Clip, hierarchy: tasks.Hierarchy, *, corpus: Corpus | None = None
) -> tuple[Meta, tuple[evaluation.Row, ...]]:
    """Meta-trains or resumes; writes the meta checkpoint and returns its content and the validation losses."""
    workdir, settings = absolute(workdir), dataclasses.asdict(config)
    initial = tuple(part for part in config.learn if part in ("prompt", "offsets"))
    staged = bool(config.warmup_steps and initial and not config.meta)
    if staged:
        warmup = dataclasses.replace(config, steps=config.warmup_steps, learn=initial, **WARMUP)
        print(f"first of two stages: {warmup.steps} steps with inner loops of {warmup.inner_steps} steps", flush=True)
        train(warmup, workdir / "warmup", clip, hierarchy, corpus=corpus)
        runtime.barrier("warmup")
        config = dataclasses.replace(config, meta=str(workdir / "warmup" / "meta.safetensors"))
        print(f"second stage: {config.steps} steps with inner loops of {config.inner_steps} steps", flush=True)
    training, state = prepare(config, clip, hierarchy, corpus)
    if not staged:
        print(training.about, flush=True)
    settings |= {"hierarchy": hierarchy.content_hash}
    if config.meta:
        settings["meta_hash"] = artifacts.content_hash(absolute(config.meta))
    learned = jax.device_get(optimize(training, state, settings, workdir).meta)
    if not runtime.is_main():
        return learned, ()
    notes = {"settings": settings, "tasks": dict(hierarchy.about)}
    gram.save_meta(workdir / "meta.safetensors", learned, training.tuner, training.regulator, clip, notes=notes)
    rows = tuple(
        evaluation.Row(f"{training.tuner.name}+gram", "meta_train", "corpus", name, value, step=record["step"])
        for record in runtime.read_metrics(workdir / "metrics.jsonl")
        for name, value in record.items()
        if name.startswith("val_")
    )
    return learned, rows


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Meta-trains on the tasks of a hierarchy and writes the meta checkpoint."""
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    hierarchy = tasks.load_hierarchy(config.tasks, clip=clip)
    _, rows = train(config, workdir, clip, hierarchy)
    print(f"losses along training in {absolute(workdir) / 'metrics.jsonl'}")
    print(f"meta checkpoint in {absolute(workdir) / 'meta.safetensors'}", flush=True)
    environment = evaluation.environment(weights=gram.weights_hash(clip.params))
    return evaluation.Results(dataclasses.asdict(config), environment, rows)


if __name__ == "__main__":
    launch(run, Config, distributed="steps")
