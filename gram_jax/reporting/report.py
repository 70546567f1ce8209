"""Reports: tables, a CSV file and plots of the results of any number of experiments."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from gram_jax.errors import InputError
from gram_jax.evaluation.measures import COSTS
from gram_jax.evaluation.protocols import PROTOCOLS
from gram_jax.evaluation.results import Results, Row
from gram_jax.io import write_file
from gram_jax.reporting import plots, protocol_plots, published
from gram_jax.reporting.grid import default_shots, scopes, shots_of
from gram_jax.reporting.names import default_reference
from gram_jax.reporting.notes import notes
from gram_jax.reporting.sheets import Sheet, sheets
from gram_jax.reporting.tables import to_markdown, to_text

PLOTS = {
    "accuracy_against_shots": plots.accuracy_against_shots,
    "base_new_h": plots.base_new_h,
    "adaptation": plots.adaptation,
    "regulation": plots.regulation,
    "transfer": protocol_plots.transfer,
    "long_tails": protocol_plots.long_tails,
}


def write_report(
    results: Sequence[Results],
    workdir: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    shots: int | None = None,
    against: str | None = None,
    show: Callable[[str], Any] | None = None,
) -> str:
    """Writes `table.md`, `table.csv` and the plots for which there are rows.

    Args:
      results: results of one clip.
      workdir: the folder to write to.
      names: the names of the results, usually their files.
      shots: labeled images per class in the tables by step and by dataset; None for the largest number.
      against: a method that all others are compared with, too; None for zero-shot if nothing else is compared.
      show: called with the tables as aligned text.

    Returns:
      The text of `table.md`.

    Raises:
      InputError: there is nothing to show, or two files have different values of the same draw; the message names the
        files.
    """
    names = list(names or (f"results {i + 1}" for i in range(len(results))))
    rows = merge(results, names)
    _require_measured(rows, names, shots)
    shots = default_shots(rows) if shots is None else shots
    against = against or default_reference(row.method for row in rows)
    unlike = {dataset: reason for each in results for dataset, reason in published.unlike(each).items()}
    tables = list(sheets(rows, shots, against, unlike))
    footer = notes(rows, tables, unlike, results, names)
    markdown = "\n".join(f"## {sheet.title}\n\n{to_markdown(sheet.table())}\n" for sheet in tables)
    markdown += "\n" + "".join(f"- {line}\n" for line in footer)
    folder = epath.Path(workdir)
    write_file(folder / "table.md", markdown)
    write_file(folder / "table.csv", _to_csv(tables))
    for name, plot in PLOTS.items():
        path = folder / f"{name}.png"
        if not plot(rows, path, shots=shots):
            path.unlink(missing_ok=True)  # a plot of an earlier report does not belong to the new tables
    if show is not None:
        show("".join(f"\n{sheet.title}\n\n{to_text(sheet.table())}\n" for sheet in tables))
        show("\n".join([*(f"* {line}" for line in footer), f"\ntables and plots in {workdir}"]))
    return markdown


def _require_measured(rows: Sequence[Row], names: Sequence[str], shots: int | None) -> None:
    measured = {n for scope in scopes(rows) for n in shots_of(rows, scope)}
    if not measured:
        protocols = ", ".join(sorted({row.protocol for row in rows})) or "no rows at all"
        raise InputError(f"no accuracy of {', '.join(PROTOCOLS)} in {', '.join(names)}; found {protocols}")
    if shots is not None and shots not in measured:
        known = ", ".join(str(n) for n in sorted(n for n in measured if n is not None)) or "none"
        raise InputError(f"--shots={shots} was not measured; the files have {known}")


def merge(results: Sequence[Results], names: Sequence[str]) -> list[Row]:
    """Returns the rows of all results, each draw once; of costs, which vary between runs, the first.

    Args:
      results: the results of several runs.
      names: their files, for messages.

    Raises:
      InputError: two results have different values of the same draw; the message names the files.
    """
    merged: dict[Row, tuple[Row, str]] = {}
    for each, name in zip(results, names, strict=True):
        for row in each.rows:
            draw = dataclasses.replace(row, value=0.0)
            first, where = merged.setdefault(draw, (row, name))
            if first.value != row.value and row.metric not in COSTS:
                fields = {field: value for field, value in dataclasses.asdict(row).items() if value is not None}
                del fields["value"]
                where = f"{where} and {name} have different values of the same draw, {first.value!r} and {row.value!r}"
                text = ", ".join(f"{field}={value!r}" for field, value in fields.items())
                raise InputError(f"{where}, for {text}; report files of different clips or settings separately")
    return [row for row, _ in merged.values()]


def _to_csv(tables: Sequence[Sheet]) -> str:
    """Returns all numbers in long form with all digits; a field is empty if it does not apply."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "row", "column", "percent", "ci95_low", "ci95_high", "n", "p_value"])
    for sheet in tables:
        for name, cells in zip(sheet.names, sheet.rows, strict=True):
            for column, cell in zip(sheet.header[1:], cells, strict=True):
                if (summary := cell.summary) is not None:
                    numbers = *(100 * number for number in (summary.mean, *summary.ci95)), summary.p_value
                    percent, low, high, p = ("" if number != number else repr(number) for number in numbers)
                    writer.writerow([sheet.title, name, column, percent, low, high, summary.n or "", p])
    return stream.getvalue()
