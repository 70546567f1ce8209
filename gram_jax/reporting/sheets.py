"""The tables of a report: which rows stand in them, with intervals, differences and published numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from gram_jax import evaluation
from gram_jax import reporting as reporting_lib
from gram_jax.evaluation import Comparison, Row, Summary
from gram_jax.evaluation.measures import BESIDE, BYTES, SECONDS
from gram_jax.evaluation.protocols import TEST_TIME, TRANSFER, imbalance
from gram_jax.reporting import published as _published
from gram_jax.reporting.evaluation_tables import (
    KINDS,
    Grid,
    Kind,
    common_steps,
    comparisons,
    in_shots,
    is_multi_modal,
    kinds,
    label,
    measure,
    metric_name,
    ordered,
    parse,
    shots_of,
    thirds_of,
    tuner_of,
)
from gram_jax.reporting.published import Published

DIFFERENCES = "Paired differences over seeds"
COST = "Time and memory of tuning"
TO_TUNER = "difference to the tuner"  # ends the names of columns that stand only where a tuner is there to differ from
PUBLISHED = "published:"  # begins the name of a row that is no measurement of ours


class Cell(NamedTuple):
    """A number of a table: a level, or a difference, which shows its sign and whole interval; or a text."""

    summary: Summary | None
    signed: bool = False
    text: str = "-"
    p_value: float | None = None

    def __str__(self) -> str:
        if self.summary is None:
            return self.text
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

    def table(self) -> reporting_lib.Table:
        lines = [(name, *map(str, cells)) for name, cells in zip(self.labels, self.rows, strict=True)]
        return reporting_lib.Table(self.header, tuple(lines))


def sheets(
    rows: Sequence[Row], shots: int | None, against: str | None = None, unlike: Collection[str] = ()
) -> Iterator[Sheet]:
    """All tables of a report; those along adaptation, by dataset and of other metrics at one number of shots.

    Args:
      rows: measurements, each draw once.
      shots: labeled images a class.
      against: a method that all others are compared with as well.
      unlike: datasets that no published numbers may stand beside, whatever they are called.

    Yields:
      The tables.
    """
    measured = kinds(rows)
    for kind in KINDS:
        counts = shots_of(rows, kind)
        if kind.protocol == "base_to_new":
            yield from (_base_to_new(measure(rows, kind, count), unlike) for count in counts)
        elif counts:
            yield _few_shot(kind, [measure(rows, kind, count) for count in counts], unlike)
    for protocol in TRANSFER:
        here, elsewhere = Kind(protocol, False), Kind(protocol, True)
        for count in shots_of(rows, elsewhere) or shots_of(rows, here):
            yield from _transfer(measure(rows, here, count), measure(rows, elsewhere, count), unlike)
    for kind in measured:
        if imbalance(kind.protocol) is not None:
            for count in shots_of(rows, kind):
                yield _base_to_new(measure(rows, kind, count), unlike)
                if (thirds := thirds_of(rows, kind)).parts:
                    yield _thirds(measure(rows, thirds, count))
    for kind in measured:
        steps = common_steps(rows, kind, shots)
        if len(steps) > 1 and (kind.shifted or kind.protocol not in TRANSFER):
            yield _adaptation(kind, shots, steps, [measure(rows, kind, shots, step) for step in steps])
    within = [kind for kind in measured if kind.protocol not in TRANSFER and shots in shots_of(rows, kind)]
    usual = [kind for kind in within if not kind.shifted and imbalance(kind.protocol) is None]
    grids = [measure(rows, kind, shots) for kind in usual or within[:1]]
    if (unlabeled := Kind(TEST_TIME, False)) not in within and shots_of(rows, unlabeled):
        grids.append(measure(rows, unlabeled, None))
    for grid in grids:
        families = dict.fromkeys(family for family, _ in map(parse, grid.values) if family)
        for family in families or [""]:
            yield _by_dataset(grid, [method for method in grid.values if parse(method)[0] in ("", family)])
    for kind in measured:
        yield from _other_metrics(rows, kind, shots)
    yield from _costs(rows)
    found = comparisons(rows, against)
    if multi_modal := [each for each in found if is_multi_modal(each)]:
        yield _multi_modal(multi_modal)
    if found:
        yield _differences(found)


def _base_to_new(grid: Grid, unlike: Collection[str]) -> Sheet:
    header = ("method", "base", "new", "H of means", "mean of H", f"mean of H, {TO_TUNER}")
    body = []
    for method, parts in grid.values.items():
        base, new = parts["base"], parts["new"]
        cells = [Cell(grid.summary(method, base)), Cell(grid.summary(method, new)), Cell(None)]
        if grid.items:
            overall = evaluation.harmonic_of_means(base, new)
            cells[2] = _exactly(overall, cells[0].summary.n)
        body.append((*cells, Cell(grid.summary(method, grid.score(method))), _to_tuner(grid, method)))
    sheet = _sheet(f"{grid.kind.title}, {in_shots(grid.shots)}", header, tuple(grid.values), body)
    datasets, tau = [dataset for dataset, _ in grid.items], imbalance(grid.kind.protocol)
    if grid.shots != _published.SHOTS or grid.kind.shifted or not set(datasets).isdisjoint(unlike):
        return sheet
    published = _published.base_to_new(datasets) if tau is None else _published.imbalanced(tau, datasets)
    return _beside(sheet, published, {name: name for name in header})


def _few_shot(kind: Kind, grids: Sequence[Grid], unlike: Collection[str]) -> Sheet:
    methods = ordered(method for grid in grids for method in grid.values)
    names = [in_shots(grid.shots) for grid in grids]
    body = []
    for method in methods:
        levels = [_score(grid, method) for grid in grids]
        body.append((*levels, *(_to_tuner(grid, method) for grid in grids)))
    header = ("method", *names, *(f"{name}, {TO_TUNER}" for name in names))
    sheet = _sheet(f"Accuracy: {kind.title.lower()}", header, methods, body)
    if kind.shifted:
        return sheet
    datasets = {grid.shots: {dataset for dataset, _ in grid.items} - set(unlike) for grid in grids}
    published = _published.few_shot(datasets)
    return _beside(sheet, published, {name: str(grid.shots) for name, grid in zip(names, grids, strict=True)})


def _transfer(here: Grid, elsewhere: Grid, unlike: Collection[str]) -> Iterator[Sheet]:
    """A table for each dataset that was tuned on: its own accuracy, that of everything else, and the mean of these."""
    crossing = elsewhere.kind.protocol == "cross_dataset"
    mean = "mean of targets" if crossing else "mean of shifted domains"
    methods = ordered((*here.values, *elsewhere.values))
    for source in dict.fromkeys(dataset for dataset, _ in (*here.items, *elsewhere.items)):
        own = [i for i, (dataset, _) in enumerate(here.items) if dataset == source]
        others = {domain: i for i, (dataset, domain) in enumerate(elsewhere.items) if dataset == source}
        every, body = list(others.values()), []
        for method in methods:
            parts = [_part(elsewhere, method, [i]) for i in every]
            summed = [_part(elsewhere, method, every), _to_tuner(elsewhere, method, every)]
            body.append((_part(here, method, own), *parts, *summed))
        shown = _shortened((source, *others) if crossing else tuple(others))
        header = ("method", shown.get(source, source), *(shown[other] for other in others), mean, f"{mean}, {TO_TUNER}")
        sheet = _sheet(f"{here.kind.title} from {source}, {in_shots(elsewhere.shots)}", header, methods, body)
        names = {source, *(other if crossing else f"{_published.PREFIX}{other}" for other in others)}
        same = elsewhere.shots == _published.SHOTS and names.isdisjoint(unlike)
        published = _published.transfer(elsewhere.kind.protocol, source, list(others)) if same else []
        columns = {shown.get(name, name): name for name in (source, *others)}
        yield _beside(sheet, published, columns | {mean: "mean"})


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """Names without the reader, "glyphs:" or "coop:", where all have the same."""
    readers = {name.partition(":")[0] for name in names if ":" in name}
    common = len(readers) == 1 and all(":" in name for name in names)
    short = {name: name.partition(":")[2].rpartition(":")[2] if common else name for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _thirds(grid: Grid) -> Sheet:
    header = ("method", *(f"{third} classes" for third in grid.kind.splits))
    body = [
        tuple(Cell(grid.summary(method, values)) for values in parts.values()) for method, parts in grid.values.items()
    ]
    title = f"{grid.kind.title}: accuracy of base classes by their number of images, {in_shots(grid.shots)}"
    return _sheet(title, header, tuple(grid.values), body)


def _other_metrics(rows: Sequence[Row], kind: Kind, shots: int | None) -> Iterator[Sheet]:
    """What was measured beside accuracy, at the given number of shots or the largest that there is."""
    counts = {metric: found for metric in BESIDE if (found := shots_of(rows, kind, metric))}
    if not counts:
        return
    held = {count for found in counts.values() for count in found}
    count = shots if shots in held else max(held, key=lambda count: count or 0)
    grids = {metric: measure(rows, kind, count, metric=metric) for metric in counts}
    columns = {
        (metric, split): metric.replace("_", " ") + f", {split}" * (len(kind.splits) > 1)
        for metric in grids
        for split in kind.splits
    }
    body = {
        method: tuple(_split(grids[metric], method, split) for metric, split in columns)
        for method in ordered(method for grid in grids.values() for method in grid.values)
    }
    title = f"Other metrics: {kind.title.lower()}, {in_shots(count)}"
    yield _sheet(title, ("method", *columns.values()), tuple(body), tuple(body.values()))


def _costs(rows: Sequence[Row]) -> Iterator[Sheet]:
    """What tuning cost, from the cheapest to the dearest dataset and protocol."""
    found: dict[tuple, list[float]] = {}
    for row in rows:
        if row.metric in (SECONDS, BYTES):
            found.setdefault((row.method, row.metric, row.shots), []).append(row.value)
    if not found:
        return
    counts = sorted({shots for _, _, shots in found})
    columns = {f"seconds a run, {in_shots(shots)}": (SECONDS, shots, 1.0) for shots in counts}
    columns |= {f"MiB a step, {in_shots(shots)}": (BYTES, shots, 2.0**-20) for shots in counts}
    methods = ordered(method for method, _, _ in found)
    body = [
        tuple(_span(found.get((method, metric, shots)), unit) for metric, shots, unit in columns.values())
        for method in methods
    ]
    yield _sheet(COST, ("method", *columns), methods, body)


def _span(values: Sequence[float] | None, unit: float) -> Cell:
    if not values:
        return Cell(None)
    low, high = (f"{unit * end(values):.3g}" for end in (min, max))
    return Cell(None, text=low if low == high else f"{low} to {high}")


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
    quantity = "H" if len(grid.kind.splits) == 2 else "Accuracy"
    title = f"{quantity} by dataset: {grid.kind.title.lower()}, {in_shots(grid.shots)}"
    return Sheet(title, ("dataset", *map(label, methods)), tuple(names), tuple(names), tuple(body))


def _multi_modal(found: Sequence[Comparison]) -> Sheet:
    columns = dict.fromkeys((comparison.a, comparison.b) for comparison in found)
    metrics = tuple(dict.fromkeys(comparison.metric for comparison in found))
    cells = {(c.a, c.b, c.metric): _compared(c) for c in found}
    body = tuple(tuple(cells.get((*pair, metric), Cell(None)) for pair in columns) for metric in metrics)
    header = ("difference", *(f"{label(a)} against {label(b)}" for a, b in columns))
    return Sheet("Multi-modal against single-modal GRAM", header, metrics, metrics, body)


def _differences(found: Sequence[Comparison]) -> Sheet:
    """Every comparison with its interval and its paired t-test."""
    names = tuple(f"{each.a} against {each.b}: {each.metric}" for each in found)
    labels = tuple(f"{label(each.a)} against {label(each.b)}: {each.metric}" for each in found)
    body = []
    for each in found:
        p = "-" if each.p_value is None else "< 0.001" if each.p_value < 0.001 else f"{each.p_value:.3f}"
        body.append((_compared(each), Cell(None, text=p), Cell(None, text=str(each.n))))
    header = ("difference", "points, 95 % interval", "p (paired t-test)", "seeds")
    return Sheet(DIFFERENCES, header, names, labels, tuple(body))


def _compared(comparison: Comparison) -> Cell:
    interval = comparison.ci95 or (math.nan, math.nan)
    summary = Summary(comparison.mean_difference, math.nan, interval, comparison.n)
    return Cell(summary, signed=True, p_value=comparison.p_value)


def _exactly(value: float, n: int) -> Cell:
    """A number without a spread, of `n` draws."""
    return Cell(Summary(value, math.nan, (math.nan, math.nan), n))


def _score(grid: Grid, method: str) -> Cell:
    return Cell(grid.summary(method, grid.score(method)) if method in grid.values else None)


def _part(grid: Grid, method: str, items: Sequence[int]) -> Cell:
    """The accuracy on some items, averaged within each seed."""
    if method not in grid.values or not items:
        return Cell(None)
    return Cell(grid.summary(method, grid.score(method)[list(items)]))


def _split(grid: Grid, method: str, split: str) -> Cell:
    return Cell(grid.summary(method, grid.values[method][split]) if method in grid.values else None)


def _to_tuner(grid: Grid, method: str, items: Sequence[int] | None = None) -> Cell:
    """The difference of a variant of GRAM to its tuner alone, on some items or all."""
    items, tuner = range(len(grid.items)) if items is None else items, tuner_of(method)
    found = None if tuner is None else grid.difference_on(items, method, tuner)
    if found is None:
        return Cell(None, signed=True)
    p = found.p_value
    return Cell(found, signed=True, p_value=None if math.isnan(p) else p)


def _beside(sheet: Sheet, published: Sequence[Published], columns: Mapping[str, str]) -> Sheet:
    """The table with published rows below it; `columns` says what each column is called there."""
    body = [
        tuple(
            _exactly(row.values[name], 0) if (name := columns.get(column)) in row.values else Cell(None)
            for column in sheet.header[1:]
        )
        for row in published
    ]
    return sheet._replace(
        names=(*sheet.names, *(f"{PUBLISHED}{row.method}" for row in published)),
        labels=(*sheet.labels, *(f"{row.method} (published: {row.source})" for row in published)),
        rows=(*sheet.rows, *body),
    )


def _sheet(title: str, header: tuple[str, ...], methods: Sequence[str], body: Sequence[tuple[Cell, ...]]) -> Sheet:
    """A table of methods, without the columns of differences where nothing is there to differ from."""
    there = [
        not name.endswith(TO_TUNER) or any(cells[i].summary is not None for cells in body)
        for i, name in enumerate(header[1:])
    ]
    header = (header[0], *itertools.compress(header[1:], there))
    kept = tuple(tuple(itertools.compress(cells, there)) for cells in body)
    return Sheet(title, header, tuple(methods), tuple(map(label, methods)), kept)
