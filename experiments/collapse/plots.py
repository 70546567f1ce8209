"""The plots of `experiments.collapse`: collapse along tuning, and collapse against generalization."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gram_jax.evaluation.protocols import imbalance
from gram_jax.evaluation.results import Row
from gram_jax.evaluation.statistics import summarize
from gram_jax.reporting.names import label
from gram_jax.reporting.plots import STYLES, Style, drawing, legend, save
from gram_jax.reporting.tables import half_interval

from . import tables
from .tables import MeasureCorrelation, Target, by_seed, without_rate

_NAMES = {
    "simplex_text": "text: distance\nto a simplex",
    "simplex_both": "text with images:\ndistance to a simplex",
    "nc3_cosine": "cosine of text\nand image means",
    "nc1": "NC1, spread\nwithin classes",
    "nc4": "NC4, agreement with\nthe nearest mean",
    "accuracy": "accuracy on\nnew classes, %",
}
_SCATTERED = tuple(_NAMES)[:-1]
_PANELS = 4  # in a row of either plot
_ALONG = (*(("base", name) for name in _SCATTERED[:_PANELS]), ("new", "accuracy"))


def along_tuning(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Plots collapse of base classes and accuracy on new ones against steps: a column per tau, a curve per method.

    A curve is the mean over datasets, learning rates and shots within each seed, with its interval over seeds. Constant
    quantities are omitted; if all are constant, there is no plot.
    """
    quantities = [each for each in _ALONG if _varies(rows, *each)]
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    shape = len(quantities), len(protocols)
    if not quantities:
        return
    with drawing(0.8 + 1.75 * len(quantities), *shape, sharex=True, sharey="row") as (figure, axes):
        for place in np.ndindex(shape):
            axis, (split, metric), protocol = axes[place], quantities[place[0]], protocols[place[1]]
            chosen = [row for row in rows if (row.protocol, row.split, row.metric) == (protocol, split, metric)]
            steps = sorted({row.step for row in chosen})
            for method, style in _styles(rows).items():
                own = [row for row in chosen if without_rate(row.method) == method]
                _curve(axis, own, steps, style, label(method), 100 if metric == "accuracy" else 1)
            axis.set_xticks(np.log1p(steps), map(str, steps))
            axis.label_outer()
        for axis, (_, metric) in zip(axes[:, 0], quantities, strict=True):
            axis.set_ylabel(_NAMES[metric])
        for top, bottom, tau in zip(axes[0], axes[-1], map(imbalance, protocols), strict=True):
            top.set_title("balanced" if tau is None else f"imbalanced, tau {tau:g}")
            bottom.set_xlabel("gradient steps, log scale")
        legend(figure, axes)
        save(figure, path)


def against(
    rows: Sequence[Row], results: Sequence[MeasureCorrelation], target: Target, path: str | os.PathLike[str]
) -> None:
    """Plots collapse of base classes against a target, a dot per prompt, around the mean of its dataset and tau.

    Constant measures are omitted; if all are constant, there is no plot.
    """
    regimes = [each for each in tables.REGIMES if any(each == one.regime for one in results)]
    measures = [name for name in _SCATTERED if _varies(rows, "base", name)][:_PANELS]
    styles = _styles(rows)
    if not measures:
        return
    with drawing(0.6 + 2.6 * len(regimes), len(regimes), len(measures), sharey="row") as (figure, axes):
        for line, regime in zip(axes, regimes, strict=True):
            prompts = tables.tuned_prompts(rows, regime)
            colors = [styles[without_rate(method)].color for method in prompts.index.get_level_values("method")]
            order = np.random.default_rng(0).permutation(len(prompts))  # so that no method covers the others
            y = _centered(100 * prompts[target.split, target.metric])
            for axis, measure in zip(line, measures, strict=True):
                x = _centered(prompts["base", measure])
                axis.scatter(
                    x[order], y[order], c=[colors[i] for i in order], s=9, alpha=0.45, linewidths=0, rasterized=True
                )
                _line(axis, x, y)
                fields = {"regime": regime, "measure": measure, "split": "base", "target": target.name, "ranks": False}
                found = (tables.lookup(results, level=level, **fields) for level in (tables.WITHIN, tables.PAIRED))
                within, paired = map(tables.cell, found)
                axis.set_title(f"r {within}\nsame step {paired}", fontsize=8.5)
                arrow = "collapse →" if measure in tables.RISING else "← collapse"
                axis.set_xlabel(f"{_NAMES[measure]}\n{arrow}", fontsize=9)
            line[0].set_ylabel(f"{regime}:\n{target.label}, points")
        figure.supxlabel("A dot is a prompt; both axes are around the mean of its dataset and tau.", fontsize=9)
        for method, style in styles.items():
            axes[0][0].scatter([], [], color=style.color, s=30, label=label(method))
        legend(figure, axes)
        save(figure, path)


def _styles(rows: Iterable[Row]) -> dict[str, Style]:
    """Returns a style for each method, whatever its learning rate."""
    styles = [style for style in STYLES.values() if style.marker]
    methods = dict.fromkeys(without_rate(row.method) for row in rows)
    return {method: styles[i % len(styles)] for i, method in enumerate(methods)}


def _curve(axis: Any, rows: Sequence[Row], steps: Sequence[int], style: Style, name: str, scale: float) -> None:
    by_step = [by_seed(row for row in rows if row.step == step) for step in steps]
    summaries = [summarize(scale * np.array(list(values.values()))) for values in by_step]
    means = np.array([summary.mean for summary in summaries])
    halves = np.nan_to_num([half_interval(summary) for summary in summaries])
    at = np.log1p(steps)
    axis.fill_between(at, means - halves, means + halves, color=style.color, alpha=0.18, linewidth=0)
    axis.plot(at, means, color=style.color, marker=style.marker, markersize=4, linewidth=1.8, label=name)


def _line(axis: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Draws the least-squares line through the mean, unless x is constant."""
    ends = np.array([x.min(), x.max()])
    if ends[0] < ends[1]:
        axis.set_xlim(*(ends + 0.08 * np.ptp(ends) * np.array([-1, 1])))
        axis.plot(ends, np.sum(x * y) / np.sum(x * x) * ends, color="black", linewidth=1.4)


def _centered(values: pd.Series) -> np.ndarray:
    """Returns values minus the mean of their dataset and protocol."""
    return (values - values.groupby(level=["dataset", "protocol"]).transform("mean")).to_numpy()


def _varies(rows: Sequence[Row], split: str, metric: str) -> bool:
    """Returns whether a measure differs between the prompts of one dataset by more than rounding."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if (row.split, row.metric) == (split, metric):
            values.setdefault(row.dataset, []).append(row.value)
    return any(np.ptp(own) > 1e-4 * np.max(np.abs(own)) for own in values.values())
