"""Few-shot, base-to-new, transfer and test-time accuracy of a prompt tuner, with and without meta-learning.

    python -m experiments.evaluate --tuner=coop --dataset=glyphs:arabic,glyphs:shapes --shots=1,4,16 --seeds=1,2,3
    python -m experiments.evaluate --meta=runs/meta_train/meta.safetensors --protocol=base_to_new
    python -m experiments.evaluate --tuner="ivlp(depth=9)" --regularizers=npt:1.0,kgcoop:8 --meta=META
    python -m experiments.evaluate --baselines="linear_probe,tip_adapter(epochs=20)" --protocol=few_shot
    python -m experiments.evaluate --meta=META --controls=random_tasks=OTHER_META --learning_rate=0.1,0.3 --steps=50,200
    python -m experiments.evaluate --meta=META --protocol=test_time --domains=unseen

Every method is tuned on the same draws. With --meta, four methods are compared: the tuner
alone, "+gram" (the learned initialization and the learned regulator, frozen), "+gram:init_only" and
"+gram:regulator_only". Regularizers and regulators are part of all names, as in "coop+kgcoop+gram"; docs/composing.md
lists what can be combined. If a method has several candidate settings, one of them is selected for all datasets on the
validation split, with seeds of its own; the selection never reads a test image.

Writes WORKDIR/results.json and, like experiments.report, prints and writes tables and plots. WORKDIR/rows.jsonl keeps
every finished unit, one seed of a method on a dataset: the same command resumes, and one with more seeds, datasets,
shots or --save_prompts measures only what is missing. With --distributed, processes
share the units, and process i keeps its own in rows-i.jsonl (docs/launching.md). Image features are kept in
--feature_store, where later runs read them.

With no flags: CoOp on three datasets of 29 to 99 classes with three candidate rates, under 4 minutes on two cores and
2 GiB. glyphs:greek_small alone takes half a minute; a third of it is compilation, which the work directory keeps.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

import gram_jax as gram
from gram_jax import artifacts, evaluation, reporting, runtime
from gram_jax.clip import Clip
from gram_jax.data import Dataset, coop
from gram_jax.errors import explain
from gram_jax.evaluation import Candidate, Encoder, Method, Row, measures
from gram_jax.evaluation.encoder import PHOTO
from gram_jax.evaluation.features import prompted_features
from gram_jax.evaluation.methods import BaselineMethod, PromptMethod, Trial, ZeroShot, task_of, validation_scores
from gram_jax.evaluation.protocols import Part, Protocol, selecting
from gram_jax.evaluation.references import templates_of
from gram_jax.evaluation.runner import last_step, method_rows, require_compatible
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.io import absolute, file_hash, is_remote, replacing, write_npz
from gram_jax.runtime import SharedUnits
from gram_jax.tuning import Tuned

from .._accounts import tell
from . import presets
from .datasets import Opened, about, all_datasets, draw_hashes, open_datasets
from .identity import file_hashes, method_settings, selection_depends, unit_depends
from .methods import build, choose_tuner
from .settings import Config, Settings

FOLLOWING = "following"  # ends the name of a method whose prompts follow the class names of the target


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Selects, tunes and measures every method on every dataset."""
    settings, workdir = config.settings, absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    clip, tuner = load_clip(settings), choose_tuner(settings)
    methods, checkpoint = build(settings, tuner, clip)
    opened = open_datasets(settings)
    tell(all_datasets(opened))
    encoder = Encoder(
        clip,
        settings.image_batch,
        shard_classes=settings.shard_classes,
        store=store_of(settings, workdir),
        separate=settings.feature_store is None,
        log=lambda line: print(line, flush=True),
    )
    check(settings, encoder, methods, opened)
    for dataset in all_datasets(opened):
        encoder.add(dataset)
    weights, files = gram.weights_hash(clip.params), file_hashes(settings)
    hashes = {dataset.name: dataset.content_hash for dataset in all_datasets(opened)}
    environment = evaluation.environment(weights=weights, splits=hashes)
    units = SharedUnits(workdir, evaluation.measured_by(environment))
    for method in methods:
        if method.candidates[0].described:
            print(f"{method.name}: {len(method.candidates)} candidate settings, from {method.candidates[0].described}")
    comparison = Comparison(settings, encoder, methods, opened, units, workdir, weights, files)
    rows, selected = comparison.run()
    environment["draws"] = draw_hashes(opened, settings.seeds, settings.counts)
    environment["measured_by"] = units.measured_by()
    evaluation.warn_of_versions(environment)
    told = {**settings.flags, "tuner": tuner.name, "tuner_settings": dict(tuner.settings)}
    told |= composition(settings, opened) | {"selected": selected, "files": files, "datasets": about(opened)}
    told["method_settings"] = comparison.told
    told |= {} if checkpoint is None else {"meta_notes": checkpoint.notes}
    told |= {} if settings.preset is None else {"preset_from": presets.PRESETS[settings.preset].provenance}
    compared = reporting.comparisons(rows, reporting.default_reference(row.method for row in rows))
    results = evaluation.Results(told, environment, tuple(rows), compared)
    if runtime.is_main():
        evaluation.save_results(workdir, results)  # before anything that could fail
        reporting.write_report([results], workdir, names=["this evaluation"], show=print)
    return results


