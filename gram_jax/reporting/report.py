"""Reports: tables, a CSV file and plots of the results of any number of experiments."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from gram_jax.evaluation.results import Results, Row
from gram_jax.io import write_file
from gram_jax.reporting import plots
from gram_jax.reporting.grid import default_shots
from gram_jax.reporting.sheets import ALONG, BY_DATASET, Sheet
from gram_jax.reporting.tables import to_latex, to_markdown, to_text
from gram_jax.reporting.tabulation import PLOTS, tabulate

logger = logging.getLogger(__name__)

_SCREEN = 36  # lines of tables on a terminal
# In notes that a reader of the tables must know.
_URGENT = ("validation images", "different clips", "excluded", "share none")


def write_report(
    results: Sequence[Results],
    workdir: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    shots: int | None = None,
    against: str | None = None,
    labels: Sequence[str] | None = None,
    show: Callable[[str], Any] | None = None,
) -> str:
    """Writes `table.md`, `table.csv`, `table.tex` and the plots for which there are rows, as PNG, PDF and SVG.

    Differences whose 95 % interval excludes 0 are bold.

    Args:
      results: results of any number of runs; each configuration of a method is a line of its own.
      workdir: the folder to write to.
      names: the names of the results, usually their files.
      shots: labeled images per class in the tables by step and by dataset; None for the largest number.
      labels: labels of the results, for methods of several configurations; None for the settings that differ.
      against: a method that all others are compared with, too; None for zero-shot if nothing else is compared.
      show: called with the first tables as aligned text, at most a screen.

    Returns:
      The text of `table.md`.

    Raises:
      InputError: there is nothing to show, or `against` was not measured.
    """
    names = list(names or (f"results {i + 1}" for i in range(len(results))))
    rows, tables, footer = tabulate(results, names, shots=shots, against=against, labels=labels)
    shots = default_shots(rows) if shots is None else shots
    markdown = "\n".join(f"## {sheet.title}\n\n{to_markdown(sheet.table(bold='**%s**'))}\n" for sheet in tables)
    markdown += "\n" + "".join(f"- {line}\n" for line in footer)
    folder = epath.Path(workdir)
    write_file(folder / "table.md", markdown)
    write_file(folder / "table.csv", _to_csv(tables))
    latex = (to_latex(sheet.table(bold=r"\textbf{%s}"), sheet.title) for sheet in tables)
    write_file(folder / "table.tex", "\n".join(latex))
    _write_plots(rows, folder, shots)
    if show is not None:
        show(_screen(tables, footer, workdir))
    return markdown


def _screen(tables: Sequence[Sheet], footer: Sequence[str], workdir: str | os.PathLike[str]) -> str:
    """Returns the main tables, as many as fit on a screen, what a reader must know, and where the rest is."""
    texts = [f"\n{sheet.title}\n\n{to_text(sheet.table())}\n" for sheet in tables]
    main = next((n for n, sheet in enumerate(tables) if n and sheet.title.startswith((ALONG, *BY_DATASET))), len(texts))
    shown = next((n for n in range(main, 1, -1) if "".join(texts[:n]).count("\n") <= _SCREEN), 1)
    urgent = [f"* {line}" for line in footer if any(word in line for word in _URGENT)]
    more = len(texts) - shown
    rest = f"; {more} more table{'s' * (more > 1)}" if more else ""
    return "\n".join(["".join(texts[:shown]), *urgent, f"table.md, .csv and .tex, notes and plots in {workdir}{rest}"])


def _write_plots(rows: Sequence[Row], folder: epath.Path, shots: int | None) -> None:
    """Writes the plots for which there are rows; one that fails is a warning."""
    for name, plot in PLOTS.items():
        path = folder / f"{name}.png"
        for kind in plots.FORMATS:  # a plot of an earlier report does not belong to the new tables
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
        try:
            plot(rows, path, shots=shots)
        except Exception as error:  # the tables are worth more than a plot
            logger.warning("%s could not be drawn: %s: %s", path, type(error).__name__, error)


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
