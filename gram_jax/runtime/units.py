"""Finished units of work in a JSON-lines file, which survives kills: the same command does only what is missing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax
from etils import epath

from gram_jax.errors import InputError, differences
from gram_jax.io import is_remote, write_file
from gram_jax.runtime.devices import gather

logger = logging.getLogger(__name__)

_FIELDS = {"unit", "depends", "by", "found"}
_Key = tuple[tuple, str]  # a unit, and the digest of what it depends on


class Units:
    """The results of finished units, in an append-only JSON-lines file.

    A line holds a unit; by content, all that its result depends on; the code that measured it; the result; and a
    checksum. So each line is complete in itself: files of several runs can be joined, and a run with more units, or
    with other settings, adds lines to the file. A result is found only under the same dependencies.

    Each line is on disk when `add` returns. An incomplete last line, which a kill or a full disk may leave, is dropped
    and its unit is repeated. A damaged or changed line is an InputError, which names it.

    Args:
      path: the file, local or remote.
      by: JSON values that name the code and the versions that measure.
    """

    def __init__(self, path: epath.Path, by: Mapping[str, Any] | None = None):
        self._path, self._by = path, _plain(by or {})
        self._lines: dict[_Key, dict[str, Any]] = {}
        self._used: dict[_Key, None] = {}
        self._known: dict[tuple, dict[str, Any]] = {}  # what the first line of each unit depends on
        self._told: set[tuple[str, ...]] = set()
        self._size = 0  # bytes of complete lines
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> list[dict[str, Any]]:
        """Returns all lines, in the order of the file."""
        return list(self._lines.values())

    def find(self, unit: tuple, depends: Mapping[str, Any]) -> Any:
        """Returns the result of a unit, which is not None, under its dependencies; None if it is missing.

        A result under other dependencies is not used; a warning names the first differences.
        """
        key = _key(unit, depends)
        if key in self._lines:
            self._used[key] = None
            return self._lines[key]["found"]
        self._tell_differences(key[0], _plain(depends))
        return None

    def add(self, unit: tuple, depends: Mapping[str, Any], found: Any) -> dict[str, Any]:
        """Appends a result and returns its line, which is on disk; if that fails (OSError), the others remain."""
        line = _plain({"unit": unit, "depends": depends, "by": self._by, "found": found})
        line["sha256"] = _digest(line)
        text = json.dumps(line).encode() + b"\n"
        if is_remote(self._path) or not self._size:  # objects of a remote store cannot be appended to
            before = self._path.read_bytes()[: self._size] if self._size else b""
            write_file(self._path, before + text)
        else:
            with open(self._path, "r+b") as file:
                file.seek(self._size)  # overwrites what a failed call may have left
                file.write(text)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        self._size += len(text)
        self.take([line])
        return line

    def take(self, lines: Iterable[dict[str, Any]]) -> None:
        """Keeps lines in memory only, such as those that other processes have written."""
        for line in lines:
            key = _key(tuple(line["unit"]), line["depends"])
            self._lines.setdefault(key, line)
            self._known.setdefault(key[0], line["depends"])

    def measured_by(self) -> list[dict[str, Any]]:
        """Returns the code and versions that measured the results that were found, each with its number of units."""
        counts: dict[str, int] = {}
        for key in self._used:
            text = json.dumps(self._lines[key]["by"], sort_keys=True)
            counts[text] = counts.get(text, 0) + 1
        return [json.loads(text) | {"units": count} for text, count in counts.items()]

    def _tell_differences(self, unit: tuple, depends: dict[str, Any]) -> None:
        if unit not in self._known:
            return
        changed = tuple(differences(self._known[unit], depends))
        if changed not in self._told:
            self._told.add(changed)
            shown = "; ".join(text[:200] for text in changed)
            logger.warning("%s has %s of another run, which is kept and not used: %s", self._path, unit, shown)

    def _read(self) -> None:
        content = self._path.read_bytes()
        *lines, incomplete = content.split(b"\n")
        if incomplete:
            logger.warning("%s: the last line is incomplete; it is dropped and its unit is repeated", self._path)
        for number, text in enumerate(lines, 1):
            where = f"{self._path}, line {number}"
            remedy = "delete the line and run the same command again to repeat its unit"
            try:
                line = json.loads(text)
                found = line.pop("sha256")
                if line.keys() != _FIELDS:
                    raise KeyError(*sorted(_FIELDS ^ line.keys()))
                changed = found != _digest(line)
                self.take(() if changed else (line,))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise InputError(f"{where} is damaged, or of another version ({error!r:.200}); {remedy}") from error
            if changed:
                raise InputError(f"{where}, unit {line['unit']}, was changed: its checksum differs; {remedy}")
        self._size = len(content) - len(incomplete)
        if incomplete and not is_remote(self._path):
            os.truncate(self._path, self._size)


class SharedUnits(Units):
    """The units of a distributed run: each process does a share of them and learns the results of the others.

    Process 0 appends to rows.jsonl, process i to rows-i.jsonl, in a folder that need not be shared. A run can resume
    with another number of processes in one folder. Every process must ask for the same groups in the same order and
    call `exchange` at the same places.

    Args:
      folder, by: the folder of the files, and JSON values that name the code that measures, see `Units`.
    """

    def __init__(self, folder: epath.Path, by: Mapping[str, Any] | None = None):
        index, count = jax.process_index(), jax.process_count()
        super().__init__(folder / ("rows.jsonl" if index == 0 else f"rows-{index}.jsonl"), by)
        # Process 0 also reads the files of processes that no longer take part.
        for path in sorted(folder.glob("rows-*.jsonl")) if index == 0 and folder.exists() else ():
            match = re.fullmatch(r"rows-(\d+)\.jsonl", path.name)
            if match and int(match[1]) >= count:
                self.take(Units(path, by).lines())
        self._unsent = self.lines()
        self._groups: dict[Hashable, int] = {}
        self.exchange()

    def is_mine(self, group: Hashable) -> bool:
        """Returns whether this process does a group of units, which share work."""
        number = self._groups.setdefault(group, len(self._groups))
        return number % jax.process_count() == jax.process_index()

    def add(self, unit: tuple, depends: Mapping[str, Any], found: Any) -> dict[str, Any]:
        """Appends a result and returns its line, which is on disk."""
        line = super().add(unit, depends, found)
        self._unsent.append(line)
        return line

    def exchange(self) -> int:
        """Sends new results to all processes, receives theirs, and returns the number of results received."""
        before = len(self)
        for unsent in gather(self._unsent):
            self.take(unsent)
        self._unsent = []
        return len(self) - before


def _plain(value: Any) -> Any:
    """Returns a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _key(unit: tuple, depends: Mapping[str, Any]) -> _Key:
    hash(unit)  # a list inside would be no key
    return unit, _digest(_plain(depends))
