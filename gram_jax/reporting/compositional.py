"""Compositional zero-shot learning in the field's form: a table of S, U, H and AUC, and the curve behind them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.evaluation.compositional import Measures
from gram_jax.evaluation.results import Row
from gram_jax.evaluation.statistics import summarize
from gram_jax.reporting import plots
from gram_jax.reporting.names import label
from gram_jax.reporting.published import compositional as published_rows
from gram_jax.reporting.tables import EMPTY, Table, format_summary

PROTOCOL = "compositional"
TITLES = dict(zip(Measures._fields, ("S", "U", "H", "AUC", "attribute", "object"), strict=True))
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
_GRID = 101  # points of a mean curve


def table(rows: Sequence[Row], dataset: str, world: str) -> Table:
    """Returns the field's table of one dataset in one world, in %, with published rows below the measured ones.

    Args:
      rows: measurements of the protocol "compositional"; their `split` is the world.
      dataset, world: the name of the dataset, and "closed" or "open".
    """
    own = [row for row in rows if (row.protocol, row.dataset, row.split) == (PROTOCOL, dataset, world)]
    lines = []
    for method in dict.fromkeys(row.method for row in own):
        values: dict[str, list[float]] = {}
        for row in own:
            if row.method == method:
                values.setdefault(row.metric, []).append(100 * row.value)
        lines.append((label(method), *(format_summary(summarize(values[metric])) for metric in TITLES)))
    for printed in published_rows(dataset, world):
        known = {title: f"{100 * value:.1f}" for title, value in printed.values.items()}
        name = f"{printed.method} (published, {printed.source})"
        lines.append((name, *(known.get(title, EMPTY) for title in TITLES.values())))
    return Table(("method", *TITLES.values()), tuple(lines))


def seen_unseen(curves: Mapping[str, Sequence[Any]], title: str, path: str | os.PathLike[str]) -> None:
    """Plots the accuracy of seen pairs against that of unseen ones; a thin line is a seed, a thick one their mean.

    Args:
      curves: by method, a pair (seen, unseen) of accuracies along the bias for each seed.
      title, path: the title, and the PNG file; PDF and SVG are written beside it.
    """
    with plots.drawing(4.2, 1, 1) as (figure, axes):
        axis = axes[0][0]
        for place, (method, seeds) in enumerate(curves.items()):
            color = _COLORS[place % len(_COLORS)]
            for seen, unseen in seeds:
                axis.plot(100 * np.asarray(unseen), 100 * np.asarray(seen), color=color, alpha=0.15, linewidth=0.8)
            at, mean = mean_curve(seeds)
            axis.plot(100 * at, 100 * mean, color=color, linewidth=2, label=label(method))
        axis.set_xlabel("accuracy of unseen pairs, %")
        axis.set_ylabel("accuracy of seen pairs, %")
        axis.set_title(title)
        plots.legend(figure, axes)
        plots.save(figure, path)


def mean_curve(seeds: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns unseen accuracies that every seed reaches, and the mean of the seen accuracies there.

    Example:
      >>> at, mean = mean_curve([([1.0, 0.0], [0.0, 1.0]), ([0.5, 0.0], [0.0, 0.5])])
      >>> float(at[-1]), float(mean[0]), float(mean[-1])
      (0.5, 0.75, 0.25)
    """
    at = np.linspace(0.0, min(float(np.max(unseen)) for _, unseen in seeds), _GRID)
    return at, np.mean([np.interp(at, unseen, seen) for seen, unseen in seeds], axis=0)
