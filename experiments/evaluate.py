"""Few-shot and base-to-new accuracy of a prompt tuner, with and without a meta-learned start and regulator.

    python -m experiments.evaluate --tuner=coop --dataset=glyphs:arabic,glyphs:shapes --shots=1,4,16 --seeds=1,2,3
    python -m experiments.evaluate --meta=runs/meta_train/meta.safetensors --protocol=base_to_new
    python -m experiments.evaluate --meta=META --controls=random_tasks=OTHER_META --learning_rate=0.1,0.3 --steps=50,200

Every method is tuned on the same draws, all seeds side by side. With --meta, four methods stand beside each other: the
tuner alone, "+gram" (the learned start and the learned regulator, frozen), "+gram:init_only" and
"+gram:regulator_only". Where a method has several candidate settings, one of them is chosen for all datasets on the
validation split, under seeds of its own; the selection is never given a test image.

Writes WORKDIR/results.json and, as experiments.report does, prints and writes tables and plots. Every finished unit,
all seeds of a method on a dataset, is kept in WORKDIR/rows.jsonl: the same command goes on where it was stopped.

With no flags: CoOp on three datasets of 29 to 99 classes, three rates to choose from, under 4 minutes on two cores and
2 GiB. glyphs:greek_small alone takes half a minute, a third of it compilation, which the work directory keeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

import gram_jax as gram
from experiments import _methods, report
from experiments._bench import PHOTO, Bench, Part, accuracies, measured_parts, score_candidates, tune, without_test
from experiments._launch import launch, setting
from experiments._methods import Candidate, Method
from gram_jax import evaluation, runtime, tuners
from gram_jax.data import Dataset, glyphs, load_dataset
from gram_jax.evaluation import Row

PROTOCOLS = ("few_shot", "base_to_new")
UNSEEN = "unseen"
REGULATION_STEPS = 12  # how many steps of a run regulation is reported at


@dataclasses.dataclass(frozen=True)
class Config:
    """What is tuned, on what, and how it is measured."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    tuner: str | None = setting(None, "the tuner; default that of --meta, or coop", choices=tuners.NAMES)
    tuner_settings: str = setting("{}", 'settings of the tuner as JSON, for example {"num_tokens": 4}')
    meta: str = setting("", "meta checkpoint; empty for none")
    controls: tuple[str, ...] = setting((), "further meta checkpoints, NAME=PATH", repeated=True)
    methods: tuple[str, ...] | None = setting(None, f"some of {', '.join(_methods.PARTS)}; default all that there are")
    dataset: tuple[str, ...] = setting(
        ("glyphs:latin_accented", "glyphs:arabic", "glyphs:shapes"), "datasets: glyphs:NAME or glyphs:NAME/DOMAIN"
    )
    domains: tuple[str, ...] = setting((), 'domains that few-shot is tested on as well; "unseen" for all unseen ones')
    protocol: tuple[str, ...] = setting(PROTOCOLS, "few_shot, base_to_new")
    shots: tuple[int, ...] = setting((1, 4, 16), "labelled images a class")
    seeds: tuple[int, ...] = setting((1, 2, 3), "seeds of the draws that are reported")
    learning_rate: tuple[float, ...] = setting((0.3, 1.0, 3.0), "candidate learning rates of the tuner alone")
    gram_learning_rate: tuple[float, ...] | None = setting(
        None, "candidate learning rates of the meta-learned methods; default multiples of the meta-learned inner rates"
    )
    gram_rate_factor: tuple[float, ...] = setting((1.0,), "those multiples")
    steps: tuple[int, ...] = setting((50,), "candidate numbers of optimiser steps")
    init_text: tuple[str, ...] | None = setting(
        None, 'candidate words that the tuner alone starts as, empty for a random start; default "a photo of a"',
        repeated=True,
    )  # fmt: skip
    batch_size: int = setting(32, "images a step")
    optimizer: str = setting("sgd", "the optimiser", choices=evaluation.tuning.OPTIMIZERS)
    momentum: float = setting(0.0, "momentum of sgd")
    schedule: str = setting("cosine", "the learning rate along a run", choices=evaluation.tuning.SCHEDULES)
    report_steps: tuple[int, ...] = setting((0, 1, 5), "steps that are measured beside the last one")
    select_seeds: tuple[int, ...] = setting(
        (101, 102, 103), "seeds of the draws that settings are selected on; as many as --seeds share compiled steps"
    )
    select_shots: tuple[int, ...] | None = setting(None, "shots that settings are selected on; default all of --shots")
    max_test_images: int = setting(0, "test and validation images a class; 0 for all")
    image_batch: int = setting(64, "images that the image transformer sees at once")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    dataset_seed: int = setting(0, "seed of datasets that are drawn")
    save_prompts: bool = setting(False, "write the tuned prompts of the first seed to WORKDIR/prompts")

    def __post_init__(self) -> None:
        lists = ("dataset", "protocol", "shots", "seeds", "learning_rate", "gram_rate_factor", "steps", "select_seeds")
        for name in (*lists, "gram_learning_rate", "init_text", "select_shots", "methods", "domains", "controls"):
            values = getattr(self, name)
            if values == () and name not in ("domains", "controls"):
                raise ValueError(f"--{name} is empty; give at least one value")
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"--{name}={','.join(map(str, values))}: give each value once")
        for name, least in (("shots", 1), ("select_shots", 1), ("steps", 1), ("report_steps", 0)):
            if any(value < least for value in getattr(self, name) or ()):
                raise ValueError(f"--{name}={getattr(self, name)}: every value must be at least {least}")
        for name in ("learning_rate", "gram_learning_rate", "gram_rate_factor"):
            if any(not 0 < value < float("inf") for value in getattr(self, name) or ()):
                raise ValueError(f"--{name}={getattr(self, name)}: every value must be a positive number")
        for name, least in (("batch_size", 1), ("image_batch", 1), ("max_test_images", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name}={getattr(self, name)}: it must be at least {least}")
        for name, known in (("protocol", PROTOCOLS), ("methods", _methods.PARTS)):
            for value in getattr(self, name) or ():
                if value not in known:
                    raise ValueError(f"--{name}={value}: choose among {', '.join(known)}")
        if both := sorted(set(self.seeds) & set(self.select_seeds)):
            raise ValueError(f"--seeds and --select_seeds share {both}; settings are selected on draws of their own")
        if self.domains and "few_shot" not in self.protocol:
            raise ValueError("--domains are measured under few_shot, which is not among --protocol; add it")
        _methods.parse_controls(self.controls)


class Units:
    """The finished units of a run, in a file that a killed run leaves whole."""

    def __init__(self, path: epath.Path, identity: dict[str, Any]):
        self._path, self._identity = path, json.loads(json.dumps(identity))
        self._digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        self._lines: list[dict[str, Any]] = []
        if path.exists():
            first, *lines = [json.loads(line) for line in path.read_text().splitlines()]
            self._check(first)
            self._lines = lines
        self._found = {tuple(line["unit"]): line for line in self._lines}

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, unit: tuple) -> bool:
        return unit in self._found

    def __getitem__(self, unit: tuple) -> Any:
        return self._found[unit]["found"]

    def add(self, unit: tuple, found: Any) -> None:
        """Keeps what was found; the file is replaced in one piece."""
        self._lines.append({"config": self._digest, "unit": unit, "found": found})
        self._found[unit] = self._lines[-1]
        part = self._path.parent / f"{self._path.name}.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in [self._identity, *self._lines]))
        part.replace(self._path)

    def _check(self, stored: dict[str, Any]) -> None:
        names = sorted(stored.keys() | self._identity.keys())
        differing = [
            f"{name} was {stored.get(name)!r} and is {self._identity.get(name)!r}"
            for name in names
            if stored.get(name) != self._identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self._path} holds another evaluation: {'; '.join(differing)}. Give another --workdir, or delete it"
            )


