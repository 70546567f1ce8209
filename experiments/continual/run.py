"""Every method of a stream, run by run, and the tables and plots of their measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, runtime, tuners
from gram_jax.artifacts import LoadedMeta, content_hash, save_prompt
from gram_jax.data import Dataset, load_datasets, templates
from gram_jax.data.task_streams import TaskStream, class_stream, joined_stream
from gram_jax.errors import InputError
from gram_jax.evaluation.checks import require_usable
from gram_jax.evaluation.continual import stream_metrics
from gram_jax.io import write_file
from gram_jax.reporting import label, stream_plots, to_markdown, to_text
from gram_jax.reporting.tables import Table, format_summary
from gram_jax.runtime.checkpoints import Checkpoints
from gram_jax.runtime.units import Units
from gram_jax.tuning.stream import make_stream_tuning

from .._accounts import tell
from . import learner
from .config import Config
from .presets import CIFAR_TEMPLATES, FROZEN, METHODS

_COLUMNS = {"last": "Acc", "average": "Avg", "forgetting": "forgetting", "backward": "backward transfer"}


def open_stream(config: Config, opened: list[Dataset], seed: int) -> TaskStream:
    """Returns the stream of a seed."""
    cut = len(opened) == 1
    given = config.recipe["tasks"], seed, config.split
    stream = class_stream(opened[0], *given) if cut else joined_stream(opened, config.split)
    return learner.limited(stream, config.train_images, config.max_test_images, seed)


def set_up(config: Config, clip: gram.Clip, opened: list[Dataset]) -> learner.Setting:
    """Returns what all runs share."""
    recipe, encoder = config.recipe, evaluation.Encoder(clip, config.image_batch)
    for dataset in opened:
        encoder.add(dataset)
    names = open_stream(config, opened, recipe["seeds"][0]).class_names
    chosen = {"own": (opened[0].template,), "cifar_18": CIFAR_TEMPLATES}.get(recipe["templates"])
    texts = encoder.texts(names, templates.ensemble(recipe["templates"]) if chosen is None else chosen)
    tuner = tuners.vpt_kv(num_tokens=recipe["num_tokens"], depth=recipe["depth"])
    loaded: LoadedMeta | None = None
    if config.meta is not None:
        loaded = gram.load_meta(config.meta, clip)
        if loaded.tuner.name != "vpt_kv" or dict(loaded.tuner.settings) != dict(tuner.settings):
            raise InputError(
                f"--meta={config.meta} is of {loaded.tuner}, but the stream tunes {tuner}; use one of them"
            )
    shared = {name: recipe[name] for name in ("temperature", "eta", "divide", "weight_decay")} | {"head": config.heads}
    tuning = make_stream_tuning(tuner, **shared)
    regulated = None if loaded is None else make_stream_tuning(tuner, loaded.regulator, **shared)
    return learner.Setting(encoder, tuner, tuning, regulated, loaded, np.asarray(texts), recipe)


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Runs every method and seed along the stream."""
    loaded = load_datasets(config.stream, seed=config.dataset_seed)
    opened = list(loaded.values())
    for dataset in opened:
        require_usable(dataset)
    tell(opened)
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    shared = set_up(config, clip, opened)
    hashes = {dataset.name: dataset.content_hash for dataset in opened}
    environment = evaluation.environment(weights=gram.weights_hash(clip.params), splits=hashes)
    units = Units(workdir / "rows.jsonl", evaluation.measured_by(environment))
    found: dict[str, list[np.ndarray]] = {name: [] for name in config.methods}
    streams = {seed: open_stream(config, opened, seed) for seed in shared.flags["seeds"]}
    todo = [(name, seed) for name in config.methods for seed in streams]
    counts = [len(streams[seed].tasks) * (name not in FROZEN) for name, seed in todo]
    with runtime.Progress(sum(counts), "continual", unit="task") as progress:
        for (name, seed), done in zip(todo, np.cumsum(counts).tolist(), strict=True):
            depends = depends_on(config, environment, name)
            line = units.find((name, seed), depends)
            if line is None:
                matrix = learn(config, shared, streams[seed], name, seed, workdir, depends, progress)
                line = {"matrix": [[None if np.isnan(value) else float(value) for value in row] for row in matrix]}
                units.add((name, seed), depends, line)
            found[name].append(np.array(line["matrix"], np.float64))
            progress.update(done - progress.done)  # the tasks of a finished run
    return report(config, shared, found, streams, environment, opened, workdir)


