"""The plots of a report: one color for each role of a method, one row of panels for each tuner."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gram_jax.evaluation.results import Row
from gram_jax.evaluation.statistics import Summary, summarize
from gram_jax.io import write_file
from gram_jax.reporting.grid import (
    WITHIN_DATASET,
    Grid,
    Scope,
    common_steps,
    default_shots,
    in_shots,
    measure,
    rectangle,
    shots_of,
)
from gram_jax.reporting.names import ZERO_SHOT, base_label, label, ordered, role_label, split_method
from gram_jax.reporting.tables import half_interval

DPI, WIDTH = 150, 9.0  # inches
FORMATS = ("png", "pdf", "svg")
_EDGE = 0.8  # beyond 0 and 100 %, for half a marker
GRAY, PALE = "#6b6b6b", "#dddddd"
RATIO, COSINE = "gradient_norm_ratio", "gradient_cosine"


class Style(NamedTuple):
    color: str
    marker: str
    line: str = "-"


# The palette of Okabe and Ito, which is suitable for color-blind readers.
STYLES = {
    "tuner": Style("#0072B2", "o"),
    "gram": Style("#D55E00", "s"),
    "following": Style("#882255", "X"),
    "init_only": Style("#E69F00", "^"),
    "init_only:following": Style("#999933", "<"),
    "regulator_only": Style("#009E73", "D"),
    "random_tasks": Style("#CC79A7", "v"),
    "true_groups": Style("#000000", "*", ":"),
    "zero_shot": Style(GRAY, "", "--"),
}
_OTHER = Style("#56B4E9", "P")
_RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "svg.hashsalt": "gram_jax",
}


def accuracy_against_shots(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Plots H, in-domain and shifted accuracy against shots; returns False unless two numbers were measured."""
    del shots  # all are shown
    counts = {scope: [count for count in shots_of(rows, scope) if count] for scope in WITHIN_DATASET}
    panels = [
        Panel(f"{s.title}\n{s.quantity}, %", own, [measure(rows, s, count) for count in own])
        for s, own in counts.items()
        if len(own) > 1
    ]
    return _curves(panels, "labeled images per class", np.log2, path)


