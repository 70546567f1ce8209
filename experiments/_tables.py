"""Methods side by side on the draws that all of them share: the tables of a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gram_jax import evaluation
from gram_jax.evaluation import Comparison, Row, Summary

FAMILIES = {"coop": "CoOp", "vpt": "VPT", "ivlp": "IVLP"}
ROLES = {
    "tuner": "",
    "gram": " + GRAM",
    "init_only": " + GRAM, initialisation only",
    "regulator_only": " + GRAM, regulator only",
    "random_tasks": " + GRAM, random tasks",
    "true_groups": " + GRAM, true groups (ceiling)",
}
ZERO_SHOT, CEILING = "zero_shot", "true_groups"
_SINGLE_MODAL, _MULTI_MODAL = ("coop+gram", "vpt+gram"), "ivlp+gram"


class Kind(NamedTuple):
    """What was measured: a protocol, in the domain of training or in shifted ones."""

    protocol: str
    shifted: bool

    @property
    def splits(self) -> tuple[str, ...]:
        return ("base", "new") if self.protocol == "base_to_new" else ("all",)

    @property
    def quantity(self) -> str:
        return "mean of H" if self.protocol == "base_to_new" else "accuracy"

    @property
    def title(self) -> str:
        protocol = {"base_to_new": "Base-to-new", "few_shot": "Few-shot"}[self.protocol]
        return protocol + (", shifted domains" if self.shifted else "")


KINDS = tuple(Kind(protocol, shifted) for protocol in ("base_to_new", "few_shot") for shifted in (False, True))


def parse(method: str) -> tuple[str, str]:
    """The tuner and the role of a method: "coop+gram:init_only" is ("coop", "init_only")."""
    if method.partition(":")[0] == ZERO_SHOT:
        return "", method
    family, plus, variant = method.partition("+gram")
    return family, (variant.removeprefix(":") or "gram") if plus else "tuner"


def label(method: str) -> str:
    """A method's name for people."""
    family, role = parse(method)
    if not family:
        template = method.partition(":")[2]
        return "zero-shot" + {"": "", "own": ", own template"}.get(template, f", {template}")
    return FAMILIES.get(family, family) + ROLES.get(role, f" + GRAM, {role}")


def ordered(methods: Iterable[str]) -> tuple[str, ...]:
    """Methods in the order of all tables and plots; the ceiling stands last of its tuner."""
    families, roles = list(FAMILIES), [*(role for role in ROLES if role != CEILING), "", CEILING]

    def place(method: str) -> tuple:
        family, role = parse(method)
        nth = families.index(family) if family in families else len(families)
        return (bool(family), nth, family, roles.index(role if role in roles else ""), role)

    return tuple(sorted(set(methods), key=place))


def pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared: every variant of GRAM with its tuner alone, then multi-modal with single-modal GRAM."""
    found = [(method, parse(method)[0]) for method in methods if parse(method)[1] not in ("tuner", method)]
    found += [(_MULTI_MODAL, single) for single in _SINGLE_MODAL]
    return [(a, b) for a, b in found if a in methods and b in methods]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Accuracies of several methods on the same datasets and seeds.

    Attributes:
      kind: what was measured.
      shots: labelled images a class.
      items: (dataset, domain) pairs, the first axis of the values.
      seeds: the second axis.
      values: by method and split, fractions ``[items, seeds]``.
      constant: the methods that no seed has a part in; their values are repeated.
      steps: the gradient step at which each method was measured, None where nothing was trained.
      lacking: how many of all draws a method was not measured on, by method; those that lack none are left out.
      left_out: how many draws of any method the values do not hold.
    """

    kind: Kind
    shots: int | None
    items: tuple[tuple[str, str | None], ...]
    seeds: tuple[int | None, ...]
    values: dict[str, dict[str, np.ndarray]]
    constant: frozenset[str]
    steps: dict[str, int | None]
    lacking: dict[str, int]
    left_out: int

    def score(self, method: str) -> np.ndarray:
        """What the protocol is judged by, ``[items, seeds]``: H of base and new, or accuracy."""
        parts = [self.values[method][split] for split in self.kind.splits]
        return evaluation.harmonic_mean(*parts) if len(parts) == 2 else parts[0]

    def summary(self, method: str, values: np.ndarray) -> Summary | None:
        """A method's ``[items, seeds]``, averaged over the items within each seed, over the seeds."""
        if method not in self.values or not values.size:
            return None
        means = values.mean(axis=0)
        return evaluation.summarize(means[:1] if method in self.constant else means)

    def difference(self, a: str, b: str) -> Summary | None:
        """The score of `a` minus that of `b`, averaged over the items within each seed, paired over the seeds."""
        if a not in self.values or b not in self.values or not self.items:
            return None
        return evaluation.paired_difference(self.score(a).mean(axis=0), self.score(b).mean(axis=0))


