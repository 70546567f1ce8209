"""A progress bar on terminals, and periodic progress lines in log files."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, cast

import jax

from gram_jax.errors import InputError

logger = logging.getLogger(__name__)

_REDRAW_SECONDS = 0.2
_FIRST_SECONDS = 0.1  # updates that follow the first one so closely belong to it: a batch is counted item by item
_LEAST_WORK = 0.02  # share of the work from which on the time left is told: steps of little work take other times
_BAR = 20  # characters
_CLEAR = "\r\x1b[K"  # to the start of the line; erase it
_lock = threading.RLock()
_shown: list[Progress] = []  # bars on a terminal, the last one visible


class Progress(contextlib.AbstractContextManager):
    """Shows the progress of a loop, its rate and the remaining time.

    On a terminal this is a bar; elsewhere (a log file, a batch queue) it logs one line every `every_seconds`, also
    during a longer step, and one at the end. Only process 0 of a distributed run shows progress.

    The rate excludes the first update, which in JAX is mostly compilation: with n updates in the t seconds since then,
    rate = n / t and the remaining time is (total - done) / rate. If steps differ in cost, `work` replaces their number
    in the remaining time, which is told once 2 % of the work are measured.

    Args:
      total, initial: the number of steps of the whole loop, and of those done by an earlier run.
      description, unit: the names of the loop and of one step.
      work: the cost of the steps that are left, in any unit; `update` then tells the cost of its steps.
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

    def __init__(  # long: two arguments are for tests
        self,
        total: int,
        description: str = "",
        *,
        initial: int = 0,
        unit: str = "step",
        work: float | None = None,
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not 0 <= initial <= total:
            raise InputError(f"initial={initial}: it must be between 0 and total={total}")
        self.total, self.done = total, initial
        self._description, self._unit, self._every_seconds, self._clock = description, unit, every_seconds, clock
        self._left = float(total - initial) if work is None else float(work)
        self._least = 0.0 if work is None else _LEAST_WORK * self._left
        self._finished = 0.0  # work of this process
        self._values: dict[str, Any] = {}
        self._begun = self._last_drawn = clock()
        self._first: float | None = None  # the time of the first update
        self._measured_from = (0.0, 0, 0.0)  # time, count and work after it
        self._line = ""  # the last line of a log
        self._stream = cast(TextIO, stream or getattr(sys.stderr, "plain", sys.stderr))
        self._closed = threading.Event()
        if jax.process_index() != 0:
            self._closed.set()
            return
        self._bar = self._stream.isatty()
        if self._bar:
            with _lock:
                _shown.append(self)
                self._draw()
        threading.Thread(target=self._keep_alive, daemon=True).start()

    @classmethod
    def over(
        cls, items: Iterable[Any], description: str = "", *, total: int | None = None, **settings: Any
    ) -> Iterator:
        """Yields the items and shows the progress; `total` is required if `items` has no length."""
        with cls(len(items) if total is None else total, description, **settings) as progress:  # type: ignore[arg-type]
            for item in items:
                yield item
                progress.update()

    def update(self, steps: int = 1, *, work: float | None = None, **values: Any) -> None:
        """Counts steps, and their work; shows the values (e.g. `loss=0.3`) next to the rate."""
        with _lock:
            now, work = self._clock(), float(steps) if work is None else work
            self.done += steps
            self._left -= work
            self._finished += work
            self._values.update(values)
            self._first = now if self._first is None else self._first
            if now - self._first <= _FIRST_SECONDS:
                self._measured_from = now, self.done, self._finished
            # Reading a value waits for the device, so values are read only when something is drawn.
            if not self._closed.is_set() and now - self._last_drawn >= self._interval:
                self._draw()

    @property
    def rate(self) -> float | None:
        """Steps per second since the first update; None while unknown."""
        since, count, _ = self._measured_from
        seconds = self._clock() - since
        known = self._first is not None and seconds > 0 and self.done > count
        return (self.done - count) / seconds if known else None

    def line(self) -> str:
        """Returns the progress as one line of text."""
        return ", ".join([*self._count(), *self._told()])

    def _count(self) -> list[str]:
        """Returns the count, the rate and the time left."""
        parts = [f"{self._description} {self.done}/{self.total} {self._unit}s".strip()]
        if self.total:
            parts[0] += f" ({100 * self.done / self.total:.1f} %)"
        if (rate := self.rate) is not None:
            parts.append(f"{rate:.3g} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s/{self._unit}")
        if self.done < self.total:
            since, _, finished = self._measured_from
            measured = self._finished - finished
            told = rate is not None and measured >= self._least
            speed = measured / max(self._clock() - since, 1e-9) if told else 0
            left = f"{_duration(max(0.0, self._left) / speed)} left" if speed > 0 else ""
            parts += [left or f"{_duration(self._clock() - self._begun)} passed"]
        return parts

    def _told(self) -> list[str]:
        """Returns the values that `update` was given."""
        return [f"{name}={_short(value)}" for name, value in self._values.items()]

    def clear(self) -> None:
        """Erases the bar until it is drawn again."""
        _write(self._stream, _CLEAR)

    def close(self) -> None:
        """Closes the bar, or logs the last line."""
        with _lock:
            if self._closed.is_set():
                return
            self._closed.set()
            self._draw()
            if self._bar:
                _write(self._stream, "\n")
                _shown.remove(self)

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _interval(self) -> float:
        return _REDRAW_SECONDS if self._bar else self._every_seconds

    def _draw(self) -> None:
        self._last_drawn, line = self._clock(), self.line()
        if not self._bar:
            if line != self._line:
                logger.info("%s", line)
            self._line = line
            return
        full = round(_BAR * self.done / self.total) if self.total else _BAR
        text = f"[{'#' * full}{'.' * (_BAR - full)}] {line}"
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            width = os.get_terminal_size(self._stream.fileno()).columns - 1
            # The time left matters more than the picture and the values, of which the first matter most.
            count, told = self._count(), self._told()
            shorter = (", ".join([*count, *told[:shown]]) for shown in range(len(told), -1, -1))
            text = next((each for each in (text, *shorter) if len(each) <= width), line[:width])
        _write(self._stream, _CLEAR + text)

    def _keep_alive(self) -> None:
        """Draws while no update does: a step may take minutes."""
        while not self._closed.wait(1.0 if self._bar else min(1.0, self._every_seconds)):
            with _lock:
                waited = self._clock() - self._last_drawn
                if not self._closed.is_set() and waited >= self._interval and (not self._bar or _shown[-1] is self):
                    self._draw()


def bar_is_shown() -> bool:
    """Returns whether a bar is on a terminal."""
    return bool(_shown)


@contextlib.contextmanager
def hidden_bar() -> Iterator[None]:
    """Erases the visible bar, if there is one, while the block writes whole lines to the terminal.

    Yields:
      None.
    """
    with _lock:
        if _shown:
            _shown[-1].clear()
        try:
            yield
        finally:
            if _shown:
                _shown[-1]._draw()


def _write(stream: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed terminal does not end a run
        stream.write(text)
        stream.flush()


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
