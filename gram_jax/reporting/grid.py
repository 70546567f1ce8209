"""Accuracies of several methods on the draws that all of them share: the basis of the tables and plots of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gram_jax.evaluation.protocols import TEST_TIME, THIRDS, TRANSFER, AllShots, has_new, imbalance
from gram_jax.evaluation.results import Comparison, Row, comparison
from gram_jax.evaluation.statistics import Summary, harmonic_mean, paired_difference, summarize
from gram_jax.reporting.names import compared_pairs, ordered

TITLES = {
    "base_to_new": "Base-to-new",
    "few_shot": "Few-shot",
    "cross_dataset": "Cross-dataset",
    "domain_generalization": "Domain generalization",
    TEST_TIME: "Test-time",
    AllShots.name: "All training images",
}


class Scope(NamedTuple):
    """A protocol, tested where prompts were tuned or, if shifted, on shifted domains or other datasets.

    `thirds` are thirds of the base classes; empty for the usual splits of the protocol.
    """

    protocol: str
    shifted: bool
    thirds: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        return self.thirds or (("base", "new") if has_new(self.protocol) else ("all",))

    @property
    def quantity(self) -> str:
        return "mean of H" if has_new(self.protocol) else "accuracy"

    @property
    def title(self) -> str:
        tau = imbalance(self.protocol)
        title = TITLES[self.protocol] if tau is None else f"Imbalanced, tau {tau:g}"
        elsewhere = "targets" if self.protocol == "cross_dataset" else "shifted domains"
        return title + f", {elsewhere}" * self.shifted

    def includes(self, row: Row, metric: str = "accuracy") -> bool:
        return row.metric == metric and row.protocol == self.protocol and (row.domain is not None) == self.shifted


WITHIN_DATASET = tuple(
    Scope(protocol, shifted)
    for protocol in ("base_to_new", "few_shot", AllShots.name, TEST_TIME)
    for shifted in (False, True)
)


def scopes(rows: Iterable[Row]) -> tuple[Scope, ...]:
    """Returns all possible scopes of rows: within a dataset, then transfer, then long tails, the most even first."""
    protocols = {tau: row.protocol for row in rows if (tau := imbalance(row.protocol)) is not None}
    transfer = [Scope(protocol, shifted) for protocol in TRANSFER for shifted in (False, True)]
    return (*WITHIN_DATASET, *transfer, *(Scope(protocols[tau], False) for tau in sorted(protocols, reverse=True)))


def with_thirds(rows: Iterable[Row], scope: Scope) -> Scope:
    """Returns the scope restricted to the measured thirds of the base classes, by the number of their images."""
    measured = {row.split for row in rows if row.protocol == scope.protocol}
    return scope._replace(thirds=tuple(third for third in THIRDS if third in measured))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Accuracies of several methods on the same datasets and seeds.

    Attributes:
      scope, shots: what was measured; shots are labeled images per class.
      items: (dataset, domain) pairs, the first axis of the values.
      seeds: the second axis.
      values: fractions `[items, seeds]` by method and split; of other shapes for each method if there are no items.
      constant: the methods that do not depend on a seed; their values are repeated.
      steps: the step of each method; None without training.
      lacking: for each incomplete method, the number of draws on which it was not measured.
      left_out: the number of draws of any method that the values do not contain.
    """

    scope: Scope
    shots: int | None
    items: tuple[tuple[str, str | None], ...]
    seeds: tuple[int | None, ...]
    values: dict[str, dict[str, np.ndarray]]
    constant: frozenset[str]
    steps: dict[str, int | None]
    lacking: dict[str, int]
    left_out: int

    def score(self, method: str) -> np.ndarray:
        """Returns the main quantity of the protocol, `[items, seeds]`: H of base and new, or accuracy."""
        values = [self.values[method][split] for split in self.scope.splits]
        return harmonic_mean(*values) if len(values) == 2 else values[0]

    def summary(self, method: str, split: str | None = None, items: Sequence[int] | None = None) -> Summary | None:
        """Averages over items, given by position, within each seed and summarizes over seeds.

        None stands for the score and for all items. Returns None if the method was not measured on them.
        """
        if method not in self.values:
            return None
        values = self.score(method) if split is None else self.values[method][split]
        values = values if items is None else values[list(items)]
        if not values.size:
            return None
        means = values.mean(axis=0)
        return summarize(means[:1] if method in self.constant else means)

    def difference(self, a: str, b: str, items: Sequence[int] | None = None) -> Summary | None:
        """Returns the difference of the scores of two methods, averaged over items and paired over seeds."""
        items = range(len(self.items)) if items is None else items
        if a not in self.values or b not in self.values or not items:
            return None
        draws = slice(1) if {a, b} <= self.constant else slice(None)  # repeated values are no additional evidence
        return paired_difference(*(self.score(each)[list(items), draws].mean(axis=0) for each in (a, b)))


def shots_of(rows: Iterable[Row], scope: Scope, metric: str = "accuracy") -> list[int | None]:
    """Returns the measured numbers of shots; [None] if only zero-shot was measured."""
    shots = {row.shots for row in rows if scope.includes(row, metric)}
    return [*sorted(count for count in shots if count is not None)] or list(shots)


def default_shots(rows: Sequence[Row]) -> int | None:
    """Returns the largest number of shots in the first scope with measurements."""
    return next((shots_of(rows, scope)[-1] for scope in scopes(rows) if shots_of(rows, scope)), None)


def common_steps(rows: Iterable[Row], scope: Scope, shots: int | None) -> list[int]:
    """Returns the steps at which every trained method was measured."""
    steps: dict[str, set] = {}
    for row in rows:
        if scope.includes(row) and row.shots == shots and row.step is not None:
            steps.setdefault(row.method, set()).add(row.step)
    return sorted(set.intersection(*steps.values())) if steps else []


