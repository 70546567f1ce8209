"""How a prompt is learned where a recipe says more than a loss and a rate: stages, a regulator that learns, parts.

* `--loss=dpt` is DPT's loss, which a tuner of its own has: guided for some epochs, with class prompts of their own.
* `--regulation=alternating` learns the regulator along with the prompt, by ProMetaR's two steps on every batch.
* `--part_rates` and `--part_warmup` give parts of a prompt, the first keys of its tree, other rates and warm-ups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gram_jax import objectives, tuners
from gram_jax import tuning as tuning_lib
from gram_jax.errors import InputError, nearest
from gram_jax.evaluation.protocols import TEST_TIME
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner

from .._launch import json_object
from . import presets as _presets

LOSSES = ("cross_entropy", "dpt")
REGULATIONS = ("frozen", "alternating")
WARMUP = 1  # epochs, where nothing else is said
_LOSS_SETTINGS = {"guided_epochs": 30, "class_weight": 0.3}  # as published


def check(config: Any) -> None:
    """Raises InputError for a loss, a regulation or parts that cannot be, or that do not go with other settings."""
    rates, warmup = json_object("part_rates", config.part_rates), json_object("part_warmup", config.part_warmup or "{}")
    if config.protocol == (TEST_TIME,):
        for name, given in (("loss", config.loss != LOSSES[0]), ("regulation", config.regulation != REGULATIONS[0]),
                            ("part_rates", rates), ("part_warmup", warmup)):  # fmt: skip
            if given:
                raise InputError(
                    f"--{name}={getattr(config, name)}: {TEST_TIME} tunes on one test image, without labels; leave it "
                    "out"
                )
    for part, factor in rates.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise InputError(f"--part_rates has {factor!r} for {part!r}; give a positive number")
    for part, epochs in warmup.items():
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise InputError(f"--part_warmup has {epochs!r} for {part!r}; give a number of epochs, 0 or more")
    if warmup and config.schedule != "warmup_cosine":
        raise InputError(f"--part_warmup: --schedule={config.schedule} has no warm-up; give --schedule=warmup_cosine")
    if config.loss == "dpt":
        _check_dpt(config)
    elif json_object("loss_settings", config.loss_settings):
        raise InputError(f"--loss_settings={config.loss_settings} is given with --loss={config.loss}; name --loss=dpt")
    if config.regulation == "alternating":
        _check_alternating(config)


def loss_settings(config: Any) -> dict[str, Any]:
    """The settings of DPT's loss, published ones filled in."""
    given = json_object("loss_settings", config.loss_settings)
    for name in given:
        if name not in _LOSS_SETTINGS:
            raise InputError(
                f"--loss_settings has no {name!r}{nearest(name, _LOSS_SETTINGS)}; known: {', '.join(_LOSS_SETTINGS)}"
            )
    found = _LOSS_SETTINGS | given
    epochs = found["guided_epochs"]
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise InputError(f"--loss_settings: guided_epochs is {epochs!r}; give a number of epochs, 0 or more")
    return found


def make(
    config: Any, tuner: Tuner, regulator: Regulator, terms: Sequence[objectives.Term]
) -> tuple[tuning_lib.Tuning, objectives.BatchLoss | None]:
    """The compiled step that the flags ask for, and what its batches must hold beside images and labels.

    Args:
      config: the flags of `experiments.evaluate`.
      tuner: the tuner.
      regulator: what becomes of a gradient.
      terms: the regularizers.

    Returns:
      The tuning, and the loss; None for one that reads no more than images and labels.
    """
    descent = {"momentum": config.momentum, "weight_decay": config.weight_decay, "schedule": config.schedule}
    held = regulator.settings.get("reference", "")
    read = objectives.batch_loss(tuner, terms, reference=held) if terms or held else None
    if config.regulation == "alternating":
        return tuning_lib.make_alternating(tuner, regulator, **descent), read
    loss = None if read is None else read.loss
    if config.loss == "dpt":
        _check_sees_one_gradient(regulator.name, held)
        loss = _dpt_loss(config, tuner)
    return tuning_lib.make_tuning(tuner, regulator, loss=loss, optimizer=config.optimizer, **descent), read