def adaptation(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Plots accuracy against gradient steps; returns False if the methods share fewer than two steps."""
    shots = default_shots(rows) if shots is None else shots
    steps = {scope: common_steps(rows, scope, shots) for scope in WITHIN_DATASET}
    panels = [
        Panel(f"{s.title}\n{s.quantity}, %", own, [measure(rows, s, shots, step) for step in own])
        for s, own in steps.items()
        if len(own) > 1
    ]
    return _curves(panels, f"gradient steps, log scale ({in_shots(shots)})", np.log1p, path)


def base_new_along_tuning(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Plots base and new accuracy and H against gradient steps; returns False without two steps of base-to-new.

    Zero-shot with the common template, where tuning from words begins, is left out: it would squeeze the curves.
    """
    scope, rows = Scope("base_to_new", False), [row for row in rows if row.method != ZERO_SHOT]
    shots = default_shots(rows) if shots is None else shots
    if len(steps := common_steps(rows, scope, shots)) < 2:
        return False
    grids = [measure(rows, scope, shots, step) for step in steps]
    titles = {"base": "base classes, accuracy, %", "new": "new classes, accuracy, %", None: "H, %"}
    panels = [Panel(title, steps, grids, split) for split, title in titles.items()]
    return _curves(panels, f"gradient steps ({in_shots(shots)})", np.asarray, path)


def base_new_h(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Plots base, new and H of every method; returns False without base-to-new rows.

    Dots instead of bars: bars start at zero, which would hide the differences.
    """
    scope = Scope("base_to_new", False)
    counts = shots_of(rows, scope)
    if not counts or not (grid := measure(rows, scope, shots if shots in counts else counts[-1])).items:
        return False
    methods = list(grid.values)
    with drawing(0.9 + 0.36 * len(methods), 1, 3, sharey=True) as (figure, axes):
        panels = {"base classes": "base", "new classes": "new", "H, mean over draws": None}
        for axis, (title, split) in zip(axes[0], panels.items(), strict=True):
            for place, method in enumerate(methods):
                (mean, half), style = percent(grid.summary(method, split)), style_of(method)
                sides = within_percent([mean], [half])
                axis.errorbar(mean, place, xerr=sides, color=style.color, marker=style.marker or "|", capsize=2.5)
                axis.annotate(
                    f"{mean:.1f}", (mean, place), (0, 5), textcoords="offset points", ha="center", fontsize=8.5,
                    color=style.color,
                )  # fmt: skip
            axis.set_title(title)
            axis.set_xlabel("accuracy, %" if split else "H, %")
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
            axis.margins(x=0.12)
        axes[0][0].set_yticks(range(len(methods)), [label(method) for method in methods])
        axes[0][0].set_ylim(len(methods) - 0.5, -0.65)
        over = f"{len(grid.items)} dataset" + "s" * (len(grid.items) != 1)
        over += f", {len(grid.seeds)} seeds: mean and 95 % interval" * (len(grid.seeds) > 1)
        figure.suptitle(f"{scope.title}, {in_shots(grid.shots)} ({over})", fontsize=10)
        save(figure, path)
    return True


def regulation(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Plots norm ratio and cosine of regulated gradients along adaptation; returns False without such rows."""
    rows = [row for row in rows if row.protocol == "regulation" and row.metric in (RATIO, COSINE)]
    rows = [row for row in rows if row.step is not None and row.domain is None]
    counts = sorted({row.shots for row in rows if row.shots is not None})
    rows = [row for row in rows if row.shots in (None, shots if shots in counts else max(counts, default=None))]
    curves = {method: panels for method in ordered(row.method for row in rows) if (panels := _along(rows, method))}
    if not curves:
        return False
    titles = {RATIO: "length of the regulated gradient, |R(g)| / |g|", COSINE: "cosine of R(g) and g"}
    with drawing(0.5 + 2.7 * len(curves), len(curves), 2) as (figure, axes):
        for line, (method, panels) in zip(axes, curves.items(), strict=True):
            for axis, metric in zip(line, (RATIO, COSINE), strict=True):
                steps, values = panels[metric]
                _regulation_panel(axis, steps, values, style_of(method).color)
                axis.set_title(titles[metric])
                axis.set_xlabel("gradient step, log scale")
            line[0].set_ylabel(label(method))
        legend(figure, axes)
        save(figure, path)
    return True


def _along(rows: Sequence[Row], method: str) -> dict[str, tuple[list[int], np.ndarray]]:
    """Returns for each metric the steps of all draws and values `[datasets, seeds, steps]`; {} without any."""
    panels = {}
    for metric in (RATIO, COSINE):
        chosen = [row for row in rows if row.method == method and row.metric == metric]
        values = {(row.dataset, row.seed, step): row.value for row in chosen if (step := row.step) is not None}
        draws = {(dataset, seed) for dataset, seed, _ in values}
        measured = sorted({step for _, _, step in values})
        steps = [step for step in measured if all((*draw, step) in values for draw in draws)]
        grid = _complete(draws)
        if not steps or not grid:
            return {}
        panels[metric] = steps, np.array([[[values[*draw, step] for step in steps] for draw in line] for line in grid])
    return panels


def _complete(draws: set[tuple]) -> list[list[tuple]]:
    """Returns (dataset, seed) draws as a complete grid of datasets x seeds; [] if there is none."""
    if not draws:
        return []
    datasets, seeds = (sorted(set(axis), key=repr) for axis in zip(*draws, strict=True))
    rows, columns = rectangle(np.array([[(d, s) in draws for s in seeds] for d in datasets]))
    return [[(datasets[d], seeds[s]) for s in columns] for d in rows]


def _regulation_panel(axis: Any, steps: Sequence[int], values: np.ndarray, color: str) -> None:
    at = np.log1p(steps)
    for index, dataset in enumerate(values.mean(axis=1)):
        axis.plot(at, dataset, color=color, alpha=0.35, linewidth=0.9, label=None if index else "one dataset")
    summaries = [summarize(seeds) for seeds in values.mean(axis=0).T]
    low, high = (np.array([summary.ci95[side] for summary in summaries]) for side in (0, 1))
    axis.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
    axis.plot(at, [summary.mean for summary in summaries], color=color, linewidth=2.4, label="mean, 95 % interval")
    axis.axhline(1.0, color=GRAY, linestyle="--", linewidth=1, label="no regulation")
    _ticks(axis, steps, at)


class Panel(NamedTuple):
    """Measurements at several places of an axis: of a split, or the score of the protocol."""

    title: str
    places: Sequence[int]
    grids: Sequence[Grid]
    split: str | None = None


def _curves(panels: Sequence[Panel], name: str, scale: Callable[[Any], Any], path: str | os.PathLike[str]) -> bool:
    """Plots measurements at each place: a line of panels for each tuner with its additions."""
    methods = ordered(method for panel in panels for grid in panel.grids for method in grid.values)
    bases = list(dict.fromkeys(base for base, _ in map(split_method, methods) if base))
    several = len(bases) > 1
    if not bases:
        return False
    with drawing(0.9 + 2.9 * len(bases), len(bases), len(panels), sharey="col") as (figure, axes):
        for line, base in zip(axes, bases, strict=True):
            for axis, panel in zip(line, panels, strict=True):
                at = scale(np.asarray(panel.places))
                _curve_panel(axis, at, panel, [m for m in methods if split_method(m)[0] in ("", base)], several)
                axis.set_title(panel.title)
                _ticks(axis, panel.places, at, "0" if scale is np.asarray else "start")
            line[0].set_ylabel(base_label(base) * several)
        for axis in axes[-1]:
            axis.set_xlabel(name)
        legend(figure, axes)
        save(figure, path)
    return True


def _curve_panel(axis: Any, at: np.ndarray, panel: Panel, methods: Sequence[str], several: bool) -> None:
    tuned = [method for method in methods if split_method(method)[0]]
    for method in methods:
        # Side by side, so that intervals do not cover each other.
        place = tuned.index(method) - (len(tuned) - 1) / 2 if method in tuned else 0.0
        width = 2.2 if split_method(method)[1] in ("gram", "tuner") else 1.3
        given = {"linewidth": width, "markersize": 5, "label": _name(method, several)}
        summaries = [grid.summary(method, panel.split) for grid in panel.grids]
        intervals(axis, at + place * 0.012 * (at[-1] - at[0]), summaries, method, **given)


def _name(method: str, several: bool) -> str:
    """Returns the name in the legend: that of the role, because the panel names the tuner."""
    base, role = split_method(method)
    if not base or (role == "tuner" and not several):
        return label(method)
    return role_label(role).removeprefix(" ") or "tuner alone"


def other_template(method: str) -> bool:
    """Returns whether a method is zero-shot with another template than that of "zero_shot"."""
    return method != ZERO_SHOT and not split_method(method)[0]


def intervals(axis: Any, at: np.ndarray, summaries: Sequence[Summary | None], method: str, **drawn: Any) -> None:
    """Draws means with their intervals in the style of a method, which `drawn` may change."""
    style = style_of(method)
    means, halves = np.array([percent(summary) for summary in summaries]).T
    given = {"marker": style.marker, "linestyle": ":" if other_template(method) else style.line} | drawn
    yerr = within_percent(means, halves) if halves.any() else None
    axis.errorbar(at, means, yerr=yerr, color=style.color, elinewidth=1, capsize=2, **given)


def within_percent(means: Any, halves: Any) -> np.ndarray:
    """Returns the lengths of both sides of intervals, `[2, ...]`, cut where there is no accuracy: at 0 and 100 %."""
    means, halves = np.asarray(means, float), np.asarray(halves, float)
    return np.stack([np.minimum(halves, np.abs(means)), np.minimum(halves, np.abs(100 - means))])


def percent(summary: Summary | None) -> tuple[float, float]:
    """Returns mean and half the 95 % interval in %; an interval of 0 if there is none, NaN without a mean."""
    if summary is None:
        return math.nan, 0.0
    half = half_interval(summary)
    return 100 * summary.mean, 0.0 if math.isnan(half) else 100 * half


def style_of(method: str) -> Style:
    """Returns the style of a method's role."""
    role = split_method(method)[1]
    return STYLES.get(role) or STYLES.get(role.partition(":")[0], _OTHER)


def _ticks(axis: Any, names: Sequence[int], at: np.ndarray, zero: str = "start") -> None:
    """Places ticks at the measured values, if their names have room; a log scale has no 0."""
    chosen, room = [len(names) - 1], 0.09 * (at[-1] - at[0])
    for index in range(len(names) - 2, -1, -1):
        if at[chosen[-1]] - at[index] >= room:
            chosen.append(index)
    axis.set_xticks([at[i] for i in chosen], [str(names[i] or zero) for i in chosen])


def legend(figure: Any, axes: Any) -> None:
    """Adds one legend for all panels; its title says what bars are, if there are some."""
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    bars = any(getattr(each, "has_yerr", False) for axis in axes.flat for each in axis.containers)
    title = "means; bars: 95 % intervals over seeds" if bars else None
    place = {"loc": "outside upper center", "ncols": min(4, len(entries))}
    figure.legend(entries.values(), entries.keys(), title=title, **place)


@contextmanager
def drawing(height: float, lines: int, columns: int, **shared: Any) -> Iterator[tuple[Any, Any]]:
    """Yields a figure and its axes `[lines, columns]`, without pyplot's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(lines, columns, squeeze=False, **shared)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, and beside it as PDF and SVG, each atomically."""
    target = epath.Path(path)
    for axis in figure.axes:  # no room for accuracies that do not exist
        if "%" in axis.get_xlabel():
            axis.set_xlim(max(-_EDGE, axis.get_xlim()[0]), min(100 + _EDGE, axis.get_xlim()[1]))
        elif "%" in axis.get_title() + axis.get_ylabel():
            axis.set_ylim(max(-_EDGE, axis.get_ylim()[0]), min(100 + _EDGE, axis.get_ylim()[1]))
    for kind in FORMATS:
        stream = io.BytesIO()
        date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})  # the same figure, the same bytes
        figure.savefig(stream, format=kind, dpi=DPI, metadata=date)
        write_file(target.with_suffix(f".{kind}"), stream.getvalue())
