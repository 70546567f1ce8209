"""The finished units of a run, in a file that a killed run leaves whole: the same command goes on behind them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from etils import epath


class Units:
    """What was found, unit after unit, in a JSON-lines file that begins with what the run is."""

    def __init__(self, path: epath.Path, identity: dict[str, Any]):
        self._path, self._identity = path, json.loads(json.dumps(identity))
        self._digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        self._lines: list[dict[str, Any]] = []
        if path.exists():
            first, *lines = [json.loads(line) for line in path.read_text().splitlines()]
            self._check(first)
            self._lines = lines
        self._found = {tuple(line["unit"]): line for line in self._lines}

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, unit: tuple) -> bool:
        return unit in self._found

    def __getitem__(self, unit: tuple) -> Any:
        return self._found[unit]["found"]

    def add(self, unit: tuple, found: Any) -> None:
        """Keeps what was found; the file is replaced in one piece."""
        self._lines.append({"config": self._digest, "unit": unit, "found": found})
        self._found[unit] = self._lines[-1]
        part = self._path.parent / f"{self._path.name}.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in [self._identity, *self._lines]))
        part.replace(self._path)

    def _check(self, stored: dict[str, Any]) -> None:
        names = sorted(stored.keys() | self._identity.keys())
        differing = [
            f"{name} was {stored.get(name)!r} and is {self._identity.get(name)!r}"
            for name in names
            if stored.get(name) != self._identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self._path} holds another evaluation: {'; '.join(differing)}. Give another --workdir, or delete it"
            )
