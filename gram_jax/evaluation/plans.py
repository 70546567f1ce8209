"""Tuning plans: settings that are checked once, and the compiled step that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from gram_jax import objectives, tuning
from gram_jax.choices import AUGMENTATIONS, SCHEDULES
from gram_jax.errors import InputError, nearest, require_int, require_known, require_number
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner


class Length(NamedTuple):
    """The length of a run on one dataset.

    Attributes:
      steps, epochs: the number of optimizer steps or, if that is None, of epochs.
      warmup: epochs of the warm-up by part of the prompt; 1 for parts that are not named.
      aggregation: mean and width, in epochs, of the Gaussian that weighs the prompts of all epochs; None for the last.
    """

    steps: int | None = None
    epochs: int | None = None
    warmup: Mapping[str, int] = {}
    aggregation: tuple[float, float] | None = None


class StagedLoss(NamedTuple):
    """DPT's loss, see `objectives.dpt_loss`: each side is guided by the other's frozen features in the first epochs."""

    guided_epochs: int = 30
    class_weight: float = 0.3


@dataclasses.dataclass(frozen=True)
class TuningPlan:
    """The settings of tuning prompts on labeled images.

    Attributes:
      steps: the number of optimizer steps, unless `epochs` is given.
      epochs: the number of epochs; the rest of an epoch, too small a batch, is dropped.
      report_steps: steps whose prompts are measured besides the last ones.
      optimizer, momentum, weight_decay, schedule: as in `tuning.make_tuning`.
      regularizers: added to the loss, as `objectives.parse` reads them, such as "kgcoop:8,npt(centered=True):1".
      staged: DPT's loss instead of the cross-entropy.
      alternating: whether the regulator is learned along with the prompt, by ProMetaR's two steps on every batch.
      augmentation: "none"; "fresh" or "stored" random crops and flips, see `training_images`.
      views: the number of stored views.
    """

    learning_rate: float = 0.3
    steps: int = 50
    epochs: int | None = None
    report_steps: tuple[int, ...] = ()
    batch_size: int = 32
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "cosine"
    regularizers: str | tuple[objectives.Term, ...] = ""
    staged: StagedLoss | None = None
    alternating: bool = False
    augmentation: str = "none"
    views: int = 8

    def __post_init__(self) -> None:
        require_number("learning_rate", self.learning_rate, above=0)
        for name in ("steps", "batch_size", "views"):
            require_int(name, getattr(self, name))
        require_known("augmentation", self.augmentation, AUGMENTATIONS)
        require_known("schedule", self.schedule, SCHEDULES)

    @property
    def length(self) -> Length:
        """The length of every run."""
        return Length(self.steps) if self.epochs is None else Length(epochs=self.epochs)

    def compile(self, tuner: Tuner, regulator: Regulator) -> Compiled:
        """Returns the step of a tuner under a regulator, which is compiled when it is first taken."""
        descent: dict[str, Any] = {
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule,
        }
        held = regulator.settings.get("reference", "")
        loss = None
        if self.regularizers or held:
            loss = objectives.batch_loss(tuner, self.regularizers, reference=held)
        if self.alternating:
            return Compiled(tuning.make_alternating(tuner, regulator, **descent), loss)
        function = None if loss is None else loss.loss
        if self.staged is not None:
            require_one_gradient(regulator)
            function = objectives.dpt_loss(tuner, class_weight=self.staged.class_weight)
        return Compiled(tuning.make_tuning(tuner, regulator, loss=function, optimizer=self.optimizer, **descent), loss)


class Compiled(NamedTuple):
    """A tuning step, and the loss that tells what batches must hold; None if it reads images and labels only."""

    tuning: tuning.Tuning
    loss: objectives.BatchLoss | None


def by_part(flag: str, numbers: Mapping[str, float], other: float, prompt: Any, times: float = 1) -> Any:
    """Returns a number for each leaf of a prompt, by the part that it belongs to: the first key of its path.

    `other` is the number of parts that are not in `numbers`; `times` multiplies all. InputError names the flag if the
    prompt has no such part.
    """
    for part in numbers:
        if part not in prompt:
            raise InputError(
                f"--{flag} names {part!r}{nearest(part, prompt)}; the parts of this prompt are {', '.join(prompt)}"
            )
    scaled = {part: times * numbers.get(part, other) for part in prompt}
    return {part: jax.tree.map(lambda _, number=scaled[part]: number, own) for part, own in prompt.items()}


def require_one_gradient(regulator: Regulator) -> None:
    """Raises InputError if a regulator compares the gradient with a second one, which DPT's loss does not provide."""
    if "reference" in regulator.settings:
        raise InputError(f"regulator={regulator.name} reads a second gradient, and loss=dpt has none; drop one of them")
