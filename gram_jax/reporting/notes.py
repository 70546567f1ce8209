"""The notes below the tables of a report: how to read the numbers, what is missing, and where they come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gram_jax.evaluation.measures import BESIDE
from gram_jax.evaluation.protocols import has_new, imbalance
from gram_jax.evaluation.results import Results, Row
from gram_jax.reporting.grid import Grid, in_shots, measure, scopes, shots_of, with_thirds
from gram_jax.reporting.names import CEILING, label, split_method
from gram_jax.reporting.sheets import COST, DIFFERENCES, PUBLISHED, Sheet

_SHOWN = 60  # characters of a setting's value


def notes(
    rows: Sequence[Row],
    sheets: Sequence[Sheet],
    unlike: Mapping[str, str],
    results: Sequence[Results],
    names: Sequence[str],
) -> list[str]:
    """Returns all notes of a report; `unlike` are datasets without published rows, and the reason."""
    return [
        *_reading(rows, sheets),
        *_published(sheets, unlike),
        *_draws(rows),
        *_not_shown(rows),
        *_provenance(results, names),
    ]


def _reading(rows: Sequence[Row], sheets: Sequence[Sheet]) -> Iterator[str]:
    titles = {sheet.title for sheet in sheets}
    yield (
        "Accuracies and other metrics in %: mean ± half the 95 % interval (Student's t) over seeds, with datasets "
        "averaged within each seed. Differences: in points, paired over seeds, with their whole interval."
    )
    if DIFFERENCES in titles:
        yield (
            "p: the probability of a difference at least this large if the true difference is zero (paired t-test, "
            "two-sided), not corrected for the number of comparisons."
        )
    if any(has_new(row.protocol) for row in rows):
        yield (
            "H of means is the harmonic mean of the base and new accuracies in its row, as in the published tables; "
            "mean of H is computed within each dataset and draw first."
        )
    if any(imbalance(row.protocol) is not None for row in rows):
        yield (
            "Imbalanced: tau is the number of images of the smallest base class divided by that of the largest; head, "
            "middle and tail are thirds of the base classes, whose images are classified among all base classes."
        )
    if COST in titles:
        yield (
            "Time: of one run, without compilation. Memory: of one step. Both from the lowest to the highest over "
            "datasets and protocols."
        )
    if any(split_method(row.method)[1] == CEILING for row in rows):
        yield "Ceiling: meta-learned on the true groups of the corpus, which are unknown in practice."


def _published(sheets: Sequence[Sheet], unlike: Mapping[str, str]) -> Iterator[str]:
    if any(name.startswith(PUBLISHED) for sheet in sheets for name in sheet.names):
        yield (
            "Published: CLIP ViT-B/16, as printed in the named source, not measured here. For a subset of the datasets "
            "averages are computed from the published number of each."
        )
    if unlike:
        reasons = ", ".join(f"{dataset} ({reason})" for dataset, reason in unlike.items())
        yield f"No published rows for datasets that differ from the published ones: {reasons}."


def _draws(rows: Sequence[Row]) -> Iterator[str]:
    """Yields, for each scope, the averaged draws, the steps, and the draws that are missing."""
    for scope in scopes(rows):
        shots_by_note: dict[str, list[str]] = {}
        for shots in shots_of(rows, scope):
            shots_by_note.setdefault(_draw_note(measure(rows, scope, shots)), []).append(in_shots(shots))
        for text, counts in shots_by_note.items():
            yield f"{scope.title}, {', '.join(counts)}: {text}."
    # For other metrics and thirds, only missing draws; everything else is as for accuracy.
    others = [(f"{scope.title}, {name.replace('_', ' ')}", scope, name) for scope in scopes(rows) for name in BESIDE]
    tails = [with_thirds(rows, scope) for scope in scopes(rows) if imbalance(scope.protocol) is not None]
    others += [(f"{scope.title}, {', '.join(scope.thirds)}", scope, "accuracy") for scope in tails if scope.thirds]
    for title, scope, metric in others:
        for shots in shots_of(rows, scope, metric):
            grid = measure(rows, scope, shots, metric=metric)
            if grid.left_out:
                yield f"{title}, {in_shots(shots)}: {_draw_note(grid)}."


def _draw_note(grid: Grid) -> str:
    lacking = ", ".join(f"{label(method)} lacks {count}" for method, count in grid.lacking.items())
    if not grid.items:
        return f"each method on its own draws, because they share none ({lacking})"
    datasets, domains = ({item[i] for item in grid.items} for i in (0, 1))
    over, elsewhere = (
        [_count(len(datasets), "dataset")],
        "target" if grid.scope.protocol == "cross_dataset" else "domain",
    )
    over += [_count(len(domains), elsewhere)] * grid.scope.shifted
    over += [] if grid.seeds == (None,) else [_count(len(grid.seeds), "seed")]
    text = f"means over {' x '.join(over)}{_after(grid)}"
    if grid.left_out:
        text += f"; {_count(grid.left_out, 'draw')} excluded, because not every method has them all ({lacking})"
    return text


def _after(grid: Grid) -> str:
    steps = {method: step for method, step in grid.steps.items() if step is not None}
    if len(set(steps.values())) > 1:
        return ", after " + ", ".join(f"{_count(step, 'step')} ({label(method)})" for method, step in steps.items())
    return f", after {_count(next(iter(steps.values())), 'gradient step')}" if steps else ""


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + "s" * (number != 1)


def _not_shown(rows: Sequence[Row]) -> Iterator[str]:
    shown = {scope.protocol for scope in scopes(rows)} | {"regulation"}
    for protocol, count in Counter(row.protocol for row in rows if row.protocol not in shown).items():
        yield f"Not shown: {_count(count, 'row')} of the protocol {protocol}."


def _provenance(results: Sequence[Results], names: Sequence[str]) -> Iterator[str]:
    environments = [each.environment for each in results]
    for name, each in zip(names, results, strict=True):
        if each.config.get("split") == "val":
            yield f"{name}: measured on **validation images**."
    for name, environment in zip(names, environments, strict=True):
        weights = str(environment.get("weights") or "unknown")
        by = [each for each in environment.get("measured_by") or () if isinstance(each, Mapping)] or [environment]
        code = " and ".join(dict.fromkeys(map(_revision, by)))
        yield f"{name}: clip weights {weights[:12]}, code {code}."
    if len({_json(environment.get("weights")) for environment in environments}) > 1:
        yield "**The files have different clips** (weights above): their methods are not comparable."
    yield from _differences("split of", names, [environment.get("splits") or {} for environment in environments])
    yield from _differences("setting", names, [_shared_settings(each) for each in results])


def _shared_settings(results: Results) -> dict[str, Any]:
    """Returns the settings of a file, without those of single methods, which their labels tell."""
    return {name: value for name, value in results.config.items() if name not in ("method_settings", "selected")}


def _revision(by: Mapping[str, Any]) -> str:
    """Returns the revision of code, and the part of the hash of its files that tells two changed checkouts apart."""
    revision, code = str(by.get("git") or "unknown"), str(by.get("code") or "")
    dirty = len(revision) > 12 and revision.endswith("-dirty")
    return revision[:12] + "-dirty" * dirty + f" {code[:8]}" * (dirty and bool(code))


def _differences(what: str, names: Sequence[str], mappings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a line for each key whose values differ between the files that contain it."""
    for key in sorted({key for mapping in mappings for key in mapping}):
        values = {name: _json(own[key]) for name, own in zip(names, mappings, strict=True) if key in own}
        if len(set(values.values())) > 1:
            text = "; ".join(f"{value[:_SHOWN]}{'...' * (len(value) > _SHOWN)} in {n}" for n, value in values.items())
            yield f"The files differ in the {what} {key}: {text}."


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
