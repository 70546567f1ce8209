"""Chooses the datasets on which tuning has something to lose, by a rule that looks at one tuner alone.

    python -m experiments.headroom
    python -m experiments.headroom --dataset=glyphs:arabic,glyphs:hebrew --shots=16

A method that protects new classes can be judged only where tuning harms them, and where accuracy is not at its limit.
A dataset qualifies if, on its validation split,

* zero-shot accuracy with the dataset's own template is below --ceiling, and
* the accuracy of the tuner on new classes, averaged over seeds, is at least --fall lower after the last step than after
  --early steps.

No meta-learned method and no test image takes part. The defaults tune CoOp on the nineteen datasets of the glyph
benchmark, which takes 12 minutes on two cores. Writes WORKDIR/results.json and prints a table; qualifying datasets are
also printed in one line, for --dataset of experiments.evaluate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax.data import Dataset, glyphs, load_dataset
from gram_jax.errors import InputError
from gram_jax.evaluation import Row

from ._launch import at_least, launch, positive, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The datasets, the tuner and the rule."""

    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    dataset: tuple[str, ...] = setting(tuple(f"glyphs:{name}" for name in glyphs.NAMES), "the datasets to choose from")
    tuner: str = setting("coop(init_text='a photo of a')", "the tuner, NAME or NAME(setting=value, ...)")
    learning_rate: float = setting(0.3, "learning rate of the tuner")
    shots: int = setting(4, "labeled images per class")
    seeds: tuple[int, ...] = setting((201, 202, 203), "seeds of the draws; report results on other seeds")
    early: int = setting(30, "steps after which new classes are still unharmed")
    steps: int = setting(300, "steps of a run")
    fall: float = setting(1.0, "least loss of accuracy on new classes between them, in points")
    ceiling: float = setting(97.0, "accuracy of the own template, %, from which a dataset is solved")

    def __post_init__(self) -> None:
        at_least(self, 1, "shots", "early")
        positive(self, "learning_rate", "fall", "ceiling")
        if self.steps <= self.early:
            raise InputError(f"--steps={self.steps}: it must be more than --early={self.early}")


def measure(config: Config, encoder: evaluation.Encoder, dataset: Dataset) -> list[Row]:
    """Returns validation accuracies: of the template on all classes, and of the tuner on base and new classes."""
    plan = {"learning_rate": config.learning_rate, "steps": config.steps, "report_steps": (config.early,)}
    draws: dict[str, Any] = {"shots": config.shots, "seeds": config.seeds, "split": "val"}
    template = evaluation.baselines.hand_crafted(dataset.template)
    zero_shot = evaluation.evaluate(encoder, template, dataset, "few_shot", **draws)
    return zero_shot + evaluation.evaluate(
        encoder, gram.tuners.parse(config.tuner), dataset, "base_to_new", **draws, **plan
    )


def summarize(config: Config, rows: Iterable[Row]) -> dict[str, float]:
    """Returns what the rule reads, in percent: the template's accuracy, and the tuner's on new classes by step."""
    accuracies: dict[Any, list[float]] = {}
    for row in rows:
        key = "template" if row.protocol == "few_shot" else (row.split, row.step)
        accuracies.setdefault(key, []).append(100 * row.value)
    early, late = (float(np.mean(accuracies["new", step])) for step in (config.early, config.steps))
    return {"template": float(np.mean(accuracies["template"])), "early": early, "late": late}


def qualifies(config: Config, summary: dict[str, float]) -> bool:
    """Returns whether a dataset has headroom."""
    return summary["template"] < config.ceiling and summary["early"] - summary["late"] >= config.fall


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures every dataset and prints those that qualify."""
    del workdir  # only results.json is written
    clip = gram.load_clip(config.clip)
    datasets = [load_dataset(spec) for spec in config.dataset]
    rows, chosen, lines = [], [], []
    for dataset in runtime.Progress.over(datasets, "headroom", unit="dataset"):
        measured = measure(config, evaluation.Encoder(clip), dataset)
        summary = summarize(config, measured)
        passed = qualifies(config, summary)
        rows += [*measured, Row("rule", "headroom", dataset.name, "qualifies", float(passed), shots=config.shots)]
        chosen += [dataset.name] if passed else []
        lines.append((dataset.name, *(f"{value:.1f}" for value in summary.values()), "yes" if passed else "no"))
    head = ("dataset", "own template", f"new, {config.early} steps", f"new, {config.steps} steps", "qualifies")
    print(f"\n{reporting.to_text(reporting.Table(head, tuple(lines)))}\n\n--dataset={','.join(chosen)}")
    environment = evaluation.environment(weights=gram.weights_hash(clip.params))
    return evaluation.Results(dataclasses.asdict(config), environment, tuple(rows))


if __name__ == "__main__":
    launch(run, Config)
