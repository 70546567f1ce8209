"""The units of a run, shared among its processes: each does its own and keeps them, and learns those of the others."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

import jax
from etils import epath

from gram_jax import runtime
from gram_jax.runtime.units import Units


class SharedUnits:
    """What the processes of a run found, unit after unit.

    Process 0 keeps its units in rows.jsonl, process i its in rows-i.jsonl, in a folder that the processes may share
    or not. What was finished is known to all from the start, and stays known where the run goes on with another
    number of processes in one folder.

    Every process must ask for the same units in the same order, and call `exchange` at the same places.

    Args:
      folder: where the files are, local or remote.
      identity: what the run is, JSON values.

    Raises:
      InputError: a file is another run's, or damaged, as `Units` says.
    """

    def __init__(self, folder: epath.Path, identity: dict[str, Any]):
        index, count = jax.process_index(), jax.process_count()
        self._own = Units(folder / ("rows.jsonl" if index == 0 else f"rows-{index}.jsonl"), identity)
        self._found = dict(self._own.items())
        self._fresh = dict(self._found)  # what the others have not been told
        if index == 0:
            # Processes that no longer take part; nobody writes to their files.
            for number, path in _files_of_others(folder):
                if number >= count:
                    self._fresh |= dict(Units(path, identity).items())
        self._groups: dict[Hashable, int] = {}
        self.exchange()

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, unit: tuple) -> bool:
        return unit in self._found

    def __getitem__(self, unit: tuple) -> Any:
        return self._found[unit]

    def is_mine(self, unit: tuple, group: Hashable) -> bool:
        """Whether this process is to do a unit; those of a group, which share work, are done by one process."""
        if unit in self._found:
            return False
        number = self._groups.setdefault(group, len(self._groups))
        return number % jax.process_count() == jax.process_index()

    def add(self, unit: tuple, found: Any) -> None:
        """Keeps what was found; on disk when this returns."""
        self._own.add(unit, found)
        self._found[unit] = self._fresh[unit] = self._own[unit]

    def exchange(self) -> int:
        """Waits for all processes, tells them what this one found, and returns how many units it learned itself."""
        before = len(self._found)
        for fresh in runtime.gather(list(self._fresh.items())):
            self._found |= {tuple(unit): found for unit, found in fresh}
        self._fresh = {}
        return len(self._found) - before


def _files_of_others(folder: epath.Path) -> Iterator[tuple[int, epath.Path]]:
    """The files of processes other than 0, with their numbers."""
    for path in sorted(folder.glob("rows-*.jsonl")) if folder.exists() else ():
        if found := re.fullmatch(r"rows-(\d+)\.jsonl", path.name):
            yield int(found[1]), path
