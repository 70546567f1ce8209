"""Pairs in a csv or tsv table: a column of image paths, a column of captions."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gram_jax.data import tables
from gram_jax.data.content import content_of_all
from gram_jax.data.pairs import base
from gram_jax.data.pairs.base import Pair, Reading, Skipped
from gram_jax.data.readers.files import absent, require_text
from gram_jax.errors import InputError

MAX_LINE = 16 << 20  # bytes of a line of a table
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def plan(source: str, path: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields one unit per `reading.unit_pairs` rows; parses the table once to find where units begin."""
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(absent(Path(path), "file"))
    state, folder = base.file_state(path), os.path.dirname(os.path.abspath(path))
    with open(path, "rb") as file:
        require_text(file.read(64), path, utf_16=False)
        file.seek(0)
        lines = _Lines(file, path)
        header, columns = _header(lines, source, path, reading)
        shared = {"kind": source, **state, "columns": columns, "max_bytes": reading.max_bytes}
        shared |= {"separator": header.separator, "width": len(header.columns)}
        unused = [name for place, name in enumerate(header.columns) if name and place not in columns]
        offset, first = lines.consumed, 1
        images: list[str] = []
        for row in _rows(lines, header.separator, path, before=1):
            image = row[columns[0]].strip() if len(row) > columns[0] else ""
            if first == 1 and not images and _URL.match(image):
                raise InputError(
                    f"{path} lists URLs ({image!r}); download the images first, for example with img2dataset, and give "
                    "webdataset:FILES"
                )
            images.append("" if "\0" in image else tables.local_path(folder, image))
            if len(images) == reading.unit_pairs:
                yield {**shared, **_unit(folder, offset, first, images), "unused": unused}
                offset, first, images, unused = lines.consumed, first + len(images), [], []
        if images:
            yield {**shared, **_unit(folder, offset, first, images), "unused": unused}
        elif first == 1:
            raise InputError(f"{path} has a header but no rows")


def _unit(folder: str, offset: int, first: int, images: list[str]) -> dict[str, Any]:
    return {"offset": offset, "first": first, "count": len(images), "content": content_of_all(folder, images)}


def _header(lines: _Lines, source: str, path: str, reading: Reading) -> tuple[tables.Header, list[int]]:
    """Reads the first line; returns it, and the places of the image column and the caption column."""
    line = next(lines, "")
    separator = "\t" if source == "tsv" else tables.separator_line(line)
    if separator and source == "csv":
        line = next(lines, "")
    given = {"image": reading.image_column, "caption": reading.caption_column}
    tables.require_header(line, path, "image,caption")
    header = tables.read_header(line, ("image", "caption"), path, separator, given)
    chosen = base.choose_columns(path, header.columns, reading, header.columns)
    return header, [header.columns.index(name) for name in chosen]


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Yields the pairs of a range of rows."""
    table = base.check_state(unit)
    for name in unit.get("unused", ()):
        yield Skipped(name, base.UNUSED, "columns that are not read")
    with open(table, "rb") as file:
        file.seek(unit["offset"])
        separator = unit.get("separator", "\t" if unit["kind"] == "tsv" else ",")
        rows = _rows(_Lines(file, str(table)), separator, str(table))
        for number in range(unit["first"], unit["first"] + unit["count"]):
            yield _pair(table, f"{table.name}:{number}", next(rows), unit)


def _pair(table: Path, name: str, row: list[str], unit: dict[str, Any]) -> Pair | Skipped:
    image_column, caption_column = unit["columns"]
    if tables.is_blank(row):
        return Skipped(name, base.UNUSED, "rows without a value")
    fields = tables.fit(row, unit.get("width", len(row)), max(unit["columns"]) + 1)
    if isinstance(fields, str):
        return Skipped(name, base.MALFORMED, f"the row {fields}")
    return base.make_pair(name, _image(table, fields[image_column], name, unit["max_bytes"]), fields[caption_column])


def _image(table: Path, entry: str, name: str, limit: int) -> bytes | Skipped:
    entry = entry.strip()
    if not entry:
        return Skipped(name, base.NO_IMAGE, "its path is empty")
    if _URL.match(entry):
        return Skipped(name, base.NO_IMAGE, f"{entry} is a URL; download it first")
    if "\0" in entry:  # expanduser cannot handle it
        return Skipped(name, base.NO_IMAGE, f"{entry!r} is not a path")
    path = tables.local_path(table.parent, os.path.expanduser(entry))
    return base.read_file(os.path.join(table.parent, path), name, limit, base.NO_IMAGE)


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


def _rows(lines: _Lines, separator: str, path: str, before: int = 0) -> Iterator[list[str]]:
    """Yields the rows that are not empty; `before` is the number of lines that were read before."""
    if separator == "\t":
        yield from (tables.split_line(line, separator) for line in lines if line.strip("\r\n"))
        return
    reader = csv.reader(lines, strict=True, delimiter=separator)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        line = before + reader.line_num
        raise InputError(f"{path} is not a valid csv file: line {line}: {error}; close its quotes") from error
