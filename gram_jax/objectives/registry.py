"""Objectives by name, for flags: "npt:1.0,kgcoop:8" is a loss."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flax.core import FrozenDict

from gram_jax.errors import InputError
from gram_jax.objectives.base import Regularizers
from gram_jax.objectives.cpt import cpt
from gram_jax.objectives.distillation import distillation
from gram_jax.objectives.kgcoop import kgcoop
from gram_jax.objectives.long_tail import long_tailed
from gram_jax.objectives.npt import npt
from gram_jax.objectives.promptsrc import prometar, promptsrc
from gram_jax.objectives.regularized import Objective, regularized, weighted_sum

if TYPE_CHECKING:
    from gram_jax.tuners import Tuner

_FACTORIES: dict[str, Callable[..., Regularizers]] = {
    "cpt": cpt,
    "distillation": distillation,
    "kgcoop": kgcoop,
    "npt": npt,
    "prometar": prometar,
    "promptsrc": promptsrc,
}
# These change the classification loss itself; their number is a setting of it, here with its default.
CLASSIFICATION = {"logit_adjustment": ("adjustment", 1.0), "class_weights": ("exponent", 1.0)}
NAMES = tuple(sorted(_FACTORIES | CLASSIFICATION))

# Of every regularizer that these make: the sides of the clip that it reaches, the fields of the reference it reads.
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cpt_convergence": ("text image", ()),
    "cpt_rotation": ("text", ("text_features",)),
    "cpt_simplex": ("text", ("clusters",)),
    "distillation": ("text image", ("logits",)),
    "kgcoop": ("text", ("text_features",)),
    "npt_image": ("text image", ()),
    "npt_text": ("text", ()),
    "prometar_image": ("image", ("image_features",)),
    "prometar_text": ("text", ("text_features",)),
    "promptsrc_image": ("image", ("image_features",)),
    "promptsrc_logits": ("text image", ("logits",)),
    "promptsrc_text": ("text", ("text_features",)),
}


class Combined(NamedTuple):
    """An objective, what it consists of and what it needs.

    Attributes:
      loss: `loss(prompt, outputs, labels, reference=None) -> (scalar, parts)`; see `regularized`.
      penalty: the same without the classification loss; see `weighted_sum`.
      weights: by name, the weight of every regularizer, as `parts` names them.
      reads: the fields of the `Reference` that must not be None.

    Example:
      >>> from gram_jax import objectives
      >>> objective = objectives.make("promptsrc:2,kgcoop")
      >>> dict(objective.weights)["promptsrc_text"], sorted(objective.reads)
      (50.0, ['image_features', 'logits', 'text_features'])
    """

    loss: Objective
    penalty: Objective
    weights: Mapping[str, float]
    reads: frozenset[str]


def make(spec: str, *, tuner: Tuner | None = None, **settings: Mapping[str, Any]) -> Combined:
    """The objective that a text names: the classification loss plus regularizers by weight.

    Args:
      spec: names of `NAMES` with weights, "NAME:WEIGHT,NAME:WEIGHT"; without ":WEIGHT", that of the factory's default,
        which is the published one where there is one. "" is the cross-entropy alone. The numbers of "logit_adjustment"
        and "class_weights" are the strength and the exponent of `long_tailed`, which replaces the cross-entropy.
      tuner: the tuner that is trained with it; regularizers that cannot reach its prompt are refused. None: unchecked.
      settings: by name, further settings of its factory, e.g. `promptsrc={"image": 20.0}`.

    Returns:
      The objective.

    Raises:
      InputError: if a name or a setting is unknown (the message names the nearest one), given twice or malformed, or a
        regularizer reaches nothing that the tuner prompts.

    Example:
      >>> make("kgcoop:8").weights["kgcoop"]
      8.0
      >>> make("kgcop:8")
      Traceback (most recent call last):
        ...
      gram_jax.errors.InputError: there is no objective 'kgcop' (did you mean 'kgcoop'?); known: ...

    Reference:
      Our own choice.
    """
    parsed = parse(spec)
    for name in settings:
        if name not in parsed:
            raise InputError(f"settings for {name!r} are given, but {spec!r} does not name it; add it, or drop them.")
    found: dict[str, Any] = {}
    tail: dict[str, float] = {}
    for name, number in parsed.items():
        given = settings.get(name, {})
        if name in CLASSIFICATION:
            _check_settings(name, given, [])
            setting, default = CLASSIFICATION[name]
            tail[setting] = default if number is None else number
        else:
            made = _call(name, number, given)
            if tuner is not None:
                _check_reach(name, made, tuner)
            found |= made
    reads = {field for part in found for field in _PARTS[part][1]} | ({"counts"} if tail else set())
    weights = FrozenDict({part: weight for part, (weight, _) in found.items()})
    loss = regularized(found, classification=long_tailed(**tail) if tail else None)
    return Combined(loss, weighted_sum(found), weights, frozenset(reads))


def parse(spec: str) -> dict[str, float | None]:
    """Names and weights of a text as `make` reads it, None where no weight is given."""
    parsed: dict[str, float | None] = {}
    for item in spec.split(",") if spec.strip() else []:
        name, colon, number = (part.strip() for part in item.partition(":"))
        if not name:
            raise InputError(f'{spec!r} has an empty entry; write "NAME:WEIGHT,NAME:WEIGHT".')
        if name not in NAMES:
            raise InputError(f"there is no objective {name!r}{nearest(name, NAMES)}; known: {', '.join(NAMES)}.")
        if name in parsed:
            raise InputError(f"{spec!r} names {name!r} twice; give each once.")
        try:
            parsed[name] = float(number) if colon else None
        except ValueError:
            raise InputError(f"the weight of {name!r} is {number!r}; give a number, as in {name}:1.0.") from None
    return parsed


def default_weight(name: str) -> float:
    """The weight, or number, of what is named without one."""
    if name in CLASSIFICATION:
        return CLASSIFICATION[name][1]
    return inspect.signature(_FACTORIES[name]).parameters["weight"].default


def _call(name: str, weight: float | None, settings: Mapping[str, Any]) -> Regularizers:
    factory = _FACTORIES[name]
    _check_settings(name, settings, [known for known in inspect.signature(factory).parameters if known != "weight"])
    return factory(**settings) if weight is None else factory(weight, **settings)


def _check_settings(name: str, settings: Mapping[str, Any], known: list[str]) -> None:
    for setting in settings:
        if setting not in known:
            listed = f"known: {', '.join(known)}" if known else "it has none besides its number"
            raise InputError(f"{name} has no setting {setting!r}{nearest(setting, known)}; {listed}.")


def _check_reach(name: str, made: Regularizers, tuner: Tuner) -> None:
    reached = {side for part in made for side in _PARTS[part][0].split()}
    if reached and not reached & tuner.changes:
        sides = " and ".join(sorted(reached, reverse=True))
        raise InputError(
            f"{name} acts on {sides} features, which no prompt of the tuner {tuner.name!r} changes: its gradient is 0. "
            f"Drop {name}, or choose a tuner that prompts the {sides} side."
        )


def nearest(word: str, words: Any) -> str:
    """The known word that an unknown one may stand for, as the end of a message; "" where none is near."""
    found = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
