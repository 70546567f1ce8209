"""The metrics of a run as JSON lines."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import jax
import numpy as np
from etils import epath

from gram_jax.errors import InputError


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a metrics file back.

    Args:
      path: a file written by :class:`MetricsLog`.

    Returns:
      One dict a line, in order. A last line that a killed run left unfinished is dropped.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: a line other than the last is not a JSON object with a step.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> _ = path.write_text('{"step": 1, "loss": 0.5}\\n{"step": 2, "lo')
      >>> read_metrics(path)
      [{'step': 1, 'loss': 0.5}]

    Reference:
      Our own choice.
    """
    try:
        text = epath.Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text ({error}); remove it, or give the run another workdir.") from error
    records = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines):  # what follows the last newline: nothing, or a line that was never finished
            break
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
            _line(record)  # what cannot be written again was not written here
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with an integer 'step', found {line[:80]!r}. "
                "Remove the line, or give the run another workdir."
            ) from error
        records.append(record)
    return records


class MetricsLog:
    """Appends one JSON object a line to a metrics file; only process 0 of a distributed run writes.

    Lines hold no clock time, so that the file of a run that was killed and resumed equals, byte for byte, the file of
    a run that was not. To that end, what an earlier run wrote after the restored step is removed on opening.

    Args:
      path: the file, created with its folders.
      resumed_at: the step that was restored; lines of later steps are removed. None means a run from the start: the
        file begins anew.

    Raises:
      InputError: the file that is there is not a metrics file.

    Example:
      >>> import tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "metrics.jsonl")
      >>> with MetricsLog(path) as log:
      ...     log.write(1, loss=0.5)
      ...     log.write(2, loss=0.25)
      >>> with MetricsLog(path, resumed_at=1) as log:
      ...     log.write(2, loss=0.125)
      >>> [record["loss"] for record in read_metrics(path)]
      [0.5, 0.125]

    Reference:
      Our own choice.
    """

    def __init__(self, path: str | os.PathLike[str], *, resumed_at: int | None = None):
        self._file = None
        if jax.process_index() != 0:
            return
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[dict[str, Any]] = []
        if resumed_at is not None and path.exists():
            kept = [record for record in read_metrics(path) if record["step"] <= resumed_at]
        part = path.parent / f"{path.name}.part"
        part.write_text("".join(_line(record) for record in kept))
        part.replace(path)
        self._file = path.open("a")

    def write(self, step: int, **values: Any) -> None:
        """Writes one line and flushes it.

        Args:
          step: the number of steps done, >= 0.
          **values: scalars (Python, NumPy or JAX, shape [] or size 1), strings or booleans. Infinities and NaN, which
            JSON lacks, are written as the strings "inf", "-inf" and "nan".

        Raises:
          InputError: a value is not a scalar.
        """
        record = {"step": int(step)} | {name: _plain(name, value) for name, value in values.items()}
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _plain(name: str, value: Any) -> int | float | str | bool:
    """The JSON value of a scalar."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype == object:
        raise InputError(f"metric {name!r} has shape {array.shape} and type {array.dtype}; log scalars, e.g. its mean")
    number = array.reshape(()).astype(np.float64).item() if array.dtype.kind not in "biu" else array.item()
    return number if not isinstance(number, float) or math.isfinite(number) else repr(number)