def shots_of(rows: Iterable[Row], kind: Kind) -> list[int | None]:
    """The numbers of shots at which something was trained; [None] where there is zero-shot only."""
    found = {row.shots for row in rows if _is_of(row, kind)}
    return sorted(found - {None}) or list(found)


def default_shots(rows: Sequence[Row]) -> int | None:
    """The largest number of shots of the first protocol that was measured."""
    return next((shots_of(rows, kind)[-1] for kind in KINDS if shots_of(rows, kind)), None)


def common_steps(rows: Iterable[Row], kind: Kind, shots: int | None) -> list[int]:
    """The gradient steps at which every trained method was measured."""
    steps: dict[str, set] = {}
    for row in rows:
        if _is_of(row, kind) and row.shots == shots and row.step is not None:
            steps.setdefault(row.method, set()).add(row.step)
    return sorted(set.intersection(*steps.values())) if steps else []


def measure(rows: Iterable[Row], kind: Kind, shots: int | None, step: int | None = None) -> Grid:
    """Puts methods side by side, on the draws that all of them share.

    Args:
      rows: measurements, each draw once.
      kind: which of them.
      shots: labelled images a class; what was not trained is measured at any.
      step: the gradient step; None is the last of each method.

    Returns:
      The grid; without items where the methods share no draw.
    """
    rows = [row for row in rows if _is_of(row, kind) and row.shots in (None, shots)]
    last: dict[str, int | None] = {}
    for row in rows:
        last[row.method] = max((s for s in (last.get(row.method), row.step) if s is not None), default=None)
    steps = {method: None if final is None else final if step is None else step for method, final in last.items()}
    found: dict[str, dict[tuple, dict[str, float]]] = {method: {} for method in ordered(last)}
    for row in rows:
        if row.step == steps[row.method] and row.split in kind.splits:
            found[row.method].setdefault(((row.dataset, row.domain), row.seed), {})[row.split] = row.value
    draws = {m: {draw: parts for draw, parts in d.items() if len(parts) == len(kind.splits)} for m, d in found.items()}
    constant = {m for m in draws if last[m] is None and {seed for _, seed in draws[m]} == {None}}
    seeds = {seed for method, d in draws.items() if method not in constant for _, seed in d} or {None}
    for method in constant:
        draws[method] = {(item, seed): parts for (item, _), parts in draws[method].items() for seed in seeds}
    every = dict.fromkeys(draw for d in draws.values() for draw in d)
    shared = set.intersection(*(set(d) for d in draws.values())) if draws else set()
    kept_items, kept_seeds = rectangle(shared)
    items = tuple(dict.fromkeys(item for item, _ in every if item in kept_items))
    columns = tuple(sorted(kept_seeds, key=lambda seed: (seed is not None, seed)))
    values = {
        method: {s: np.array([[d[i, seed][s] for seed in columns] for i in items]) for s in kind.splits}
        for method, d in draws.items()
    }
    lacking = {method: len(every) - len(d) for method, d in draws.items() if len(d) < len(every)}
    left_out = len(every) - len(items) * len(columns)
    return Grid(kind, shots, items, columns, values, frozenset(constant), steps, lacking, left_out)


def _is_of(row: Row, kind: Kind) -> bool:
    return row.metric == "accuracy" and row.protocol == kind.protocol and (row.domain is not None) == kind.shifted


