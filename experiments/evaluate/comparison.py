"""All methods on all datasets, unit by unit: what is finished is kept, what is missing is measured."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

import gram_jax as gram
from gram_jax import artifacts, runtime
from gram_jax.data import Dataset
from gram_jax.errors import InputError
from gram_jax.evaluation import Candidate, Encoder, Method, Row, measures, stored
from gram_jax.evaluation.encoder import PHOTO
from gram_jax.evaluation.features import prompted_features
from gram_jax.evaluation.methods import Trial, task_of, validation_scores
from gram_jax.evaluation.protocols import Part, Protocol, selecting
from gram_jax.evaluation.runner import last_step, method_rows
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.io import file_hash, replacing, write_npz
from gram_jax.reporting.names import label
from gram_jax.runtime import SharedUnits
from gram_jax.tuning import Tuned

from .datasets import Opened
from .identity import method_settings, selection_depends, unit_depends
from .settings import Settings

logger = logging.getLogger(__name__)

_LINES = 24  # a run of more units than this prints no line for each
FOLLOWING = "following"  # ends the name of a method whose prompts follow the class names of the target


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
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)  # of the content of datasets, by name
    few: bool = True  # whether each unit is a line on the terminal

    def run(self) -> tuple[list[Row], dict[str, Any]]:
        """Measures the units that are missing; returns all rows, and the selected settings by method."""
        self.score()
        selections = {method.name: self.select(method) for method in self.methods}
        self.chosen = {name: candidate for name, (candidate, _) in selections.items()}
        self.told = {method.name: self._told(method, self.chosen[method.name]) for method in self.methods}
        every = list(self._every())
        self._measure_missing(every)
        found = (self._find(work, seed) for work in every for seed in self._shown(work))
        rows = [Row(**row) for each in found for row in each]
        return rows, {name: described for name, (_, described) in selections.items() if described}

    def _measure_missing(self, every: Sequence[Work]) -> None:
        missing = [self._missing(work) for work in every]
        self.few = sum(bool(seeds) for seeds in missing) <= _LINES
        costs = [self._steps(work) * len(seeds) for work, seeds in zip(every, missing, strict=True)]
        begun = {"initial": sum(not seeds for seeds in missing), "work": sum(costs)}
        learned: dict[Any, Any] = {}
        dataset = None
        with runtime.Progress(len(every), "evaluate", unit="unit", **begun) as progress:
            for work, lacking, cost in zip(every, missing, costs, strict=True):
                if work.dataset != dataset:
                    learned, dataset = {}, work.dataset
                mine = self.units.is_mine(work.group) if lacking else runtime.is_main()
                wanted = {*lacking, *self._seeds_of_missing_files(work)} if mine else set()
                if wanted:
                    self._measure(work, tuple(seed for seed in work.seeds if seed in wanted), learned)
                progress.update(bool(lacking), work=cost)
            self.units.exchange()

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
        print(f"{label(method.name)}: {candidate.described} of {len(method.candidates)} on the validation split")
        return candidate, {"chosen": candidate.described, "candidates": described}

    def _told(self, method: Method, candidate: Candidate) -> dict[str, Any]:
        return {"weights": self.weights} | method_settings(self.settings, method, candidate, self.files)

    def _selection(self, method: Method, name: str) -> dict[str, Any]:
        told = self._told(method, Candidate())
        return selection_depends(self.settings, told, method, self.opened[name], self._content)

    def _content(self, dataset: Dataset) -> str:
        """Returns the hash of a dataset's content, which takes seconds for a large one."""
        if dataset.name not in self.hashes:
            self.hashes[dataset.name] = dataset.content_hash
        return self.hashes[dataset.name]

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
        where = self.opened[work.dataset], work.protocol, work.shots
        return unit_depends(self.settings, told, candidate, *where, self._content)

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
        parts = work.protocol.parts(dataset, settings.split, targets[work.protocol], settings.max_test_images)
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
        line = _line(work.key, rows, time.monotonic() - begin)
        (print if method.has_runs and self.few else logger.debug)(line)

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
        if settings.save_predictions is not False:
            files["predictions"] = self.workdir / "predictions" / f"{name}.npz", first
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
        lacking = [
            seeds for kind, (path, seeds) in self._files(work).items() if not self._is_there(kind, path, work, seeds)
        ]
        return {seed for seeds in lacking for seed in seeds}

    def _is_there(self, kind: str, path: epath.Path, work: Work, seeds: tuple[int | None, ...]) -> bool:
        """Returns whether a file belongs to the finished units; predictions are a by-product unless asked for."""
        if kind == "predictions":
            if not self.settings.save_predictions:
                return True
            try:
                rows = [Row(**row) for row in self._find(work, seeds[0]) or ()]
                stored.require_belongs(stored.read_predictions(path), rows, path)
            except (InputError, OSError):
                return False
            return True
        return path.exists() and self.units.find(*self._record(kind, work, seeds)) == file_hash(path)

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
                elif kind == "predictions":
                    stored.save_predictions(part, zip(parts, predicted, strict=True), place, of_seeds[0])
                elif kind == "features":
                    write_npz(part, part_features(self.encoder, method, prompt, parts))
                else:
                    names = work.protocol.support(self.opened[work.dataset].dataset, work.shots, seeds[0]).class_names
                    prompt = artifacts.fit_classes(prompt, method.tuner, clip, names)
                    template = self.opened[work.dataset].dataset.template if method.tuner.reads_template else None
                    gram.save_prompt(part, prompt, method.tuner, clip, classes=names, template=template)
            if kind == "prompts":
                print(f"prompt in {path}", flush=True)
            if kind != "predictions":  # their accuracy tells what they belong to
                self.units.add(*self._record(kind, work, of_seeds), file_hash(path))


def part_features(encoder: Encoder, method: Method, prompt: Any, parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """Returns image and text features of each part under one prompt, or frozen ones, with labels and class names."""
    arrays = {}
    for part in parts:
        dataset, names = part.dataset, part.dataset.class_names
        if prompt is None:
            images, texts = encoder.features(dataset), encoder.texts(names, PHOTO)
        else:
            classes = encoder.classes(method.tuner, names, dataset.template)
            inputs = encoder.inputs(method.tuner, dataset)
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
    return f"{dataset}, {tuned_on}, {label(method)}: {shown} ({seconds:.1f} s)"
