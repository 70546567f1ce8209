"""Tables and plots from the result files of any number of experiments.

    python -m experiments.report --results=runs/coop/results.json,runs/ivlp/results.json --workdir=runs/report
    python -m experiments.report --results=runs/coop/results.json,runs/maple/results.json --against=coop

Reads the rows that ``experiments.evaluate`` writes and puts methods side by side: base-to-new, few-shot in the domain
of training and in shifted ones, cross-dataset, domain generalization, long tails by head, middle and tail, accuracy
along adaptation, each dataset, and the other metrics that were measured. Differences to the tuner, and to the method
that --against names, are paired over seeds and tested. Published numbers, marked as such, stand beside measurements of
the same datasets under the same protocol, and beside no others.
Means are only ever taken over the draws that all methods of a table share; what is left out, and in what the files
differ, stands below the tables. Writes ``table.md``, ``table.csv`` and plots to the workdir and prints the tables, in a
few seconds; memory does not matter.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from gram_jax import evaluation
from gram_jax import reporting as reporting_lib
from gram_jax.errors import InputError
from gram_jax.evaluation import Results, Row
from gram_jax.evaluation.measures import BESIDE, COSTS
from gram_jax.evaluation.protocols import PROTOCOLS, has_new, imbalance
from gram_jax.io import write_file
from gram_jax.reporting import evaluation_tables as _tables
from gram_jax.reporting import plots as _plots
from gram_jax.reporting import protocol_plots as _plots_protocols
from gram_jax.reporting import published as _published
from gram_jax.reporting import sheets as _sheets
from gram_jax.reporting.evaluation_tables import comparisons, reference

from ._launch import launch, setting

__all__ = ["Config", "comparisons", "merge", "reference", "run", "write"]

PLOTS = {
    "accuracy_against_shots": _plots.accuracy_against_shots,
    "base_new_h": _plots.base_new_h,
    "adaptation": _plots.adaptation,
    "regulation": _plots.regulation,
    "transfer": _plots_protocols.transfer,
    "long_tails": _plots_protocols.long_tails,
}
_SHOWN = 60  # characters of a setting's value

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is reported."""

    results: tuple[str, ...] = setting((), "result files (results.json)")
    methods: tuple[str, ...] = setting((), "the methods that are compared; all of the files if none is given")
    against: str | None = setting(
        None, "a method that every other one is compared with as well; zero-shot by default where GRAM is not measured"
    )
    shots: int | None = setting(None, "shots of the tables by step and by dataset; the largest number by default")

    def __post_init__(self) -> None:
        if not self.results:
            raise InputError("--results is empty: name at least one result file, e.g. --results=runs/coop/results.json")
        for file in self.results:
            if self.results.count(file) > 1:
                raise InputError(f"--results names {file} twice; name each file once")


def run(config: Config, workdir: Any) -> None:
    """Reads the files, writes tables and plots, prints the tables."""
    found = [evaluation.read_results(file) for file in config.results]
    known = _tables.ordered(row.method for results in found for row in results.rows)
    for flag, named in (("methods", config.methods), ("against", (config.against,))):
        for method in named:
            if method not in (None, *known):
                raise InputError(f"--{flag} names {method!r}, which no file holds; they hold {', '.join(known)}")
    if config.methods:
        if config.against not in (None, *config.methods):
            raise InputError(f"--against={config.against} is not among --methods; add it there")
        found = [
            dataclasses.replace(results, rows=tuple(row for row in results.rows if row.method in config.methods))
            for results in found
        ]
    write(found, workdir, names=config.results, shots=config.shots, against=config.against, show=print)


def write(
    results: Sequence[Results],
    workdir: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    shots: int | None = None,
    against: str | None = None,
    show: Callable[[str], Any] | None = None,
) -> str:
    """Writes ``table.md``, ``table.csv`` and the plots that the rows allow.

    Args:
      results: what experiments found, of one clip.
      workdir: where to write.
      names: what the results are called, usually their files.
      shots: labeled images a class in the tables by step and by dataset; the largest number by default.
      against: a method that every other one is compared with as well; zero-shot where nothing else is compared.
      show: called with the tables as aligned text.

    Returns:
      The text of ``table.md``.

    Raises:
      InputError: nothing can be shown, or a draw was measured twice with different values; the message names the
        files.
    """
    names = list(names or (f"results {i + 1}" for i in range(len(results))))
    rows = merge(results, names)
    kinds = [kind for kind in _tables.kinds(rows) if _tables.shots_of(rows, kind)]
    if not kinds:
        protocols = ", ".join(sorted({row.protocol for row in rows})) or "no rows at all"
        raise InputError(f"no accuracy of {', '.join(PROTOCOLS)} in {', '.join(names)}; found {protocols}")
    measured = sorted({n for kind in kinds for n in _tables.shots_of(rows, kind) if n is not None})
    if shots is not None and shots not in measured:
        raise InputError(f"--shots={shots} was not measured; the files hold {', '.join(map(str, measured)) or 'none'}")
    shots = _tables.default_shots(rows) if shots is None else shots
    unlike = {dataset: why for found in results for dataset, why in _published.unlike(found).items()}
    sheets = list(_sheets.sheets(rows, shots, against or reference(rows), unlike))
    footer = [*_reading(rows, sheets), *_beside(sheets, unlike), *_notes(rows), *_unshown(rows)]
    footer += _provenance(results, names)
    markdown = _render(sheets, footer, "## ", "- ", reporting_lib.to_markdown)
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_file(workdir / "table.md", markdown)
    write_file(workdir / "table.csv", _to_csv(sheets))
    for name, plot in PLOTS.items():
        path = workdir / f"{name}.png"
        if not plot(rows, path, shots=shots):
            path.unlink(missing_ok=True)  # of an earlier report, which the tables no longer belong to
    if show is not None:
        show("\n" + _render(sheets, footer, "", "* ", reporting_lib.to_text))
        show(f"tables and plots in {workdir}")
    return markdown


