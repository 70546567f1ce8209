"""Neural collapse of tuned prompts and its correlation with generalization.

    python -m experiments.collapse
    python -m experiments.collapse --tuner="coop,ivlp(depth=2)" --regularizers="" --regularizers=npt:0.3
    python -m experiments.collapse --tuner=coop --learning_rate=0.03,0.1,0.3,1,3 --seeds=1,2,3,4,5,6,7,8,9,10

Tunes prompts on the base classes of every dataset, balanced (tau = 1) and from long tails, with every tuner, set of
regularizers and learning rate. After some steps of every run, it measures accuracy, its
harmonic mean H and the measures of `gram_jax.evaluation.neural_collapse` (NC1 to NC4, distances to the simplex frame,
alignment of text and images) on test images of base and of new classes. Then it correlates each measure with the
accuracy on new classes and with H, separately for balanced and imbalanced runs; docs/collapse.md explains how. Nothing
is selected, so the validation split is not read.

A text-only tuner does not change image features. NC1 and the measures of image means are then those of the clip, the
same for all prompts; only the measures of text, and of text with images, vary.

Writes WORKDIR/results.json, correlations.json, table.md and plots. Finished units (all seeds of a method on a dataset)
are kept in WORKDIR/rows.jsonl: rerun the command to resume.

The defaults measure 1,350 prompts: CoOp alone, with NPT and with KgCoOp, at two rates on three datasets. They take six
minutes of processor time, including compilation, and 2 GiB.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, runtime, tuners
from gram_jax.data.readers.sources import forms
from gram_jax.errors import InputError
from gram_jax.evaluation import Encoder, Row
from gram_jax.evaluation.methods import Task, Trial, task_of
from gram_jax.evaluation.protocols import Part, base_to_new
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.io import absolute
from gram_jax.registry import split_calls
from gram_jax.runtime.units import Units
from gram_jax.tuning.schedules import SCHEDULES
from gram_jax.tuning.step import OPTIMIZERS

from .._launch import at_least, setting
from ..evaluate import run as evaluate
from ..evaluate.datasets import Opened, about, all_datasets, draw_hashes, open_datasets
from ..evaluate.identity import method_settings
from ..evaluate.methods import build, choose_tuner
from ..evaluate.settings import Settings
from . import plots, tables
from .measures import Meter, Values
from .measures import rows as measure_rows

BALANCED = base_to_new


@dataclasses.dataclass(frozen=True)
class Config:
    """The tuned prompts, and the steps at which they are measured."""

    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    tuner: str = setting("coop", f"tuners, such as coop,ivlp(depth=2); some of {', '.join(tuners.NAMES)}")
    regularizers: tuple[str, ...] = setting(
        ("", "npt", "kgcoop"),
        "a set of regularizers for every tuner, such as npt(centered=True):1.0,kgcoop:8, or empty; repeat for more",
        repeated=True,
    )
    dataset: tuple[str, ...] = setting(
        ("glyphs:arabic", "glyphs:georgian", "glyphs:playing_cards"), f"datasets: {forms()}"
    )
    tau: tuple[float, ...] = setting((1.0, 0.25, 0.06), "images of the smallest base class / the largest; 1: balanced")
    shots: tuple[int, ...] = setting((16,), "labeled images of the largest class")
    seeds: tuple[int, ...] = setting((1, 2, 3, 4, 5), "seeds of the draws")
    learning_rate: tuple[float, ...] = setting((0.3, 1.0), "learning rates, each of which is measured")
    steps: int = setting(50, "optimizer steps of a run")
    report_steps: tuple[int, ...] = setting((0, 1, 5, 20), "measured steps besides the last one")
    batch_size: int = setting(32, "images per step")
    optimizer: str = setting("sgd", "the optimizer", choices=OPTIMIZERS)
    momentum: float = setting(0.0, "momentum of sgd")
    weight_decay: float = setting(0.0, "weight decay of the prompts, added to their gradients before momentum")
    schedule: str = setting(
        "constant", "the learning-rate schedule; if constant, every measured step ends a shorter run", choices=SCHEDULES
    )
    max_test_images: int = setting(10, "test images per class; 0 for all")
    image_batch: int = setting(64, "images that the image transformer encodes at once")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    dataset_seed: int = setting(0, "seed of generated datasets and splits")
    resamples: int = setting(2000, "bootstrap samples for the interval of a correlation")

    def __post_init__(self) -> None:
        for name in ("regularizers", "dataset", "tau", "shots", "seeds", "learning_rate", "report_steps"):
            values = getattr(self, name)
            if not values and name != "report_steps":
                raise InputError(f"--{name} is empty; give at least one value")
            if len(set(values)) < len(values):
                raise InputError(f"--{name}={','.join(map(str, values))}: give each value once")
        if not split_calls(self.tuner):
            raise InputError("--tuner is empty; give at least one tuner")
        if self.steps < 1 or any(not 0 <= step <= self.steps for step in self.report_steps):
            raise InputError(
                f"--steps={self.steps} and --report_steps={','.join(map(str, self.report_steps))}: take at least 1 "
                "step, and report steps from 0 to the last"
            )
        at_least(self, 1, "resamples")
        settings = [flags.settings for _, flags in of_methods(self)]
        names = [each.family(choose_tuner(each).name) for each in settings]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"--tuner and --regularizers name {twice[0]} twice; give each method once")


def of_methods(config: Config) -> Iterator[tuple[str, evaluate.Config]]:
    """Yields each tuner with the settings of `experiments.evaluate` that it has under each set of regularizers."""
    tails = tuple(tau for tau in config.tau if tau != 1.0)
    known = {field.name for field in dataclasses.fields(evaluate.Config)} - {"tuner", "regularizers"}
    shared = {name: value for name, value in vars(config).items() if name in known} | {
        "methods": ("tuner",),
        "protocol": (BALANCED.name,) * (1.0 in config.tau) + ("imbalanced",) * bool(tails),
        "tau": tails or (1.0,),
        "largest": max(config.shots),
        "steps": (config.steps,),
        "select_seeds": (max(config.seeds) + 1,),  # nothing is selected
    }
    for tuner in split_calls(config.tuner):
        for text in config.regularizers:
            yield tuner, evaluate.Config(tuner=tuner, regularizers=text, **shared)


class Setup(NamedTuple):
    """A tuner under a set of regularizers, at every learning rate: one method for each rate."""

    encoder: Encoder
    meter: Meter
    methods: tuple[TunedMethod, ...]
    settings: Settings


def set_up(config: Config, clip: gram.Clip) -> list[Setup]:
    """Returns the methods, those of one tuner with a shared meter."""
    encoder = Encoder(clip, config.image_batch, log=lambda line: print(line, flush=True))
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
    print(f"tables, correlations and plots in {workdir}", flush=True)
    return results


def _unit(setup: Setup, method: TunedMethod, task: Task, config: Config, parts: Sequence[Part]) -> dict[str, Values]:
    """Tunes all seeds of a method and measures them after every reported step."""
    tuned = method.learn(Trial(setup.encoder, task, method.candidates[0]), config.report_steps)
    method.require_finite(task, tuned)
    return {str(step): setup.meter.measure(prompts, parts) for step, prompts in sorted(tuned.prompts.items())}


def _line(unit: tuple, found: Sequence[dict[str, Values]], seconds: float) -> str:
    """Returns the results of the seeds of a unit as a line of text."""
    method, dataset, protocol, shots = unit
    last = [by_step[max(by_step, key=int)] for by_step in found]

    def mean(split: str, name: str) -> float:
        return float(np.mean([own[split][name] for own in last]))

    base, new = (100 * mean(split, "accuracy") for split in ("base", "new"))
    return (
        f"{dataset}, {protocol}, {shots}-shot, {method}: base {base:.1f}, new {new:.1f}, distance of base texts to a "
        f"simplex {mean('base', 'simplex_text'):.3f} ({seconds:.1f} s)"
    )