def open_datasets(config: Config) -> dict[str, tuple[Dataset, list[Dataset]]]:
    """Every dataset with its shifted domains, by its specification."""
    found = {}
    for spec in config.dataset:
        name, _, own = spec.partition("/")
        dataset = load_dataset(spec, seed=config.dataset_seed)
        if len(dataset.class_names) < 2:
            raise ValueError(f"dataset {spec!r} has one class, {dataset.class_names[0]!r}; it takes two to classify")
        domains: dict[str, None] = {}
        for domain in config.domains:
            unseen = glyphs.unseen_domains(glyphs.catalogue(name.partition(":")[2])) if domain == UNSEEN else (domain,)
            domains |= dict.fromkeys(unseen)
        domains.pop(own, None)
        shifted = [load_dataset(f"{name}/{domain}", seed=config.dataset_seed) for domain in domains]
        found[spec] = (dataset, shifted)
    return found


def check(config: Config, bench: Bench, methods: Sequence[Method], datasets: Sequence[Dataset]) -> None:
    """Raises ValueError, before anything is measured, where a dataset does not fit a method or a number of shots."""
    if bench.tuner.settings.get("class_specific") and "base_to_new" in config.protocol:
        raise ValueError(f"a class-specific prompt of {bench.tuner.name} knows no new class; give --protocol=few_shot")
    for dataset in datasets:
        for shots in {*config.shots, *(config.select_shots or ())}:
            evaluation.few_shot(dataset, shots, config.seeds[0])
        for start in {candidate.start for method in methods for candidate in method.candidates}:
            try:
                start(jax.random.key(0), bench.clip, bench.classes(dataset.class_names)[0])
            except ValueError as error:
                raise ValueError(f"{bench.tuner.name} on {dataset.name}: {error}") from error


