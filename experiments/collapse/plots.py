"""The plots of `experiments.collapse`: collapse along tuning, and collapse against generalization."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gram_jax import evaluation
from gram_jax.evaluation import Row
from gram_jax.evaluation.protocols import imbalance
from gram_jax.reporting import plots as _plots
from gram_jax.reporting.names import label as method_label
from gram_jax.reporting.plots import STYLES

from . import tables as _collapse_tables
from .tables import MEASURES, PAIRED, REGIMES, WITHIN, Found, Target, family

_ALONG = (
    ("base", "simplex_text", "text: distance\nto a simplex"),
    ("base", "simplex_both", "text with images:\ndistance to a simplex"),
    ("base", "nc3_cosine", "cosine of text\nand image means"),
    ("base", "nc1", "NC1, spread\nwithin classes"),
    ("new", "accuracy", "accuracy on\nnew classes, %"),
)
_SCATTERED = {
    "simplex_text": "text: distance\nto a simplex",
    "simplex_both": "text with images:\ndistance to a simplex",
    "nc3_cosine": "cosine of text\nand image means",
    "nc1": "NC1, spread\nwithin classes",
    "nc4": "NC4, agreement with\nthe nearest mean",
}
_PANELS = 4  # in a line of the scatter plot
_ROOM = 0.08  # of the range of a measure, left free at either side


def along_tuning(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Collapse of base classes and accuracy on new ones against steps: a column for each tau, a curve a method.

    A curve is the mean over datasets, learning rates and shots within each seed, with its interval over seeds. What
    does not vary is left out, and without anything that does there is no plot.
    """
    quantities = [each for each in _ALONG if _varies(rows, *each[:2])]
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    looks = _looks(rows)
    if not quantities:
        return
    with _plots.drawing(0.8 + 1.75 * len(quantities), len(quantities), len(protocols), sharex=True, sharey="row") as (
        figure,
        axes,
    ):
        for line, (split, metric, name) in zip(axes, quantities, strict=True):
            for axis, protocol in zip(line, protocols, strict=True):
                chosen = [row for row in rows if (row.protocol, row.split, row.metric) == (protocol, split, metric)]
                steps = sorted({row.step for row in chosen})
                for method, style in looks.items():
                    own = [row for row in chosen if family(row.method) == method]
                    _curve(axis, own, steps, style, method_label(method), 100 if metric == "accuracy" else 1)
            line[0].set_ylabel(name)
        for axis, protocol in zip(axes[0], protocols, strict=True):
            tau = imbalance(protocol)
            axis.set_title("balanced" if tau is None else f"imbalanced, tau {tau:g}")
        for axis in axes[-1]:
            axis.set_xticks(np.log1p(steps), [str(step) for step in steps])
            axis.set_xlabel("gradient steps, log scale")
        _plots.legend(figure, axes)
        _plots.save(figure, path)


def against(rows: Sequence[Row], found: Sequence[Found], target: Target, path: str | os.PathLike[str]) -> None:
    """Collapse of base classes against a target, a dot for each prompt, around the mean of its dataset and tau.

    What does not vary is left out, and without anything that does there is no plot.
    """
    regimes = [each for each in REGIMES if any(each == one.regime for one in found)]
    measures = [name for name in _SCATTERED if _varies(rows, "base", name)][:_PANELS]
    looks = _looks(rows)
    if not measures:
        return
    with _plots.drawing(0.6 + 2.6 * len(regimes), len(regimes), len(measures), sharey="row") as (figure, axes):
        for line, regime in zip(axes, regimes, strict=True):
            prompts = _collapse_tables.tuned_prompts(rows, regime)
            groups = [(key["dataset"], key["protocol"]) for key in prompts.keys]
            colors = [looks[family(key["method"])].color for key in prompts.keys]
            order = np.random.default_rng(0).permutation(len(groups))  # so that no method lies on top of the others
            y = _centered(100 * prompts.values[target.split, target.metric], groups)
            for axis, measure in zip(line, measures, strict=True):
                x = _centered(prompts.values["base", measure], groups)
                axis.scatter(
                    x[order], y[order], c=[colors[i] for i in order], s=9, alpha=0.45, linewidths=0, rasterized=True
                )
                _line(axis, x, y)
                fields = {"regime": regime, "measure": measure, "split": "base", "target": target.name, "ranks": False}
                within, paired = (_collapse_tables.lookup(found, level=level, **fields) for level in (WITHIN, PAIRED))
                axis.set_title(
                    f"r {_collapse_tables.cell(within)}\nsame step {_collapse_tables.cell(paired)}", fontsize=8.5
                )
                arrow = "collapse →" if MEASURES[measure].rises else "← collapse"
                axis.set_xlabel(f"{_SCATTERED[measure]}\n{arrow}", fontsize=9)
            line[0].set_ylabel(f"{regime}:\n{target.label}, points")
        figure.supxlabel("A dot is a prompt; both axes are around the mean of its dataset and tau.", fontsize=9)
        for method, style in looks.items():
            axes[0][0].scatter([], [], color=style.color, s=30, label=method_label(method))
        _plots.legend(figure, axes)
        _plots.save(figure, path)


def _looks(rows: Iterable[Row]) -> dict[str, Any]:
    """A color and a marker for each method, whatever its learning rate."""
    styles = [style for style in STYLES.values() if style.marker]
    methods = dict.fromkeys(family(row.method) for row in rows)
    return {method: styles[i % len(styles)] for i, method in enumerate(methods)}


def _curve(axis: Any, rows: Sequence[Row], steps: Sequence[int], style: Any, name: str, scale: float) -> None:
    means, halves = [], []
    for step in steps:
        values = _collapse_tables.by_seed(row for row in rows if row.step == step)
        summary = evaluation.summarize(scale * np.array(list(values.values())))
        means.append(summary.mean)
        halves.append((summary.ci95[1] - summary.ci95[0]) / 2 if summary.n > 1 else 0.0)
    at, means, halves = np.log1p(steps), np.array(means), np.array(halves)
    axis.fill_between(at, means - halves, means + halves, color=style.color, alpha=0.18, linewidth=0)
    axis.plot(at, means, color=style.color, marker=style.marker, markersize=4, linewidth=1.8, label=name)


def _line(axis: Any, x: np.ndarray, y: np.ndarray) -> None:
    """The line of least squares through the mean; none where x does not vary."""
    low, high = x.min(), x.max()
    if low == high:
        return
    room = _ROOM * (high - low)
    axis.set_xlim(low - room, high + room)
    slope = np.sum(x * y) / np.sum(x * x)
    axis.plot([low, high], [slope * low, slope * high], color="black", linewidth=1.4)


def _centered(values: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    """Values minus the mean of their group."""
    members: dict[Any, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    found = np.array(values, np.float64)
    for own in members.values():
        found[own] -= found[own].mean()
    return found


def _varies(rows: Sequence[Row], split: str, metric: str) -> bool:
    """Whether a measure is another one for some prompts of one dataset, to more than rounding."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if (row.split, row.metric) == (split, metric):
            values.setdefault(row.dataset, []).append(row.value)
    return any(np.ptp(own) > 1e-4 * np.max(np.abs(own)) for own in values.values())
