"""Few-shot and base-to-new accuracy of a prompt tuner, with and without a meta-learned start and regulator.

    python -m experiments.evaluate --tuner=coop --dataset=glyphs:arabic,glyphs:shapes --shots=1,4,16 --seeds=1,2,3
    python -m experiments.evaluate --meta=runs/meta_train/meta.safetensors --protocol=base_to_new
    python -m experiments.evaluate --tuner=ivlp --regularizers=npt:1.0,kgcoop:8 --meta=META
    python -m experiments.evaluate --meta=META --controls=random_tasks=OTHER_META --learning_rate=0.1,0.3 --steps=50,200
    python -m experiments.evaluate --meta=META --protocol=test_time --domains=unseen

Every method is tuned on the same draws, all seeds side by side. With --meta, four methods stand beside each other: the
tuner alone, "+gram" (the learned start and the learned regulator, frozen), "+gram:init_only" and
"+gram:regulator_only". What --regularizers and --regulator add stands in the names of all, as in "coop+kgcoop+gram";
docs/composing.md says what goes with what. Where a method has several candidate settings, one of them is chosen for all
datasets on the validation split, under seeds of its own; the selection is never given a test image.

Writes WORKDIR/results.json and, as experiments.report does, prints and writes tables and plots. Every finished unit,
all seeds of a method on a dataset, is kept in WORKDIR/rows.jsonl: the same command goes on where it was stopped. With
--distributed the units are shared among processes, and process i keeps its own in rows-i.jsonl (docs/launching.md).

With no flags: CoOp on three datasets of 29 to 99 classes, three rates to choose from, under 4 minutes on two cores and
2 GiB. glyphs:greek_small alone takes half a minute, a third of it compilation, which the work directory keeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax import tuning as tuning_lib
from gram_jax.data import Dataset
from gram_jax.errors import InputError
from gram_jax.evaluation import Row
from gram_jax.evaluation import measures as _measures
from gram_jax.evaluation import protocols as _protocols
from gram_jax.evaluation.protocols import Opened, Part, without_test
from gram_jax.io import absolute
from gram_jax.runtime.units import SharedUnits

from . import methods as _methods
from . import presets as _presets
from . import test_time as _test_time
from .bench import PHOTO, Bench, followed, outcomes, part_features, score_candidates, tune
from .config import Config
from .inputs import templates_of
from .methods import Candidate, Method

FOLLOWING = "following"  # ends the name of a method whose prompts follow the class names they meet
REGULATION_STEPS = 12  # how many steps of a run regulation is reported at


def check(bench: Bench, methods: Sequence[Method], opened: Mapping[str, Opened], wanted: Sequence[str]) -> None:
    """Raises InputError, before anything is measured, where a dataset does not fit a method or a number of shots."""
    config = bench.config
    beyond = [name for name in config.protocol if name not in ("few_shot", _protocols.TEST_TIME)]
    if bench.tuner.settings.get("class_specific") and beyond:
        raise InputError(
            f"a class-specific prompt of {bench.tuner.name} knows no new class, which {beyond[0]} is about; give "
            "--protocol=few_shot"
        )
    for dataset, others in opened.values():
        if any(len(method.candidates) > 1 for method in methods):
            try:
                dataset.select("val")
            except ValueError as error:
                raise InputError(
                    f"{error}; settings are selected on val: add it, or give one value of each setting, such as "
                    "--learning_rate=1"
                ) from error
        for protocol in others:
            _check_classes(bench, methods, dataset, protocol)
            counts = (*_protocols.counts(config, protocol), *(config.select_shots or ()))
            for shots in dict.fromkeys(counts) if protocol != _protocols.TEST_TIME else ():
                _protocols.support(dataset, protocol, shots, config.seeds[0])
    for dataset in _protocols.all_datasets(opened):
        dataset.select("test")
        for template in (PHOTO, dataset.template) if "zero_shot" in wanted else ():
            _check_texts(bench, "zero-shot", dataset, list(dataset.class_names), template)
        for start in {candidate.start for method in methods for candidate in method.candidates}:
            try:
                start(jax.random.key(0), bench.clip, bench.classes(dataset.class_names)[0], None)
            except ValueError as error:
                raise InputError(f"{bench.tuner.name} on {dataset.name}: {error}") from error


def _check_classes(bench: Bench, methods: Sequence[Method], dataset: Dataset, protocol: str) -> None:
    """Raises InputError where the classes that are tuned on do not fit what the loss holds prompts to."""
    names = [dataset.class_names[label] for label in next(iter(_protocols.class_splits(protocol, dataset).values()))]
    for loss in {method.loss for method in methods} - {None}:
        for name in loss.texts:
            for template in templates_of(name, dataset):
                _check_texts(bench, name, dataset, names, template)


def _check_texts(bench: Bench, reader: str, dataset: Dataset, names: list[str], template: str) -> None:
    """Raises InputError where the clip cannot read class names under a template; the message says what reads them."""
    try:
        bench.clip.class_tokens(names, template, allow_duplicates=True)
    except ValueError as error:
        raise InputError(f"{reader} on {dataset.name}, template {template!r}: {error}") from error


def zero_shot_rows(bench: Bench, name: str, protocol: str, parts: Sequence[Part]) -> list[Row]:
    """The frozen clip under "a photo of a {}." and under each dataset's own template."""
    rows, metrics = [], _measures.asked_for(bench.config.metrics)
    for method in ("zero_shot", "zero_shot:own"):
        for part in parts:
            template = PHOTO if method == "zero_shot" else part.dataset.template
            scores = bench.features(part.dataset) @ bench.texts(part.dataset.class_names, template).T
            found = _measures.outcome(scores[None] * np.exp(bench.clip.params["logit_scale"]))
            found = found._replace(predicted=scores[None].argmax(-1))  # rounding may make ties of scaled scores
            rows += _measures.rows(method, protocol, name, [(part, found)], metrics)
    return rows


