"""Tables of images as people write them: separators, spellings of columns, empty columns and rows."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from gram_jax.data.spellings import column_key, find_column
from gram_jax.errors import InputError

SEPARATORS = (",", ";", "\t", "|")
_FILE = re.compile(r"[^\s,;|]+\.(jpe?g|png|gif|bmp|webp|tiff?)\b", re.IGNORECASE)
_SEPARATOR_LINE = re.compile(r"\ufeff?sep=(.)\s*")  # the first line of some spreadsheets


def require_header(line: str, where: str, wanted: str) -> None:
    """Raises InputError if the first line of a table names no columns: it is empty, JSON, or a row with a file.

    Args:
      line: the line.
      where: the table, for messages.
      wanted: an example of such a line, such as "image,label".
    """
    if not line.strip("\ufeff \r\n"):
        raise InputError(f"{where}: the first line is empty; it must name the columns, such as {wanted}")
    if line.lstrip("\ufeff \t")[:1] in "{[":
        raise InputError(f"{where} is JSON, not a table; save it as CSV with the columns {wanted}")
    if file := _FILE.search(line.partition("\r")[0]):
        raise InputError(f"{where}: the first line names no columns, but the file {file[0]!r}; put {wanted} before it")


class Header(NamedTuple):
    """The first line of a table: its separator, the stripped names of its columns, and the places of those that count.

    `places` has no entry for a column that is missing.
    """

    separator: str
    columns: list[str]
    places: dict[str, int]

    def unused(self) -> list[str]:
        """Returns the named columns that are not read."""
        return [name for place, name in enumerate(self.columns) if name and place not in self.places.values()]


def separator_line(line: str) -> str:
    """Returns the separator that a line such as "sep=;" names, or ""."""
    match = _SEPARATOR_LINE.fullmatch(line.strip("\r\n"))
    return match[1] if match else ""


def read_header(
    line: str, wanted: Sequence[str], where: str, separator: str = "", given: dict[str, str] | None = None
) -> Header:
    """Reads the first line of a table.

    Args:
      line: the line.
      wanted: kinds of columns, keys of ``spellings.COLUMNS``; the separator is the one that finds most of them.
      where: the table, for messages.
      separator: the separator, if it is known.
      given: names of columns by kind, instead of the usual spellings.

    Example:
      >>> read_header("File_Name; Class;;\\n", ("image", "label", "split"), "toy.csv").places
      {'image': 0, 'label': 1}
    """
    headers = []
    for each in [separator] if separator else SEPARATORS:
        columns = [name.strip().removeprefix("\ufeff").strip() for name in split_line(line, each)]
        found = {kind: find_column(columns, kind, (given or {}).get(kind, "")) for kind in wanted}
        headers.append(Header(each, columns, {kind: place for kind, place in found.items() if place is not None}))
    header = max(headers, key=lambda each: len(each.places))
    named = [column_key(name) for name in header.columns if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InputError(f"{where}: the first line names a column twice: {', '.join(twice)}; rename or remove one")
    return header


def split_line(line: str, separator: str) -> list[str]:
    """Returns the fields of a line; quotes protect separators, unless the fields are separated by tabs."""
    if separator == "\t":
        return line.rstrip("\r\n").split("\t")
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])
    except csv.Error as error:  # the lines of old Macs end in a carriage return alone
        raise InputError(f"the line {line[:40]!r} is no CSV ({error}); save the table again, as UTF-8 CSV") from error


def unquoted(field: str) -> str:
    """Returns a field without the quotes that spreadsheets put around some fields of tab-separated text.

    Example:
      >>> unquoted('"big ""cat"", white"'), unquoted('5" pipe')
      ('big "cat", white', '5" pipe')
    """
    quoted = len(field) > 1 and field[0] == field[-1] == '"'
    return field[1:-1].replace('""', '"') if quoted else field


def fit(row: Sequence[str], header_length: int, needed: int) -> list[str] | str:
    """Returns the fields of a row without empty ones beyond the header, or what is wrong with their number.

    Args:
      row: the fields.
      header_length: the number of columns.
      needed: the fields that a row must have: the largest place of a column that is read, plus 1.
    """
    if any(field.strip() for field in row[header_length:]):
        return f"has more fields than the header ({len(row)}, not {header_length}); put names with commas in quotes"
    if len(row) < needed:
        return f"has fewer fields than the header ({len(row)}, not {header_length}); put names with commas in quotes"
    return list(row[:header_length])


def is_blank(row: Sequence[str]) -> bool:
    """Returns whether a row has no value, as spreadsheets leave it."""
    return not any(field.strip() for field in row)


def local_path(folder: str | os.PathLike[str], entry: str) -> str:
    r"""Returns a path as this machine writes it: "/" for the "\\" of Windows, unless a file has the literal name."""
    if "\\" not in entry or os.path.exists(os.path.join(folder, entry)):
        return entry
    return entry.replace("\\", "/")
