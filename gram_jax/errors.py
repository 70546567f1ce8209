"""The error for bad input, hints for misspelled names, and the argument checks that the whole library shares."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

MOST_SEED = 2**32 - 1


class InputError(ValueError):
    """Bad input: a setting, a file or an array that the caller can correct.

    The message is one line that names the thing, the value found and the remedy. The command line prints it without a
    traceback and exits with status 2.
    """


@contextlib.contextmanager
def explain(before: str = "", after: str = "") -> Iterator[None]:
    """Adds text to the message of a ValueError that the block raises, and makes it an InputError.

    Example:
      >>> with explain("--shots=0: "):
      ...     require_int("shots", 0)
      Traceback (most recent call last):
        ...
      gram_jax.errors.InputError: --shots=0: shots=0: it must be an integer of at least 1
    """
    try:
        yield
    except ValueError as error:
        raise InputError(f"{before}{error}{after}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the known word closest to an unknown one, in any case, or "" if none is close.

    Example:
      >>> nearest("kgcop", ["kgcoop", "npt"])
      " (did you mean 'kgcoop'?)"
    """
    by_key = {str(each).casefold(): each for each in known}
    close = difflib.get_close_matches(str(word).casefold(), list(by_key), n=1)
    return f" (did you mean {by_key[close[0]]!r}?)" if close else ""


def require_known(name: str, value: str, known: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of the known words; suggests the closest one."""
    known = list(known)
    if value not in known:
        raise InputError(
            f"{name}={value!r} is unknown{nearest(value, known)}; choose from {', '.join(known) or 'none'}"
        )


def require_int(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises InputError unless `value` is an integer of at least `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bound = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}={value!r}: it must be an integer {bound}")


def require_seeds(name: str, values: Sequence[Any]) -> None:
    """Raises InputError unless there are seeds, all distinct, that every random generator takes: from 0 to 2^32 - 1."""
    for value in values:
        require_int(name, value, 0, MOST_SEED)
    if not values or len(set(values)) < len(values):
        raise InputError(f"{name}={list(values)}: give at least one seed, and each once")


def require_bool(name: str, value: Any) -> None:
    """Raises InputError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: it must be True or False")


def require_number(
    name: str, value: Any, least: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    """Raises InputError unless `value` is a finite number, of at least `least`, above `above`, less than `below`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
    if number and not (
        (least is not None and value < least)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        return
    bound = f" of at least {least}" if least is not None else f" above {above}" if above is not None else ""
    bound += f" and less than {below}" if below is not None else ""
    raise InputError(f"{name}={value!r}: it must be a finite number{bound}")


def examples(items: Sequence[Any], shown: int = 3) -> str:
    """Returns the first few items as text, for messages.

    Example:
      >>> examples(["a", "b", "c", "d", "e"])
      "'a', 'b', 'c' and 2 more"
    """
    text = ", ".join(repr(item) for item in items[:shown])
    return text + (f" and {len(items) - shown} more" if len(items) > shown else "")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for every name whose values differ, for messages; a missing value is None.

    Example:
      >>> differences({"steps": 3, "seed": 0}, {"steps": 5, "seed": 0})
      ['steps was 3 and is 5']
    """
    changed = (name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))
    return [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed]