def depends_on(config: Config, environment: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns all that the result of a method and a seed depends on."""
    left_out = {"methods", "seeds", "preset", "meta", "checkpoint_seconds", "image_batch"}
    depends = {name: value for name, value in config.recipe.items() if name not in left_out}
    depends |= {"weights": environment["weights"], "splits": environment["splits"]}
    return depends | ({"meta": content_hash(config.meta)} if METHODS[name].gram and config.meta else {})


def learn(
    config: Config,
    shared: learner.Setting,
    stream: TaskStream,
    name: str,
    seed: int,
    workdir: Any,
    depends: Mapping[str, Any],
    progress: runtime.Progress,
) -> np.ndarray:
    """Returns the matrix of a method and a seed, and counts the tasks that are learned."""
    if name in FROZEN:
        return learner.frozen(shared, stream, name)
    folder = workdir / "checkpoints" / f"{name}-{seed}"
    with Checkpoints(folder, dict(depends) | {"method": name, "seed": seed}, keep=1) as checkpoints:
        how = {"every": config.checkpoint_seconds, "tell": progress.update}
        matrix, prompt = learner.learn(shared, stream, METHODS[name], seed, checkpoints, **how)
    save_prompt(workdir / "prompts" / f"{name}-{seed}.safetensors", prompt, shared.tuner, shared.encoder.clip)
    return matrix


def report(
    config: Config,
    shared: learner.Setting,
    found: Mapping[str, list[np.ndarray]],
    streams: Mapping[int, TaskStream],
    environment: Mapping[str, Any],
    opened: list[Dataset],
    workdir: Any,
) -> evaluation.Results:
    """Writes results, tables and plots, and returns the results."""
    counts = {seed: [len(task.test) for task in stream.tasks] for seed, stream in streams.items()}
    rows, measures = measure(found, streams, counts)
    compared = tuple(comparisons(measures))
    told = dict(config.recipe) | {"datasets": {dataset.name: dict(dataset.about) for dataset in opened}}
    results = evaluation.Results(_plain(told), dict(environment), tuple(rows), compared)
    evaluation.save_results(workdir, results)  # before anything that could fail
    table = measure_table(found, measures)
    write_file(workdir / "table.md", to_markdown(table).encode())
    stacked = {method: np.stack(matrices) for method, matrices in found.items()}
    stream_plots.matrices(stacked, workdir / "matrices.png")
    stream_plots.along(stacked, list(counts.values()), workdir / "along.png")
    names = ", ".join(dict.fromkeys(stream.name for stream in streams.values()))
    print(f"\n{names}: {len(next(iter(counts.values())))} tasks, {len(streams)} seeds, %\n{to_text(table)}")
    for each in compared:
        if each.ci95 is not None and each.metric in ("last", "forgetting"):
            low, high = (100 * bound for bound in each.ci95)
            difference = f"{100 * each.mean_difference:+.1f} [{low:+.1f}, {high:+.1f}] points"
            print(f"{_COLUMNS[each.metric]}: {label(each.a)} - {label(each.b)} = {difference}")
    print(f"\ntable.md, matrices.png, along.png and prompts in {workdir}")
    return results


def measure(
    found: Mapping[str, list[np.ndarray]], streams: Mapping[int, TaskStream], counts: Mapping[int, list[int]]
) -> tuple[list[evaluation.Row], dict[tuple[str, str], list[float]]]:
    """Returns the rows of the matrices and of all measures, and the measures of every method over seeds."""
    rows: list[evaluation.Row] = []
    measures: dict[tuple[str, str], list[float]] = {}
    for method, matrices in found.items():
        for (seed, stream), matrix in zip(streams.items(), matrices, strict=True):
            shape: dict[str, Any] = {"protocol": "continual", "dataset": stream.name, "seed": seed}
            for t, j in np.argwhere(~np.isnan(matrix)).tolist():
                where: dict[str, Any] = {"step": t + 1, "split": f"task {j + 1}"}
                rows.append(evaluation.Row(method, metric="accuracy", value=float(matrix[t, j]), **shape, **where))
            for metric, value in stream_metrics(matrix, counts[seed]).items():
                rows.append(evaluation.Row(method, metric=metric, value=value, **shape))
                measures.setdefault((method, metric), []).append(value)
    return rows, measures


def measure_table(found: Mapping[str, Any], measures: Mapping[tuple[str, str], list[float]]) -> Table:
    """Returns the table of methods and measures, in percent."""
    body = []
    for method in found:
        cells = (measures.get((method, metric)) for metric in _COLUMNS)
        body.append((label(method), *(_cell(values) for values in cells)))
    return Table(("method", *_COLUMNS.values()), tuple(body))


def _cell(values: list[float] | None) -> str:
    return "-" if values is None else format_summary(evaluation.summarize(100 * np.array(values)))


def comparisons(measures: Mapping[tuple[str, str], list[float]]) -> list[evaluation.Comparison]:
    """Returns the paired differences of the pairs of methods that answer a question."""
    pairs = ("null_space", "sequential"), ("gram+null_space", "gram"), ("gram", "sequential"), (
        "gram+null_space", "null_space"), ("replay", "sequential"), ("l2", "sequential")  # fmt: skip
    made = []
    for a, b in pairs:
        for metric in ("last", "last_mean", "average", "average_mean", "forgetting", "forgetting_before", "backward"):
            if (a, metric) in measures and (b, metric) in measures:
                difference = evaluation.paired_difference(measures[a, metric], measures[b, metric])
                made.append(evaluation.results.comparison(a, b, metric, "seed", difference))
    return made


def _plain(value: Any) -> Any:
    """Returns settings with lists in place of tuples, as the schema of results wants."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value
