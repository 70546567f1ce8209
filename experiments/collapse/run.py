"""Tunes prompts, measures their collapse, and correlates the measures with generalization."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, runtime
from gram_jax.errors import InputError
from gram_jax.evaluation import Encoder, Row
from gram_jax.evaluation.methods import Task, Trial, task_of
from gram_jax.evaluation.protocols import Part, imbalance
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.io import absolute
from gram_jax.runtime.units import Units

from ..evaluate import run as evaluate
from ..evaluate.datasets import Opened, about, all_datasets, draw_hashes, open_datasets
from ..evaluate.identity import method_settings
from ..evaluate.methods import build, choose_tuner
from ..evaluate.settings import Settings
from . import plots, tables
from .config import BALANCED, Config, of_methods
from .measures import Meter, Values
from .measures import rows as measure_rows


class Setup(NamedTuple):
    """A tuner under a set of regularizers, at every learning rate: one method for each rate."""

    encoder: Encoder
    meter: Meter
    methods: tuple[TunedMethod, ...]
    settings: Settings


def set_up(config: Config, clip: gram.Clip) -> list[Setup]:
    """Returns the methods, those of one tuner with a shared meter."""
    encoder = Encoder(clip, config.image_batch, log=_say)
    meters: dict[str, Meter] = {}
    setups = []
    for name, flags in of_methods(config):
        tuner = choose_tuner(flags.settings)
        meters[name] = meters.get(name) or Meter(encoder, tuner)
        (method,), _ = build(flags.settings, tuner, clip)
        methods = []
        for candidate in method.candidates:
            rate = f"@{candidate.described['learning_rate']:g}" if len(method.candidates) > 1 else ""
            methods.append(dataclasses.replace(method, name=method.name + rate, candidates=(candidate,)))
        setups.append(Setup(encoder, meters[name], tuple(methods), flags.settings))
    return setups


def _say(line: str) -> None:
    """Prints a line that begins with the name of a method."""
    method, comma, rest = line.partition(", ")
    print(f"{tables.label(method)}{comma}{rest}", flush=True)


def check(config: Config, setups: Sequence[Setup], opened: Mapping[str, Opened]) -> None:
    """Raises InputError if a dataset does not fit, before anything is tuned."""
    for setup in setups:
        evaluate.check(setup.settings, setup.encoder, setup.methods, opened)
    for name, (dataset, targets) in opened.items():
        for protocol in targets:
            for shots in config.shots:
                protocol.support(dataset, shots, config.seeds[0])
        for split, labels in BALANCED.splits(dataset).items():
            if len(labels) < 2:
                raise InputError(
                    f"dataset {name!r} has {len(dataset.class_names)} classes, {len(labels)} of them {split}: collapse "
                    "is defined for at least two; give a dataset of at least 4 classes"
                )


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Tunes prompts, measures them, and correlates the measures."""
    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    setups = set_up(config, clip)
    opened = open_datasets(setups[0].settings)
    check(config, setups, opened)
    identity = {
        "weights": gram.weights_hash(clip.params),
        "splits": {dataset.name: dataset.content_hash for dataset in all_datasets(opened)},
    }
    provenance = evaluation.environment(**identity)
    units = Units(workdir / "rows.jsonl", evaluation.measured_by(provenance))
    pairs = [(setup, method) for setup in setups for method in setup.methods]
    total = sum(len(each.targets) for each in opened.values()) * len(config.shots) * len(pairs)
    rows: list[Row] = []
    with runtime.Progress(total, "collapse", unit="unit") as progress:
        for name, (dataset, targets) in opened.items():
            parts = BALANCED.parts(dataset, limit=config.max_test_images)
            for protocol, shots, (setup, method) in itertools.product(targets, config.shots, pairs):
                unit, start = (method.name, name, protocol.name, shots), time.monotonic()
                told = method_settings(setup.settings, method, method.candidates[0], {})
                depends = {**told, "weights": identity["weights"], "dataset": identity["splits"][name]}
                depends |= {"report_steps": config.report_steps}
                found = {seed: units.find((*unit, seed), depends) for seed in config.seeds}
                for seed in (seed for seed in config.seeds if found[seed] is None):
                    task = task_of(dataset, protocol, shots, (seed,))
                    found[seed] = units.add((*unit, seed), depends, _unit(setup, method, task, config, parts))["found"]
                progress.update()
                print(_line(unit, list(found.values()), time.monotonic() - start), flush=True)
                for seed, by_step in found.items():
                    rows += measure_rows(by_step, *unit, (seed,))
    settings = dataclasses.asdict(config) | {"datasets": about(opened)}
    draws = draw_hashes(opened, config.seeds, lambda protocol: config.shots)
    environment = provenance | {"draws": draws, "measured_by": units.measured_by()}
    evaluation.warn_of_versions(environment)
    results = evaluation.Results(settings, environment, tuple(rows), tables.comparisons(rows))
    evaluation.save_results(workdir, results)  # before anything that could fail
    correlations = tables.correlations(rows, config.resamples)
    tables.write(rows, correlations, workdir, show=print)
    plots.along_tuning(rows, workdir / "collapse.png")
    for target in tables.TARGETS:
        plots.against(rows, correlations, target, workdir / f"correlation_{target.name}.png")
    print(f"correlations.json and plots in {workdir}", flush=True)
    return results


def _unit(setup: Setup, method: TunedMethod, task: Task, config: Config, parts: Sequence[Part]) -> dict[str, Values]:
    """Tunes all seeds of a method and measures them after every reported step."""
    tuned = method.learn(Trial(setup.encoder, task, method.candidates[0]), config.report_steps)
    method.require_finite(task, tuned)
    return {str(step): setup.meter.measure(prompts, parts) for step, prompts in sorted(tuned.prompts.items())}


def _line(unit: tuple, found: Sequence[dict[str, Values]], seconds: float) -> str:
    """Returns the accuracies of the seeds of a unit as a line of text."""
    method, dataset, protocol, shots = unit
    last = [by_step[max(by_step, key=int)] for by_step in found]
    base, new = (100 * float(np.mean([own[split]["accuracy"] for own in last])) for split in ("base", "new"))
    tail = "" if (tau := imbalance(protocol)) is None else f", tau {tau:g}"
    return f"{dataset}{tail}, {shots}-shot, {tables.label(method)}: base {base:.1f}, new {new:.1f} ({seconds:.1f} s)"
