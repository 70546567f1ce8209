"""The plots of a report: one color for each role of a method, one row of panels for each tuner."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gram_jax import evaluation
from gram_jax.evaluation import Row
from gram_jax.io import write_file
from gram_jax.reporting import evaluation_tables as _tables
from gram_jax.reporting.evaluation_tables import Grid, Kind

DPI, WIDTH = 150, 9.0  # inches
GRAY, PALE = "#6b6b6b", "#dddddd"
RATIO, COSINE = "gradient_norm_ratio", "gradient_cosine"


class Style(NamedTuple):
    color: str
    marker: str
    line: str = "-"


# Okabe and Ito's palette, which color-blind readers can tell apart.
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
_RC = {
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
}


def accuracy_against_shots(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """H, in-domain and shifted accuracy against the number of shots; False if no two numbers were measured."""
    del shots  # all are shown
    counts = {kind: [count for count in _tables.shots_of(rows, kind) if count] for kind in _tables.KINDS}
    kinds = [kind for kind, found in counts.items() if len(found) > 1]
    curves = {kind: [_tables.measure(rows, kind, count) for count in counts[kind]] for kind in kinds}
    return _curves(curves, counts, "labeled images a class", np.log2, path)


def adaptation(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Accuracy against gradient steps; False if methods share no two steps."""
    shots = _tables.default_shots(rows) if shots is None else shots
    steps = {kind: _tables.common_steps(rows, kind, shots) for kind in _tables.KINDS}
    kinds = [kind for kind, found in steps.items() if len(found) > 1]
    curves = {kind: [_tables.measure(rows, kind, shots, step) for step in steps[kind]] for kind in kinds}
    return _curves(curves, steps, f"gradient steps, log scale ({_tables.in_shots(shots)})", np.log1p, path)


