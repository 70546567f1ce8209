"""Standard output and error of the programs: they never end a run, and lines do not run into the progress bar."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import Any, TextIO

from absl import logging as absl_logging


def prepare() -> None:
    """Makes both streams tolerant, shortens the time stamps of log lines, and lets plots be drawn without a screen."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook hands its own one to the programs that it starts
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as by ">&-"
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open to the end
    absl_logging.use_absl_handler()  # it removes other handlers of this very standard error
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Formatter())
    handler.python_handler.stream = sys.stderr


class Output(io.TextIOBase):
    """A stream that survives a closed pipe, a full disk and letters that its encoding lacks.

    On a terminal, whole lines are written above the progress bar.

    Args:
      plain: the stream that is written to; the progress bar uses it directly.
    """

    def __init__(self, plain: TextIO):
        self.plain, self._pending = plain, ""
        if hasattr(plain, "reconfigure"):
            plain.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._pending += text
        whole, newline, rest = self._pending.rpartition("\n")
        if newline:
            self._pending = rest
            self._emit(whole + newline)
        return len(text)

    def flush(self) -> None:
        if self._pending and not (self.plain.isatty() and (progress := _bars()) and progress.bar_is_shown()):
            self._pending, text = "", self._pending
            self._emit(text)

    def _emit(self, text: str) -> None:
        hidden = contextlib.nullcontext()
        if self.plain.isatty() and (progress := _bars()) is not None:
            hidden = progress.hidden_bar()
        try:
            with hidden:
                self.plain.write(text)
                self.plain.flush()
        except OSError:  # nobody reads, or nothing can be written: the work goes on, and later lines are dropped
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), self.plain.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def isatty(self) -> bool:
        return self.plain.isatty()

    def fileno(self) -> int:
        return self.plain.fileno()


def _bars() -> Any:
    """Returns the module of progress bars if it is loaded; it imports JAX, which `--help` does without."""
    return sys.modules.get("gram_jax.runtime.progress")


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return text.replace(" ", f" {level}", 1)