def load_clip(settings: Settings) -> Clip:
    """Loads the clip with the precision and the class chunk of the flags."""
    clip = gram.load_clip(settings.clip, compute_dtype=settings.compute_dtype)
    if clip.transform is not None:
        reading = {"reading": settings.image_reading, "crop_rounding": settings.crop_rounding}
        clip = clip.replace(transform=dataclasses.replace(clip.transform, **reading))
    return clip.replace(config=dataclasses.replace(clip.config, class_chunk=settings.class_chunk))


def store_of(settings: Settings, workdir: epath.Path) -> str | None:
    """Returns the folder of the feature store; None for no store."""
    if settings.feature_store is None:
        return None if is_remote(workdir) else os.fspath(workdir.parent / "features")
    return settings.feature_store or None


def composition(settings: Settings, opened: Mapping[str, Opened]) -> dict[str, Any]:
    """Returns what results tell of regularizers, regulator and averaging, with defaults filled in."""
    return {
        "regularizers": {term.name: term.weight for term in settings.terms},
        "regularizer_settings": {term.name: dict(term.settings) for term in settings.terms if term.settings},
        "regulator_settings": dict(settings.fixed_regulator.settings),
        "aggregation": {name: settings.gaussian(name) for name in opened},
    }


def check(settings: Settings, encoder: Encoder, methods: Sequence[Method], opened: Mapping[str, Opened]) -> None:
    """Raises InputError, before anything is measured, if a dataset does not fit a method or a number of shots."""
    for dataset, targets in opened.values():
        if any(len(method.candidates) > 1 for method in methods):
            with explain(after="; add it for selecting settings, or give one value of each, such as --learning_rate=1"):
                dataset.select("val")
        for protocol in targets:
            for method in methods:
                require_compatible(method, protocol)
                _check_learning(encoder, method, dataset, protocol)
            for shots in dict.fromkeys((*settings.counts(protocol), *settings.counts(protocol, select=True))):
                if shots is not None:
                    protocol.support(dataset, shots, settings.seeds[0])
    for dataset in all_datasets(opened):
        dataset.select("test")
        for method in methods:
            _check_testing(encoder, method, dataset)


def _check_learning(encoder: Encoder, method: Method, dataset: Dataset, protocol: Protocol) -> None:
    """Raises InputError if a method cannot learn from the classes that a protocol tunes on."""
    if isinstance(method, BaselineMethod) and method.baseline.needs_validation:
        with explain(after=f"; add it, or give the settings of {method.name}"):
            dataset.select("val")
    if isinstance(method, TunedMethod) and method.compiled.loss is not None:
        names = [dataset.class_names[label] for label in next(iter(protocol.splits(dataset).values()))]
        for name in method.compiled.loss.texts:
            for template in templates_of(name, dataset):
                _read(encoder, name, dataset, names, template)


def _check_testing(encoder: Encoder, method: Method, dataset: Dataset) -> None:
    """Raises InputError if a method cannot read the class names of a dataset."""
    if isinstance(method, ZeroShot):
        _read(encoder, "zero-shot", dataset, dataset.class_names, method.template or dataset.template)
    if isinstance(method, PromptMethod):
        with explain(f"{method.tuner.name} on {dataset.name}: "):
            classes, _ = encoder.classes(method.tuner, dataset.class_names)
            for initialize in {candidate.initialize for candidate in method.candidates}:
                initialize(jax.random.key(0), encoder.clip, classes, None)


