"""The metrics of a run as JSON lines."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import jax
import numpy as np
from etils import epath

from gram_jax.errors import InputError
from gram_jax.io import PathLike, write_file


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """Returns the records of a metrics file, one dict per line, in order.

    An incomplete last line, which a killed run may leave, is dropped; any other damaged line is an InputError.

    Args:
      path: a file of `MetricsLog`.
    """
    try:
        text = epath.Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); delete it, or give another --workdir") from error
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # the last part is empty or an incomplete line
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
            _line(record)  # a record that cannot be written again does not come from a log
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with an integer 'step', found {line[:80]!r}; delete "
                "the line, or give another --workdir"
            ) from error
        records.append(record)
    return records


class MetricsLog(contextlib.AbstractContextManager):
    """Appends one JSON object per line to a metrics file; only process 0 of a distributed run writes.

    Lines hold no clock time, so that a resumed run writes the same bytes as an uninterrupted one. For the same reason,
    lines of steps after the restored one are removed when the file is opened.

    Args:
      path: the file; its folders are created.
      resumed_at: the restored step; lines of later steps are removed. None truncates the file.

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
    """

    def __init__(self, path: PathLike, *, resumed_at: int | None = None):
        self._file = None
        if jax.process_index() != 0:
            return
        file = epath.Path(path)
        before = read_metrics(file) if resumed_at is not None and file.exists() else []
        write_file(file, "".join(_line(record) for record in before if record["step"] <= resumed_at))
        self._file = file.open("a")

    def write(self, step: int, **values: Any) -> None:
        """Writes and flushes one line: the number of steps done, and scalars (shape [] or size 1), strings or booleans.

        JSON has no infinities and no NaN; they are written as the strings "inf", "-inf" and "nan".
        """
        record = {"step": int(step)} | {name: _plain(name, value) for name, value in values.items()}
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _plain(name: str, value: Any) -> int | float | str | bool:
    """Returns the JSON value of a scalar."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype == object:
        raise InputError(f"metric {name!r} has shape {array.shape} and type {array.dtype}; log scalars, e.g. its mean")
    number = array.reshape(()).astype(np.float64).item() if array.dtype.kind not in "biu" else array.item()
    return number if not isinstance(number, float) or math.isfinite(number) else repr(number)
