"""Correlations of collapse with generalization over many tuned prompts, and the tables of `experiments.collapse`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from etils import epath

from gram_jax.evaluation.protocols import imbalance
from gram_jax.evaluation.results import Comparison, Row, comparison
from gram_jax.evaluation.statistics import paired_difference, summarize
from gram_jax.io import write_file, write_json
from gram_jax.reporting import Table, to_markdown, to_text
from gram_jax.reporting.grid import in_shots
from gram_jax.reporting.names import label as method_label
from gram_jax.reporting.tables import EMPTY, format_summary

from .correlation import Correlation, correlate
from .measures import ALL_CLASSES, H

MEASURES = {  # names for display
    "nc1": "NC1, spread of images within classes",
    "nc2_text_mean": "NC2, text: mean cosine + 1/(K-1)",
    "nc2_text_std": "NC2, text: unequal cosines",
    "nc2_image_mean": "NC2, image means: mean cosine + 1/(K-1)",
    "nc2_image_std": "NC2, image means: unequal cosines",
    "simplex_text": "simplex distance, text",
    "simplex_image": "simplex distance, image means",
    "simplex_both": "simplex distance, text with image means",
    "nc3_gram": "NC3, distance of Gram matrices",
    "nc3_cosine": "NC3, cosine of text and image means",
    "nc4": "NC4, agreement with the nearest mean",
}
RISING = ("nc3_cosine", "nc4")  # collapse increases them, and lowers the others


class Target(NamedTuple):
    """A measure of generalization, with the split and the metric of its rows."""

    name: str
    label: str
    split: str
    metric: str


TARGETS = (
    Target("new", "accuracy on new classes", "new", "accuracy"),
    Target("h", "H of base and new", ALL_CLASSES, H),
)
REGIMES = ("balanced", "imbalanced")
SIDES = ("base", "new")
WITHIN, PAIRED, POOLED = "within", "same step", "pooled"
# The fields that define the groups of each level: coefficients are computed around the mean of each group.
LEVELS = {WITHIN: ("dataset", "protocol"), PAIRED: ("dataset", "protocol", "shots", "step"), POOLED: ()}
_COEFFICIENTS = ((WITHIN, False), (WITHIN, True), (PAIRED, False), (POOLED, False))  # level, ranks
_SHOWN = ("nc1", "simplex_text", "simplex_both", "nc3_cosine", "nc4")
_LEVELS = (("base", "accuracy"), ("new", "accuracy"), (ALL_CLASSES, H), *(("base", measure) for measure in _SHOWN))
# What fits a terminal of 80 columns.
_SHOWN_LEVELS = ("method", "base", "new", "H", MEASURES["simplex_text"])
_SHOWN_CORRELATIONS = ("collapsed", f"r {WITHIN}")
_MAIN = tuple(f"{MEASURES[measure]}, base" for measure in _SHOWN)
NOTES = (
    "Collapse is measured on test images and on the names of their classes, in the first tables of base classes; mean "
    "± half the 95 % interval (Student's t) over seeds, with datasets averaged within each seed.",
    "Correlations include all prompts after at least one step. r is Pearson's coefficient, rho Spearman's; within: "
    "around the mean of each dataset and tau; same step: around that of each number of shots and steps, too; pooled: "
    "around one mean. Intervals: 95 %, from a bootstrap over draws (dataset and seed), each with all its prompts.",
    'The column "collapsed" is the direction of collapse: if collapse lowers a measure, a negative coefficient means '
    "that collapsed prompts generalize better. - if a measure is constant within datasets, as for frozen images.",
)


@dataclasses.dataclass(frozen=True)
class MeasureCorrelation:
    """A correlation of a measure of collapse with a target, "new" or "h", at one of the `LEVELS`.

    The regime "imbalanced" has all long tails together; `split` tells the classes of the measure's test images and
    texts, "base" or "new"; `ranks` whether it is Spearman's coefficient.
    """

    regime: str
    measure: str
    split: str
    target: str
    level: str
    ranks: bool
    correlation: Correlation


def without_rate(method: str) -> str:
    """Returns a method without the learning rate after "@"."""
    return method.partition("@")[0]


def label(method: str) -> str:
    """Returns the display name of a method."""
    name, _, rate = method.partition("@")
    return method_label(name) + (f", rate {rate}" if rate else "")


def tuned_prompts(rows: Iterable[Row], regime: str) -> pd.DataFrame:
    """Returns the measurements (split, metric) of all prompts of a regime after at least one step, a row for each."""
    kept = [row for row in rows if row.step and (imbalance(row.protocol) is None) == (regime == "balanced")]
    if not kept:
        return pd.DataFrame()
    frame = pd.DataFrame([dataclasses.asdict(row) for row in kept])
    names = ["method", "protocol", "dataset", "shots", "seed", "step"]
    order = pd.MultiIndex.from_frame(frame[names].drop_duplicates())
    return frame.pivot(index=names, columns=["split", "metric"], values="value").reindex(order)


def correlations(rows: Sequence[Row], samples: int) -> list[MeasureCorrelation]:
    """Correlates every measure, of base and of new classes, with every target, at every level, in both regimes.

    The interval is over draws, (dataset, seed), with all their prompts; the strata are the datasets.
    """
    results = []
    for regime in REGIMES:
        prompts = tuned_prompts(rows, regime)
        if prompts.empty:
            continue
        keys = prompts.index.to_frame()
        draws, strata = _tuples(keys, ("dataset", "seed")), list(keys["dataset"])
        groups = {level: _tuples(keys, fields) for level, fields in LEVELS.items()}
        for measure, split, target in itertools.product(MEASURES, SIDES, TARGETS):
            x, y = prompts[split, measure], prompts[target.split, target.metric]
            varies = True
            for level, ranks in itertools.product(LEVELS, (False, True)):
                each = correlate(x, y, draws, groups=groups[level], strata=strata, ranks=ranks, samples=samples)
                varies = varies and not (level == WITHIN and math.isnan(each.r))
                # A measure with one value for each dataset depends on no prompt.
                each = each if varies else each._replace(r=math.nan, ci95=None)
                results.append(MeasureCorrelation(regime, measure, split, target.name, level, ranks, each))
    return results


def _tuples(keys: pd.DataFrame, fields: Sequence[str]) -> list[tuple]:
    return list(zip(*(keys[field] for field in fields), strict=True)) if fields else [()] * len(keys)


def lookup(results: Iterable[MeasureCorrelation], **fields: Any) -> Correlation | None:
    """Returns the correlation with the given fields; None if there is none."""
    chosen = (each for each in results if all(getattr(each, name) == value for name, value in fields.items()))
    return next((each.correlation for each in chosen), None)


def correlation_tables(results: Sequence[MeasureCorrelation]) -> dict[str, Table]:
    """Returns by title a table for each regime and target, with a line for each measure of each class list."""
    tables, coefficients = {}, (f"{'rho' if ranks else 'r'} {level}" for level, ranks in _COEFFICIENTS)
    header = ("measure, classes", "collapsed", *coefficients)
    for regime, target in itertools.product(REGIMES, TARGETS):
        some = [each for each in results if (each.regime, each.target) == (regime, target.name)]
        if some:
            lines = []
            for (measure, words), split in itertools.product(MEASURES.items(), SIDES):
                own = [each for each in some if (each.measure, each.split) == (measure, split)]
                cells = [cell(lookup(own, level=level, ranks=ranks)) for level, ranks in _COEFFICIENTS]
                lines.append((f"{words}, {split}", "higher" if measure in RISING else "lower", *cells))
            first, name = some[0].correlation, target.label[0].upper() + target.label[1:]
            tables[f"{name}, {regime}: {first.n} prompts of {first.draws} draws"] = Table(header, tuple(lines))
    return tables


def cell(correlation: Correlation | None) -> str:
    """Returns "+0.31 [+0.12, +0.48]"; "-" if there is no coefficient."""
    if correlation is None or math.isnan(correlation.r):
        return EMPTY
    interval = "" if correlation.ci95 is None else " [{:+.2f}, {:+.2f}]".format(*correlation.ci95)
    return f"{correlation.r:+.2f}{interval}"


def level_tables(rows: Sequence[Row]) -> dict[str, Table]:
    """Returns by title, for each protocol, accuracies and collapse of base classes after the last step."""
    tables = {}
    header = ("method", "base", "new", "H", *(MEASURES[measure] for measure in _SHOWN))
    last = max(row.step for row in rows)
    for protocol, shots in dict.fromkeys((row.protocol, row.shots) for row in rows):
        chosen = [row for row in rows if (row.protocol, row.shots, row.step) == (protocol, shots, last)]
        methods = dict.fromkeys(row.method for row in chosen)
        by_method = {method: [row for row in chosen if row.method == method] for method in methods}
        lines = ((label(method), *(_level(own, *column) for column in _LEVELS)) for method, own in by_method.items())
        tables[f"After {last} steps, {title(protocol, shots)}"] = Table(header, tuple(lines))
    return tables


def _level(rows: Sequence[Row], split: str, metric: str) -> str:
    """Returns the mean of a metric over seeds, with half its interval; accuracies in %."""
    scale, digits = (1, 3) if metric in MEASURES else (100, 1)
    values = by_seed(row for row in rows if (row.split, row.metric) == (split, metric))
    return format_summary(summarize(scale * np.array(list(values.values()))), digits)


def title(protocol: str, shots: int) -> str:
    """Returns "balanced, 16 shots", or "tau 0.25, 16 in the largest class"."""
    tau = imbalance(protocol)
    return f"balanced, {in_shots(shots)}" if tau is None else f"tau {tau:g}, {shots} in the largest class"


def by_seed(rows: Iterable[Row]) -> dict[int, float]:
    """Returns the mean of rows within each seed."""
    values: dict[int, list[float]] = {}
    for row in rows:
        values.setdefault(row.seed, []).append(row.value)
    return {seed: float(np.mean(own)) for seed, own in sorted(values.items())}


def comparisons(rows: Sequence[Row]) -> tuple[Comparison, ...]:
    """Compares each method after the last step with its tuner alone at the same learning rate."""
    last = max(row.step for row in rows)
    values: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.step == last:
            values.setdefault((row.method, row.protocol, row.shots, row.split, row.metric), []).append(row)
    compared = []
    for method, *quantity in values:
        name, at, rate = method.partition("@")
        alone = name.partition("+")[0] + at + rate
        if alone != method and (alone, *quantity) in values:
            a, b = (list(by_seed(values[each, *quantity]).values()) for each in (method, alone))
            protocol, shots, split, metric = quantity
            described = f"{metric}, {split} classes ({title(protocol, shots)})"
            compared.append(comparison(method, alone, described, "seed", paired_difference(a, b)))
    return tuple(compared)


def _columns(table: Table, names: Sequence[str]) -> Table:
    """Returns some columns of a table."""
    at = [table.header.index(name) for name in names]
    return Table(tuple(names), tuple(tuple(line[i] for i in at) for line in table.rows))


def write(
    rows: Sequence[Row], results: Sequence[MeasureCorrelation], workdir: epath.Path, show: Callable[[str], Any]
) -> None:
    """Writes table.md and correlations.json, and shows the columns that matter of two tables."""
    levels, correlated = level_tables(rows), correlation_tables(results)
    tables = {**levels, **correlated}
    for name, table in itertools.islice(levels.items(), 1):
        show(f"\n{name}\n\n{to_text(_columns(table, _SHOWN_LEVELS))}")
    for name, table in itertools.islice(correlated.items(), 1):
        some = [(line[0].removesuffix(", base"), *line[1:]) for line in table.rows if line[0] in _MAIN]
        own = Table(("measure of base classes", *table.header[1:]), tuple(some))
        show(f"\n{name}\n\n{to_text(_columns(own, (own.header[0], *_SHOWN_CORRELATIONS)))}")
    show(f"\nall tables, measures and notes: {workdir / 'table.md'}")
    markdown = "\n".join(f"## {name}\n\n{to_markdown(table)}\n" for name, table in tables.items())
    write_file(workdir / "table.md", markdown + "\n" + "".join(f"- {note}\n" for note in NOTES))
    entries = []
    for each in results:
        found = each.correlation._asdict() | ({"r": None} if math.isnan(each.correlation.r) else {})
        entries.append({name: value for name, value in vars(each).items() if name != "correlation"} | found)
    write_json(workdir / "correlations.json", entries, indent=1)
