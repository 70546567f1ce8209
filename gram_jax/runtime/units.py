"""Finished units of work in a JSON-lines file, which survives kills: the same command does only what is missing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from gram_jax.errors import InputError, differences
from gram_jax.io import is_remote, write_file
from gram_jax.runtime.devices import gather

logger = logging.getLogger(__name__)


class _Results(Mapping):
    """Results by unit, in the order in which they were added."""

    _results: dict[tuple, Any]

    def __getitem__(self, unit: tuple) -> Any:
        return self._results[unit]

    def __iter__(self) -> Iterator[tuple]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)


class Units(_Results):
    """The results of finished units, in an append-only JSON-lines file.

    The first line holds the identity of the run and appears atomically. Each unit adds one line, which is on disk when
    `add` returns. An incomplete last line, which a kill or a full disk may leave, is dropped and its unit is repeated.
    A damaged file, or one of another run, is an InputError; the message names each difference.

    Args:
      path, identity: the file, local or remote, and JSON values that identify the run.
    """

    def __init__(self, path: epath.Path, identity: dict[str, Any]):
        self._path, self._identity = path, json.loads(json.dumps(identity))
        self._digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        self._results = {}
        self._size = 0  # bytes of complete lines
        if path.exists():
            self._read()

    def add(self, unit: tuple, result: Any) -> None:
        """Appends a result; it is on disk when this returns. If that fails (OSError), the lines before it remain."""
        line = _line({"config": self._digest, "unit": unit, "found": result})
        if not self._size:
            self._replace(_line(self._identity))
        if is_remote(self._path):  # objects of a remote store cannot be appended to
            self._replace(self._path.read_bytes()[: self._size] + line)
        else:
            with open(self._path, "r+b") as file:
                file.seek(self._size)  # overwrites what a failed call may have left
                file.write(line)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            self._size += len(line)
        self._results[unit] = json.loads(line)["found"]

    def _replace(self, content: bytes) -> None:
        write_file(self._path, content)
        self._size = len(content)

    def _read(self) -> None:
        content = self._path.read_bytes()
        *lines, incomplete = content.split(b"\n")
        if incomplete:
            logger.warning("%s: the last line is incomplete; it is dropped and its unit is repeated", self._path)
        for number, line in enumerate(lines, 1):
            try:
                stored = json.loads(line)
                changed = differences(stored, self._identity) if number == 1 else []
                if number > 1:
                    self._results[tuple(stored["unit"])] = stored["found"]
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"{self._path}, line {number} is damaged ({error!r}); delete the line (the whole file if it is the "
                    "first line) and run the same command again to repeat what is missing"
                ) from error
            if changed:
                raise InputError(
                    f"{self._path} belongs to a run with other settings: {'; '.join(changed)}; give another "
                    "--workdir, or delete the file"
                )
        self._size = len(content) - len(incomplete)
        if incomplete and not is_remote(self._path):
            os.truncate(self._path, self._size)


class SharedUnits(_Results):
    """The units of a distributed run: each process does a share of them and learns the results of the others.

    Process 0 appends to rows.jsonl, process i to rows-i.jsonl, in a folder that need not be shared. A run can resume
    with another number of processes in one folder. Every process must ask for the same units in the same order and call
    `exchange` at the same places.

    Args:
      folder, identity: the folder of the files, and JSON values that identify the run, see `Units`.
    """

    def __init__(self, folder: epath.Path, identity: dict[str, Any]):
        index, count = jax.process_index(), jax.process_count()
        self._own = Units(folder / ("rows.jsonl" if index == 0 else f"rows-{index}.jsonl"), identity)
        self._results = dict(self._own)
        self._unsent = dict(self._results)
        # Process 0 also reads the files of processes that no longer take part.
        for path in sorted(folder.glob("rows-*.jsonl")) if index == 0 and folder.exists() else ():
            match = re.fullmatch(r"rows-(\d+)\.jsonl", path.name)
            if match and int(match[1]) >= count:
                self._unsent |= Units(path, identity)
        self._groups: dict[Hashable, int] = {}
        self.exchange()

    def is_mine(self, unit: tuple, group: Hashable) -> bool:
        """Returns whether this process must do a unit; one process does all units of a group, which share work."""
        if unit in self._results:
            return False
        number = self._groups.setdefault(group, len(self._groups))
        return number % jax.process_count() == jax.process_index()

    def add(self, unit: tuple, result: Any) -> None:
        """Appends a result; it is on disk when this returns."""
        self._own.add(unit, result)
        self._results[unit] = self._unsent[unit] = self._own[unit]

    def exchange(self) -> int:
        """Sends new results to all processes, receives theirs, and returns the number of results received."""
        before = len(self._results)
        for unsent in gather(list(self._unsent.items())):
            self._results |= {tuple(unit): result for unit, result in unsent}
        self._unsent = {}
        return len(self._results) - before


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