def tuned_prompts(
    bench: Bench, method: Method, candidate: Candidate, dataset: Dataset, protocol: str, shots: int
) -> tuning_lib.Tuned:
    """The tuned prompts of all seeds; protocols that tune on the same images share them."""
    key = method.name, dataset.name, _protocols.same_tuning(protocol, shots)
    if key in bench.tuned:
        return bench.tuned[key]
    config = bench.config
    learnable = without_test(dataset)
    costly = not {_measures.COST, _measures.ALL}.isdisjoint(config.metrics)
    tuned = tune(bench, method, candidate, learnable, protocol, shots, config.seeds, config.report_steps, costly)
    for step, losses in enumerate(tuned.metrics["loss"]):
        if not np.all(np.isfinite(losses)):
            seed = config.seeds[int(np.argmin(np.isfinite(losses)))]
            raise InputError(
                f"the loss of {method.name} on {dataset.name} is not finite at step {step}, {shots} shots, seed "
                f"{seed}; lower its learning rate"
            )
    bench.tuned[key] = tuned
    return tuned


def tuned_rows(
    bench: Bench,
    workdir: epath.Path,
    method: Method,
    candidate: Candidate,
    dataset: Dataset,
    protocol: str,
    shots: int,
    parts: Sequence[Part],
    regulation: bool,
) -> list[Row]:
    """The rows of one unit; writes the files that are asked for."""
    config, name = bench.config, dataset.name
    if protocol == _protocols.TEST_TIME:
        return _test_time.rows(bench, workdir, method, candidate, dataset, parts)
    tuned = tuned_prompts(bench, method, candidate, dataset, protocol, shots)
    rows: list[Row] = []
    last = max(tuned.prompts)
    for step, prompts in sorted(tuned.prompts.items()):
        found = list(zip(parts, outcomes(bench, method.tuning, prompts, parts), strict=True))
        metrics = _measures.asked_for(config.metrics if step == last else ())
        rows += _measures.rows(method.name, protocol, name, found, metrics, shots, config.seeds, step)
    if config.follow_classes and method.structured and protocol == "cross_dataset":
        elsewhere = following(bench, method, candidate, dataset, protocol, shots, tuned.prompts[last], parts)
        name_of = f"{method.name}:{FOLLOWING}"
        rows += _measures.rows(name_of, protocol, name, elsewhere, metrics, shots, config.seeds, last)
    split = parts[0].split
    if tuned.cost is not None:
        runs = len(config.seeds)
        rows += _measures.cost_rows(method.name, protocol, name, tuned.cost, shots, runs, split, last)
    if regulation:
        for step in sorted({int(step) for step in np.linspace(1, last, REGULATION_STEPS)}):
            for metric in ("gradient_norm_ratio", "gradient_cosine"):
                rows += [
                    Row(method.name, "regulation", name, metric, float(value), None, shots, seed, split, step)
                    for seed, value in zip(config.seeds, tuned.metrics[metric][step - 1], strict=True)
                ]
    file = _measures.file_name((method.name, name, protocol, shots))
    if config.save_confusion:
        _measures.save_confusion(workdir / "confusion" / f"{file}.npz", found)
    prompt = jax.tree.map(lambda leaf: leaf[0], tuned.prompts[last])
    if config.save_prompts:
        path = workdir / "prompts" / f"{file}.safetensors"
        gram.save_prompt(path, prompt, bench.tuner, bench.clip)
        print(f"prompt in {path}", flush=True)
    if config.save_features:
        _measures.save_arrays(workdir / "features" / f"{file}.npz", part_features(bench, prompt, parts))
    return rows