def zero_shot_rows(bench: Bench, name: str, protocol: str, parts: Sequence[Part], template: str) -> list[Row]:
    """The frozen clip under "a photo of a {}." and under the dataset's own template."""
    rows = []
    for method, text in (("zero_shot", PHOTO), ("zero_shot:own", template)):
        for part in parts:
            predicted = np.argmax(bench.features(part.dataset) @ bench.texts(part.dataset.class_names, text).T, -1)
            accuracy = float(np.mean(predicted == part.dataset.labels))
            rows.append(Row(method, protocol, name, "accuracy", accuracy, part.domain, split=part.split))
    return rows


def tuned_rows(
    bench: Bench,
    method: Method,
    candidate: Candidate,
    name: str,
    dataset: Dataset,
    protocol: str,
    shots: int,
    parts: Sequence[Part],
    regulation: bool,
) -> tuple[list[Row], Any]:
    """The rows of one unit, and the tuned prompts of its runs."""
    config = bench.config
    report = [step for step in config.report_steps if step <= candidate.steps]
    tuned = tune(bench, method, candidate, without_test(dataset), protocol, shots, config.seeds, report)
    for step, losses in enumerate(tuned.metrics["loss"]):
        if not np.all(np.isfinite(losses)):
            seed = config.seeds[int(np.argmin(np.isfinite(losses)))]
            raise ValueError(
                f"the loss of {method.name} on {dataset.name} is not finite at step {step}, {shots} shots, seed "
                f"{seed}; lower its learning rate"
            )
    rows = []
    for step, prompts in sorted(tuned.prompts.items()):
        for part, values in zip(parts, accuracies(bench, method.tuning, prompts, parts), strict=True):
            rows += [
                Row(method.name, protocol, name, "accuracy", float(value), part.domain, shots, seed, part.split, step)
                for seed, value in zip(config.seeds, values, strict=True)
            ]
    if regulation:
        split = parts[0].split
        for step in sorted({int(step) for step in np.linspace(1, candidate.steps, REGULATION_STEPS)}):
            for metric in ("gradient_norm_ratio", "gradient_cosine"):
                rows += [
                    Row(method.name, "regulation", name, metric, float(value), None, shots, seed, split, step)
                    for seed, value in zip(config.seeds, tuned.metrics[metric][step - 1], strict=True)
                ]
    return rows, tuned.prompts[candidate.steps]


