"""The plots of a report for single protocols: transfer to other datasets and domains, and long tails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_jax.evaluation.protocols import TRANSFER, imbalance
from gram_jax.evaluation.results import Row
from gram_jax.evaluation.statistics import Summary
from gram_jax.reporting import plots
from gram_jax.reporting.grid import Grid, Scope, in_shots, measure, scopes, shots_of, with_thirds
from gram_jax.reporting.names import label, ordered

_TARGETS = 16  # in a panel; more would be illegible


def transfer(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Plots the accuracy on every target and the mean, a panel for each source; returns False without targets."""
    panels: list[tuple[str, Grid, str]] = []
    for protocol in TRANSFER:
        scope = Scope(protocol, True)
        if counts := shots_of(rows, scope):
            grid = measure(rows, scope, shots if shots in counts else counts[-1])
            panels += [(scope.title, grid, source) for source in dict.fromkeys(dataset for dataset, _ in grid.items)]
    if not panels:
        return False
    with plots.drawing(0.7 + 2.9 * len(panels), len(panels), 1) as (figure, axes):
        for axis, (title, grid, source) in zip(axes[:, 0], panels, strict=True):
            places = [i for i, (dataset, _) in enumerate(grid.items) if dataset == source]
            shown = places[:_TARGETS]
            left_out = f", {len(places) - len(shown)} more targets in the mean" * (len(places) > len(shown))
            names = [str(grid.items[i][1]).rpartition(":")[2] for i in shown] + ["mean"]
            for index, method in enumerate(grid.values):
                summaries = [grid.summary(method, items=items) for items in (*([i] for i in shown), places)]
                _dots(axis, summaries, index, len(grid.values), method)
            axis.axvline(len(shown) - 0.5, color=plots.GRAY, linewidth=0.8)
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
            axis.set_xlim(-0.6, len(names) - 0.4)
            axis.grid(axis="x", visible=False)
            axis.set_ylabel("accuracy, %")
            axis.set_title(f"{title}, from {source}, {in_shots(grid.shots)}{left_out}")
        plots.legend(figure, axes)
        plots.save(figure, path)
    return True


def long_tails(rows: Sequence[Row], path: str | os.PathLike[str], *, shots: int | None = None) -> bool:
    """Plots H, base and new against tau, and the thirds of classes at the smallest; returns False without two taus."""
    del shots  # the size of the largest class is part of the protocol
    tails = [scope for scope in scopes(rows) if imbalance(scope.protocol) is not None]
    if len(tails) < 2:
        return False
    grids = [measure(rows, scope, shots_of(rows, scope)[-1]) for scope in tails]
    methods = ordered(method for grid in grids for method in grid.values)
    taus = [f"{imbalance(scope.protocol):g}" for scope in tails]
    panels = {"mean of H, %": None, "base accuracy, %": "base", "new accuracy, %": "new"}
    with plots.drawing(3.6, 1, 4) as (figure, axes):
        for axis, (title, split) in zip(axes[0], panels.items(), strict=False):
            for index, method in enumerate(methods):
                _dots(axis, [grid.summary(method, split) for grid in grids], index, len(methods), method, joined=True)
            axis.set_xticks(range(len(taus)), taus)
            axis.set_xlabel("tau, smallest class / largest")
            axis.set_title(title)
        thirds = measure(rows, with_thirds(rows, tails[-1]), grids[-1].shots)
        names = thirds.scope.splits
        for index, method in enumerate(thirds.values):
            _dots(axes[0][3], [thirds.summary(method, name) for name in names], index, len(thirds.values), method)
        axes[0][3].set_xticks(range(len(names)), names)
        axes[0][3].set_xlabel("a third each, by images")
        axes[0][3].set_title(f"base classes, tau {taus[-1]}, %")
        plots.legend(figure, axes)
        plots.save(figure, path)
    return True


def _dots(
    axis: Any, summaries: Sequence[Summary | None], index: int, count: int, method: str, joined: bool = False
) -> None:
    """Draws means with their intervals; those of several methods are side by side."""
    at = np.arange(len(summaries)) + (index - (count - 1) / 2) * min(0.12, 0.5 / count)
    marker = "x" if plots.other_template(method) else plots.style_of(method).marker or "_"
    line = {} if joined else {"linestyle": ""}
    plots.intervals(axis, at, summaries, method, marker=marker, markersize=6, label=label(method), **line)