def following(
    bench: Bench,
    method: Method,
    candidate: Candidate,
    dataset: Dataset,
    protocol: str,
    shots: int,
    prompts: Any,
    parts: Sequence[Part],
) -> list[tuple[Part, _measures.Outcome]]:
    """What is predicted on each part when prompts follow its class names."""
    supports = [_protocols.support(without_test(dataset), protocol, shots, seed) for seed in bench.config.seeds]
    moved = followed(bench, candidate, supports, prompts)
    return [(part, *outcomes(bench, method.tuning, moved(part.dataset.class_names), [part])) for part in parts]


def score(
    bench: Bench,
    methods: Sequence[Method],
    learnable: Mapping[str, Dataset],
    units: SharedUnits,
    progress: runtime.Progress,
) -> None:
    """Measures the candidates of all methods on validation images; the datasets given hold no test image."""
    for method in methods:
        for name, dataset in learnable.items() if len(method.candidates) > 1 else ():
            unit = ("select", method.name, name)
            if units.is_mine(unit, unit):
                # Test-time tuning is one function; all other tuning is several.
                measured = _test_time.score_candidates if callable(method.tuning) else score_candidates
                units.add(unit, measured(bench, method, dataset))
                progress.update()
    progress.update(units.exchange())


def select(
    method: Method, learnable: Mapping[str, Dataset], units: SharedUnits
) -> tuple[Candidate, dict[str, Any] | None]:
    """One candidate for all datasets, by its mean validation score."""
    if len(method.candidates) == 1:
        return method.candidates[0], None
    scores = np.mean([units["select", method.name, name] for name in learnable], axis=0)
    best = int(np.argmax(scores))
    described = [c.described | {"score": float(s)} for c, s in zip(method.candidates, scores, strict=True)]
    return method.candidates[best], {"chosen": method.candidates[best].described, "candidates": described}


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Selects, tunes and measures every method on every dataset."""
    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    clip = clip.replace(config=dataclasses.replace(clip.config, class_chunk=config.class_chunk))
    tuner = _methods.choose_tuner(config)
    methods, wanted, checkpoint = _methods.build(config, tuner, clip)
    opened = _protocols.open_datasets(config)
    bench = Bench(config, clip, tuner)
    check(bench, methods, opened, wanted)
    weights = gram.weights_hash(clip.params)
    paths = [path for path in (config.meta, *_methods.parse_controls(config.controls).values()) if path]
    files = {path: hashlib.sha256(epath.Path(path).read_bytes()).hexdigest() for path in paths}
    hashes = {dataset.name: dataset.content_hash for dataset in _protocols.all_datasets(opened)}
    identity = dataclasses.asdict(config) | {"weights": weights, "files": files, "splits": hashes}
    units = SharedUnits(workdir, identity)
    learnable = {name: without_test(each.dataset) for name, each in opened.items()}
    for method in methods:
        print(f"{method.name}: {len(method.candidates)} candidate settings, from {method.candidates[0].described}")
    total = sum(len(method.candidates) > 1 for method in methods) * len(opened)
    for protocol in (protocol for each in opened.values() for protocol in each.others):
        total += len(_protocols.counts(config, protocol)) * len(methods) + ("zero_shot" in wanted)
    chosen, selected, asked = {}, {}, []
    with runtime.Progress(total, "evaluate", initial=len(units), unit="unit") as progress:
        score(bench, methods, learnable, units, progress)
        for method in methods:
            chosen[method.name], found = select(method, learnable, units)
            if found is not None:
                selected[method.name] = found
                print(f"{method.name}: {found['chosen']} of {len(method.candidates)} on the validation split")
        for name, (dataset, others) in opened.items():
            bench.tuned.clear()
            first = True
            for protocol, elsewhere in others.items():
                parts = _protocols.measured_parts(config, protocol, dataset, "test", elsewhere)
                if "zero_shot" in wanted:
                    asked.append(unit := ("zero_shot", name, protocol))
                    if units.is_mine(unit, unit):
                        zero = zero_shot_rows(bench, name, protocol, parts)
                        if config.save_features:
                            file = workdir / "features" / f"{_measures.file_name(unit)}.npz"
                            _measures.save_arrays(file, part_features(bench, None, parts))
                        units.add(unit, [dataclasses.asdict(row) for row in zero])
                        progress.update()
                for shots in _protocols.counts(config, protocol):
                    for method in methods:
                        asked.append(unit := (method.name, name, protocol, shots))
                        if units.is_mine(unit, (method.name, name, _protocols.same_tuning(protocol, shots))):
                            start = time.monotonic()
                            regulation = first and method.name.endswith("+gram")
                            found = tuned_rows(
                                bench, workdir, method, chosen[method.name], dataset, protocol, shots, parts, regulation
                            )
                            units.add(unit, [dataclasses.asdict(row) for row in found])
                            print(_line(unit, found, time.monotonic() - start), flush=True)
                            progress.update()
                    first = False
        progress.update(units.exchange())
    rows = [Row(**row) for unit in asked for row in units[unit]]
    notes = {} if checkpoint is None else {"meta_notes": checkpoint.notes}
    environment = evaluation.environment(weights=weights, splits=hashes, draws=_protocols.draws(config, opened))
    settings = dataclasses.asdict(config) | {"tuner": tuner.name, "tuner_settings": dict(tuner.settings)}
    settings |= _composition(config, opened)
    settings |= {"selected": selected, "files": files, "datasets": _protocols.about(opened)} | notes
    settings |= {} if config.preset is None else {"preset_from": _presets.PRESETS[config.preset].provenance}
    compared = reporting.comparisons(rows, reporting.default_reference(row.method for row in rows))
    results = evaluation.Results(settings, environment, tuple(rows), compared)
    if runtime.is_main():
        reporting.write_report([results], workdir, names=["this evaluation"], show=print)
    return results


def _composition(config: Config, opened: Mapping[str, Opened]) -> dict[str, Any]:
    """What results tell of regularizers, regulator and average, defaults filled in."""
    terms = _methods.composed_of(config)
    regulator = _methods.chosen_regulator(config)
    return {
        "regularizers": {term.name: term.weight for term in terms},
        "regularizer_settings": {term.name: dict(term.settings) for term in terms if term.settings},
        "regulator_settings": dict(regulator.settings),
        "aggregation": {name: _methods.aggregation(config, name) for name in opened},
    }


def _line(unit: tuple, rows: Sequence[Row], seconds: float) -> str:
    """What a unit found, for the terminal."""
    method, dataset, protocol, shots = unit
    last = max(row.step for row in rows if row.metric == "accuracy")
    means: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "accuracy" and row.step == last:
            means.setdefault(row.split if row.domain is None else "elsewhere", []).append(100 * row.value)
    found = ", ".join(f"{split} {np.mean(values):.1f}" for split, values in means.items())
    tuned_on = protocol if shots is None else f"{protocol}, {shots}-shot"
    return f"{dataset}, {tuned_on}, {method}: {found} ({seconds:.1f} s)"
