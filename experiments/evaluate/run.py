"""Runs an evaluation: selects, tunes and measures every method on every dataset."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax.clip import Clip
from gram_jax.data import Dataset
from gram_jax.errors import explain
from gram_jax.evaluation import Encoder, Method
from gram_jax.evaluation.checks import require_readable
from gram_jax.evaluation.methods import BaselineMethod, PromptMethod, ZeroShot
from gram_jax.evaluation.protocols import Protocol
from gram_jax.evaluation.references import templates_of
from gram_jax.evaluation.runner import require_compatible
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.io import absolute, is_remote
from gram_jax.runtime import SharedUnits

from .._accounts import tell
from .._launch import command
from . import presets
from .comparison import Comparison
from .datasets import Opened, about, all_datasets, draw_hashes, open_datasets
from .identity import file_hashes
from .methods import build, choose_tuner
from .settings import Config, Settings

logger = logging.getLogger(__name__)


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
        log=lambda line: print(", ".join((reporting.label((parts := line.split(", ", 1))[0]), *parts[1:])), flush=True),
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
            first = ", ".join(f"{name}={value!r}" for name, value in method.candidates[0].described.items())
            several = f"{len(method.candidates)} candidate settings, from " * (len(method.candidates) > 1)
            print(f"{reporting.label(method.name)}: {several}{first}")
    comparison = Comparison(settings, encoder, methods, opened, units, workdir, weights, files, hashes=hashes)
    rows, selected = comparison.run()
    environment["draws"] = draw_hashes(opened, settings.seeds, settings.counts)
    environment["command"] = command("evaluate", config)
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
        write_page(results, workdir, {dataset.name: dataset for dataset in all_datasets(opened)})
    return results


def write_page(results: evaluation.Results, workdir: epath.Path, datasets: Mapping[str, Dataset]) -> None:
    """Writes report.html; a failure is a warning and not an error, because the results are already saved."""
    try:
        reporting.html_report(
            [results], workdir / "report.html", names=["this evaluation"], folders=[workdir], datasets=datasets
        )
        print(f"all of it on one page: {workdir / 'report.html'}")
    except Exception as error:
        logger.warning("report.html could not be written: %s: %s", type(error).__name__, error)


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
        dataset.select(settings.split)
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
                require_readable(encoder.clip, dataset, names, template, name)


def _check_testing(encoder: Encoder, method: Method, dataset: Dataset) -> None:
    """Raises InputError if a method cannot read the class names of a dataset."""
    if isinstance(method, ZeroShot):
        names, template = dataset.class_names, method.template or dataset.template
        require_readable(encoder.clip, dataset, names, template, "zero-shot")
    if isinstance(method, PromptMethod):
        with explain(f"{method.tuner.name} on {dataset.name}: "):
            classes, _ = encoder.classes(method.tuner, dataset.class_names, dataset.template)
            for initialize in {candidate.initialize for candidate in method.candidates}:
                initialize(jax.random.key(0), encoder.clip, classes, None)
