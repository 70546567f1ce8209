"""Labeled images listed in a table."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from gram_jax.data import tables
from gram_jax.data.account import Account
from gram_jax.data.content import files_below
from gram_jax.data.dataset import Dataset
from gram_jax.data.readers.files import as_stored, local_folder, missing, read_text
from gram_jax.data.spellings import (
    COLUMNS,
    WITHOUT_IDS,
    are_ids,
    column_key,
    like_a_split,
    merge_spellings,
    missing_column,
    role_of,
    without_ids,
)
from gram_jax.data.splits import Item, arrange, build
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError, examples

_FLAGS = frozenset(("0", "1", "true", "false", "yes", "no", ""))  # the values of a column such as is_test
_KINDS = ("image", "label", "split")


class Row(NamedTuple):
    """One line of the table."""

    line: int
    image: str
    label: str
    split: str


def labeled(path: str | os.PathLike[str], seed: int = 0) -> Dataset:
    """Reads a table with a header and the columns image, label and, optionally, split.

    ``image`` is a path relative to the file's folder, ``label`` a class name, ``split`` a split; the usual spellings of
    columns and splits (``spellings``) are understood in any case. Commas, semicolons, tabs or bars separate the fields.
    Other columns, columns without a name and rows without a value are left out and counted. Without a split, or with
    train alone, the images are divided by ``splits.divide`` with the seed; without test, val serves as test. Labels
    that a clip cannot tell apart are one class. Labels follow the sorted class names. References are the paths in the
    file; reading returns the path of an image.
    """
    what = f"csv:{os.fspath(path)}"
    file = local_folder(os.path.dirname(path) or ".", what) / os.path.basename(path)
    account = Account()
    rows = _rows(file, what, account)
    odd = set(missing(file.parent, [row.image for row in rows if not row.image.isascii()]))
    rows = [row._replace(image=as_stored(file.parent, row.image)) if row.image in odd else row for row in rows]
    _check(file, rows, what)
    name_of, notes = merge_spellings(Counter(row.label for row in rows))
    chosen = sorted(set(name_of.values()))
    labels = {name: chosen.index(name_of[name]) for name in name_of}
    names, stripped = without_ids(chosen)
    notes += [WITHOUT_IDS] if stripped else []
    items: dict[str, list[Item]] = {}
    for row in rows:
        items.setdefault(row.split, []).append(Item(row.image, labels[row.label]))
    if [role_of(split) for split in items] == ["train"]:
        next(iter(items.values())).sort()  # a division does not depend on the order of the lines
    parts, remark = arrange(items, names, seed, what)
    about = {"source": file.name, "split": remark, "notes": notes, "account": account}
    return build(f"csv:{file.stem}", parts, names, DEFAULT, files_below(file.parent, len(rows)), about)


def _rows(file: Path, what: str, account: Account) -> list[Row]:
    """Returns the checked lines of the table, and counts what is not used."""
    text = read_text(file, what).replace("\r\n", "\n").replace("\r", "\n")
    first, _, rest = text.partition("\n")
    separator, skipped = tables.separator_line(first), 0
    if separator:
        text, skipped = rest, 1
    header = _header(text.partition("\n")[0], separator, what)
    lines = list(_fields(text, header, skipped, what, account))
    if not lines:
        raise InputError(f"{what} has a header and no images; add a line for each image")
    fields = [row for _, row in lines]
    header = header._replace(places=_places(header, fields))
    if "split" not in header.places:
        _require_no_split(header, fields, what)
    account.leave_out("columns that are not read", header.unused())
    unnamed = [place for place, name in enumerate(header.columns) if not name]
    filled = [place for place in unnamed if any(row[place].strip() for row in fields if len(row) > place)]
    account.leave_out("columns without a name that hold values", [f"column {place + 1}" for place in filled])
    return [_row(file, row, header.places, line, what) for line, row in lines]


def _fields(
    text: str, header: tables.Header, skipped: int, what: str, account: Account
) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the fields of every line that has a value."""
    needed = max(header.places.values()) + 1
    for line, row in _lines(text, header.separator, skipped, what):
        if tables.is_blank(row):
            account.leave_out("rows without a value", [f"line {line}"] if len(row) > 1 else [])
            continue
        fitted = tables.fit(row, len(header.columns), needed)
        if isinstance(fitted, str):
            raise InputError(f"{what}, line {line} {fitted}")
        yield line, fitted


