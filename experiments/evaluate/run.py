"""Few-shot, base-to-new, transfer and test-time accuracy of a prompt tuner, with and without meta-learning.

    python -m experiments.evaluate --tuner=coop --dataset=glyphs:arabic,glyphs:shapes --shots=1,4,16 --seeds=1,2,3
    python -m experiments.evaluate --meta=runs/meta_train/meta.safetensors --protocol=base_to_new
    python -m experiments.evaluate --tuner="ivlp(depth=9)" --regularizers=npt:1.0,kgcoop:8 --meta=META
    python -m experiments.evaluate --baselines="linear_probe,tip_adapter(epochs=20)" --protocol=few_shot
    python -m experiments.evaluate --meta=META --controls=random_tasks=OTHER_META --learning_rate=0.1,0.3 --steps=50,200
    python -m experiments.evaluate --meta=META --protocol=test_time --domains=unseen

Every method is tuned on the same draws, all seeds side by side. With --meta, four methods are compared: the tuner
alone, "+gram" (the learned initialization and the learned regulator, frozen), "+gram:init_only" and
"+gram:regulator_only". Regularizers and regulators are part of all names, as in "coop+kgcoop+gram"; docs/composing.md
lists what can be combined. If a method has several candidate settings, one of them is selected for all datasets on the
validation split, with seeds of its own; the selection never reads a test image.

Writes WORKDIR/results.json and, like experiments.report, prints and writes tables and plots. WORKDIR/rows.jsonl keeps
every finished unit, all seeds of a method on a dataset: rerun the command to resume. With --distributed, processes
share the units, and process i keeps its own in rows-i.jsonl (docs/launching.md). Image features are kept in
--feature_store, where later runs read them.

With no flags: CoOp on three datasets of 29 to 99 classes with three candidate rates, under 4 minutes on two cores and
2 GiB. glyphs:greek_small alone takes half a minute; a third of it is compilation, which the work directory keeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
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
from gram_jax.io import absolute, is_remote, write_npz
from gram_jax.runtime import SharedUnits
from gram_jax.tuning import Tuned

from .._accounts import tell
from . import presets
from .datasets import Opened, about, all_datasets, draw_hashes, open_datasets
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
    weights = gram.weights_hash(clip.params)
    paths = [path for path in (settings.meta, *settings.control_paths.values()) if path]
    files = {path: hashlib.sha256(epath.Path(path).read_bytes()).hexdigest() for path in paths}
    hashes = {dataset.name: dataset.content_hash for dataset in all_datasets(opened)}
    identity = {name: value for name, value in settings.flags.items() if name != "feature_store"}
    units = SharedUnits(workdir, identity | {"weights": weights, "files": files, "splits": hashes})
    for method in methods:
        if method.candidates[0].described:
            print(f"{method.name}: {len(method.candidates)} candidate settings, from {method.candidates[0].described}")
    rows, selected = Comparison(settings, encoder, methods, opened, units, workdir).run()
    draws = draw_hashes(opened, settings.seeds, settings.counts)
    environment = evaluation.environment(weights=weights, splits=hashes, draws=draws)
    told = {**settings.flags, "tuner": tuner.name, "tuner_settings": dict(tuner.settings)}
    told |= composition(settings, opened) | {"selected": selected, "files": files, "datasets": about(opened)}
    told |= {} if checkpoint is None else {"meta_notes": checkpoint.notes}
    told |= {} if settings.preset is None else {"preset_from": presets.PRESETS[settings.preset].provenance}
    compared = reporting.comparisons(rows, reporting.default_reference(row.method for row in rows))
    results = evaluation.Results(told, environment, tuple(rows), compared)
    if runtime.is_main():
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


@dataclasses.dataclass
class Comparison:
    """All methods on all datasets, unit by unit: a unit is one method on one dataset, protocol and number of shots."""

    settings: Settings
    encoder: Encoder
    methods: Sequence[Method]
    opened: Mapping[str, Opened]
    units: SharedUnits
    workdir: epath.Path

    def run(self) -> tuple[list[Row], dict[str, Any]]:
        """Measures the units that are missing; returns all rows, and the selected settings by method."""
        units = list(self._units())
        several = sum(len(method.candidates) > 1 for method in self.methods)
        total = several * len(self.opened) + len(units)
        with runtime.Progress(total, "evaluate", initial=len(self.units), unit="unit") as self.progress:
            self.score()
            selections = {method.name: self.select(method) for method in self.methods}
            chosen = {name: candidate for name, (candidate, _) in selections.items()}
            learned: dict[Any, Any] = {}
            dataset = None
            for unit, method, protocol, shots in units:
                if unit[1] != dataset:
                    learned, dataset = {}, unit[1]
                self._measure(unit, method, chosen[method.name], protocol, shots, learned)
            self.progress.update(self.units.exchange())
        rows = [Row(**row) for unit, *_ in units for row in self.units[unit]]
        return rows, {name: described for name, (_, described) in selections.items() if described}

    def score(self) -> None:
        """Scores the candidates of all methods on validation images; no test image is read."""
        settings, chosen_by = self.settings, selecting(self.settings.protocols)
        counts = [(protocol, shots) for protocol in chosen_by for shots in settings.counts(protocol, select=True)]
        several = [method for method in self.methods if len(method.candidates) > 1]
        for method, (name, (dataset, _)) in itertools.product(several, self.opened.items()):
            unit = ("select", method.name, name)
            if self.units.is_mine(unit, unit):
                tasks = [task_of(dataset, *each, settings.select_seeds) for each in counts]
                self.units.add(unit, validation_scores(method, self.encoder, tasks, settings.max_test_images))
                self.progress.update()
        self.progress.update(self.units.exchange())

    def select(self, method: Method) -> tuple[Candidate, dict[str, Any] | None]:
        """Returns one candidate for all datasets, by its mean validation score, and a description of the selection."""
        if len(method.candidates) == 1:
            return method.candidates[0], None
        scores = np.mean([self.units["select", method.name, name] for name in self.opened], axis=0)
        described = [c.described | {"score": float(s)} for c, s in zip(method.candidates, scores, strict=True)]
        candidate = method.candidates[int(np.argmax(scores))]
        print(f"{method.name}: {candidate.described} of {len(method.candidates)} on the validation split")
        return candidate, {"chosen": candidate.described, "candidates": described}

    def _units(self) -> Any:
        """Yields (unit, method, protocol, shots) in the order of the rows."""
        for name, (_, targets) in self.opened.items():
            for protocol in targets:
                fixed, tuned = ([each for each in self.methods if each.has_runs is runs] for runs in (False, True))
                for method in fixed:
                    yield (method.name, name, protocol.name), method, protocol, None
                for shots, method in itertools.product(self.settings.counts(protocol), tuned):
                    yield (method.name, name, protocol.name, shots), method, protocol, shots

    def _measure(
        self,
        unit: tuple,
        method: Method,
        candidate: Candidate,
        protocol: Protocol,
        shots: int | None,
        learned: dict[Any, Any],
    ) -> None:
        """Measures a unit, unless it is finished or another process measures it; `learned` is shared by a dataset."""
        group = (*unit[:2], protocol.tuning_key(shots)) if method.has_runs else unit
        if not self.units.is_mine(unit, group):
            return
        begin, settings, (dataset, targets) = time.monotonic(), self.settings, self.opened[unit[1]]
        parts = protocol.parts(dataset, targets=targets[protocol], limit=settings.max_test_images)
        task = task_of(dataset, protocol, shots, settings.seeds)
        trial = Trial(self.encoder, task, candidate)
        if group not in learned:  # protocols that tune on the same images share it
            learned[group] = method.learn(trial, settings.report_steps, measures.asks_for_cost(settings.metrics))
            if isinstance(method, TunedMethod):
                method.require_finite(task, learned[group])
        predicted = method.predict(trial, learned[group], parts)
        rows = method_rows(method, task, learned[group], predicted, parts, settings.metrics)
        if isinstance(method, TunedMethod):
            rows += self._further_rows(method, trial, learned[group], parts)
        self._save(unit, method, learned[group], predicted[last_step(predicted)], parts)
        self.units.add(unit, [dataclasses.asdict(row) for row in rows])
        if method.has_runs:
            print(_line(unit, rows, time.monotonic() - begin), flush=True)
        self.progress.update()

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

    def _save(self, unit: tuple, method: Method, learned: Any, predicted: Any, parts: Sequence[Part]) -> None:
        """Writes the files that the flags ask for."""
        settings, file = self.settings, measures.file_name(unit)
        if settings.save_confusion and method.has_runs:
            measures.save_confusion(self.workdir / "confusion" / f"{file}.npz", zip(parts, predicted, strict=True))
        prompt = None
        if isinstance(learned, Tuned):
            prompt = jax.tree.map(lambda leaf: leaf[0], learned.prompts[max(learned.prompts)])
            if settings.save_prompts:
                path = self.workdir / "prompts" / f"{file}.safetensors"
                gram.save_prompt(path, prompt, method.tuner, self.encoder.clip)
                print(f"prompt in {path}", flush=True)
        if settings.save_features and (prompt is not None or method.name == "zero_shot"):
            arrays = part_features(self.encoder, method, prompt, parts)
            write_npz(self.workdir / "features" / f"{file}.npz", arrays)


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
