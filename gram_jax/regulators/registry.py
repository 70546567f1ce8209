"""Regulators by name, for flags and saved files."""

from __future__ import annotations

import inspect
from typing import Any

from gram_jax.errors import InputError
from gram_jax.objectives.registry import nearest
from gram_jax.regulators.affine import affine
from gram_jax.regulators.base import Regulator
from gram_jax.regulators.gated_low_rank import gated_low_rank
from gram_jax.regulators.identity import identity
from gram_jax.regulators.mask import mask
from gram_jax.regulators.prograd import prograd
from gram_jax.regulators.prometar import prometar
from gram_jax.regulators.structured import structured

_FACTORIES = {
    factory.__name__: factory for factory in (affine, gated_low_rank, identity, mask, prograd, prometar, structured)
}
NAMES = tuple(sorted(_FACTORIES))


def make(name: str, **settings: Any) -> Regulator:
    """The regulator of a name, with settings as its factory takes them.

    `make(r.name, **r.settings)` is the same regulator as r.

    Args:
      name: one of `NAMES`.
      settings: keyword arguments of the factory of that name.

    Returns:
      The regulator.

    Raises:
      InputError: if there is no such regulator, or it has no such setting; the message names the nearest one.

    Example:
      >>> make("gated_low_rank", rank=4).settings["rank"]
      4

    Reference:
      Our own choice.
    """
    if name not in _FACTORIES:
        raise InputError(f"there is no regulator {name!r}{nearest(name, NAMES)}; known: {', '.join(NAMES)}.")
    known = list(inspect.signature(_FACTORIES[name]).parameters)
    for setting in settings:
        if setting not in known:
            listed = f"known: {', '.join(known)}" if known else "it has none"
            raise InputError(f"regulator {name!r} has no setting {setting!r}{nearest(setting, known)}; {listed}.")
    return _FACTORIES[name](**settings)