def merge(results: Sequence[Results], names: Sequence[str]) -> list[Row]:
    """The rows of all results, each draw once; of costs, which differ from run to run, the first.

    Raises:
      InputError: a draw was measured twice with different values; the message names the files.
    """
    merged: dict[Row, tuple[Row, str]] = {}
    for found, name in zip(results, names, strict=True):
        for row in found.rows:
            draw = dataclasses.replace(row, value=0.0)
            first, where = merged.setdefault(draw, (row, name))
            if first.value != row.value and row.metric not in COSTS:
                fields = dataclasses.asdict(row).items()
                text = ", ".join(f"{field}={value!r}" for field, value in fields if value is not None)
                text = text.replace(f", value={row.value!r}", "")
                raise InputError(
                    f"{where} and {name} hold different values of the same draw, {first.value!r} and {row.value!r}, "
                    f"for {text}; report files of different clips or settings apart from each other"
                )
    return [row for row, _ in merged.values()]


def _reading(rows: Sequence[Row], sheets: Sequence[_sheets.Sheet]) -> Iterator[str]:
    """How the numbers are to be read."""
    yield (
        "Accuracies and other metrics in %: mean ± half the 95 % interval (Student's t) over seeds, datasets averaged "
        "within each seed. Differences: in points, paired over seeds, with their whole interval."
    )
    if any(sheet.title == _sheets.DIFFERENCES for sheet in sheets):
        yield (
            "p: how likely so large a difference is if there were none (paired t-test, two-sided); not corrected for "
            "the number of differences that are looked at."
        )
    if any(has_new(row.protocol) for row in rows):
        yield (
            "H of means is the harmonic mean of the base and new accuracies of its line, as the published tables print "
            "it; mean of H is taken within each dataset and draw first."
        )
    if any(imbalance(row.protocol) is not None for row in rows):
        yield (
            "Imbalanced: tau is the number of images of the smallest base class over that of the largest; head, middle "
            "and tail are thirds of the base classes, whose images are classified among all of them."
        )
    if any(sheet.title == _sheets.COST for sheet in sheets):
        yield (
            "Time and memory: of one run, its share of the time of all seeds side by side, compilation left out; of a "
            "step of all seeds together; from the least to the most of any dataset and protocol."
        )
    if any(_tables.parse(row.method)[1] == _tables.CEILING for row in rows):
        yield "Ceiling: meta-learned on the true groups of the corpus, which no method knows."


def _beside(sheets: Sequence[_sheets.Sheet], unlike: Mapping[str, str]) -> Iterator[str]:
    """What published rows are, and where they were left out."""
    if any(name.startswith(_sheets.PUBLISHED) for sheet in sheets for name in sheet.names):
        yield (
            "Published: CLIP ViT-B/16, as printed by the source that is named, not measured here; of fewer datasets "
            "than the source's, averages are computed from its numbers for each."
        )
    if unlike:
        found = ", ".join(f"{dataset} ({why})" for dataset, why in unlike.items())
        yield f"No published numbers stand beside datasets that are not as published: {found}."


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """What a reader must know about the averages: over which draws, after how many steps, without what."""
    kinds = _tables.kinds(rows)
    for kind in kinds:
        found: dict[str, list[str]] = {}  # numbers of shots about which the same is to be said
        for shots in _tables.shots_of(rows, kind):
            found.setdefault(_note(_tables.measure(rows, kind, shots)), []).append(_tables.in_shots(shots))
        for text, counts in found.items():
            yield f"{kind.title}, {', '.join(counts)}: {text}."
    # Of the rest only what is left out: otherwise it is as with accuracy.
    rest = [(f"{kind.title}, {metric.replace('_', ' ')}", kind, metric) for kind in kinds for metric in BESIDE]
    tails = [_tables.thirds_of(rows, kind) for kind in kinds if imbalance(kind.protocol) is not None]
    rest += [(f"{kind.title}, {', '.join(kind.parts)}", kind, "accuracy") for kind in tails if kind.parts]
    for title, kind, metric in rest:
        for shots in _tables.shots_of(rows, kind, metric):
            grid = _tables.measure(rows, kind, shots, metric=metric)
            if grid.left_out:
                yield f"{title}, {_tables.in_shots(shots)}: {_note(grid)}."