def _read(encoder: Encoder, reader: str, dataset: Dataset, names: Sequence[str], template: str) -> None:
    """Raises InputError if the clip cannot read class names under a template; the message names the reader."""
    with explain(f"{reader} on {dataset.name}, template {template!r}: "):
        published = coop.facts(dataset.name) is not None  # some published lists have equal names
        encoder.clip.class_tokens(list(names), template, allow_duplicates=published)


class Work(NamedTuple):
    """A method on one dataset under one protocol, with one number of shots: a unit of results for each seed."""

    method: Method
    dataset: str
    protocol: Protocol
    shots: int | None
    seeds: tuple[int | None, ...]

    @property
    def key(self) -> tuple:
        """The beginning of the names of its units."""
        return self.method.name, self.dataset, self.protocol.name, self.shots

    @property
    def group(self) -> tuple:
        """What shares one tuning: protocols that tune on the same images."""
        return *self.key[:2], *(self.protocol.tuning_key(self.shots) if self.method.has_runs else self.key[2:])


@dataclasses.dataclass
class Comparison:
    """All methods on all datasets; `told` is what each method's numbers depend on, once its settings are selected."""

    settings: Settings
    encoder: Encoder
    methods: Sequence[Method]
    opened: Mapping[str, Opened]
    units: SharedUnits
    workdir: epath.Path
    weights: str
    files: Mapping[str, str]
    told: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self) -> tuple[list[Row], dict[str, Any]]:
        """Measures the units that are missing; returns all rows, and the selected settings by method."""
        self.score()
        selections = {method.name: self.select(method) for method in self.methods}
        self.chosen = {name: candidate for name, (candidate, _) in selections.items()}
        self.told = {method.name: self._told(method, self.chosen[method.name]) for method in self.methods}
        every = list(self._every())
        missing = [self._missing(work) for work in every]
        costs = [self._steps(work) * len(seeds) for work, seeds in zip(every, missing, strict=True)]
        begun = {"initial": sum(not seeds for seeds in missing), "work": sum(costs)}
        with runtime.Progress(len(every), "evaluate", unit="unit", **begun) as progress:
            learned: dict[Any, Any] = {}
            dataset = None
            for work, lacking, cost in zip(every, missing, costs, strict=True):
                if work.dataset != dataset:
                    learned, dataset = {}, work.dataset
                mine = self.units.is_mine(work.group) if lacking else runtime.is_main()
                wanted = {*lacking, *self._seeds_of_missing_files(work)} if mine else set()
                if wanted:
                    self._measure(work, tuple(seed for seed in work.seeds if seed in wanted), learned)
                progress.update(bool(lacking), work=cost)
            self.units.exchange()
        found = (self._find(work, seed) for work in every for seed in self._shown(work))
        rows = [Row(**row) for each in found for row in each]
        return rows, {name: described for name, (_, described) in selections.items() if described}

    def score(self) -> None:
        """Scores the candidates of all methods on validation images; no test image is read."""
        settings = self.settings
        counts = [(each, n) for each in selecting(settings.protocols) for n in settings.counts(each, select=True)]
        several = [method for method in self.methods if len(method.candidates) > 1]
        every = list(itertools.product(several, self.opened))
        todo = [each for each in every if self._scores(*each) is None]
        if not todo:
            return
        with runtime.Progress(len(every), "select settings", initial=len(every) - len(todo), unit="unit") as progress:
            for method, name in todo:
                if self.units.is_mine(("select", method.name, name)):
                    tasks = [task_of(self.opened[name].dataset, *each, settings.select_seeds) for each in counts]
                    scores = validation_scores(method, self.encoder, tasks, settings.max_test_images)
                    self.units.add(("select", method.name, name), self._selection(method, name), scores)
                    progress.update()
            self.units.exchange()

    def select(self, method: Method) -> tuple[Candidate, dict[str, Any] | None]:
        """Returns one candidate for all datasets, by its mean validation score, and a description of the selection."""
        if len(method.candidates) == 1:
            return method.candidates[0], None
        scores = np.mean([self._scores(method, name) for name in self.opened], axis=0)
        described = [c.described | {"score": float(s)} for c, s in zip(method.candidates, scores, strict=True)]
        candidate = method.candidates[int(np.argmax(scores))]
        print(f"{method.name}: {candidate.described} of {len(method.candidates)} on the validation split")
        return candidate, {"chosen": candidate.described, "candidates": described}

    def _told(self, method: Method, candidate: Candidate) -> dict[str, Any]:
        return {"weights": self.weights} | method_settings(self.settings, method, candidate, self.files)

    def _selection(self, method: Method, name: str) -> dict[str, Any]:
        told = self._told(method, Candidate())
        return selection_depends(self.settings, told, method, self.opened[name])

    def _scores(self, method: Method, name: str) -> Any:
        return self.units.find(("select", method.name, name), self._selection(method, name))

    def _every(self) -> Iterator[Work]:
        """Yields all work in the order of the rows."""
        for name, (_, targets) in self.opened.items():
            for protocol in targets:
                fixed, tuned = ([each for each in self.methods if each.has_runs is runs] for runs in (False, True))
                for method in fixed:
                    yield Work(method, name, protocol, None, (None,))
                for shots, method in itertools.product(self.settings.counts(protocol), tuned):
                    yield Work(method, name, protocol, shots, self.settings.seeds)

    def _find(self, work: Work, seed: int | str | None) -> Any:
        """Returns the rows of one seed; of the cost, which belongs to no seed, those of `COST`."""
        return self.units.find((*work.key, seed), self._depends(work))

    def _depends(self, work: Work) -> dict[str, Any]:
        told, candidate = self.told[work.method.name], self.chosen[work.method.name]
        return unit_depends(self.settings, told, candidate, self.opened[work.dataset], work.protocol, work.shots)

    def _shown(self, work: Work) -> tuple[int | str | None, ...]:
        """Returns the seeds of the units of a work, and `COST` if that is measured."""
        cost = isinstance(work.method, TunedMethod) and measures.asks_for_cost(self.settings.metrics)
        return (*work.seeds, *[measures.COST] * cost)

    def _missing(self, work: Work) -> tuple[int | None, ...]:
        """Returns the seeds that must be measured; one of them if only the cost is missing."""
        missing = [seed for seed in self._shown(work) if self._find(work, seed) is None]
        return work.seeds[:1] if missing == [measures.COST] else tuple(s for s in missing if s != measures.COST)

    def _steps(self, work: Work) -> float:
        """Returns what a seed costs in comparison with others: the number of steps, and one for its predictions."""
        if not isinstance(work.method, TunedMethod):
            return 1
        steps, epochs, *_ = self.chosen[work.method.name].length(work.dataset, work.shots)
        return 1 + (steps or epochs * (work.shots or 1))

    def _measure(self, work: Work, seeds: tuple[int | None, ...], learned: dict[Any, Any]) -> None:
        """Measures some seeds of a work; what was learned is shared by the protocols of a dataset."""
        method, settings, (dataset, targets) = work.method, self.settings, self.opened[work.dataset]
        begin, candidate = time.monotonic(), self.chosen[method.name]
        parts = work.protocol.parts(dataset, targets=targets[work.protocol], limit=settings.max_test_images)
        task = task_of(dataset, work.protocol, work.shots, seeds)
        trial, group = Trial(self.encoder, task, candidate), (work.group, seeds)
        if group not in learned:
            learned[group] = method.learn(trial, settings.report_steps, measures.asks_for_cost(settings.metrics))
            if isinstance(method, TunedMethod):
                method.require_finite(task, learned[group])
        predicted = method.predict(trial, learned[group], parts)
        rows = method_rows(method, task, learned[group], predicted, parts, settings.metrics)
        if isinstance(method, TunedMethod):
            rows += self._further_rows(method, trial, learned[group], parts)
        self._save(work, seeds, learned[group], predicted[last_step(predicted)], parts)
        for seed in (*seeds, *self._shown(work)[len(work.seeds) :]):
            own = [dataclasses.asdict(row) for row in rows if row.seed == (None if seed == measures.COST else seed)]
            if self._find(work, seed) is None:
                self.units.add((*work.key, seed), self._depends(work), own)
        if method.has_runs:
            print(_line(work.key, rows, time.monotonic() - begin), flush=True)

    def _further_rows(self, method: TunedMethod, trial: Trial, tuned: Tuned, parts: Sequence[Part]) -> list[Row]:
        """Returns the rows of prompts that follow class names, and of the regulation."""
        settings, task, last, rows = self.settings, trial.task, max(tuned.prompts), []
        if settings.follow_classes and method.structured and task.protocol.elsewhere == "datasets":
            predicted = method.predict_following(trial, tuned.prompts[last], parts)
            following = dataclasses.replace(method, name=f"{method.name}:{FOLLOWING}")
            rows += method_rows(following, task, None, {last: predicted}, parts, settings.metrics)
        first = next(iter(self.opened[task.dataset.name].targets))
        if task.protocol == first and method.name.endswith("+gram"):
            draws = task.shots, task.seeds, parts[0].split
            rows += measures.regulation_rows(method.name, task.dataset.name, tuned, *draws)
        return rows

    def _files(self, work: Work) -> dict[str, tuple[epath.Path, tuple[int | None, ...]]]:
        """Returns the files that the flags ask for, by kind, each with its seeds."""
        settings, tuned = self.settings, isinstance(work.method, TunedMethod)
        first, name = work.seeds[:1], measures.file_name(work.key)
        files = {}
        if settings.save_confusion and work.method.has_runs:
            files["confusion"] = self.workdir / "confusion" / f"{name}.npz", work.seeds
        if settings.save_prompts and tuned:
            files["prompts"] = self.workdir / "prompts" / f"{name}.safetensors", first
        if settings.save_features and (tuned or work.method.name == "zero_shot"):
            files["features"] = self.workdir / "features" / f"{name}.npz", first
        return files

    def _record(self, kind: str, work: Work, seeds: tuple[int | None, ...]) -> tuple[tuple, dict[str, Any]]:
        """Returns the unit that tells what a file is made of: its result is the hash of the file."""
        return (*work.key, kind), self._depends(work) | {"seeds": seeds}

    def _seeds_of_missing_files(self, work: Work) -> set[int | None]:
        """Returns the seeds that must be measured, again if need be, because files are missing."""
        files = self._files(work).items()
        lacking = [seeds for kind, (path, seeds) in files if self.units.find(*self._record(kind, work, seeds)) != (
            file_hash(path) if path.exists() else None) or not path.exists()]  # fmt: skip
        return {seed for seeds in lacking for seed in seeds}

    def _save(
        self, work: Work, seeds: tuple[int | None, ...], learned: Any, predicted: Any, parts: Sequence[Part]
    ) -> None:
        """Writes the files that the flags ask for and whose seeds were measured."""
        method, clip = work.method, self.encoder.clip
        for kind, (path, of_seeds) in self._files(work).items():
            if not set(of_seeds) <= set(seeds):
                continue
            prompt, place = None, seeds.index(of_seeds[0])
            if isinstance(learned, Tuned):
                prompt = jax.tree.map(lambda leaf, place=place: leaf[place], learned.prompts[max(learned.prompts)])
            with replacing(path) as part:
                if kind == "confusion":
                    measures.save_confusion(part, zip(parts, predicted, strict=True))
                elif kind == "features":
                    write_npz(part, part_features(self.encoder, method, prompt, parts))
                else:
                    names = work.protocol.support(self.opened[work.dataset].dataset, work.shots, seeds[0]).class_names
                    prompt = artifacts.fit_classes(prompt, method.tuner, clip, names)
                    gram.save_prompt(part, prompt, method.tuner, clip, classes=names)
            if kind == "prompts":
                print(f"prompt in {path}", flush=True)
            self.units.add(*self._record(kind, work, of_seeds), file_hash(path))