def select(
    bench: Bench,
    method: Method,
    learnable: dict[str, Dataset],
    units: Units,
    progress: runtime.Progress,
) -> tuple[Candidate, dict[str, Any] | None]:
    """One candidate for all datasets, by its mean validation score; the datasets given hold no test image."""
    if len(method.candidates) == 1:
        return method.candidates[0], None
    for name, dataset in learnable.items():
        unit = ("select", method.name, name)
        if unit not in units:
            units.add(unit, score_candidates(bench, method, dataset))
            progress.update()
    scores = np.mean([units["select", method.name, name] for name in learnable], axis=0)
    best = int(np.argmax(scores))
    described = [c.described | {"score": float(s)} for c, s in zip(method.candidates, scores, strict=True)]
    return method.candidates[best], {"chosen": method.candidates[best].described, "candidates": described}


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Selects, tunes and measures every method on every dataset."""
    workdir = runtime.absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    clip = gram.load_clip(config.clip, compute_dtype=config.compute_dtype)
    tuner = _methods.choose_tuner(config)
    methods, wanted, checkpoint = _methods.build(config, tuner, clip)
    datasets = open_datasets(config)
    bench = Bench(config, clip, tuner)
    check(config, bench, methods, [dataset for dataset, _ in datasets.values()])
    weights = gram.weights_hash(clip.params)
    paths = [path for path in (config.meta, *_methods.parse_controls(config.controls).values()) if path]
    files = {path: hashlib.sha256(epath.Path(path).read_bytes()).hexdigest() for path in paths}
    hashes = {dataset.name: dataset.content_hash for pair in datasets.values() for dataset in (pair[0], *pair[1])}
    identity = dataclasses.asdict(config) | {"weights": weights, "files": files, "splits": hashes}
    units = Units(workdir / "rows.jsonl", identity)
    learnable = {name: without_test(dataset) for name, (dataset, _) in datasets.items()}
    for method in methods:
        print(f"{method.name}: {len(method.candidates)} candidate settings, from {method.candidates[0].described}")
    total = sum(len(method.candidates) > 1 for method in methods) * len(datasets)
    total += len(datasets) * len(config.protocol) * (len(config.shots) * len(methods) + ("zero_shot" in wanted))
    rows: list[Row] = []
    chosen, selected = {}, {}
    with runtime.Progress(total, "evaluate", initial=len(units), unit="unit") as progress:
        for method in methods:
            chosen[method.name], found = select(bench, method, learnable, units, progress)
            if found is not None:
                selected[method.name] = found
                print(f"{method.name}: {found['chosen']} of {len(method.candidates)} on the validation split")
        for name, (dataset, shifted) in datasets.items():
            for protocol in config.protocol:
                parts = measured_parts(config, protocol, dataset, "test", shifted)
                if "zero_shot" in wanted:
                    if (unit := ("zero_shot", name, protocol)) not in units:
                        zero = zero_shot_rows(bench, name, protocol, parts, dataset.template)
                        units.add(unit, [dataclasses.asdict(row) for row in zero])
                        progress.update()
                    rows += [Row(**row) for row in units[unit]]
                for shots in config.shots:
                    for method in methods:
                        unit = (method.name, name, protocol, shots)
                        first = (protocol, shots) == (config.protocol[0], config.shots[0])
                        if unit not in units:
                            start = time.monotonic()
                            regulation = first and method.name == f"{tuner.name}+gram"
                            found, prompts = tuned_rows(
                                bench, method, chosen[method.name], name, dataset, protocol, shots, parts, regulation
                            )
                            if config.save_prompts:
                                _save(workdir, unit, prompts, bench)
                            units.add(unit, [dataclasses.asdict(row) for row in found])
                            print(_line(unit, found, time.monotonic() - start), flush=True)
                            progress.update()
                        rows += [Row(**row) for row in units[unit]]
    notes = {} if checkpoint is None else {"meta_notes": checkpoint.notes}
    environment = evaluation.environment(weights=weights, splits=hashes)
    settings = dataclasses.asdict(config) | {"tuner": tuner.name, "tuner_settings": dict(tuner.settings)}
    settings |= {"selected": selected, "files": files} | notes
    results = evaluation.Results(settings, environment, tuple(rows), report.comparisons(rows))
    report.write([results], workdir, names=["this evaluation"], show=print)
    return results


def _save(workdir: epath.Path, unit: tuple, prompts: Any, bench: Bench) -> None:
    method, dataset, protocol, shots = unit
    name = f"{dataset}-{protocol}-{shots}-{method}".replace(":", "_").replace("/", "_").replace("+", "_")
    first = jax.tree.map(lambda leaf: leaf[0], prompts)
    tuners.save_prompt(workdir / "prompts" / f"{name}.safetensors", first, bench.tuner, bench.clip)


def _line(unit: tuple, rows: Sequence[Row], seconds: float) -> str:
    """What a unit found, for the terminal."""
    method, dataset, protocol, shots = unit
    last = max(row.step for row in rows if row.metric == "accuracy")
    means: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "accuracy" and row.step == last and row.domain is None:
            means.setdefault(row.split, []).append(100 * row.value)
    found = ", ".join(f"{split} {np.mean(values):.1f}" for split, values in means.items())
    return f"{dataset}, {protocol}, {shots}-shot, {method}: {found} ({seconds:.1f} s)"


if __name__ == "__main__":
    launch(run, Config)
