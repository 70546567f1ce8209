"""Tables of results for people: means with their intervals, as aligned text or Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gram_jax.errors import InputError
from gram_jax.evaluation.results import Row
from gram_jax.evaluation.statistics import summarize

_EMPTY = "-"


class Table(NamedTuple):
    """A table of text.

    Attributes:
      header: the column titles; the first is that of the row names.
      rows: the cells, each row as long as the header.
    """

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
    """Arranges measurements as index x columns, each cell "mean +- half the 95 % interval" over the rest.

    Args:
      rows: measurements; those of other metrics are left out.
      index: the :class:`Row` field that names the table's rows.
      columns: the field that names its columns. Both keep the order of first appearance.
      over: the fields that a cell averages over; in every other field its rows must agree.
      metric: the metric shown.
      mean_column: append the mean over the columns, taken within each draw first, so that its interval is that of the
        mean over ``over``. A row without all columns and draws has none.
      scale: what values are multiplied with; 100 shows fractions as percentages.
      digits: digits after the point.

    Returns:
      The :class:`Table`; a cell of one measurement shows no interval, an empty one "-".

    Raises:
      InputError: no row has the metric, or a cell mixes rows that differ in a field outside ``over``.

    Example:
      >>> rows = [Row("coop", "few_shot", d, "accuracy", v) for d, v in [("digits", 0.5), ("arrows", 0.7)]]
      >>> print(to_text(pivot(rows)))
      method  digits  arrows  mean
      coop      50.0    70.0  60.0

    Reference:
      Our own choice.
    """
    rows = [row for row in rows if row.metric == metric]
    if not rows:
        raise InputError(f"no row holds the metric {metric!r}")
    fixed = [f for f in Row.__dataclass_fields__ if f not in {index, columns, "metric", "value", *over}]
    cells: dict[str, dict[str, dict[tuple, float]]] = {}
    seen: dict[tuple[str, str], tuple] = {}
    titles: dict[str, None] = {}
    for row in rows:
        name, title = str(getattr(row, index)), str(getattr(row, columns))
        titles[title] = None
        rest = tuple(getattr(row, field) for field in fixed)
        if seen.setdefault((name, title), rest) != rest:
            field, *_ = (f for f, a, b in zip(fixed, seen[name, title], rest, strict=True) if a != b)
            raise InputError(f"the cell {name!r}, {title!r} mixes values of {field}: filter rows, or add it to `over`")
        draw = tuple(getattr(row, field) for field in over)
        cell = cells.setdefault(name, {}).setdefault(title, {})
        if draw in cell:
            raise InputError(f"the cell {name!r}, {title!r} has two rows for {dict(zip(over, draw, strict=True))}")
        cell[draw] = row.value * scale
    body = []
    for name, found in cells.items():
        line = [name] + [_cell(list(found[title].values()), digits) if title in found else _EMPTY for title in titles]
        if mean_column and len(titles) > 1:
            line.append(_cell(_means(found, list(titles)), digits))
        body.append(tuple(line))
    header = (index, *titles, "mean") if mean_column and len(titles) > 1 else (index, *titles)
    return Table(header, tuple(body))


def transpose(table: Table) -> Table:
    """The table with rows and columns exchanged: for many columns of few rows.

    Args:
      table: what to turn.

    Returns:
      The turned table; its corner keeps the title.

    Example:
      >>> transpose(Table(("method", "digits", "mean"), (("coop", "50.0", "60.0"),)))
      Table(header=('method', 'coop'), rows=(('digits', '50.0'), ('mean', '60.0')))

    Reference:
      Our own choice.
    """
    header, *rows = zip(table.header, *table.rows, strict=True)
    return Table(header, tuple(rows))


def to_text(table: Table) -> str:
    """The table as aligned text, names to the left, numbers to the right.

    Args:
      table: what to show.

    Returns:
      Lines without a trailing newline.

    Example:
      >>> print(to_text(Table(("method", "a"), (("coop", "1.0"),))))
      method    a
      coop    1.0

    Reference:
      Our own choice.
    """
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    lines = []
    for row in (table.header, *table.rows):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def to_markdown(table: Table) -> str:
    """The table as Markdown.

    Args:
      table: what to show.

    Returns:
      Lines without a trailing newline; "|" within cells is escaped.

    Example:
      >>> print(to_markdown(Table(("method", "a"), (("coop", "1.0"),))))
      | method | a |
      | :-- | --: |
      | coop | 1.0 |

    Reference:
      Our own choice.
    """
    rule = (":--", *("--:" for _ in table.header[1:]))
    rows = (table.header, rule, *table.rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _means(found: dict[str, dict[tuple, float]], titles: list[str]) -> list[float]:
    """The mean over columns within each draw; nothing unless every column has the same draws."""
    draws = found.get(titles[0], {}).keys()
    if any(found.get(title, {}).keys() != draws for title in titles):
        return []
    return [sum(found[title][draw] for title in titles) / len(titles) for draw in draws]


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return _EMPTY
    summary = summarize(values)
    half = (summary.ci95[1] - summary.ci95[0]) / 2
    return f"{summary.mean:.{digits}f}" + ("" if math.isnan(half) else f" ±{half:.{digits}f}")
