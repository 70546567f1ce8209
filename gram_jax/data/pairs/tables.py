"""Pairs in a csv or tsv table: a column of image paths, a column of captions."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gram_jax.data.pairs import base
from gram_jax.data.pairs.base import Pair, Reading, Skipped
from gram_jax.errors import InputError

PATH_NAMES = ("path", "filepath", "file_path", "image", "image_path", "file", "filename", "file_name")
MAX_LINE = 16 << 20  # bytes of a line of a table
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def plan(source: str, path: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields one unit per `reading.unit_pairs` rows; parses the table once to find where units begin."""
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no table {path!r}; check the path")
    state = base.file_state(path)
    with open(path, "rb") as file:
        lines = _Lines(file, path)
        rows = _rows(lines, source, path)
        header = next(rows, None)
        if header is None:
            raise InputError(f"{path} is empty; the first line must name the columns")
        header = [name.strip().removeprefix("\ufeff") for name in header]
        columns = [header.index(name) for name in base.choose_columns(path, header, reading, PATH_NAMES)]
        shared = {"kind": source, **state, "columns": columns, "max_bytes": reading.max_bytes}
        offset, first, count = lines.consumed, 1, 0
        for row in rows:
            if first == 1 and not count and len(row) > columns[0] and _URL.match(row[columns[0]]):
                raise InputError(
                    f"{path} lists URLs ({row[columns[0]]!r}); download the images first, for example with "
                    "img2dataset, and give webdataset:FILES"
                )
            count += 1
            if count == reading.unit_pairs:
                yield {**shared, "offset": offset, "first": first, "count": count}
                offset, first, count = lines.consumed, first + count, 0
        if count:
            yield {**shared, "offset": offset, "first": first, "count": count}
        elif first == 1:
            raise InputError(f"{path} has a header but no rows")


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Yields the pairs of a range of rows."""
    table = base.check_state(unit)
    image_column, caption_column = unit["columns"]
    with open(table, "rb") as file:
        file.seek(unit["offset"])
        rows = _rows(_Lines(file, str(table)), unit["kind"], str(table))
        for number in range(unit["first"], unit["first"] + unit["count"]):
            row, name = next(rows), f"{table.name}:{number}"
            if len(row) <= max(unit["columns"]):
                reason = base.NO_IMAGE if len(row) <= image_column else base.NO_CAPTION
                yield Skipped(name, reason, f"the row has {len(row)} columns")
                continue
            yield base.make_pair(name, _image(table, row[image_column], name, unit["max_bytes"]), row[caption_column])


def _image(table: Path, entry: str, name: str, limit: int) -> bytes | Skipped:
    entry = entry.strip()
    if not entry:
        return Skipped(name, base.NO_IMAGE, "its path is empty")
    if _URL.match(entry):
        return Skipped(name, base.NO_IMAGE, f"{entry} is a URL; download it first")
    if "\0" in entry:  # expanduser cannot handle it
        return Skipped(name, base.NO_IMAGE, f"{entry!r} is not a path")
    return base.read_file(os.path.join(table.parent, os.path.expanduser(entry)), name, limit, base.NO_IMAGE)


class _Lines:
    """Iterates over the lines of a binary file as text and counts the bytes read.

    Bytes that are not UTF-8 become surrogates: in a path they still name the file, in a caption they are an error.
    """

    def __init__(self, file: BinaryIO, path: str):
        self._file, self._path, self.consumed = file, path, file.tell()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_LINE:
            raise InputError(
                f"{self._path}: the line at byte {self.consumed} has more than {MAX_LINE} bytes; is it a table?"
            )
        self.consumed += len(line)
        return line.decode("utf-8", "surrogateescape")


def _rows(lines: _Lines, source: str, path: str) -> Iterator[list[str]]:
    """Yields the rows that are not empty."""
    if source == "tsv":
        yield from (line.rstrip("\r\n").split("\t") for line in lines if line.strip())
        return
    reader = csv.reader(lines, strict=True)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise InputError(
            f"{path} is not a valid csv file: line {reader.line_num}: {error}; close its quotes, or give tsv:FILE if "
            "tabs separate the fields"
        ) from error
