"""Does neural collapse of tuned prompts go with generalization? Many prompts, measured along tuning, and correlations.

    python -m experiments.collapse
    python -m experiments.collapse --tuner=coop,ivlp --regularizers="" --regularizers=npt:0.3 --dataset=glyphs:hebrew
    python -m experiments.collapse --tuner=coop --learning_rate=0.03,0.1,0.3,1,3 --seeds=1,2,3,4,5,6,7,8,9,10

Tunes prompts on the base classes of every dataset, balanced (tau = 1) and from long tails, every tuner under every set
of regularizers and at every learning rate, all seeds side by side. After some steps along every run, it measures on
test images of base and of new classes: accuracy and its harmonic mean H, and the measures of
`gram_jax.evaluation.neural_collapse`, NC1 to NC4, distances to the simplex frame, alignment of text and images. Then it
correlates each measure with the accuracy on new classes and with H, balanced and imbalanced apart; docs/collapse.md
says how. Nothing is selected, so no validation split is read.

A tuner of text only leaves the image features frozen: NC1 and the measures of image means alone are then those of the
clip, the same for all prompts, and only those of text and of both vary.

Writes WORKDIR/results.json, correlations.json, table.md and plots. Every finished unit, all seeds of a method on a
dataset, is kept in WORKDIR/rows.jsonl: the same command goes on where it was stopped.

With no flags: 1,350 prompts, CoOp alone, with NPT and with KgCoOp, at two rates on three datasets; six
minutes of processor time, compilation included, and 2 GiB.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, runtime, tuners
from gram_jax import tuning as tuning_lib
from gram_jax.data import Dataset
from gram_jax.data.readers.sources import forms
from gram_jax.errors import InputError
from gram_jax.evaluation import Row
from gram_jax.evaluation import protocols as _protocols
from gram_jax.evaluation.protocols import Opened, Part
from gram_jax.io import absolute
from gram_jax.runtime.units import Units

from .._launch import at_least, json_object, setting
from ..evaluate import config as _evaluate_flags
from ..evaluate import methods as _methods
from ..evaluate import run as evaluate
from ..evaluate.bench import Bench
from ..evaluate.methods import Method
from . import plots as _collapse_plots
from . import tables as _collapse_tables
from .measures import Found, Meter, measured, meter
from .measures import rows as measure_rows

BALANCED = "base_to_new"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which prompts are tuned, on what, and when they are measured."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    tuner: tuple[str, ...] = setting(("coop",), f"some of {', '.join(tuners.NAMES)}")
    tuner_settings: str = setting("{}", 'their settings as JSON, by tuner, e.g. {"ivlp": {"depth": 2}}')
    regularizers: tuple[str, ...] = setting(
        ("", "npt", "kgcoop"),
        "a set of regularizers that every tuner is tuned under, as experiments.evaluate takes them (npt:1.0,kgcoop:8), "
        "empty for none; repeat the flag for more sets",
        repeated=True,
    )
    regularizer_settings: str = setting("{}", 'their settings as JSON, by name, e.g. {"npt": {"centered": true}}')
    dataset: tuple[str, ...] = setting(
        ("glyphs:arabic", "glyphs:georgian", "glyphs:playing_cards"), f"datasets: {forms()}"
    )
    tau: tuple[float, ...] = setting(
        (1.0, 0.25, 0.06), "labeled images of the smallest base class over the largest's; 1 is balanced"
    )
    shots: tuple[int, ...] = setting((16,), "labeled images of the largest class")
    seeds: tuple[int, ...] = setting((1, 2, 3, 4, 5), "seeds of the draws")
    learning_rate: tuple[float, ...] = setting((0.3, 1.0), "learning rates, every one of which is measured")
    steps: int = setting(50, "optimizer steps of a run")
    report_steps: tuple[int, ...] = setting((0, 1, 5, 20), "steps that are measured beside the last one")
    batch_size: int = setting(32, "images a step")
    optimizer: str = setting("sgd", "the optimizer", choices=tuning_lib.step.OPTIMIZERS)
    momentum: float = setting(0.0, "momentum of sgd")
    weight_decay: float = setting(0.0, "decay of the prompts, added to their gradients before momentum")
    schedule: str = setting(
        "constant",
        "the learning rate along a run; under a constant one, every measured step is the end of a shorter run",
        choices=tuning_lib.schedules.SCHEDULES,
    )
    max_test_images: int = setting(10, "test images a class; 0 for all")
    image_batch: int = setting(64, "images that the image transformer sees at once")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    dataset_seed: int = setting(0, "seed of datasets that are drawn, and of splits that are made")
    resamples: int = setting(2000, "bootstrap samples behind each interval of a correlation")

    def __post_init__(self) -> None:
        for name in ("tuner", "regularizers", "dataset", "tau", "shots", "seeds", "learning_rate", "report_steps"):
            values = getattr(self, name)
            if not values and name != "report_steps":
                raise InputError(f"--{name} is empty; give at least one value")
            if len(set(values)) < len(values):
                raise InputError(f"--{name}={','.join(map(str, values))}: give each value once")
        for name in self.tuner:
            if name not in tuners.NAMES:
                raise InputError(f"--tuner={name}: choose among {', '.join(tuners.NAMES)}")
        if self.steps < 1 or any(not 0 <= step <= self.steps for step in self.report_steps):
            raise InputError(
                f"--steps={self.steps} and --report_steps={','.join(map(str, self.report_steps))}: take at least 1 "
                "step, and measure from 0 to the last"
            )
        at_least(self, 1, "resamples")
        flags = [part for _, part in of_methods(self)]
        names = [_methods.composed_name(part, _methods.choose_tuner(part)) for part in flags]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"--regularizers names {twice[0]} twice; give each set once")


def of_methods(config: Config) -> Iterator[tuple[str, _evaluate_flags.Config]]:
    """The settings of `experiments.evaluate` that each tuner under each set of regularizers stands for.

    Raises:
      InputError: a setting has an impossible value, or belongs to a name that is not among the methods.
    """
    of_tuners, of_names = (
        _by_name(flag, getattr(config, flag), known)
        for flag, known in (
            ("tuner_settings", config.tuner),
            ("regularizer_settings", [name for spec in config.regularizers for name in _names(spec)]),
        )
    )
    tails = tuple(tau for tau in config.tau if tau != 1.0)
    shared = {
        name: getattr(config, name)
        for name in (
            "clip", "dataset", "shots", "seeds", "learning_rate", "report_steps", "batch_size", "optimizer", "momentum",
            "weight_decay", "schedule", "max_test_images", "image_batch", "compute_dtype", "dataset_seed",
        )
    }  # fmt: skip
    shared |= {
        "methods": ("tuner",),
        "protocol": (BALANCED,) * (1.0 in config.tau) + ("imbalanced",) * bool(tails),
        **({"tau": tails} if tails else {}),
        "largest": max(config.shots),
        "steps": (config.steps,),
        "select_seeds": (max(config.seeds) + 1,),  # nothing is selected
    }
    for tuner in config.tuner:
        for spec in config.regularizers:
            yield (
                tuner,
                _evaluate_flags.Config(
                    tuner=tuner,
                    tuner_settings=json.dumps(of_tuners.get(tuner, {})),
                    regularizers=tuple(part.strip() for part in spec.split(",") if part.strip()),
                    regularizer_settings=json.dumps(
                        {name: of_names[name] for name in _names(spec) if name in of_names}
                    ),
                    **shared,
                ),
            )


def _by_name(flag: str, text: str, known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by name; ValueError where a name is none of the known ones, or has no settings."""
    found = json_object(flag, text)
    for name, value in found.items():
        if name not in known:
            raise InputError(f"--{flag} names {name!r}, which is not tuned with; give {', '.join(known) or 'none'}")
        if not isinstance(value, dict):
            raise InputError(f"--{flag} has {value!r} for {name!r}; give an object, such as {{{name!r}: {{...}}}}")
    return found


