"""Correlations of collapse with generalization over many tuned prompts, and the tables of `experiments.collapse`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gram_jax import evaluation
from gram_jax import reporting as reporting_lib
from gram_jax.evaluation import Comparison, Row
from gram_jax.evaluation.protocols import imbalance
from gram_jax.io import write_file
from gram_jax.reporting import Table
from gram_jax.reporting.grid import in_shots
from gram_jax.reporting.names import label as method_label

from .correlation import Correlation, correlate
from .measures import WHOLE, H


class Measure(NamedTuple):
    """A measure of collapse for people; `rises` where collapse makes it larger."""

    label: str
    rises: bool = False


MEASURES = {
    "nc1": Measure("NC1, spread of images within classes"),
    "nc2_text_mean": Measure("NC2, text: mean cosine + 1/(K-1)"),
    "nc2_text_std": Measure("NC2, text: unequal cosines"),
    "nc2_image_mean": Measure("NC2, image means: mean cosine + 1/(K-1)"),
    "nc2_image_std": Measure("NC2, image means: unequal cosines"),
    "simplex_text": Measure("simplex distance, text"),
    "simplex_image": Measure("simplex distance, image means"),
    "simplex_both": Measure("simplex distance, text with image means"),
    "nc3_gram": Measure("NC3, distance of Gram matrices"),
    "nc3_cosine": Measure("NC3, cosine of text and image means", rises=True),
    "nc4": Measure("NC4, agreement with the nearest mean", rises=True),
}


class Target(NamedTuple):
    """What generalization is measured by: the rows' split and metric."""

    name: str
    label: str
    split: str
    metric: str


TARGETS = (Target("new", "accuracy on new classes", "new", "accuracy"), Target("h", "H of base and new", WHOLE, H))
REGIMES = ("balanced", "imbalanced")
SIDES = ("base", "new")
WITHIN, PAIRED, POOLED = "within", "same step", "pooled"
# What prompts share within which they are held against each other.
LEVELS: dict[str, tuple[str, ...] | None] = {
    WITHIN: ("dataset", "protocol"),
    PAIRED: ("dataset", "protocol", "shots", "step"),
    POOLED: None,
}
# The columns of the tables: of correlations, level and whether of ranks; of levels, split and metric.
_COLUMNS = ((WITHIN, False), (WITHIN, True), (PAIRED, False), (POOLED, False))
_SHOWN = ("nc1", "simplex_text", "simplex_both", "nc3_cosine", "nc4")
_LEVEL_COLUMNS = (("base", "accuracy"), ("new", "accuracy"), (WHOLE, H), *(("base", measure) for measure in _SHOWN))