def part_features(encoder: Encoder, method: Method, prompt: Any, parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """Returns image and text features of each part under one prompt, or frozen ones, with labels and class names."""
    arrays = {}
    for part in parts:
        dataset, names = part.dataset, part.dataset.class_names
        if prompt is None:
            images, texts = encoder.features(dataset), encoder.texts(names, PHOTO)
        else:
            classes, inputs = encoder.classes(method.tuner, names), encoder.inputs(method.tuner, dataset)
            images, texts = prompted_features(
                method.tuner, prompt, encoder.clip, *classes, inputs, batch_size=encoder.batch_size
            )
        own = {"image_features": images, "text_features": texts, "labels": dataset.labels, "class_names": names}
        arrays |= {measures.array_name(part, name): np.asarray(array) for name, array in own.items()}
    return arrays


def _line(unit: tuple, rows: Sequence[Row], seconds: float) -> str:
    """Returns the accuracies of a unit for the terminal."""
    method, dataset, protocol, shots = unit
    steps = [row.step for row in rows if row.metric == "accuracy" and row.step is not None]
    means: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "accuracy" and row.step == max(steps, default=None):
            means.setdefault(row.split if row.domain is None else "elsewhere", []).append(100 * row.value)
    shown = ", ".join(f"{split} {np.mean(values):.1f}" for split, values in means.items()) or "none of its classes"
    tuned_on = protocol if shots is None else f"{protocol}, {shots}-shot"
    return f"{dataset}, {tuned_on}, {method}: {shown} ({seconds:.1f} s)"