def _names(spec: str) -> list[str]:
    """The regularizers that a set names, whatever is wrong with the rest of it."""
    return [part.partition(":")[0].strip() for part in spec.split(",") if part.strip()]


class Setup(NamedTuple):
    """A tuner under a set of regularizers, at every learning rate: one method for each rate."""

    bench: Bench
    meter: Meter
    methods: tuple[Method, ...]


def set_up(config: Config, clip: gram.Clip) -> list[Setup]:
    """What is tuned, each tuner with the features and compiled measurements that its methods share."""
    benches: dict[str, tuple[Bench, Meter]] = {}
    found = []
    for name, flags in of_methods(config):
        if name not in benches:
            bench = Bench(flags, clip, _methods.choose_tuner(flags))
            benches[name] = bench, meter(bench)
        (method,), _, _ = _methods.build(flags, benches[name][0].tuner, clip)
        several = len(method.candidates) > 1
        methods = tuple(
            method._replace(
                name=f"{method.name}@{candidate.described['learning_rate']:g}" if several else method.name,
                candidates=(candidate,),
            )
            for candidate in method.candidates
        )
        found.append(Setup(*benches[name], methods))
    return found


def check(config: Config, setups: Sequence[Setup], opened: Mapping[str, Opened]) -> None:
    """Raises InputError, before anything is tuned, where a dataset does not fit."""
    for setup in setups:
        evaluate.check(setup.bench, setup.methods, opened, ())
    for name, (dataset, others) in opened.items():
        for protocol in others:
            for shots in config.shots:
                _protocols.support(dataset, protocol, shots, config.seeds[0])
        for split, labels in _protocols.class_splits(BALANCED, dataset).items():
            if len(labels) < 2:
                raise InputError(
                    f"dataset {name!r} has {len(dataset.class_names)} classes, {len(labels)} of them {split}: collapse "
                    "is of two or more; give a dataset of 4 classes at least"
                )


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Tunes, measures and correlates."""
    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    setups = set_up(config, clip)
    flags = setups[0].bench.config
    opened = _protocols.open_datasets(flags)
    check(config, setups, opened)
    weights = gram.weights_hash(clip.params)
    hashes = {dataset.name: dataset.content_hash for dataset in _protocols.all_datasets(opened)}
    units = Units(workdir / "rows.jsonl", dataclasses.asdict(config) | {"weights": weights, "splits": hashes})
    pairs = [(setup, method) for setup in setups for method in setup.methods]
    total = sum(len(each.others) for each in opened.values()) * len(config.shots) * len(pairs)
    rows: list[Row] = []
    with runtime.Progress(total, "collapse", initial=len(units), unit="unit") as progress:
        for name, (dataset, others) in opened.items():
            parts = _protocols.measured_parts(flags, BALANCED, dataset, "test")
            for protocol, shots, (setup, method) in itertools.product(others, config.shots, pairs):
                unit = (method.name, name, protocol, shots)
                if unit not in units:
                    start = time.monotonic()
                    found = _unit(setup, method, dataset, protocol, shots, parts)
                    units.add(unit, found)
                    print(_line(unit, found, time.monotonic() - start), flush=True)
                    progress.update()
                rows += measure_rows(units[unit], *unit, config.seeds)
    settings = dataclasses.asdict(config) | {"datasets": _protocols.about(opened)}
    draws = {}
    for shots in config.shots:
        draws |= _protocols.draws(dataclasses.replace(flags, shots=(shots,), largest=shots), opened)
    environment = evaluation.environment(weights=weights, splits=hashes, draws=draws)
    correlations = _collapse_tables.correlations(rows, config.resamples)
    _collapse_tables.write(rows, correlations, workdir, show=print)
    _collapse_plots.along_tuning(rows, workdir / "collapse.png")
    for target in _collapse_tables.TARGETS:
        _collapse_plots.against(rows, correlations, target, workdir / f"correlation_{target.name}.png")
    print(f"tables, correlations and plots in {workdir}", flush=True)
    return evaluation.Results(settings, environment, tuple(rows), _collapse_tables.comparisons(rows))


def _unit(setup: Setup, method: Method, dataset: Dataset, protocol: str, shots: int, parts: Sequence[Part]) -> Found:
    """Tunes all seeds of a method, and measures them after every step that is asked for."""
    bench = setup.bench
    bench.tuned.clear()
    tuned = evaluate.tuned_prompts(bench, method, method.candidates[0], dataset, protocol, shots)
    return {str(step): measured(bench, setup.meter, prompts, parts) for step, prompts in sorted(tuned.prompts.items())}


def _line(unit: tuple, found: Found, seconds: float) -> str:
    """What a unit found, for the terminal."""
    method, dataset, protocol, shots = unit
    last = found[max(found, key=int)]
    base, new = (100 * np.mean(last[split]["accuracy"]) for split in ("base", "new"))
    distance = np.mean(last["base"]["simplex_text"])
    return (
        f"{dataset}, {protocol}, {shots}-shot, {method}: base {base:.1f}, new {new:.1f}, distance of base texts to a "
        f"simplex {distance:.3f} ({seconds:.1f} s)"
    )
