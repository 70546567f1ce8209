"""Short texts of large values: what a notebook shows of a clip, a dataset or the results of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

_ITEMS, _LETTERS, _DEPTH = 4, 60, 3


def short(value: Any, depth: int = _DEPTH) -> str:
    """Returns a text of at most a few lines, in which arrays are types and shapes, and long collections are cut.

    Example:
      >>> import numpy as np
      >>> short({"context": np.zeros((4, 8), np.float32), "names": ("a", "b", "c", "d", "e")})
      "{'context': float32[4, 8], 'names': ('a', 'b', 'c', 'd', ... 5 in all)}"
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        items = (f"{key!r}: {short(item, depth - 1)}" for key, item in value.items())
        return "{" + _joined(items, len(value), depth) + "}"
    if type(value).__repr__ is short_repr or hasattr(value, "_fields") or isinstance(value, (tuple, list)):
        if depth == 0:
            return f"{type(value).__name__}(...)"
        names = getattr(value, "_fields", None) or _fields(value)
        if names:
            shown = ", ".join(f"{name}={short(getattr(value, name), depth - 1)}" for name in names)
            return f"{type(value).__name__}({shown})"
        return "(" + _joined((short(item, depth - 1) for item in value), len(value), depth) + ")"
    text = f"<{value.__name__}>" if callable(value) and hasattr(value, "__name__") else repr(value)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 3] + "..."


def short_repr(self: Any) -> str:
    """The `__repr__` of classes with large fields."""
    return short(self)


def _fields(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []


def _joined(items: Iterable[str], count: int, depth: int) -> str:
    if depth == 0 and count:
        return f"... {count} in all"
    shown = [item for item, _ in zip(items, range(_ITEMS), strict=False)]
    return ", ".join([*shown, *[f"... {count} in all"] * (count > _ITEMS)])
