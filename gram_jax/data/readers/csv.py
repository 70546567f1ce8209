"""Labeled images listed in a CSV file."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.dataset import Dataset
from gram_jax.data.readers.files import local_folder, missing, read_text
from gram_jax.data.splits import ROLES, Item, arrange, build
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError, examples


class Row(NamedTuple):
    """One line of the table."""

    line: int
    image: str
    label: str
    split: str


def labeled(path: str | os.PathLike[str], seed: int = 0) -> Dataset:
    """Reads a CSV file with a header and the columns image, label and, optionally, split.

    ``image`` is a path relative to the file's folder, ``label`` a class name, ``split`` one of train, val (valid,
    validation) and test; other columns are ignored. Without the column, or with train alone, the images are divided by
    ``splits.divide`` with the seed; without test, val serves as test. Labels follow the sorted class names. References
    are the paths in the file; reading returns the path of an image.
    """
    what = f"csv:{os.fspath(path)}"
    file = local_folder(os.path.dirname(path) or ".", what) / os.path.basename(path)
    rows = _rows(file, what)
    _check(file, rows, what)
    names = sorted({row.label for row in rows})
    labels = {name: label for label, name in enumerate(names)}
    items: dict[str, list[Item]] = {}
    for row in rows:
        items.setdefault(row.split, []).append(Item(row.image, labels[row.label]))
    if set(items) == {"train"}:
        items["train"].sort()  # a division does not depend on the order of the lines
    parts, remark = arrange(items, names, seed, what)
    read = functools.partial(os.path.join, str(file.parent))
    return build(f"csv:{file.stem}", parts, names, DEFAULT, read, {"source": file.name, "split": remark})


def _rows(file: Path, what: str) -> list[Row]:
    """Returns the checked lines of the table."""
    reader = csv.DictReader(io.StringIO(read_text(file, what), newline=""), strict=True)
    try:
        columns = reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
        if not {"image", "label"} <= set(columns):
            raise InputError(
                f"{what}: the first line has the columns {', '.join(columns) or 'none'}; it must name the columns "
                "image and label, and may name split, separated by commas"
            )
        if len(set(columns)) < len(columns):
            raise InputError(f"{what}: the first line names a column twice: {', '.join(columns)}")
        rows = [_row(fields, reader.line_num, what) for fields in reader]
    except csv.Error as error:
        line = reader.line_num + 1  # the line after the last one that was read
        raise InputError(f"{what}, line {line} is no CSV ({error}); check for an open quote") from error
    if not rows:
        raise InputError(f"{what} has a header and no images; add a line for each image")
    return rows


def _row(fields: Mapping[Any, Any], line: int, what: str) -> Row:
    if None in fields or None in fields.values():
        count = "more" if None in fields else "fewer"
        raise InputError(f"{what}, line {line} has {count} fields than the header; put names with commas in quotes")
    row = Row(line, fields["image"].strip(), fields["label"].strip(), fields.get("split", "train").strip())
    if not row.image or not row.label:
        raise InputError(f"{what}, line {line} has no {'label' if row.image else 'image'}")
    if row.split not in ROLES:
        raise InputError(f"{what}, line {line} has the split {row.split!r}; it must be one of {', '.join(ROLES)}")
    return row


def _check(file: Path, rows: list[Row], what: str) -> None:
    """Raises InputError if an image is listed twice or is missing."""
    first: dict[str, Row] = {}
    for row in rows:
        if (other := first.setdefault(os.path.normpath(row.image), row)) is not row:
            raise InputError(
                f"{what}, line {row.line} repeats the image {row.image!r} of line {other.line} "
                f"({row.label!r}, {row.split}, and {other.label!r}, {other.split}); list each image once"
            )
    if lost := set(missing(file.parent, [row.image for row in rows])):
        lines = [row for row in rows if row.image in lost]
        raise InputError(
            f"{what}, line {lines[0].line}: there is no image {file.parent / lines[0].image}; {len(lost)} of "
            f"{len(rows)} images are missing: {examples([row.image for row in lines])}"
        )
