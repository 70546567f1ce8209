"""The finished units of a run, in a file that a killed run leaves whole: the same command goes on behind them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import ItemsView
from typing import Any

from etils import epath

from gram_jax.errors import InputError
from gram_jax.io import write_file

logger = logging.getLogger(__name__)


class Units:
    """What was found, unit after unit, in a JSON-lines file that begins with what the run is.

    The first line appears whole or not at all; each unit is one line more, on disk when `add` returns. A last line
    without its end, which a kill or a full disk may leave, is dropped, and its unit is measured again.

    Args:
      path: the file, local or remote.
      identity: what the run is, JSON values.

    Raises:
      InputError: the file is another run's, which the message tells field by field, or it is damaged.
    """

    def __init__(self, path: epath.Path, identity: dict[str, Any]):
        self._path, self._identity = path, json.loads(json.dumps(identity))
        self._digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        self._found: dict[tuple, Any] = {}
        self._size = 0  # bytes of whole lines
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, unit: tuple) -> bool:
        return unit in self._found

    def __getitem__(self, unit: tuple) -> Any:
        return self._found[unit]

    def items(self) -> ItemsView[tuple, Any]:
        """The units and what was found, in the order in which they were added."""
        return self._found.items()

    def add(self, unit: tuple, found: Any) -> None:
        """Keeps what was found: one line more, on disk when this returns.

        Raises:
          OSError: it cannot be written; the lines before it stay.
        """
        line = _line({"config": self._digest, "unit": unit, "found": found})
        if not self._size:
            self._replace(_line(self._identity))
        if _is_remote(self._path):  # the objects of a store cannot be appended to
            self._replace(self._path.read_bytes()[: self._size] + line)
        else:
            with open(self._path, "r+b") as file:
                file.seek(self._size)  # over what a failed call may have left
                file.write(line)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            self._size += len(line)
        self._found[unit] = json.loads(line)["found"]

    def _replace(self, content: bytes) -> None:
        write_file(self._path, content)
        self._size = len(content)

    def _read(self) -> None:
        content = self._path.read_bytes()
        *lines, torn = content.split(b"\n")
        if torn:
            logger.warning("%s ends within a line, which is dropped: its unit is measured again", self._path)
        for number, line in enumerate(lines, 1):
            try:
                stored = json.loads(line)
                if number == 1:
                    self._check(stored)
                else:
                    self._found[tuple(stored["unit"])] = stored["found"]
            except OtherRunError:
                raise
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"{self._path}, line {number} is damaged ({error!r}); remove the line (all of the file, if it is "
                    "the first), and the same command measures what is missing"
                ) from error
        self._size = len(content) - len(torn)
        if torn and not _is_remote(self._path):
            os.truncate(self._path, self._size)

    def _check(self, stored: dict[str, Any]) -> None:
        names = sorted(stored.keys() | self._identity.keys())
        differing = [
            f"{name} was {stored.get(name)!r} and is {self._identity.get(name)!r}"
            for name in names
            if stored.get(name) != self._identity.get(name)
        ]
        if differing:
            raise OtherRunError(
                f"{self._path} holds another evaluation: {'; '.join(differing)}. Give another --workdir, or delete it"
            )


class OtherRunError(InputError):
    """The file belongs to a run with other settings."""


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
