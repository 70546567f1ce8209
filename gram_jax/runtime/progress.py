"""A progress bar on terminals, and periodic progress lines in log files."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import jax

from gram_jax.errors import InputError

logger = logging.getLogger(__name__)

_REDRAW_SECONDS = 0.2


class Progress(contextlib.AbstractContextManager):
    """Shows the progress of a loop, its rate and the remaining time.

    On a terminal this is a tqdm bar; elsewhere (a log file, a batch queue) it logs one line every `every_seconds` and
    one at the end. Only process 0 of a distributed run shows progress.

    The rate excludes the first update, which in JAX is mostly compilation: with n updates in the t seconds since then,
    rate = n / t and the remaining time is (total - done) / rate.

    Args:
      total, initial: the number of steps of the whole loop, and of those done by an earlier run.
      description, unit: the names of the loop and of one step.
      every_seconds: seconds between two log lines without a terminal.
      stream, clock: standard error by default; a function that returns seconds, for tests.

    Example:
      >>> with Progress(3, "train") as progress:
      ...     for step in range(3):
      ...         progress.update(loss=1.0 / (step + 1))
      >>> progress.done
      3
      >>> sum(Progress.over([1, 2, 3], "add"))
      6
    """

    def __init__(
        self,
        total: int,
        description: str = "",
        *,
        initial: int = 0,
        unit: str = "step",
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not 0 <= initial <= total:
            raise InputError(f"initial={initial}: it must be between 0 and total={total}")
        self.total, self.done = total, initial
        self._description, self._unit, self._every_seconds, self._clock = description, unit, every_seconds, clock
        self._values: dict[str, Any] = {}
        self._shown = jax.process_index() == 0
        self._last_drawn = clock()
        self._measured_from: tuple[float, int] | None = None  # time and count after the first update
        self._bar = None
        stream = stream or sys.stderr
        if self._shown and stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, desc=description or None, unit=unit, file=stream, dynamic_ncols=True
            )

    @classmethod
    def over(
        cls, items: Iterable[Any], description: str = "", *, total: int | None = None, **settings: Any
    ) -> Iterator:
        """Yields the items and shows the progress; `total` is required if `items` has no length."""
        with cls(len(items) if total is None else total, description, **settings) as progress:  # type: ignore[arg-type]
            for item in items:
                yield item
                progress.update()

    def update(self, steps: int = 1, **values: Any) -> None:
        """Counts steps; shows the values (e.g. `loss=0.3`) next to the rate."""
        self.done += steps
        self._values.update(values)
        if not self._shown:
            return
        now = self._clock()
        # Reading a value waits for the device, so values are read only when something is drawn.
        if now - self._last_drawn >= (_REDRAW_SECONDS if self._bar is not None else self._every_seconds):
            self._last_drawn = now
            self._draw()
        if self._measured_from is None:
            self._measured_from = (now, self.done)

    @property
    def rate(self) -> float | None:
        """Steps per second since the first update; None while unknown."""
        if self._measured_from is None:
            return None
        since, count = self._measured_from
        seconds = self._clock() - since
        return (self.done - count) / seconds if seconds > 0 and self.done > count else None

    def line(self) -> str:
        """Returns the progress as one line of text."""
        parts = [f"{self._description} {self.done}/{self.total} {self._unit}s".strip()]
        if self.total:
            parts[0] += f" ({100 * self.done / self.total:.1f} %)"
        if (rate := self.rate) is not None:
            parts.append(f"{rate:.3g} {self._unit}s/s")
            if self.done < self.total:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        parts += [f"{name}={_short(value)}" for name, value in self._values.items()]
        return ", ".join(parts)

    def _draw(self) -> None:
        if self._bar is None:
            logger.info("%s", self.line())
            return
        if self._values:
            self._bar.set_postfix({name: _short(value) for name, value in self._values.items()}, refresh=False)
        self._bar.update(self.done - self._bar.n)

    def close(self) -> None:
        """Closes the bar, or logs the last line."""
        if self._shown:
            self._draw()
        if self._bar is not None:
            self._bar.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