class Prompts(NamedTuple):
    """Measured prompts in one order: what each is, and by split and metric what was measured of it."""

    keys: tuple[dict[str, Any], ...]
    values: dict[tuple[str, str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Found:
    """A correlation.

    Attributes:
      regime: "balanced" or "imbalanced", all long tails together.
      measure: of collapse, as rows name it.
      split: the classes whose test images and texts it is of, "base" or "new".
      target: what it is held against, "new" or "h".
      level: "within" each dataset and tau, among prompts of the "same step" as well, or "pooled".
      ranks: whether it is Spearman's coefficient.
      correlation: the coefficient.
    """

    regime: str
    measure: str
    split: str
    target: str
    level: str
    ranks: bool
    correlation: Correlation


def family(method: str) -> str:
    """What is tuned, without the learning rate that stands behind "@"."""
    return method.partition("@")[0]


def label(method: str) -> str:
    """A method's name for people."""
    name, _, rate = method.partition("@")
    return method_label(name) + (f", rate {rate}" if rate else "")


def regime(protocol: str) -> str:
    """ "balanced", or "imbalanced" of all long tails."""
    return "balanced" if imbalance(protocol) is None else "imbalanced"


def tuned_prompts(rows: Iterable[Row], regime_of: str) -> Prompts:
    """The prompts of a regime that took at least one step: before it, all of a tuner are the same."""
    found: dict[tuple, dict[tuple[str, str], float]] = {}
    names = ("method", "protocol", "dataset", "shots", "seed", "step")
    for row in rows:
        if regime(row.protocol) == regime_of and row.step:
            key = tuple(getattr(row, name) for name in names)
            found.setdefault(key, {})[row.split, row.metric] = row.value
    keys = tuple(dict(zip(names, key, strict=True)) for key in found)
    measured = list(found.values())
    kinds = measured[0] if measured else {}
    return Prompts(keys, {kind: np.array([values[kind] for values in measured]) for kind in kinds})


def correlations(rows: Sequence[Row], samples: int) -> list[Found]:
    """Every measure, of base and of new classes, against every target, in every way, in both regimes.

    The interval is over draws, (dataset, seed), with all their prompts, drawn from each dataset as many as it has.
    """
    found = []
    for regime_of in REGIMES:
        prompts = tuned_prompts(rows, regime_of)
        if not prompts.keys:
            continue
        draws = [(key["dataset"], key["seed"]) for key in prompts.keys]
        strata = [key["dataset"] for key in prompts.keys]
        groups = {
            level: None if shared is None else [tuple(key[name] for name in shared) for key in prompts.keys]
            for level, shared in LEVELS.items()
        }
        for measure, split, target in itertools.product(MEASURES, SIDES, TARGETS):
            x, y = prompts.values[split, measure], prompts.values[target.split, target.metric]
            varies = True
            for level, ranks in itertools.product(LEVELS, (False, True)):
                each = correlate(x, y, draws, groups=groups[level], strata=strata, ranks=ranks, samples=samples)
                varies = varies and not (level == WITHIN and math.isnan(each.r))
                # One value a dataset says nothing of prompts, however many are measured.
                each = each if varies else each._replace(r=math.nan, ci95=None)
                found.append(Found(regime_of, measure, split, target.name, level, ranks, each))
    return found


def lookup(found: Iterable[Found], **fields: Any) -> Correlation | None:
    """The correlation of which the fields are those given; None if there is none."""
    chosen = (each for each in found if all(getattr(each, name) == value for name, value in fields.items()))
    return next((each.correlation for each in chosen), None)


def correlation_tables(found: Sequence[Found]) -> dict[str, Table]:
    """A table for each regime and target, by title: a line for each measure of each class list."""
    tables = {}
    for regime_of, target in itertools.product(REGIMES, TARGETS):
        some = [each for each in found if (each.regime, each.target) == (regime_of, target.name)]
        if not some:
            continue
        lines = []
        for (measure, (words, rises)), split in itertools.product(MEASURES.items(), SIDES):
            own = [each for each in some if (each.measure, each.split) == (measure, split)]
            cells = [cell(lookup(own, level=level, ranks=ranks)) for level, ranks in _COLUMNS]
            lines.append((f"{words}, {split}", "higher" if rises else "lower", *cells))
        first = some[0].correlation
        name = f"{target.label[0].upper()}{target.label[1:]}, {regime_of}: {first.n} prompts of {first.draws} draws"
        header = ("measure, classes", "collapsed", *(f"{'rho' if ranks else 'r'} {level}" for level, ranks in _COLUMNS))
        tables[name] = Table(header, tuple(lines))
    return tables


def cell(correlation: Correlation | None) -> str:
    """ "+0.31 [+0.12, +0.48]"; "-" where there is none."""
    if correlation is None or math.isnan(correlation.r):
        return "-"
    interval = "" if correlation.ci95 is None else " [{:+.2f}, {:+.2f}]".format(*correlation.ci95)
    return f"{correlation.r:+.2f}{interval}"


def level_tables(rows: Sequence[Row]) -> dict[str, Table]:
    """Accuracies and collapse of base classes after the last step, by protocol: mean and 95 % interval over seeds."""
    tables = {}
    last = max(row.step for row in rows)
    for protocol, shots in dict.fromkeys((row.protocol, row.shots) for row in rows):
        chosen = [row for row in rows if (row.protocol, row.shots, row.step) == (protocol, shots, last)]
        lines = []
        for method in dict.fromkeys(row.method for row in chosen):
            own = [row for row in chosen if row.method == method]
            lines.append((label(method), *(_level(own, *column) for column in _LEVEL_COLUMNS)))
        header = ("method", "base", "new", "H", *(MEASURES[measure].label for measure in _SHOWN))
        tables[f"After {last} steps, {title(protocol, shots)}"] = Table(header, tuple(lines))
    return tables


def _level(rows: Sequence[Row], split: str, metric: str) -> str:
    """The mean of a metric and half its interval over seeds; accuracies in %."""
    scale, digits = (1, 3) if metric in MEASURES else (100, 1)
    values = by_seed(row for row in rows if (row.split, row.metric) == (split, metric))
    summary = evaluation.summarize(scale * np.array(list(values.values())))
    half = (summary.ci95[1] - summary.ci95[0]) / 2
    return f"{summary.mean:.{digits}f}" + ("" if math.isnan(half) else f" ±{half:.{digits}f}")


def title(protocol: str, shots: int) -> str:
    """ "balanced, 16 shots", or "tau 0.25, 16 shots in the largest class"."""
    tau = imbalance(protocol)
    return f"balanced, {in_shots(shots)}" if tau is None else f"tau {tau:g}, {shots} in the largest class"


def by_seed(rows: Iterable[Row]) -> dict[int, float]:
    """The mean of rows within each seed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.seed, []).append(row.value)
    return {seed: float(np.mean(values)) for seed, values in sorted(found.items())}


def comparisons(rows: Sequence[Row]) -> tuple[Comparison, ...]:
    """What regularizers do to collapse and accuracy after the last step: each method and its tuner alone, same rate."""
    last = max(row.step for row in rows)
    values: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.step == last:
            values.setdefault((row.method, row.protocol, row.shots, row.split, row.metric), []).append(row)
    found = []
    for method, *kind in values:
        name, at, rate = method.partition("@")
        alone = name.partition("+")[0] + at + rate
        if alone != method and (alone, *kind) in values:
            a, b = (by_seed(values[each, *kind]) for each in (method, alone))
            protocol, shots, split, metric = kind
            described = f"{metric}, {split} classes ({title(protocol, shots)})"
            difference = evaluation.paired_difference(list(a.values()), list(b.values()))
            found.append(evaluation.comparison(method, alone, described, "seed", difference))
    return tuple(found)


def write(rows: Sequence[Row], found: Sequence[Found], workdir: epath.Path, show: Callable[[str], Any]) -> None:
    """Writes table.md and correlations.json, and shows the tables."""
    tables = {**level_tables(rows), **correlation_tables(found)}
    notes = (
        "Collapse is measured on test images and on the names of the classes that stand beside it, of base classes "
        "in the first tables; mean ± half the 95 % interval (Student's t) over seeds, datasets averaged within each.",
        "Correlations are over all prompts that took at least one step. r is Pearson's, rho Spearman's; within: around "
        "the mean of each dataset and tau; same step: and of each number of shots and of steps; pooled: around one "
        "mean. Intervals: 95 %, of a bootstrap over draws (dataset and seed), each with all its prompts.",
        '"collapsed" says which way collapse moves the measure: where it is lower, a negative coefficient says that '
        "collapsed prompts generalize better. - where a measure does not vary within datasets, as of frozen images.",
    )
    markdown = "\n".join(f"## {name}\n\n{reporting_lib.to_markdown(table)}\n" for name, table in tables.items())
    for name, table in tables.items():
        show(f"\n{name}\n\n{reporting_lib.to_text(table)}")
    show("\n" + "\n".join(f"* {note}" for note in notes))
    write_file(workdir / "table.md", markdown + "\n" + "".join(f"- {note}\n" for note in notes))
    fields = []
    for each in found:
        own = each.correlation._asdict() | ({"r": None} if math.isnan(each.correlation.r) else {})
        fields.append({k: v for k, v in vars(each).items() if k != "correlation"} | own)
    write_file(workdir / "correlations.json", json.dumps(fields, indent=1) + "\n")
