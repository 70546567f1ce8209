"""Tuners by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from gram_jax.errors import InputError
from gram_jax.tuners.adaptive import adaptive
from gram_jax.tuners.base import Tuner
from gram_jax.tuners.cocoop import cocoop
from gram_jax.tuners.coop import coop
from gram_jax.tuners.dpt import dpt
from gram_jax.tuners.ivlp import ivlp
from gram_jax.tuners.maple import maple
from gram_jax.tuners.text_deep import text_deep
from gram_jax.tuners.upt import upt
from gram_jax.tuners.vpt import vpt

_FACTORIES: dict[str, Callable[..., Tuner]] = {
    "adaptive": adaptive,
    "cocoop": cocoop,
    "coop": coop,
    "dpt": dpt,
    "ivlp": ivlp,
    "maple": maple,
    "text_deep": text_deep,
    "upt": upt,
    "vpt": vpt,
}
NAMES = tuple(sorted(_FACTORIES))


def make(name: str, **settings: Any) -> Tuner:
    """Makes a tuner by its name.

    Args:
      name: one of `NAMES`.
      settings: what the factory of that name takes.

    Returns:
      The tuner.

    Raises:
      InputError: if there is no such tuner or setting (with the nearest ones), or a setting has an impossible value.

    Example:
      >>> make("coop", num_tokens=16, position="middle").settings["num_tokens"]
      16
      >>> make("coop", num_token=16)
      Traceback (most recent call last):
        ...
      gram_jax.errors.InputError: coop has no setting 'num_token'; did you mean 'num_tokens'? ...


    Reference:
      Our own choice.
    """
    if name not in _FACTORIES:
        raise InputError(f"There is no tuner {name!r}{_hint(name, NAMES)} There are {', '.join(NAMES)}.")
    factory = _FACTORIES[name]
    known = list(inspect.signature(factory).parameters)
    for setting in settings:
        if setting not in known:
            raise InputError(f"{name} has no setting {setting!r}{_hint(setting, known)} It has {', '.join(known)}.")
    return factory(**settings)


def _hint(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), known, n=2)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
