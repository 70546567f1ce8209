"""Chooses the datasets on which tuning has something to lose, by a rule that looks at one tuner alone.

    python -m experiments.headroom
    python -m experiments.headroom --dataset=glyphs:arabic,glyphs:hebrew --shots=16

A method that protects new classes can be judged only where tuning harms them, and where accuracy is not at its limit.
A dataset qualifies if, on its validation split,

* zero-shot accuracy with the dataset's own template is below --ceiling, and
* the accuracy of the tuner on new classes, averaged over seeds, is at least --fall lower after the last step than after
  --early steps.

No meta-learned method and no test image takes part. The defaults tune CoOp on the nineteen datasets of the glyph
benchmark, which takes 12 minutes on two cores. Two runs of experiments.evaluate measure it, in WORKDIR/template and
WORKDIR/tuner: every finished seed is kept, and the same command resumes. Writes WORKDIR/results.json and prints a
table; qualifying datasets are also printed in one line, for --dataset of experiments.evaluate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gram_jax import evaluation, reporting
from gram_jax.data import glyphs
from gram_jax.errors import InputError
from gram_jax.evaluation import Row
from gram_jax.io import absolute

from ._launch import at_least, launch, positive, setting

if TYPE_CHECKING:
    from .evaluate.settings import Config as Evaluation


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
        at_least(self, 1, "early")
        positive(self, "fall", "ceiling")
        if self.steps <= self.early:
            raise InputError(f"--steps={self.steps}: it must be more than --early={self.early}")
        self.evaluations()

    def evaluations(self) -> dict[str, Evaluation]:
        """Returns two evaluations on validation images, by name: of the template on all classes, and of the tuner."""
        from .evaluate.settings import Config as Evaluation  # it imports JAX: late, so that --help answers at once

        shared: dict[str, Any] = {name: getattr(self, name) for name in ("clip", "dataset", "tuner", "seeds")}
        shared |= {"shots": (self.shots,), "select_seeds": (max((0, *self.seeds)) + 1,), "split": "val"}
        shared |= {"learning_rate": (self.learning_rate,), "steps": (self.steps,), "report_steps": (self.early,)}
        return {
            "template": Evaluation(**shared, protocol=("few_shot",), methods=("zero_shot",)),
            "tuner": Evaluation(**shared, protocol=("base_to_new",), methods=("tuner",)),
        }


def summarize(config: Config, rows: Iterable[Row]) -> dict[str, float]:
    """Returns what the rule reads, in percent: the template's accuracy, and the tuner's on new classes by step."""
    accuracies: dict[Any, list[float]] = {}
    for row in rows:
        accuracies.setdefault((row.method, row.split, row.step), []).append(100 * row.value)
    own = {step: values for (_, split, step), values in accuracies.items() if split == "new"}
    template = accuracies["zero_shot:own", "all", None]
    early, late = (float(np.mean(own[step])) for step in (config.early, config.steps))
    return {"template": float(np.mean(template)), "early": early, "late": late}


def qualifies(config: Config, summary: dict[str, float]) -> bool:
    """Returns whether a dataset has headroom."""
    return summary["template"] < config.ceiling and summary["early"] - summary["late"] >= config.fall


def run(config: Config, workdir: Any) -> evaluation.Results:
    """Measures every dataset and prints those that qualify."""
    from .evaluate import run as evaluate

    workdir = absolute(workdir)
    measured = [evaluate.run(flags, workdir / name) for name, flags in config.evaluations().items()]
    rows = [row for each in measured for row in each.rows]
    chosen, lines, rules = [], [], []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        summary = summarize(config, [row for row in rows if row.dataset == dataset])
        passed = qualifies(config, summary)
        rules.append(Row("rule", "headroom", dataset, "qualifies", float(passed), shots=config.shots))
        chosen += [dataset] if passed else []
        lines.append((dataset, *(f"{value:.1f}" for value in summary.values()), "yes" if passed else "no"))
    head = ("dataset", "own template", f"new, {config.early} steps", f"new, {config.steps} steps", "qualifies")
    print(f"\n{reporting.to_text(reporting.Table(head, tuple(lines)))}\n\n--dataset={','.join(chosen)}")
    return evaluation.Results(dataclasses.asdict(config), measured[-1].environment, (*rows, *rules))


if __name__ == "__main__":
    launch(run, Config, distributed="units")