def measure(
    rows: Iterable[Row], scope: Scope, shots: int | None, step: int | None = None, metric: str = "accuracy"
) -> Grid:
    """Arranges the methods on the draws that all of them share; if they share none, without items, each on its own.

    Rows, each draw once, belong to every number of shots if they are without training. The step None is the last step
    of each method.
    """
    steps, chosen = _at_step([row for row in rows if scope.includes(row, metric) and row.shots in (None, shots)], step)
    methods, chosen = list(steps), [row for row in chosen if row.split in scope.splits]
    seeded = {row.method for row in chosen if row.seed is not None}
    constant = frozenset(method for method in methods if steps[method] is None and method not in seeded)
    own_seeds = {row.seed for row in chosen if row.method not in constant}
    seeds = sorted(own_seeds or {None}, key=lambda seed: (seed is not None, seed))
    chosen.sort(key=lambda row: methods.index(row.method))
    items = list(dict.fromkeys((row.dataset, row.domain) for row in chosen))
    values = np.full((len(methods), len(scope.splits), len(items), len(seeds)), np.nan)
    for row in chosen:
        place = methods.index(row.method), scope.splits.index(row.split), items.index((row.dataset, row.domain))
        values[place][slice(None) if row.method in constant else seeds.index(row.seed)] = row.value
    present = ~np.isnan(values)
    complete, any_draw = present.all(axis=1), present.any(axis=(0, 1))
    kept = rectangle(complete.all(axis=0) if methods else np.zeros((0, 0), bool))
    arrays = _on_draws(values, kept if kept[0] else None)
    lacking = dict(zip(methods, (any_draw.sum() - complete.sum(axis=(1, 2))).tolist(), strict=True))
    return Grid(
        scope,
        shots,
        tuple(map(items.__getitem__, kept[0])),
        tuple(map(seeds.__getitem__, kept[1])),
        {method: dict(zip(scope.splits, own, strict=True)) for method, own in zip(methods, arrays, strict=True)},
        constant,
        steps,
        {method: count for method, count in lacking.items() if count},
        int(any_draw.sum()) - len(kept[0]) * len(kept[1]),
    )


def _on_draws(values: np.ndarray, kept: tuple[list[int], list[int]] | None) -> list[np.ndarray]:
    """Returns the values `[splits, items, seeds]` of each method on shared draws, or each on its own for None."""
    places = [kept or rectangle(~np.isnan(own).any(axis=0)) for own in values]
    return [own[:, rows][..., columns] for own, (rows, columns) in zip(values, places, strict=True)]


def _at_step(rows: Sequence[Row], step: int | None) -> tuple[dict[str, int | None], list[Row]]:
    """Returns the step of each method, in the order of methods, and its rows; None for the last step."""
    seen: dict[str, set[int]] = {}
    for row in rows:
        seen.setdefault(row.method, set()).update([] if row.step is None else [row.step])
    steps = {name: (max(seen[name]) if step is None else step) if seen[name] else None for name in ordered(seen)}
    return steps, [row for row in rows if row.step == steps[row.method]]


def rectangle(present: np.ndarray) -> tuple[list[int], list[int]]:
    """Returns rows and columns of a bool matrix whose every combination is True.

    As long as there are holes, it drops the row or column with the largest share of them.

    Example:
      >>> rectangle(np.array([[True, True, False], [True, True, True]]))
      ([0, 1], [0, 1])
    """
    rows, columns = (list(range(length)) for length in present.shape)
    while rows and columns:
        held = present[np.ix_(rows, columns)]
        if held.all():
            return rows, columns
        by_row, by_column = held.mean(axis=1), held.mean(axis=0)
        if by_row.min() <= by_column.min():
            del rows[by_row.argmin()]
        else:
            del columns[by_column.argmin()]
    return [], []


def comparisons(rows: Iterable[Row], against: str | None = None) -> tuple[Comparison, ...]:
    """Compares methods, paired over seeds.

    Values are averaged over datasets and domains within each seed first. `names.compared_pairs` chooses the pairs.

    Args:
      rows: measurements.
      against: a method that every other method is compared with, too.

    Returns:
      The comparisons, whose metric names the quantity, the protocol and the number of shots.
    """
    rows, pairs = list(rows), []
    for scope in scopes(rows):
        for shots in shots_of(rows, scope):
            grid = measure(rows, scope, shots)
            for a, b in compared_pairs(list(grid.values), against):
                if (difference := grid.difference(a, b)) is not None:
                    pairs.append(comparison(a, b, metric_name(scope, shots), "seed", difference))
    return tuple(pairs)


def metric_name(scope: Scope, shots: int | None) -> str:
    """Returns the name of a compared quantity, e.g. "accuracy (few-shot, shifted domains, 4 shots)"."""
    return f"{scope.quantity} ({scope.title.lower()}, {in_shots(shots)})"


def in_shots(shots: int | None) -> str:
    """Returns "no shots", "1 shot", "4 shots"."""
    return "no shots" if shots is None else f"{shots} shot" + "s" * (shots != 1)


def column_title(protocol: str, split: str, shots: int | None) -> str:
    """Returns what a number of one dataset is about, such as "Base-to-new, 4 shots, new"."""
    tau = imbalance(protocol)
    title = TITLES.get(protocol, protocol) if tau is None else f"Imbalanced, tau {tau:g}"
    parts = [title, "" if shots is None else in_shots(shots), "" if split == "all" else split]
    return ", ".join(filter(None, parts))
