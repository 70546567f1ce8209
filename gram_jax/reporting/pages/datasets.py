"""The section of a dataset in a report: accuracies, tuning curves, and what each method predicts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.data.account import told
from gram_jax.evaluation.results import Results, Row
from gram_jax.evaluation.statistics import Summary, summarize
from gram_jax.reporting.grid import column_title
from gram_jax.reporting.names import label, ordered
from gram_jax.reporting.pages import charts
from gram_jax.reporting.pages.images import text_bytes
from gram_jax.reporting.pages.markup import Markup, Value, choices, element, facts, figure, joined, listed, table
from gram_jax.reporting.pages.mistakes import Source, stored_for, view
from gram_jax.reporting.pages.page import Budget
from gram_jax.reporting.plots import STYLES, style_of

_PALETTE = tuple(dict.fromkeys(style.color for style in STYLES.values()))
MISSING = (
    "No predictions are stored for this dataset: run experiments.evaluate with --save_predictions, which measures "
    "finished units again for them. The confusion matrix, the classes and the wrong images appear then."
)


def dataset_section(
    name: str, rows: Sequence[Row], sources: Sequence[Source], images: Any, budget: Budget, text: Budget
) -> Markup:
    """Returns the content of the section of a dataset.

    Args:
      name, rows: the dataset, and the merged rows of all files.
      sources: the files.
      images: the opened dataset of a name, or a text that says why it cannot be opened.
      budget, text: the bytes that its images, and its predictions, may use.
    """
    own = [row for row in rows if row.dataset == name and row.metric == "accuracy"]
    about = next((about for each in sources if (about := _about(each.results, name))), {})
    found, problems = stored_for(name, sources)
    parts: list[Any] = [
        facts([("Classes and images from", about.get("source")), ("Split", about.get("split"))]),
        listed(told(about), "notes"),
        _accuracies(own),
        _curves(own),
    ]
    views: list[tuple[str, Markup]] = []
    opened = images(name) if found else None
    for shown in found:
        content = view(shown.stored, opened if shown.stored.domain is None else images(shown.stored.domain), budget)
        if not text.takes(text_bytes(content)):
            problems.append(
                f"{len(found) - len(views)} more sets of predictions are left out, so that the page stays small"
            )
            break
        views.append((shown.title, content))
    parts += [element("h3", "Predictions"), choices("of", views)] if views else []
    parts += [listed(problems, "notes")] if problems else []
    parts += [element("p", MISSING, class_="muted")] if not found else []
    return joined(parts)


def _about(results: Results, name: str) -> Mapping[str, Any]:
    datasets = results.config.get("datasets")
    about = datasets.get(name) if isinstance(datasets, Mapping) else None
    return about if isinstance(about, Mapping) else {}


def _accuracies(rows: Sequence[Row]) -> Markup:
    """Returns the table of accuracies after the last step: methods against protocols, shots and class lists."""
    cells: dict[str, dict[tuple, list[float]]] = {}
    for row in _after_last_step(rows):
        cells.setdefault(row.method, {}).setdefault((row.protocol, row.split, row.shots), []).append(row.value)
    columns = _columns([column for own in cells.values() for column in own])
    if not columns:
        return element("p", "Only other datasets and domains were tested.", class_="muted")

    def cell(method: str, column: tuple) -> Any:
        values = cells[method].get(column) or cells[method].get((*column[:2], None))
        return "" if values is None else accuracy_cell(summarize(values))

    body = [[label(method), *(cell(method, column) for column in columns)] for method in ordered(cells)]
    seeds = len({row.seed for row in rows if row.seed is not None})
    note = f"Accuracy in %: mean ± half the 95 % interval over {seeds} seeds." if seeds > 1 else "Accuracy in %."
    header = ("method", *(column_title(*column) for column in columns))
    return joined([table(header, body, caption="Accuracy"), element("p", note, class_="muted")])


def _columns(measured: Sequence[tuple]) -> list[tuple]:
    """Returns (protocol, split, shots) in order; what is without training belongs to every number of shots."""
    trained = {column[:2] for column in measured if column[2] is not None}
    columns = dict.fromkeys(column for column in measured if column[2] is not None or column[:2] not in trained)
    protocols = [column[0] for column in measured]
    return sorted(columns, key=lambda column: (protocols.index(column[0]), column[2] or 0))


def _after_last_step(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields the rows of the dataset itself, not of its domains, after the last step of each method."""
    last: dict[tuple, int] = {}
    for row in rows:
        unit = row.method, row.protocol, row.shots
        last[unit] = max(row.step or 0, last.get(unit, 0))
    for row in rows:
        if row.domain is None and (row.step or 0) == last[row.method, row.protocol, row.shots]:
            yield row


def accuracy_cell(summary: Summary) -> Value:
    """Returns a share in % with half its interval; numbers and intervals are aligned among themselves."""
    half = (summary.ci95[1] - summary.ci95[0]) / 2
    interval = element("span", "" if half != half else f"±{100 * half:.1f}", class_="pm")
    return Value(Markup(f"{100 * summary.mean:.1f}{interval}"), 100 * summary.mean)


def _curves(rows: Sequence[Row]) -> Markup:
    """Returns accuracy along tuning: a chart for each protocol, number of shots and class list with several steps."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.step is not None and row.domain is None:
            groups.setdefault((row.protocol, row.split, row.shots), []).append(row)
    pictures, names = [], {}
    colors = _colors(ordered(row.method for own in groups.values() for row in own))
    for group, own in groups.items():
        steps = sorted({row.step for row in own if row.step is not None})
        if len(steps) > 1:
            lines = [_curve(method, own, steps, colors[method]) for method in ordered(row.method for row in own)]
            names.update({line.name: line.color for line in lines})
            chart = charts.curves(lines, [str(step or "start") for step in steps], "gradient steps")
            pictures.append(figure(chart, f"{column_title(*group)}: accuracy, %"))
    if not pictures:
        return Markup("")
    title = [element("h3", "Tuning curves"), charts.legend(list(names.items()))]
    note = element("p", "Bands are 95 % intervals over seeds.", class_="muted")
    return joined([title, element("div", pictures, class_="charts"), note])


def _colors(methods: Sequence[str]) -> dict[str, str]:
    """Returns a color for each method: that of its role, as in the plots, unless two methods would share it."""
    colors = {method: style_of(method).color for method in methods}
    if len(set(colors.values())) < len(methods):
        colors = dict(zip(methods, itertools.cycle(_PALETTE), strict=False))
    return {method: "var(--ink)" if color == "#000000" else color for method, color in colors.items()}


def _curve(method: str, rows: Sequence[Row], steps: Sequence[int], color: str) -> charts.Curve:
    numbers = []
    for step in steps:
        values = [row.value for row in rows if row.method == method and row.step == step]
        mean, *ends = (np.nan,) * 3 if not values else ((each := summarize(values)).mean, *each.ci95)
        numbers.append([100 * mean, *(100 * (mean if np.isnan(end) else end) for end in ends)])
    means, lows, highs = map(list, zip(*numbers, strict=True))
    return charts.Curve(label(method), color, means, lows, highs)