def _places(header: tables.Header, rows: list[list[str]]) -> dict[str, int]:
    """Returns the places of the columns that are read, now that their values are known.

    A column of names replaces one of ids (label and class_name). A column that may hold splits by its name (fold, set)
    and does not by its values is none.
    """

    def values(place: int) -> set[str]:
        return {row[place].strip() if len(row) > place else "" for row in rows}

    places = dict(header.places)
    others = [each for each, name in enumerate(header.columns) if column_key(name) in COLUMNS["label"]]
    named = [each for each in others if "" not in values(each) and not are_ids(values(each))]
    if named and are_ids(values(places["label"])):
        places["label"] = named[0]
    spelled = "split" in places and column_key(header.columns[places["split"]]) == "split"
    if "split" in places and not spelled and not any(map(role_of, values(places["split"]))):
        del places["split"]
    return places


def _header(line: str, separator: str, what: str) -> tables.Header:
    tables.require_header(line, what, "image,label")
    header = tables.read_header(line, _KINDS, what, separator)
    for kind in ("image", "label"):
        if kind not in header.places:
            raise missing_column(f"{what}: the first line", [name for name in header.columns if name], kind)
    return header


def _lines(text: str, separator: str, skipped: int, what: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the fields of every line after the header."""
    if separator == "\t":
        for number, line in enumerate(text.splitlines()[1:], 2):
            yield number + skipped, [tables.unquoted(field) for field in line.split("\t")]
        return
    reader, last = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1
    try:
        for row in itertools.islice(reader, 1, None):
            yield reader.line_num + skipped, row
            last = reader.line_num
    except csv.Error as error:
        raise InputError(f"{what}, line {last + skipped + 1} is no CSV ({error}); check for an open quote") from error


def _row(file: Path, fields: list[str], places: dict[str, int], line: int, what: str) -> Row:
    image, label = fields[places["image"]].strip(), fields[places["label"]].strip()
    split = fields[places["split"]].strip().lower() if "split" in places else "train"
    if not image or not label:
        raise InputError(f"{what}, line {line} has no {'label' if image else 'image'}")
    if role_of(split) is None:
        raise InputError(f"{what}, line {line} has the split {split!r}; it must be one of train, val and test")
    return Row(line, tables.local_path(file.parent, image), label, split)


def _require_no_split(header: tables.Header, rows: list[list[str]], what: str) -> None:
    """Raises InputError if a column that is not read holds splits: images of test would be trained on."""
    for place, name in enumerate(header.columns):
        values = {row[place].strip() for row in rows if len(row) > place}
        flags = like_a_split(name) and len(values) > 1 and {value.lower() for value in values} <= _FLAGS
        roles = {role_of(value) for value in values} - {None}
        if place not in header.places.values() and (flags or len(roles) > 1):
            raise InputError(
                f"{what}: the column {name!r} holds splits ({examples(sorted(values))}); name it split, with the "
                "values train, val and test, or remove it"
            )


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
        hint = _found_instead(file.parent, lines[0].image)
        raise InputError(
            f"{what}, line {lines[0].line}: there is no image {file.parent / lines[0].image}; {len(lost)} of "
            f"{len(rows)} images are missing: {examples([row.image for row in lines])}{hint}"
        )


def _found_instead(folder: Path, image: str) -> str:
    """Returns a hint on an image that is missing: the file that is probably meant, or why there is none."""
    local = unquote(image.removeprefix("file://"))
    for path in (folder / local, folder / local.lstrip("/"), Path(local).expanduser()):
        with contextlib.suppress(OSError):
            names = [each for each in sorted(os.listdir(path.parent)) if not each.startswith(".")]
            wanted = path.name.casefold()
            whole, stems = ([cut(each.casefold()) for each in names] for cut in (str, lambda n: os.path.splitext(n)[0]))
            for keys in (whole, stems):
                if wanted in keys:
                    return f"; did you mean {os.path.relpath(path.parent / names[keys.index(wanted)], folder)!r}?"
    if image[1:3] == ":/":
        return "; paths of another machine (C:/) are not found here"
    return "; download images first, URLs are not read" if "://" in image else ""
