"""The plots of a report that belong to single protocols: transfer to other datasets and domains, and long tails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_jax.evaluation import Row
from gram_jax.evaluation.protocols import TRANSFER, imbalance
from gram_jax.reporting import evaluation_tables as _tables
from gram_jax.reporting import plots as _plots
from gram_jax.reporting.evaluation_tables import Grid, Kind

_TARGETS = 16  # of a panel; more could not be read


def transfer(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Accuracy on every target, and the mean, a panel for each source; False where nothing was tested elsewhere."""
    panels: list[tuple[str, Grid, str]] = []
    for protocol in TRANSFER:
        kind = Kind(protocol, True)
        counts = _tables.shots_of(rows, kind)
        if counts:
            grid = _tables.measure(rows, kind, shots if shots in counts else counts[-1])
            panels += [(kind.title, grid, source) for source in dict.fromkeys(dataset for dataset, _ in grid.items)]
    if not panels:
        return False
    with _plots.drawing(0.7 + 2.9 * len(panels), len(panels), 1) as (figure, axes):
        for axis, (title, grid, source) in zip(axes[:, 0], panels, strict=True):
            places = [i for i, (dataset, _) in enumerate(grid.items) if dataset == source]
            shown = places[:_TARGETS]
            left_out = f", {len(places) - len(shown)} more targets in the mean" if len(places) > len(shown) else ""
            columns = [*([i] for i in shown), places]
            names = [str(grid.items[i][1]).rpartition(":")[2] for i in shown] + ["mean"]
            for index, method in enumerate(grid.values):
                found = [_plots.percent(grid.summary(method, grid.score(method)[list(column)])) for column in columns]
                _dots(axis, found, index, len(grid.values), method)
            axis.axvline(len(shown) - 0.5, color=_plots.GRAY, linewidth=0.8)
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
            axis.set_xlim(-0.6, len(names) - 0.4)
            axis.grid(axis="x", visible=False)
            axis.set_ylabel("accuracy, %")
            axis.set_title(f"{title}, from {source}, {_tables.in_shots(grid.shots)}{left_out}")
        _plots.legend(figure, axes)
        _plots.save(figure, path)
    return True


def long_tails(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """H against the tail's length, and the thirds of classes under the longest; False without two lengths."""
    del shots  # a long tail has its own largest class
    kinds = [kind for kind in _tables.kinds(rows) if imbalance(kind.protocol) is not None]
    if len(kinds) < 2:
        return False
    grids = [_tables.measure(rows, kind, _tables.shots_of(rows, kind)[-1]) for kind in kinds]
    methods = _tables.ordered(method for grid in grids for method in grid.values)
    taus = [imbalance(kind.protocol) or 1.0 for kind in kinds]
    thirds = _tables.thirds_of(rows, kinds[-1])
    quantities: dict[str, Any] = {
        "mean of H, %": lambda grid, method: grid.score(method),
        "base accuracy, %": lambda grid, method: grid.values[method]["base"],
        "new accuracy, %": lambda grid, method: grid.values[method]["new"],
    }
    with _plots.drawing(3.6, 1, 4) as (figure, axes):
        at = np.arange(len(taus))
        for axis, (title, quantity) in zip(axes[0], quantities.items(), strict=False):
            for index, method in enumerate(methods):
                found = [
                    _plots.percent(grid.summary(method, quantity(grid, method)) if method in grid.values else None)
                    for grid in grids
                ]
                _dots(axis, found, index, len(methods), method, joined=True)
            axis.set_xticks(at, [f"{tau:g}" for tau in taus])
            axis.set_xlabel("tau, smallest class / largest")
            axis.set_title(title)
        last = _tables.measure(rows, thirds, grids[-1].shots)
        for index, method in enumerate(last.values):
            found = [_plots.percent(last.summary(method, values)) for values in last.values[method].values()]
            _dots(axes[0][3], found, index, len(last.values), method)
        axes[0][3].set_xticks(range(len(thirds.parts)), thirds.parts)
        axes[0][3].set_xlabel("a third each, by images")
        axes[0][3].set_title(f"base classes, tau {taus[-1]:g}, %")
        _plots.legend(figure, axes)
        _plots.save(figure, path)
    return True


def _dots(
    axis: Any, found: Sequence[tuple[float, float]], index: int, count: int, method: str, joined: bool = False
) -> None:
    """Means with their intervals, those of several methods side by side."""
    style = _plots.style_of(method)
    means, halves = np.array(found).T
    own_template = method != _tables.ZERO_SHOT and not _tables.parse(method)[0]
    marker, line = ("x", ":") if own_template else (style.marker or "_", style.line)
    shift = (index - (count - 1) / 2) * min(0.12, 0.5 / count)
    axis.errorbar(
        np.arange(len(means)) + shift, means, yerr=halves if halves.any() else None, color=style.color,
        linestyle=line if joined else "", marker=marker, markersize=6, elinewidth=1, capsize=2,
        label=_tables.label(method),
    )  # fmt: skip
