"""The tables of a report as numbers: levels with intervals, differences, and published rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from gram_jax.evaluation.measures import BESIDE, BYTES, SECONDS
from gram_jax.evaluation.protocols import TEST_TIME, TRANSFER, imbalance
from gram_jax.evaluation.results import Comparison, Row
from gram_jax.evaluation.statistics import Summary, harmonic_of_means
from gram_jax.reporting import published as published_rows
from gram_jax.reporting.grid import (
    WITHIN_DATASET,
    Grid,
    Scope,
    common_steps,
    comparisons,
    in_shots,
    measure,
    metric_name,
    scopes,
    shots_of,
    with_thirds,
)
from gram_jax.reporting.names import MULTI_MODAL, SINGLE_MODAL, label, ordered, split_method, tuner_of
from gram_jax.reporting.published import Published
from gram_jax.reporting.tables import EMPTY, Table, format_summary

DIFFERENCES = "Paired differences over seeds"
ALONG = "Along adaptation"  # the begins of titles
BY_DATASET = ("H by dataset", "Accuracy by dataset")
COST = "Time and memory of tuning"
TO_TUNER = "difference to the tuner"  # the end of the titles of columns that disappear if they are empty
PUBLISHED = "published:"  # the beginning of the names of published rows


class Cell(NamedTuple):
    """A number of a table, a fraction, or a text; a signed number is a difference, shown with its whole interval."""

    summary: Summary | None
    signed: bool = False
    text: str = EMPTY

    @property
    def significant(self) -> bool:
        """Whether this is a difference whose interval excludes 0."""
        return self.signed and self.summary is not None and (self.summary.ci95[0] > 0 or self.summary.ci95[1] < 0)

    def __str__(self) -> str:
        if self.summary is None:
            return self.text
        mean, low, high = (100 * number for number in (self.summary.mean, *self.summary.ci95))
        if not self.signed:
            return format_summary(Summary(mean, math.nan, (low, high), self.summary.n))
        return f"{mean:+.1f}" + ("" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


class Sheet(NamedTuple):
    """A table of numbers: rows have names in files and labels in the displayed table.

    The first column title is that of the row names, which `rows` do not contain.
    """

    title: str
    header: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def table(self, bold: str = "%s") -> Table:
        """Returns the displayed table; `bold` is the form of significant differences, such as "**%s**"."""
        rows = zip(self.labels, self.rows, strict=True)
        forms = ("%s", bold)
        return Table(
            self.header, tuple((name, *(forms[cell.significant] % str(cell) for cell in cells)) for name, cells in rows)
        )


def sheets(
    rows: Sequence[Row], shots: int | None, against: str | None = None, unlike: Collection[str] = ()
) -> Iterator[Sheet]:
    """Yields all tables of a report, as `write_report` describes them.

    Datasets in `unlike` differ from the published ones of the same name and get no published rows.
    """
    for scope in WITHIN_DATASET:
        counts = shots_of(rows, scope)
        if scope.protocol == "base_to_new":
            yield from (_base_to_new(measure(rows, scope, count), unlike) for count in counts)
        elif counts:
            yield _few_shot(scope, [measure(rows, scope, count) for count in counts], unlike)
    for protocol in TRANSFER:
        here, elsewhere = Scope(protocol, False), Scope(protocol, True)
        for count in shots_of(rows, elsewhere) or shots_of(rows, here):
            yield from _transfer(measure(rows, here, count), measure(rows, elsewhere, count), unlike)
    for scope in scopes(rows):
        if imbalance(scope.protocol) is not None:
            yield from _long_tail(rows, scope, unlike)
    for scope in scopes(rows):
        if scope.shifted or scope.protocol not in TRANSFER:
            yield from _adaptation(rows, scope, shots)
    yield from _by_dataset(rows, shots)
    for scope in scopes(rows):
        yield from _other_metrics(rows, scope, shots)
    yield from _costs(rows)
    yield from _comparisons(comparisons(rows, against))


def _base_to_new(grid: Grid, unlike: Collection[str]) -> Sheet:
    header = ("method", "base", "new", "H of means", "mean of H", f"mean of H, {TO_TUNER}")
    body = []
    for method, values in grid.values.items():
        base, new, score = (Cell(grid.summary(method, split)) for split in ("base", "new", None))
        n = base.summary and base.summary.n
        of_means = Cell(None) if n is None else _exact(harmonic_of_means(values["base"], values["new"]), n)
        body.append((base, new, of_means, score, _to_tuner(grid, method)))
    sheet = _sheet(f"{grid.scope.title}, {in_shots(grid.shots)}", header, tuple(grid.values), body)
    datasets, tau = [dataset for dataset, _ in grid.items], imbalance(grid.scope.protocol)
    if grid.shots != published_rows.SHOTS or grid.scope.shifted or not set(datasets).isdisjoint(unlike):
        return sheet
    published = published_rows.base_to_new(datasets) if tau is None else published_rows.imbalanced(tau, datasets)
    return _with_published(sheet, published, {name: name for name in header})


def _few_shot(scope: Scope, grids: Sequence[Grid], unlike: Collection[str]) -> Sheet:
    methods = ordered(method for grid in grids for method in grid.values)
    names = [in_shots(grid.shots) for grid in grids]
    body = [
        (*(Cell(grid.summary(method)) for grid in grids), *(_to_tuner(grid, method) for grid in grids))
        for method in methods
    ]
    header = ("method", *names, *(f"{name}, {TO_TUNER}" for name in names))
    sheet = _sheet(f"Accuracy: {scope.title.lower()}", header, methods, body)
    if scope.shifted:
        return sheet
    datasets = {grid.shots: {dataset for dataset, _ in grid.items} - set(unlike) for grid in grids}
    columns = {name: str(grid.shots) for name, grid in zip(names, grids, strict=True)}
    return _with_published(sheet, published_rows.few_shot(datasets), columns)


def _transfer(here: Grid, elsewhere: Grid, unlike: Collection[str]) -> Iterator[Sheet]:
    """Yields a table for each source: its own accuracy, that of every target, and the mean over targets."""
    crossing = elsewhere.scope.protocol == "cross_dataset"
    mean, prefix = ("mean of targets", "") if crossing else ("mean of shifted domains", published_rows.PREFIX)
    methods = ordered((*here.values, *elsewhere.values))
    for source in dict.fromkeys(dataset for dataset, _ in (*here.items, *elsewhere.items)):
        own = [i for i, (dataset, _) in enumerate(here.items) if dataset == source]
        places = [i for i, (dataset, _) in enumerate(elsewhere.items) if dataset == source]
        targets = [str(elsewhere.items[i][1]) for i in places]
        body = []
        for method in methods:
            levels = [Cell(elsewhere.summary(method, items=items)) for items in (*([i] for i in places), places)]
            body.append((Cell(here.summary(method, items=own)), *levels, _to_tuner(elsewhere, method, places)))
        short = _without_prefix([source, *targets][not crossing :])
        columns = {short.get(each, each): each for each in (source, *targets)} | {mean: "mean"}
        title = f"{here.scope.title} from {source}, {in_shots(elsewhere.shots)}"
        sheet = _sheet(title, ("method", *columns, f"{mean}, {TO_TUNER}"), methods, body)
        names = {source, *(f"{prefix}{target}" for target in targets)}
        same = elsewhere.shots == published_rows.SHOTS and names.isdisjoint(unlike)
        published = published_rows.transfer(elsewhere.scope.protocol, source, targets) if same else []
        yield _with_published(sheet, published, columns)


def _without_prefix(names: Sequence[str]) -> dict[str, str]:
    """Returns short names without the reader, such as "glyphs:", if all names have the same one."""
    readers = {name.partition(":")[0] if ":" in name else None for name in names}
    short = {name: name.rpartition(":")[2] for name in names}
    ambiguous = len(readers) != 1 or None in readers or len(set(short.values())) < len(short)
    return {name: name for name in names} if ambiguous else short


def _long_tail(rows: Sequence[Row], scope: Scope, unlike: Collection[str]) -> Iterator[Sheet]:
    for count in shots_of(rows, scope):
        yield _base_to_new(measure(rows, scope, count), unlike)
        if (thirds := with_thirds(rows, scope)).thirds:
            grid = measure(rows, thirds, count)
            header = ("method", *(f"{third} classes" for third in thirds.thirds))
            body = [tuple(Cell(grid.summary(method, third)) for third in thirds.thirds) for method in grid.values]
            title = f"{scope.title}: accuracy of base classes by their number of images, {in_shots(count)}"
            yield _sheet(title, header, tuple(grid.values), body)


def _adaptation(rows: Sequence[Row], scope: Scope, shots: int | None) -> Iterator[Sheet]:
    steps = common_steps(rows, scope, shots)
    if len(steps) > 1:
        grids = [measure(rows, scope, shots, step) for step in steps]
        methods = ordered(method for grid in grids for method in grid.values)
        body = [tuple(Cell(grid.summary(method)) for grid in grids) for method in methods]
        header = ("method", *(f"{step} step" + "s" * (step != 1) for step in steps))
        yield _sheet(f"{ALONG}: {metric_name(scope, shots)}", header, methods, body)


def _by_dataset(rows: Sequence[Row], shots: int | None) -> Iterator[Sheet]:
    """Yields a table for each tuner with its additions, in every scope within a dataset."""
    measured = [each for each in scopes(rows) if each.protocol not in TRANSFER and shots in shots_of(rows, each)]
    usual = [each for each in measured if not each.shifted and imbalance(each.protocol) is None]
    grids = [measure(rows, each, shots) for each in usual or measured[:1]]
    unlabeled = Scope(TEST_TIME, False)
    if unlabeled not in measured and shots_of(rows, unlabeled):
        grids.append(measure(rows, unlabeled, None))
    for grid in grids:
        bases = dict.fromkeys(base for base, _ in map(split_method, grid.values) if base)
        yield from (_of_base(grid, base) for base in bases or [""])


def _of_base(grid: Grid, base: str) -> Sheet:
    """Returns the scores of a tuner with its additions on each dataset."""
    methods = [method for method in grid.values if split_method(method)[0] in ("", base)]
    names = [dataset if domain is None else f"{dataset}/{domain}" for dataset, domain in grid.items]
    lines: list[list[int] | None] = [[i] for i in range(len(grid.items))]
    if len(names) > 1:
        names, lines = [*names, "mean"], [*lines, None]
    body = tuple(tuple(Cell(grid.summary(method, items=items)) for method in methods) for items in lines)
    title = f"{BY_DATASET[len(grid.scope.splits) != 2]}: {grid.scope.title.lower()}, {in_shots(grid.shots)}"
    return Sheet(title, ("dataset", *map(label, methods)), tuple(names), tuple(names), body)


def _other_metrics(rows: Sequence[Row], scope: Scope, shots: int | None) -> Iterator[Sheet]:
    """Yields the metrics other than accuracy, at the given number of shots or, if there are none, the largest."""
    counts = {metric: counts for metric in BESIDE if (counts := shots_of(rows, scope, metric))}
    measured = {count for each in counts.values() for count in each}
    if measured:
        count = shots if shots in measured else max(measured, key=lambda count: count or 0)
        grids = {metric: measure(rows, scope, count, metric=metric) for metric in counts}
        columns = {
            metric.replace("_", " ") + f", {split}" * (len(scope.splits) > 1): (grid, split)
            for metric, grid in grids.items()
            for split in scope.splits
        }
        methods = ordered(method for grid in grids.values() for method in grid.values)
        body = [tuple(Cell(grid.summary(method, split)) for grid, split in columns.values()) for method in methods]
        yield _sheet(f"Other metrics: {scope.title.lower()}, {in_shots(count)}", ("method", *columns), methods, body)


def _costs(rows: Sequence[Row]) -> Iterator[Sheet]:
    """Yields the cost of tuning, from the lowest to the highest over datasets and protocols."""
    values: dict[tuple, list[float]] = {}
    for row in rows:
        if row.metric in (SECONDS, BYTES):
            values.setdefault((row.method, row.metric, row.shots), []).append(row.value)
    counts = sorted({shots for _, _, shots in values})
    columns = {f"seconds a run, {in_shots(shots)}": (SECONDS, shots, 1.0) for shots in counts}
    columns |= {f"MiB a step, {in_shots(shots)}": (BYTES, shots, 2.0**-20) for shots in counts}
    methods = ordered(method for method, _, _ in values)

    def cell(method: str, metric: str, shots: int, unit: float) -> Cell:
        own = values.get((method, metric, shots))
        ends = dict.fromkeys(f"{unit * end(own):.3g}" for end in (min, max)) if own else [EMPTY]
        return Cell(None, text=" to ".join(ends))

    if values:
        body = [tuple(cell(method, *column) for column in columns.values()) for method in methods]
        yield _sheet(COST, ("method", *columns), methods, body)


def _comparisons(compared: Sequence[Comparison]) -> Iterator[Sheet]:
    """Yields multi-modal against single-modal GRAM, and every comparison with its interval and its paired t-test."""
    cells = {(each.a, each.b, each.metric): _compared(each) for each in compared}
    modal = [each for each in compared if each.a == MULTI_MODAL and each.b in SINGLE_MODAL]
    if modal:
        columns = dict.fromkeys((each.a, each.b) for each in modal)
        metrics = tuple(dict.fromkeys(each.metric for each in modal))
        body = tuple(tuple(cells.get((*pair, metric), Cell(None)) for pair in columns) for metric in metrics)
        header = ("difference", *(f"{label(a)} against {label(b)}" for a, b in columns))
        yield Sheet("Multi-modal against single-modal GRAM", header, metrics, metrics, body)
    if compared:
        names = tuple(f"{each.a} against {each.b}: {each.metric}" for each in compared)
        labels = tuple(f"{label(each.a)} against {label(each.b)}: {each.metric}" for each in compared)
        body = tuple((_compared(each), Cell(None, text=_p(each)), Cell(None, text=str(each.n))) for each in compared)
        header = ("difference", "points, 95 % interval", "p (paired t-test)", "seeds")
        yield Sheet(DIFFERENCES, header, names, labels, body)


def _p(comparison: Comparison) -> str:
    p = comparison.p_value
    return EMPTY if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _compared(each: Comparison) -> Cell:
    p = math.nan if each.p_value is None else each.p_value
    interval = each.ci95 or (math.nan, math.nan)
    return Cell(Summary(each.mean_difference, math.nan, interval, each.n, p), signed=True)


def _exact(value: float, n: int) -> Cell:
    """Returns a number without an interval, from `n` draws."""
    return Cell(Summary(value, math.nan, (math.nan, math.nan), n))


def _to_tuner(grid: Grid, method: str, items: Sequence[int] | None = None) -> Cell:
    """Returns the difference of a variant of GRAM to its tuner alone, on some items or all."""
    tuner = tuner_of(method, grid.values)
    return Cell(None if tuner is None else grid.difference(method, tuner, items), signed=True)


def _with_published(sheet: Sheet, published: Sequence[Published], columns: Mapping[str, str]) -> Sheet:
    """Appends published rows; `columns` maps the titles of the sheet to the published names."""
    of_header = [columns.get(column, "") for column in sheet.header[1:]]
    body = [
        tuple(_exact(row.values[name], 0) if name in row.values else Cell(None) for name in of_header)
        for row in published
    ]
    return sheet._replace(
        names=(*sheet.names, *(f"{PUBLISHED}{row.method}" for row in published)),
        labels=(*sheet.labels, *(f"{row.method} (published: {row.source})" for row in published)),
        rows=(*sheet.rows, *body),
    )


def _sheet(title: str, header: tuple[str, ...], methods: Sequence[str], body: Sequence[tuple[Cell, ...]]) -> Sheet:
    """Returns a table of methods without empty columns of differences."""
    shown = [
        not name.endswith(TO_TUNER) or any(cells[i].summary is not None for cells in body)
        for i, name in enumerate(header[1:])
    ]
    header = (header[0], *itertools.compress(header[1:], shown))
    rows = tuple(tuple(itertools.compress(cells, shown)) for cells in body)
    return Sheet(title, header, tuple(methods), tuple(map(label, methods)), rows)
