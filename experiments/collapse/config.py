"""Neural collapse of tuned prompts and its correlation with generalization.

    python -m experiments.collapse
    python -m experiments.collapse --tuner="coop,ivlp(depth=2)" --regularizers="" --regularizers=npt:0.3
    python -m experiments.collapse --tuner=coop --learning_rate=0.03,0.1,0.3,1,3 --seeds=1,2,3,4,5,6,7,8,9,10

Tunes prompts on the base classes of every dataset, balanced (tau = 1) and from long tails, with every tuner, set of
regularizers and learning rate. After some steps of every run, it measures accuracy, its
harmonic mean H and the measures of `gram_jax.evaluation.neural_collapse` (NC1 to NC4, distances to the simplex frame,
alignment of text and images) on test images of base and of new classes. Then it correlates each measure with the
accuracy on new classes and with H, separately for balanced and imbalanced runs; docs/collapse.md explains how. Nothing
is selected, so the validation split is not read.

A text-only tuner does not change image features. NC1 and the measures of image means are then those of the clip, the
same for all prompts; only the measures of text, and of text with images, vary.

Writes WORKDIR/results.json, correlations.json, table.md and plots. Finished units (all seeds of a method on a dataset)
are kept in WORKDIR/rows.jsonl: rerun the command to resume.

The defaults measure 1,350 prompts: CoOp alone, with NPT and with KgCoOp, at two rates on three datasets. They take six
minutes of processor time, including compilation, and 2 GiB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gram_jax import choices
from gram_jax.data.readers.sources import forms
from gram_jax.errors import InputError
from gram_jax.evaluation.protocols import base_to_new
from gram_jax.registry import split_calls

from .._launch import at_least, setting

if TYPE_CHECKING:
    from ..evaluate.settings import Config as Evaluation

BALANCED = base_to_new


@dataclasses.dataclass(frozen=True)
class Config:
    """The tuned prompts, and the steps at which they are measured."""

    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    tuner: str = setting("coop", f"tuners, such as coop,ivlp(depth=2); some of {', '.join(choices.TUNERS)}")
    regularizers: tuple[str, ...] = setting(
        ("", "npt", "kgcoop"),
        "a set of regularizers for every tuner, such as npt(centered=True):1.0,kgcoop:8, or empty; repeat for more",
        repeated=True,
    )
    dataset: tuple[str, ...] = setting(
        ("glyphs:arabic", "glyphs:georgian", "glyphs:playing_cards"), f"datasets: {forms()}"
    )
    tau: tuple[float, ...] = setting((1.0, 0.25, 0.06), "images of the smallest base class / the largest; 1: balanced")
    shots: tuple[int, ...] = setting((16,), "labeled images of the largest class")
    seeds: tuple[int, ...] = setting((1, 2, 3, 4, 5), "seeds of the draws")
    learning_rate: tuple[float, ...] = setting((0.3, 1.0), "learning rates, each of which is measured")
    steps: int = setting(50, "optimizer steps of a run")
    report_steps: tuple[int, ...] = setting((0, 1, 5, 20), "measured steps besides the last one")
    batch_size: int = setting(32, "images per step")
    optimizer: str = setting("sgd", "the optimizer", choices=choices.OPTIMIZERS)
    momentum: float = setting(0.0, "momentum of sgd")
    weight_decay: float = setting(0.0, "weight decay of the prompts, added to their gradients before momentum")
    schedule: str = setting(
        "constant",
        "the learning-rate schedule; if constant, every measured step ends a shorter run",
        choices=choices.SCHEDULES,
    )
    max_test_images: int = setting(10, "test images per class; 0 for all")
    image_batch: int = setting(64, "images that the image transformer encodes at once")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    dataset_seed: int = setting(0, "seed of generated datasets and splits")
    resamples: int = setting(2000, "bootstrap samples for the interval of a correlation")

    def __post_init__(self) -> None:
        for name in ("regularizers", "dataset", "tau", "shots", "seeds", "learning_rate", "report_steps"):
            values = getattr(self, name)
            if not values and name != "report_steps":
                raise InputError(f"--{name} is empty; give at least one value")
            if len(set(values)) < len(values):
                raise InputError(f"--{name}={','.join(map(str, values))}: give each value once")
        if not split_calls(self.tuner):
            raise InputError("--tuner is empty; give at least one tuner")
        if self.steps < 1 or any(not 0 <= step <= self.steps for step in self.report_steps):
            raise InputError(
                f"--steps={self.steps} and --report_steps={','.join(map(str, self.report_steps))}: take at least 1 "
                "step, and report steps from 0 to the last"
            )
        at_least(self, 1, "resamples")
        from ..evaluate.methods import choose_tuner  # it imports JAX: late, so that --help answers at once

        settings = [flags.settings for _, flags in of_methods(self)]
        names = [each.family(choose_tuner(each).name) for each in settings]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"--tuner and --regularizers name {twice[0]} twice; give each method once")


def of_methods(config: Config) -> Iterator[tuple[str, Evaluation]]:
    """Yields each tuner with the settings of `experiments.evaluate` that it has under each set of regularizers."""
    from ..evaluate.settings import Config as Evaluation

    tails = tuple(tau for tau in config.tau if tau != 1.0)
    known = {field.name for field in dataclasses.fields(Evaluation)} - {"tuner", "regularizers"}
    shared = {name: value for name, value in vars(config).items() if name in known} | {
        "methods": ("tuner",),
        "protocol": (BALANCED.name,) * (1.0 in config.tau) + ("imbalanced",) * bool(tails),
        "tau": tails or (1.0,),
        "largest": max(config.shots),
        "steps": (config.steps,),
        "select_seeds": (max(config.seeds) + 1,),  # nothing is selected
    }
    for tuner in split_calls(config.tuner):
        for text in config.regularizers:
            yield tuner, Evaluation(tuner=tuner, regularizers=text, **shared)
