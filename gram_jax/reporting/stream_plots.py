"""The plots of continual learning: the matrix of accuracies, and accuracy along the stream."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from gram_jax.evaluation.statistics import summarize
from gram_jax.reporting import plots
from gram_jax.reporting.names import label
from gram_jax.reporting.tables import half_interval

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", plots.GRAY, "#882255")


def matrices(found: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Draws the mean matrix of every method, task learned against task tested, in percent.

    Args:
      found: A by method, `[seeds, tasks, tasks]`, NaN above the diagonal.
      path: the PNG file; PDF and SVG are written beside it.
    """
    shown = {name: each for name, each in found.items() if not np.isnan(each[:, 0, 0]).any()}
    columns = min(4, max(1, len(shown)))
    lines = -(-len(shown) // columns)
    with plots.drawing(0.4 + 2.4 * max(1, lines), max(1, lines), columns) as (figure, axes):
        for axis in axes.ravel()[len(shown) :]:
            axis.set_visible(False)
        for axis, (name, each) in zip(axes.ravel(), shown.items(), strict=False):
            mean = 100 * each.mean(0)
            picture = axis.imshow(mean, vmin=0, vmax=100, cmap="viridis")
            axis.set_title(label(name))
            axis.set_xlabel("tested task")
            axis.set_ylabel("after task")
            ticks = np.unique(np.linspace(0, len(mean) - 1, 5).astype(int))
            axis.set_xticks(ticks, ticks + 1)
            axis.set_yticks(ticks, ticks + 1)
            axis.grid(visible=False)
        if shown:
            figure.colorbar(picture, ax=axes, label="accuracy, in percent", shrink=0.8)
        plots.save(figure, path)


def along(found: Mapping[str, np.ndarray], counts: Sequence[int], path: str | os.PathLike[str]) -> None:
    """Plots the pooled accuracy on all tasks so far after every task, with 95 % intervals over seeds.

    Args:
      found: A by method, `[seeds, tasks, tasks]`; a method with the last row only is one point.
      counts: test images per task, of each seed `[seeds, tasks]`.
      path: as in `matrices`.
    """
    weights = np.asarray(counts, np.float64)
    with plots.drawing(3.8, 1, 1) as (figure, axes):
        axis = axes[0, 0]
        for (name, each), color in zip(found.items(), _COLORS * 2, strict=False):
            measured = [t for t in range(each.shape[1]) if not np.isnan(each[:, t, 0]).any()]
            pooled = [
                [100 * a[t, : t + 1] @ n[: t + 1] / n[: t + 1].sum() for a, n in zip(each, weights, strict=True)]
                for t in measured
            ]
            means = [float(np.mean(values)) for values in pooled]
            halves = [half_interval(summarize(values)) if len(values) > 1 else 0.0 for values in pooled]
            at = [t + 1 for t in measured]
            marker = "_" if len(at) == 1 else "o"
            axis.errorbar(at, means, halves, label=label(name), color=color, marker=marker, markersize=4, capsize=2)
        axis.set_xlabel("tasks learned")
        axis.set_ylabel("accuracy on all of them, %")
        plots.legend(figure, axes)
        plots.save(figure, path)