def rectangle(draws: set[tuple]) -> tuple[set, set]:
    """Items and seeds of which every combination is among the draws: the line with the most holes goes first."""
    lines = ({item for item, _ in draws}, {seed for _, seed in draws})
    while True:
        worst, drop = 0.0, None
        for axis, other in ((0, 1), (1, 0)):
            for line in sorted(lines[axis], key=repr):
                held = sum(draw[axis] == line and draw[other] in lines[other] for draw in draws)
                holes = len(lines[other]) - held
                # Measurements lost are weighed against holes removed.
                if holes and holes / max(held, 1e-9) > worst:
                    worst, drop = holes / max(held, 1e-9), (axis, line)
        if drop is None:
            return lines if all(lines) else (set(), set())
        lines[drop[0]].discard(drop[1])


class Cell(NamedTuple):
    """A number of a table: a level, or a difference, which shows its sign and whole interval."""

    summary: Summary | None
    signed: bool = False

    def __str__(self) -> str:
        if self.summary is None:
            return "-"
        mean, (low, high) = 100 * self.summary.mean, (100 * bound for bound in self.summary.ci95)
        if self.signed:
            return f"{mean:+.1f}" + ("" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")
        return f"{mean:.1f}" + ("" if math.isnan(low) else f" ±{(high - low) / 2:.1f}")


class Sheet(NamedTuple):
    """A table of numbers with its title; `names` are what `labels` stand for in files."""

    title: str
    header: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def table(self) -> evaluation.Table:
        lines = [(name, *map(str, cells)) for name, cells in zip(self.labels, self.rows, strict=True)]
        return evaluation.Table(self.header, tuple(lines))


def comparisons(rows: Iterable[Row]) -> tuple[Comparison, ...]:
    """Paired comparisons of every variant of GRAM with its tuner, and of multi-modal with single-modal GRAM.

    Pairs are seeds: values are averaged over the datasets (and domains) within each seed first. The metric names what
    is compared, the protocol and the number of shots.
    """
    rows, found = list(rows), []
    for kind in KINDS:
        for shots in shots_of(rows, kind):
            grid = measure(rows, kind, shots)
            for a, b in pairs(list(grid.values)):
                if (difference := grid.difference(a, b)) is not None:
                    ci95 = difference.ci95 if difference.n > 1 else None
                    found.append(
                        Comparison(a, b, metric_name(kind, shots), "seed", difference.mean, ci95, difference.n)
                    )
    return tuple(found)


def metric_name(kind: Kind, shots: int | None) -> str:
    """What a comparison compares, e.g. "accuracy (few-shot, shifted domains, 4 shots)"."""
    return f"{kind.quantity} ({kind.title.lower()}, {in_shots(shots)})"


def in_shots(shots: int | None) -> str:
    """ "1 shot", "4 shots"."""
    return "no shots" if shots is None else f"{shots} shot" + "s" * (shots != 1)


def sheets(rows: Sequence[Row], shots: int | None) -> Iterator[Sheet]:
    """All tables of a report; those along adaptation and by dataset at one number of shots."""
    for kind in KINDS:
        counts = shots_of(rows, kind)
        if kind.protocol == "base_to_new":
            yield from (_base_to_new(measure(rows, kind, count)) for count in counts)
        elif counts:
            yield _few_shot(kind, [measure(rows, kind, count) for count in counts])
    for kind in KINDS:
        steps = common_steps(rows, kind, shots)
        if len(steps) > 1:
            yield _adaptation(kind, shots, steps, [measure(rows, kind, shots, step) for step in steps])
    kind = next((kind for kind in KINDS if shots in shots_of(rows, kind)), None)
    if kind is not None:
        grid = measure(rows, kind, shots)
        families = dict.fromkeys(family for family, _ in map(parse, grid.values) if family)
        for family in families or [""]:
            yield _by_dataset(grid, [method for method in grid.values if parse(method)[0] in ("", family)])
    found = [comparison for comparison in comparisons(rows) if comparison.a == _MULTI_MODAL]
    found = [comparison for comparison in found if comparison.b in _SINGLE_MODAL]
    if found:
        yield _multi_modal(found)


def _to_tuner(grid: Grid, method: str) -> Cell:
    base = next((b for a, b in pairs(list(grid.values)) if a == method), "")
    return Cell(grid.difference(method, base), signed=True)


def _base_to_new(grid: Grid) -> Sheet:
    header = ("method", "base", "new", "H of means", "mean of H", "mean of H, difference to the tuner")
    body = []
    for method, parts in grid.values.items():
        base, new = parts["base"], parts["new"]
        cells = [Cell(grid.summary(method, base)), Cell(grid.summary(method, new)), Cell(None)]
        if grid.items:
            overall = evaluation.harmonic_of_means(base, new)
            cells[2] = Cell(Summary(overall, math.nan, (math.nan, math.nan), cells[0].summary.n))
        body.append((*cells, Cell(grid.summary(method, grid.score(method))), _to_tuner(grid, method)))
    return _sheet(f"{grid.kind.title}, {in_shots(grid.shots)}", header, tuple(grid.values), body)


def _few_shot(kind: Kind, grids: Sequence[Grid]) -> Sheet:
    methods = ordered(method for grid in grids for method in grid.values)
    names = [in_shots(grid.shots) for grid in grids]
    body = []
    for method in methods:
        levels = [_score(grid, method) for grid in grids]
        body.append((*levels, *(_to_tuner(grid, method) for grid in grids)))
    header = ("method", *names, *(f"{name}, difference to the tuner" for name in names))
    return _sheet(f"Accuracy: {kind.title.lower()}", header, methods, body)


def _adaptation(kind: Kind, shots: int | None, steps: Sequence[int], grids: Sequence[Grid]) -> Sheet:
    methods = ordered(method for grid in grids for method in grid.values)
    body = [tuple(_score(grid, method) for grid in grids) for method in methods]
    header = ("method", *(f"{step} step" + "s" * (step != 1) for step in steps))
    return _sheet(f"Along adaptation: {metric_name(kind, shots)}", header, methods, body)


def _by_dataset(grid: Grid, methods: Sequence[str]) -> Sheet:
    body = []
    for index in range(len(grid.items)):
        part = [(method, grid.score(method)[index : index + 1]) for method in methods]
        body.append(tuple(Cell(grid.summary(method, values)) for method, values in part))
    body.append(tuple(_score(grid, method) for method in methods))
    names = [dataset if domain is None else f"{dataset}/{domain}" for dataset, domain in grid.items] + ["mean"]
    quantity = "H" if grid.kind.protocol == "base_to_new" else "Accuracy"
    title = f"{quantity} by dataset: {grid.kind.title.lower()}, {in_shots(grid.shots)}"
    return Sheet(title, ("dataset", *map(label, methods)), tuple(names), tuple(names), tuple(body))


def _multi_modal(found: Sequence[Comparison]) -> Sheet:
    columns = dict.fromkeys((comparison.a, comparison.b) for comparison in found)
    metrics = tuple(dict.fromkeys(comparison.metric for comparison in found))
    cells = {(c.a, c.b, c.metric): Cell(_summary(c), signed=True) for c in found}
    body = tuple(tuple(cells.get((*pair, metric), Cell(None)) for pair in columns) for metric in metrics)
    header = ("difference", *(f"{label(a)} against {label(b)}" for a, b in columns))
    return Sheet("Multi-modal against single-modal GRAM", header, metrics, metrics, body)


def _summary(comparison: Comparison) -> Summary:
    return Summary(comparison.mean_difference, math.nan, comparison.ci95 or (math.nan, math.nan), comparison.n)


def _score(grid: Grid, method: str) -> Cell:
    return Cell(grid.summary(method, grid.score(method)) if method in grid.values else None)


def _sheet(title: str, header: tuple[str, ...], methods: Sequence[str], body: Sequence[tuple[Cell, ...]]) -> Sheet:
    return Sheet(title, header, tuple(methods), tuple(map(label, methods)), tuple(body))
