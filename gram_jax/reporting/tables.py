"""Tables of text: means with confidence intervals, as aligned text or Markdown."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from tabulate import tabulate

from gram_jax.errors import InputError
from gram_jax.evaluation.results import Row
from gram_jax.evaluation.statistics import Summary, summarize

EMPTY = "-"  # the text of a cell without a value


class Table(NamedTuple):
    """A table of text: column titles, the first of which is the title of the row names, and rows of the same length."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def pivot(
    rows: Iterable[Row],
    *,
    index: str = "method",
    columns: str = "dataset",
    over: Sequence[str] = ("seed",),
    metric: str = "accuracy",
    mean_column: bool = True,
    scale: float = 100.0,
    digits: int = 1,
) -> Table:
    """Arranges measurements as index x columns, each cell "mean ± half the 95 % interval" over the remaining fields.

    Args:
      rows: measurements; those of other metrics are ignored.
      index, columns: the `Row` fields that name the rows and columns, which keep the order of first appearance.
      over: the fields that a cell averages over; its rows must agree in every other field.
      metric: the metric.
      mean_column: appends the mean over the columns, taken within each draw first, so that its interval is that of the
        mean over `over`. It is empty for a row without all columns and draws.
      scale, digits: the factor of the values, and the number of digits after the decimal point.

    Returns:
      The table. A cell of one measurement has no interval; an empty cell is "-".

    Raises:
      InputError: no row has the metric, or a cell mixes rows that differ in a field that is not in `over`.

    Example:
      >>> rows = [Row("coop", "few_shot", d, "accuracy", v) for d, v in [("digits", 0.5), ("arrows", 0.7)]]
      >>> print(to_text(pivot(rows)))
      method      digits    arrows    mean
      coop          50.0      70.0    60.0
    """
    frame = pd.DataFrame([dataclasses.asdict(row) for row in rows if row.metric == metric])
    if frame.empty:
        raise InputError(f"no row has the metric {metric!r}")
    values = frame.pop("value") * scale
    frame = frame.astype(object).where(frame.notna(), "None")  # a missing seed is a draw, too
    fixed = [field for field in frame if field not in {index, columns, "metric", *over}]
    for cell, own in frame.groupby([index, columns], sort=False):
        if mixed := [field for field in fixed if own[field].nunique() > 1]:
            raise InputError(f"the cell {cell} mixes values of {mixed[0]}; filter the rows, or add it to `over`")
        if (again := own[own.duplicated(list(over))]).size:
            raise InputError(f"the cell {cell} has two rows for {again[list(over)].iloc[0].to_dict()}")
    names, titles = (list(dict.fromkeys(frame[field])) for field in (index, columns))
    wide = frame.assign(value=values).pivot(index=[index, *over], columns=columns, values="value")[titles]
    body = []
    for name in names:
        own = wide.loc[[name]]
        line = [format_summary(_summary(own[title].dropna()), digits) for title in titles]
        if mean_column and len(titles) > 1:
            line.append(EMPTY if own.isna().any(axis=None) else format_summary(_summary(own.mean(axis=1)), digits))
        body.append((str(name), *line))
    header = (index, *map(str, titles), *["mean"] * (mean_column and len(titles) > 1))
    return Table(header, tuple(body))


def _summary(values: pd.Series) -> Summary | None:
    return summarize(values.to_numpy(np.float64)) if len(values) else None


def format_summary(summary: Summary | None, digits: int = 1) -> str:
    """Returns "mean ± half the 95 % interval", the mean alone if there is no interval, or "-" for None.

    Example:
      >>> format_summary(summarize([60.0, 70.0, 80.0])), format_summary(summarize([0.5]), digits=3)
      ('70.0 ±24.8', '0.500')
    """
    if summary is None:
        return EMPTY
    half = half_interval(summary)
    return f"{summary.mean:.{digits}f}" + ("" if math.isnan(half) else f" ±{half:.{digits}f}")


def half_interval(summary: Summary) -> float:
    """Returns half the width of the 95 % interval; NaN if there is none."""
    return (summary.ci95[1] - summary.ci95[0]) / 2


def transpose(table: Table) -> Table:
    """Returns a table with rows and columns exchanged.

    Args:
      table: the table; its corner keeps the title.

    Example:
      >>> transpose(Table(("method", "digits", "mean"), (("coop", "50.0", "60.0"),)))
      Table(header=('method', 'coop'), rows=(('digits', '50.0'), ('mean', '60.0')))
    """
    header, *rows = zip(table.header, *table.rows, strict=True)
    return Table(header, tuple(rows))


def to_text(table: Table) -> str:
    """Returns a table as aligned text without a final newline; names are left-aligned, numbers right-aligned.

    Args:
      table: the table.

    Example:
      >>> print(to_text(Table(("method", "a"), (("coop", "1.0"),))))
      method      a
      coop      1.0
    """
    return _tabulate(table, "plain")


def to_markdown(table: Table) -> str:
    """Returns a table as Markdown without a final newline.

    Args:
      table: the table; "|" in its cells is escaped.

    Example:
      >>> print(to_markdown(Table(("method", "a"), (("coop", "1.0"),))))
      | method   |   a |
      |:---------|----:|
      | coop     | 1.0 |
    """
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in (table.header, *table.rows))
    header, *rows = map(tuple, escaped)
    return _tabulate(Table(header, tuple(rows)), "pipe")


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}  # fmt: skip
_BOLD = re.compile(r"\\textbf\{(.*)\}")


def to_latex(table: Table, caption: str = "") -> str:
    r"""Returns a table as LaTeX with the rules of the package booktabs and a final newline.

    Args:
      table: the table; its cells are escaped, `\textbf{...}` around a cell remains.
      caption: the caption; empty for none.

    Example:
      >>> print(to_latex(Table(("method", "a_b"), (("coop", "1.0 ±0.1"),)), "Few-shot"), end="")
      \begin{table}
      \caption{Few-shot}
      \begin{tabular}{lr}
      \toprule
      method & a\_b \\
      \midrule
      coop & 1.0 $\pm$0.1 \\
      \bottomrule
      \end{tabular}
      \end{table}
    """
    header, *rows = (" & ".join(map(_latex, line)) + r" \\" for line in (table.header, *table.rows))
    columns = "l" + "r" * (len(table.header) - 1)
    begin = [r"\begin{table}", *[rf"\caption{{{_latex(caption)}}}"] * bool(caption), rf"\begin{{tabular}}{{{columns}}}"]
    rules = r"\toprule", header, r"\midrule", *rows, r"\bottomrule"
    return "\n".join([*begin, *rules, r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex(cell: str) -> str:
    bold = _BOLD.fullmatch(cell)
    text = "".join(_LATEX.get(letter, letter) for letter in (bold[1] if bold else cell))
    text = re.sub(r"(?<!\w)-(?=\d)", "$-$", _one_line(text))  # a minus, not the hyphen of a name
    return rf"\textbf{{{text}}}" if bold else text


def _one_line(cell: str) -> str:
    return " ".join(cell.split("\n"))


def _tabulate(table: Table, style: str) -> str:
    alignment = ("left", *["right"] * (len(table.header) - 1))
    header, *rows = (tuple(map(_one_line, line)) for line in (table.header, *table.rows))
    text = tabulate(rows, header, tablefmt=style, colalign=alignment, disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())