def start(phi: Any, seeds: Sequence[int]) -> Any:
    """The regulator's parameters of all runs; where they are learned along the way, `[runs, ...]`, drawn by seed."""
    if not callable(phi):
        return phi
    each = [phi(jax.random.fold_in(jax.random.key(seed), 1)) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def step_data(config: Any, seeds: Sequence[int], step: int, epoch_steps: int) -> dict[str, np.ndarray]:
    """What a batch holds for the loss or the regulation that is asked for: the stage, or the runs' seeds."""
    found = {}
    if config.loss == "dpt":
        found["guided"] = np.array(step // epoch_steps < loss_settings(config)["guided_epochs"])
    if config.regulation == "alternating":
        found["seed"] = np.array([seed % 2**32 for seed in seeds], np.uint32)
    return found


def rates(config: Any, rate: float, prompt: Any) -> Any:
    """A learning rate by part: one number where all parts take the same, else a number for each leaf of a prompt."""
    factors = json_object("part_rates", config.part_rates)
    return by_part("part_rates", factors, 1, prompt, rate) if factors else rate


def warmup(config: Any, dataset: str, prompt: Any) -> Any:
    """The epochs of the warm-up on a dataset, in the form of `rates`."""
    if config.part_warmup is not None or config.preset is None:
        epochs = json_object("part_warmup", config.part_warmup or "{}")
    else:
        epochs = _presets.warmup(config.preset, dataset)
    return by_part("part_warmup", epochs, WARMUP, prompt) if epochs else WARMUP


def by_part(flag: str, numbers: Mapping[str, float], other: float, prompt: Any, times: float = 1) -> Any:
    """A number for each leaf of a prompt, by the first key of its path.

    Args:
      flag: where the numbers come from.
      numbers: by part.
      other: that of all other parts.
      prompt: the prompt, or its shapes.
      times: multiplies all of them.

    Returns:
      The numbers.

    Raises:
      InputError: a part is none of the prompt's.
    """
    for part in numbers:
        if part not in prompt:
            raise InputError(
                f"--{flag} names {part!r}{nearest(part, prompt)}; the parts of this prompt are {', '.join(prompt)}"
            )
    return {
        part: jax.tree.map(lambda _, part=part: times * numbers.get(part, other), own) for part, own in prompt.items()
    }


def _dpt_loss(config: Any, tuner: Tuner) -> Any:
    weight = loss_settings(config)["class_weight"]
    try:
        return objectives.dpt_loss(tuner, class_weight=weight)
    except ValueError as error:
        remedy = ""
        if tuner.name == "dpt" and weight and not tuner.settings["class_specific"]:
            remedy = " Here: --tuner_settings='{\"class_specific\": true}', or --loss_settings='{\"class_weight\": 0}'"
        raise InputError(f"--loss=dpt: {error}{remedy}") from error


def _check_dpt(config: Any) -> None:
    """Raises InputError where DPT's loss does not go with what else is asked for."""
    if not config.meta:
        _dpt_loss(config, tuners.make(config.tuner or "coop", **json_object("tuner_settings", config.tuner_settings)))
    if config.regularizers:
        raise InputError(
            f"--regularizers={','.join(config.regularizers)} and --loss=dpt: DPT's loss is a sum of its own, and "
            "nothing says how regularizers weigh in its two stages; drop one of them"
        )
    _check_sees_one_gradient(config.regulator, config.regulator is not None)


def _check_sees_one_gradient(name: str | None, held: Any) -> None:
    if held:
        raise InputError(
            f"the regulator {name} and --loss=dpt: {name} holds a gradient against a second one, of the same forward "
            "pass, which DPT's loss has not; drop one of them"
        )


def _check_alternating(config: Any) -> None:
    """Raises InputError where nothing can be learned along the way, or by another step than published."""
    if config.regulator is None:
        raise InputError(
            "--regulation=alternating learns a regulator along with the prompt, and none is named; add "
            "--regulator=prometar"
        )
    if config.regularizers:
        raise InputError(
            f"--regularizers={','.join(config.regularizers)} and --regulation=alternating: its steps are on the "
            "cross-entropy, and regularizers come in by the gradient that the regulator reads; name them there, "
            "--regulator_settings='{\"reference\": ...}', or drop them"
        )
    if config.optimizer != "sgd":
        raise InputError(f"--optimizer={config.optimizer}: --regulation=alternating is two steps of sgd; leave it out")
    if config.batch_size < 2:
        raise InputError(
            f"--batch_size={config.batch_size}: --regulation=alternating splits a batch by its classes; give 2 or more"
        )
