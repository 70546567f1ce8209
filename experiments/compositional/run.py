"""Every method on every dataset of pairs, run by run: what is finished is kept, what is missing is measured."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime, tuners
from gram_jax.artifacts import LoadedMeta, content_hash
from gram_jax.data import PairDataset, count_images, entanglement, load_compositions
from gram_jax.errors import InputError, require_known
from gram_jax.evaluation import PairPlan, Row
from gram_jax.evaluation.pair_runs import JOINT
from gram_jax.io import absolute, write_file
from gram_jax.registry import Call, parse_call, split_calls
from gram_jax.reporting import compositional as report
from gram_jax.runtime.units import Units
from gram_jax.tuning.recurrent import recurrent

from .._accounts import tell
from .config import Config

HAND_CRAFTED, DRPT = "hand_crafted", "drpt"
GRAM = "+gram"
OWN = {"coop": {"init_text": "a photo of"}}  # settings of tuners that are not given
OWN_GRAM = {"csp": {"learn_context": True}}  # the same, with GRAM
REFERENCE = "csp"  # the method that others are compared with


class Method(NamedTuple):
    """A method.

    Attributes:
      name: its name in results.
      tuner, plan: its tuner, None for the frozen clip, and its plan.
      plain: with GRAM, the name of the same tuner without it; otherwise "".
    """

    name: str
    tuner: tuners.Tuner | None
    plan: PairPlan
    plain: str = ""


def parse_methods(config: Config) -> list[Method]:
    """Returns the methods of the flag; unknown names and settings, and a method that comes twice, raise InputError."""
    methods = []
    for text in split_calls(config.methods):
        call, schedule, tuner = parse_call(text.removesuffix(GRAM), "methods"), JOINT, None
        given, name, plain = call.settings, str(call), ""
        if text.endswith(GRAM):
            if config.meta is None or call.name not in ("coop", "csp"):
                raise InputError(
                    f"--methods={text}: GRAM stands on coop and csp, and needs --meta, the file that "
                    "experiments.meta_train --cross=pairs writes"
                )
            given = OWN_GRAM.get(call.name, {}) | given
            name, plain = name + GRAM, str(Call(call.name, given))
        if call.name == DRPT:
            for setting in given:
                require_known(f"--methods={text}: setting", setting, inspect.signature(recurrent).parameters)
            tuner, schedule = tuners.csp(), recurrent(**given)
        elif call.name != HAND_CRAFTED:
            tuner = tuners.make(call.name, **OWN.get(call.name, {}) | given)
            if not tuner.needs_pairs and (tuner.needs_pixels or not tuner.needs_names):
                raise InputError(
                    f"--methods={text}: {call.name} does not tune texts alone; use coop or a tuner of pairs"
                )
        plan = PairPlan(config.learning_rate[0], config.steps, config.batch_size, config.weight_decay, schedule)
        methods.append(Method(name, tuner, plan, plain))
    if not methods or len({method.name for method in methods}) < len(methods):
        raise InputError(f"--methods={config.methods}: give at least one, each once")
    return methods


class Runs:
    """Measures runs and keeps them; a dataset is opened and encoded when the first of its runs is missing."""

    def __init__(self, config: Config, workdir: Any):
        self._config, self._clip = config, gram.load_clip(config.clip)
        self._encoder = evaluation.Encoder(self._clip, config.image_batch)
        self.weights = gram.weights_hash(self._clip.params)
        self.environment = evaluation.environment(weights=self.weights)
        self._units = Units(workdir / "rows.jsonl", evaluation.measured_by(self.environment))
        self._compiled: dict[str, Any] = {}  # by tuner: all rates and schedules share a step
        self._opened: dict[tuple[str, int], PairDataset] = {}
        self._meta = None if config.meta is None else gram.load_meta(config.meta, self._clip)

    def open(self, spec: str, seed: int) -> PairDataset:
        """Returns the dataset of a seed; the last one is kept."""
        if (spec, seed) not in self._opened:
            self._opened = {(spec, seed): load_compositions(spec, seed=seed)}
        return self._opened[spec, seed]

    def measure(self, spec: str, method: Method, seed: int, split: str, worlds: tuple[str, ...]) -> dict[str, Any]:
        """Returns measures and curve of a run in each world."""
        data = self.open(spec, seed)
        unit = (method.name, data.dataset.name, seed, split, method.plan.learning_rate)
        settings = (
            {} if method.tuner is None else {"tuner": repr(method.tuner), "plan": dataclasses.asdict(method.plan)}
        )
        meta = self._meta if method.plain else None
        if meta is not None:
            settings |= {"meta": content_hash(self._config.meta)}
        depends = settings | {"weights": self.weights, "data": data.dataset.content_hash, "worlds": worlds}
        if (found := self._units.find(unit, depends)) is None:
            self._encoder.add(data.dataset)
            prompt = None
            if method.tuner is not None:
                prompt = self._tune(method.tuner, method.plan, data, seed, meta)
            found = {}
            for world in worlds:
                own = evaluation.measure_pairs(self._encoder, method.tuner, prompt, data, split, world)
                curve = {name: values.tolist() for name, values in own.curve._asdict().items()}
                found[world] = {"measures": own.measures._asdict(), "curve": curve, "threshold": own.threshold}
            self._units.add(unit, depends, found)
        return found

    def _tune(self, tuner: tuners.Tuner, plan: PairPlan, data: PairDataset, seed: int, meta: LoadedMeta | None) -> Any:
        name = repr(tuner) + GRAM * (meta is not None)
        if name not in self._compiled:
            self._compiled[name] = plan.compile(tuner, meta)
        return evaluation.tune_pairs(self._encoder, tuner, self._compiled[name], plan, data, seed, meta)

    def select(self, spec: str, method: Method) -> tuple[Method, dict[float, float]]:
        """Returns the method at the rate with the best mean validation AUC, and the AUC of every rate."""
        rates = self._config.learning_rate
        if method.tuner is None or len(rates) == 1:
            return method, {}
        scores: dict[float, list[float]] = {rate: [] for rate in rates}
        for seed in self._config.select_seeds:
            for rate in rates:
                tried = method._replace(plan=dataclasses.replace(method.plan, learning_rate=rate))
                scores[rate].append(self.measure(spec, tried, seed, "val", ("closed",))["closed"]["measures"]["auc"])
        means = {rate: float(np.mean(own)) for rate, own in scores.items()}
        best = max(means, key=means.__getitem__)
        return method._replace(plan=dataclasses.replace(method.plan, learning_rate=best)), means


def rows_of(method: Method, dataset: str, seed: int, found: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the rows of a run."""
    step = None if method.tuner is None else method.plan.steps
    for world, own in found.items():
        for metric, value in own["measures"].items():
            yield Row(method.name, report.PROTOCOL, dataset, metric, value, seed=seed, split=world, step=step)


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures every method on every dataset, then prints tables and plots curves."""
    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    methods, runs = parse_methods(config), Runs(config, workdir)
    rows: list[Row] = []
    told: dict[str, Any] = dataclasses.asdict(config) | {"selected": {}, "datasets": {}}
    curves: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for spec in config.dataset:
        data = runs.open(spec, config.seeds[0])
        tell([data.dataset])
        print(describe(data), flush=True)
        told["datasets"][data.dataset.name] = dict(data.dataset.about)
        chosen = []
        for method in methods:
            best, scores = runs.select(spec, method)
            chosen.append(best)
            told["selected"].setdefault(data.dataset.name, {})[method.name] = {
                "learning_rate": best.plan.learning_rate,
                "validation_auc": {str(rate): score for rate, score in scores.items()},
            }
        todo = [(seed, method) for seed in config.seeds for method in chosen]
        for seed, method in runtime.Progress.over(todo, "compositional", unit="run"):
            found = runs.measure(spec, method, seed, "test", config.worlds)
            rows += rows_of(method, data.dataset.name, seed, found)
            for world, own in found.items():
                own_curves = curves.setdefault((data.dataset.name, world), {}).setdefault(method.name, [])
                own_curves.append((own["curve"]["seen"], own["curve"]["unseen"]))
    results = evaluation.Results(told, runs.environment, tuple(rows), compared(rows, methods))
    evaluation.save_results(workdir, results)  # before anything that could fail
    write_reports(results, curves, workdir)
    return results


def describe(data: PairDataset) -> str:
    """Returns the size of a dataset and the entanglement of its training images."""
    dataset, pairs = data
    counts = count_images(pairs, dataset.labels[dataset.select("train")])
    lists = (f"{int((own & ~pairs.seen).sum())} unseen in {split}" for split, own in pairs.listed.items())
    names = f"{len(pairs.attributes)} attributes, {len(pairs.objects)} objects"
    images = f"{counts.sum()} training images; entanglement {entanglement(counts).shared:.2f}"
    return f"{dataset.name}: {names}, {int(pairs.seen.sum())} seen pairs, {', '.join(lists)}, {images}"


def compared(rows: list[Row], methods: list[Method]) -> tuple[evaluation.Comparison, ...]:
    """Returns the paired differences in AUC: of every method and CSP, and of a tuner with and without GRAM."""
    names, found = [method.name for method in methods], []
    pairs = [(name, REFERENCE) for name in names if name != REFERENCE and REFERENCE in names]
    added = [(each.name, each.plain) for each in methods if each.plain in names]
    pairs = list(dict.fromkeys(pairs + added))
    for dataset, world in dict.fromkeys((row.dataset, row.split) for row in rows):
        own = [dataclasses.replace(row, step=None) for row in rows if (row.dataset, row.split) == (dataset, world)]
        for pair in pairs:
            each = evaluation.compare(own, *pair, metric="auc", over=("seed",))
            found.append(dataclasses.replace(each, over=f"{dataset}, {world} world: {each.over or 'one seed'}"))
    return tuple(found)


def write_reports(results: evaluation.Results, curves: Mapping[tuple[str, str], Any], workdir: Any) -> None:
    """Prints the tables and the comparisons, and writes them and the plots."""
    parts = []
    for (dataset, world), own in curves.items():
        table = report.table(results.rows, dataset, world)
        title = f"{dataset}, {world} world, %"
        print(f"\n{title}\n{reporting.to_text(table)}", flush=True)
        parts.append(f"## {title}\n\n{reporting.to_markdown(table)}\n")
        name = f"curve_{dataset.partition(':')[2].replace(':', '_')}_{world}.png"
        report.seen_unseen(own, f"{dataset}, {world} world", workdir / name)
    lines: list[str] = []
    for where, each in itertools.groupby(results.comparisons, lambda each: each.over):
        place = where.rpartition(":")[0]
        lines += ["", f"differences in AUC, points, with 95 % intervals; {place}:", *map(difference, each)]
    key = [
        "S, U: best accuracy of seen and of unseen pairs; H: best harmonic mean of both;",
        "AUC: area under the curve of both. The biases of these curves are",
        "chosen on the test images with their labels, as in all published numbers.",
    ]
    print("\n".join([*lines, "", *key, f"table.md and the curves in {workdir}"]), flush=True)
    text = "\n".join(line if not line or line.endswith(":") else f"* {line}" for line in lines)
    write_file(workdir / "table.md", "\n".join([*parts, text, "", *key, ""]))


def difference(compared: evaluation.Comparison) -> str:
    """Returns a comparison as a line of text."""
    interval = "" if compared.ci95 is None else " [{:+.1f}, {:+.1f}]".format(*(100 * end for end in compared.ci95))
    names = f"{reporting.label(compared.a)} - {reporting.label(compared.b)}"
    return f"{names}: {100 * compared.mean_difference:+.1f}{interval} (seeds: {compared.n})"