def base_new_h(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Base, new and H of every method; False without base-to-new rows.

    Dots rather than bars: bars would have to begin at zero, where the differences cannot be seen.
    """
    kind = Kind("base_to_new", False)
    counts = _tables.shots_of(rows, kind)
    if not counts:
        return False
    grid = _tables.measure(rows, kind, shots if shots in counts else counts[-1])
    if not grid.items:
        return False
    methods = list(grid.values)
    with drawing(0.9 + 0.36 * len(methods), 1, 3, sharey=True) as (figure, axes):
        quantities: dict[str, Callable[[str], np.ndarray]] = {
            "base classes": lambda method: grid.values[method]["base"],
            "new classes": lambda method: grid.values[method]["new"],
            "H, mean over draws": grid.score,
        }
        for axis, (title, quantity) in zip(axes[0], quantities.items(), strict=True):
            for place, method in enumerate(methods):
                mean, half = percent(grid.summary(method, quantity(method)))
                style = style_of(method)
                axis.errorbar(mean, place, xerr=half, color=style.color, marker=style.marker or "|", capsize=2.5)
                axis.annotate(
                    f"{mean:.1f}", (mean, place), (0, 5), textcoords="offset points", ha="center", fontsize=8.5,
                    color=style.color,
                )  # fmt: skip
            axis.set_title(title)
            axis.set_xlabel("H, %" if title.startswith("H") else "accuracy, %")
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
            axis.margins(x=0.12)
        axes[0][0].set_yticks(range(len(methods)), [_tables.label(method) for method in methods])
        axes[0][0].set_ylim(len(methods) - 0.5, -0.65)
        figure.suptitle(f"{kind.title}, {_tables.in_shots(grid.shots)}{_over(grid)}", fontsize=10)
        save(figure, path)
    return True


def regulation(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """What the regulator does to gradients, along adaptation; False without such rows."""
    rows = [row for row in rows if row.protocol == "regulation" and row.metric in (RATIO, COSINE)]
    rows = [row for row in rows if row.step is not None and row.domain is None]
    counts = sorted({row.shots for row in rows if row.shots is not None})
    rows = [row for row in rows if row.shots in (None, shots if shots in counts else max(counts, default=None))]
    found = {method: _along(rows, method) for method in _tables.ordered(row.method for row in rows)}
    found = {method: panels for method, panels in found.items() if panels}
    if not found:
        return False
    titles = {RATIO: "length of the regulated gradient, |R(g)| / |g|", COSINE: "cosine of R(g) and g"}
    with drawing(0.5 + 2.7 * len(found), len(found), 2) as (figure, axes):
        for line, (method, panels) in zip(axes, found.items(), strict=True):
            for axis, metric in zip(line, (RATIO, COSINE), strict=True):
                steps, values = panels[metric]
                _regulation_panel(axis, steps, values, style_of(method).color)
                axis.set_title(titles[metric])
                axis.set_xlabel("gradient step, log scale")
            line[0].set_ylabel(_tables.label(method))
        legend(figure, axes)
        save(figure, path)
    return True


def _along(rows: Sequence[Row], method: str) -> dict[str, tuple[list[int], np.ndarray]]:
    """For each metric, the steps that all draws share and values ``[datasets, seeds, steps]``; {} without any."""
    panels = {}
    for metric in (RATIO, COSINE):
        chosen = [row for row in rows if row.method == method and row.metric == metric]
        values = {(row.dataset, row.seed, row.step): row.value for row in chosen}
        draws = {(dataset, seed) for dataset, seed, _ in values}
        held = sorted({step for _, _, step in values})
        steps = [step for step in held if all((*draw, step) in values for draw in draws)]
        datasets, seeds = _tables.rectangle(draws)
        if not steps or not datasets:
            return {}
        seeds, datasets = sorted(seeds, key=repr), sorted(datasets)
        panels[metric] = steps, np.array([[[values[d, s, step] for step in steps] for s in seeds] for d in datasets])
    return panels


def _regulation_panel(axis: Any, steps: Sequence[int], values: np.ndarray, color: str) -> None:
    at = np.log1p(steps)
    for index, dataset in enumerate(values.mean(axis=1)):
        axis.plot(at, dataset, color=color, alpha=0.35, linewidth=0.9, label=None if index else "one dataset")
    summaries = [evaluation.summarize(seeds) for seeds in values.mean(axis=0).T]
    low, high = (np.array([summary.ci95[side] for summary in summaries]) for side in (0, 1))
    axis.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
    axis.plot(at, [summary.mean for summary in summaries], color=color, linewidth=2.4, label="mean, 95 % interval")
    axis.axhline(1.0, color=GRAY, linestyle="--", linewidth=1, label="no regulation")
    _ticks(axis, steps, at)


def _curves(
    curves: dict[Kind, list[Grid]],
    places: dict[Kind, list[int]],
    name: str,
    scale: Callable[[Any], Any],
    path: str | os.PathLike[str],
) -> bool:
    """A row of panels for each tuner and a column for each kind: the score of methods at each place."""
    methods = _tables.ordered(method for grids in curves.values() for grid in grids for method in grid.values)
    families = list(dict.fromkeys(_tables.parse(method)[0] for method in methods if _tables.parse(method)[0]))
    several = len(families) > 1
    if not families:
        return False
    with drawing(0.9 + 2.9 * len(families), len(families), len(curves), sharey="col") as (figure, axes):
        for line, family in zip(axes, families, strict=True):
            references = [method for method in methods if not _tables.parse(method)[0]]
            tuned = [method for method in methods if _tables.parse(method)[0] == family]
            for axis, (kind, grids) in zip(line, curves.items(), strict=True):
                at = scale(np.asarray(places[kind]))
                for method in references:
                    _curve(axis, at, grids, method, _name(method, several))
                for index, method in enumerate(tuned):
                    # Side by side, so that intervals do not cover each other.
                    shift = (index - (len(tuned) - 1) / 2) * 0.012 * (at[-1] - at[0])
                    _curve(axis, at + shift, grids, method, _name(method, several))
                axis.set_title(f"{kind.title}\n{kind.quantity}, %")
                _ticks(axis, places[kind], at)
            line[0].set_ylabel(_tables.family_label(family) if several else "")
        for axis in axes[-1]:
            axis.set_xlabel(name)
        legend(figure, axes)
        save(figure, path)
    return True


def _name(method: str, several: bool) -> str:
    """A method's name in the legend: that of its role, since the tuner is known."""
    family, role = _tables.parse(method)
    if not family or (role == "tuner" and not several):
        return _tables.label(method)
    return _tables.ROLES.get(role, f" + GRAM, {role}").removeprefix(" ") or "tuner alone"


def _curve(axis: Any, at: np.ndarray, grids: Sequence[Grid], method: str, name: str) -> None:
    style = style_of(method)
    means, halves = np.array([percent(grid.summary(method, _score(grid, method))) for grid in grids]).T
    line, width = style.line, 2.2 if _tables.parse(method)[1] in ("gram", "tuner") else 1.3
    if method != _tables.ZERO_SHOT and not _tables.parse(method)[0]:
        line = ":"  # another template than that of "zero_shot"
    axis.errorbar(
        at, means, yerr=halves if halves.any() else None, color=style.color, linestyle=line, linewidth=width,
        elinewidth=1, capsize=2, marker=style.marker, markersize=5, label=name,
    )  # fmt: skip


def _score(grid: Grid, method: str) -> np.ndarray:
    return grid.score(method) if method in grid.values else np.zeros((0, 0))


def percent(summary: evaluation.Summary | None) -> tuple[float, float]:
    """Mean and half the 95 % interval in %; 0 where there is no interval, NaN where there is no mean."""
    if summary is None:
        return math.nan, 0.0
    half = (summary.ci95[1] - summary.ci95[0]) / 2
    return 100 * summary.mean, 0.0 if math.isnan(half) else 100 * half


def style_of(method: str) -> Style:
    role = _tables.parse(method)[1]
    return STYLES.get(role) or STYLES.get(role.partition(":")[0], _OTHER)


def _over(grid: Grid) -> str:
    seeds = f", {len(grid.seeds)} seeds: mean and 95 % interval" if len(grid.seeds) > 1 else ""
    return f" ({len(grid.items)} dataset{'s' * (len(grid.items) != 1)}{seeds})"


def _ticks(axis: Any, names: Sequence[int], at: np.ndarray) -> None:
    """Ticks at what was measured, as far as their names have room."""
    chosen, room = [len(names) - 1], 0.09 * (at[-1] - at[0])
    for index in range(len(names) - 2, -1, -1):
        if at[chosen[-1]] - at[index] >= room:
            chosen.append(index)
    axis.set_xticks([at[i] for i in chosen], [str(names[i]) for i in chosen])


def legend(figure: Any, axes: Any) -> None:
    """One legend for all panels."""
    found = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=min(4, len(found)))


@contextmanager
def drawing(height: float, lines: int, columns: int, **shared: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes ``[lines, columns]``, without pyplot's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(lines, columns, squeeze=False, **shared)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    write_file(path, stream.getvalue())