def _note(grid: _tables.Grid) -> str:
    if not grid.items:
        return f"no mean is shown, since the methods share no draw ({_lacking(grid)})"
    datasets, domains = ({item[i] for item in grid.items} for i in (0, 1))
    over = [_count(len(datasets), "dataset")]
    if grid.kind.shifted:
        over.append(_count(len(domains), "target" if grid.kind.protocol == "cross_dataset" else "domain"))
    over += [] if grid.seeds == (None,) else [_count(len(grid.seeds), "seed")]
    text = f"means over {' x '.join(over)}{_after(grid)}"
    if grid.left_out:
        text += f"; {_count(grid.left_out, 'draw')} left out, since not every method has them all ({_lacking(grid)})"
    return text


def _after(grid: _tables.Grid) -> str:
    steps = {method: step for method, step in grid.steps.items() if step is not None}
    if len(set(steps.values())) > 1:
        return ", after " + ", ".join(
            f"{_count(step, 'step')} ({_tables.label(method)})" for method, step in steps.items()
        )
    return f", after {_count(next(iter(steps.values())), 'gradient step')}" if steps else ""


def _lacking(grid: _tables.Grid) -> str:
    return ", ".join(f"{_tables.label(method)} lacks {count}" for method, count in grid.lacking.items())


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + "s" * (number != 1)


def _unshown(rows: Sequence[Row]) -> Iterator[str]:
    shown = {kind.protocol for kind in _tables.kinds(rows)} | {"regulation"}
    for protocol, count in Counter(row.protocol for row in rows if row.protocol not in shown).items():
        yield f"Not shown: {_count(count, 'row')} of the protocol {protocol}."


def _provenance(results: Sequence[Results], names: Sequence[str]) -> Iterator[str]:
    """Where the numbers come from, and in what the files differ."""
    for name, found in zip(names, results, strict=True):
        weights, revision = (str(found.environment.get(key) or "unknown") for key in ("weights", "git"))
        revision = revision[:12] + "-dirty" * (len(revision) > 12 and revision.endswith("-dirty"))
        yield f"{name}: clip weights {weights[:12]}, code {revision}."
    weights = {name: found.environment.get("weights") for name, found in zip(names, results, strict=True)}
    if len({_json(value) for value in weights.values()}) > 1:
        yield "**The files are of different clips** (weights above): their methods are not comparable."
    yield from _differences("split of", names, [found.environment.get("splits") or {} for found in results])
    yield from _differences("setting", names, [found.config for found in results])


def _differences(what: str, names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each key whose values differ between the files that hold it."""
    for key in sorted({key for values in found for key in values}):
        held = {name: _json(values[key]) for name, values in zip(names, found, strict=True) if key in values}
        if len(set(held.values())) > 1:
            text = "; ".join(f"{value[:_SHOWN]}{'...' * (len(value) > _SHOWN)} in {n}" for n, value in held.items())
            yield f"The files differ in the {what} {key}: {text}."


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _render(
    sheets: Sequence[_sheets.Sheet],
    footer: Sequence[str],
    heading: str,
    bullet: str,
    to_table: Callable[[reporting_lib.Table], str],
) -> str:
    parts = [f"{heading}{sheet.title}\n\n{to_table(sheet.table())}\n" for sheet in sheets]
    return "\n".join([*parts, "".join(f"{bullet}{line}\n" for line in footer)])


def _to_csv(sheets: Sequence[_sheets.Sheet]) -> str:
    """All numbers in long form, with all their digits; empty where there is no interval, no test, no draw of ours."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "row", "column", "percent", "ci95_low", "ci95_high", "n", "p_value"])
    for sheet in sheets:
        for name, cells in zip(sheet.names, sheet.rows, strict=True):
            for column, cell in zip(sheet.header[1:], cells, strict=True):
                if cell.summary is not None:
                    numbers = (cell.summary.mean, *cell.summary.ci95)
                    percent = [repr(100 * number) if number == number else "" for number in numbers]
                    p_value = "" if cell.p_value is None else repr(cell.p_value)
                    writer.writerow([sheet.title, name, column, *percent, cell.summary.n or "", p_value])
    return stream.getvalue()


if __name__ == "__main__":
    launch(run, Config)
