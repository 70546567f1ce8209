"""Several result files as one list of rows, in which every configuration of a method is a line of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from gram_jax.evaluation.measures import COSTS
from gram_jax.evaluation.results import Results, Row
from gram_jax.reporting.names import tagged

# What a config holds besides settings that change the numbers of a method. Files of `experiments.evaluate` tell these
# settings by themselves, as "method_settings".
_BESIDE = (
    "baselines", "class_chunk", "clip", "controls", "dataset", "datasets", "domains", "feature_store", "files",
    "image_batch", "meta", "meta_notes", "methods", "metrics", "preset_from", "protocol", "report_steps",
    "save_confusion", "save_features", "save_predictions", "save_prompts", "seeds", "select_seeds", "select_shots",
    "selected", "shard_classes", "shots", "source", "targets", "test_time_batch",
)  # fmt: skip
_SETTINGS, _LETTERS = 2, 40  # a label names at most so many settings, in so many letters


def merge(results: Sequence[Results], names: Sequence[str], labels: Sequence[str] | None = None) -> list[Row]:
    """Returns the rows of all results, each draw once; of costs, which vary between runs, the first.

    Rows of one method are pooled only if their files agree in every setting that changes its numbers, in the clip and
    in the datasets, and do not contradict each other. Otherwise the name of the method gets a label for each
    configuration: the settings that differ, or the file if they are many.

    Args:
      results, names: the results of several runs, and their files.
      labels: a label for each file, instead.

    Example:
      >>> def of(rate, seed):
      ...     row = Row("coop", "few_shot", "toy", "accuracy", 0.5, seed=seed)
      ...     return Results({"learning_rate": rate}, {}, (row,))
      >>> [row.method for row in merge([of(0.1, 1), of(0.1, 2), of(0.3, 1)], ["a", "b", "c"])]
      ['coop @ learning_rate=0.1', 'coop @ learning_rate=0.1', 'coop @ learning_rate=0.3']
    """
    own_labels = _file_labels(names)
    merged: list[Row] = []
    for method in dict.fromkeys(row.method for each in results for row in each.rows):
        lines = _configurations(results, method)
        texts = [line.text for line in lines]
        for line in lines:
            clear = labels is None and line.text is not None and texts.count(line.text) == 1
            tag = line.text if clear and line.text is not None else (labels or own_labels)[line.file]
            name = tagged(method, tag) if len(lines) > 1 else method
            merged += [dataclasses.replace(row, method=name) for row in line.rows.values()]
    return merged


class _Configuration(NamedTuple):
    """The rows of one configuration by draw, its settings that differ from others, their text, and its first file."""

    key: tuple[str, ...]
    text: str | None
    file: int
    rows: dict[Row, Row]


def _configurations(results: Sequence[Results], method: str) -> list[_Configuration]:
    """Returns the configurations of a method in order; files that agree and do not contradict are one."""
    files = [i for i, each in enumerate(results) if any(row.method == method for row in each.rows)]
    told = {i: settings_of(results[i], method) for i in files}
    shared = set.intersection(*(set(each) for each in told.values()))
    differing = sorted(name for name in shared if len({told[i][name] for i in files}) > 1)
    lines: list[_Configuration] = []
    for i in files:
        key = tuple(told[i][name] for name in differing)
        rows = {dataclasses.replace(row, value=0.0): row for row in results[i].rows if row.method == method}
        line = next((each for each in lines if each.key == key and _agree(each.rows, rows)), None)
        if line is None:
            lines.append(line := _Configuration(key, _label(differing, key), i, {}))
        line.rows.update({draw: row for draw, row in rows.items() if draw not in line.rows})
    return lines


def settings_of(results: Results, method: str) -> dict[str, str]:
    """Returns all that the numbers of a method depend on, JSON texts by name."""
    known = results.config.get("method_settings")
    known = known if isinstance(known, Mapping) else {}
    own = known.get(method) or known.get(method.rpartition(":")[0])
    if not isinstance(own, Mapping):
        own = {name: value for name, value in results.config.items() if name not in (*_BESIDE, "method_settings")}
        if "+gram" in method and isinstance(files := results.config.get("files"), Mapping):
            own["checkpoints"] = sorted(map(str, files.values()))
    datasets = {row.dataset for row in results.rows if row.method == method}
    splits = results.environment.get("splits")
    splits = splits if isinstance(splits, Mapping) else {}
    own = {"split": "test", **own, **{f"content of {name}": splits[name] for name in datasets & splits.keys()}}
    if results.environment.get("weights") is not None:
        own["weights"] = results.environment["weights"]
    flat: dict[str, Any] = {}
    for name, value in own.items():
        flat |= value if isinstance(value, Mapping) and name.endswith("settings") else {name: value}
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in flat.items()}


def _agree(pooled: Mapping[Row, Row], rows: Mapping[Row, Row]) -> bool:
    common = (draw for draw in rows if draw in pooled and draw.metric not in COSTS)
    return all(pooled[draw].value == rows[draw].value for draw in common)


def _label(differing: Sequence[str], values: Sequence[str]) -> str | None:
    """Returns the settings of a configuration as text; None if they are too many."""
    shown = []
    for name, value in zip(differing, values, strict=True):
        plain = json.loads(value)
        while isinstance(plain, list) and len(plain) == 1:
            plain = plain[0]
        text = plain[:12] if isinstance(plain, str) and len(plain) == 64 else str(plain)  # a hash
        shown.append(f"{name}={text}")
    text = ", ".join(shown)
    return text if 0 < len(shown) <= _SETTINGS and len(text) <= _LETTERS else None


def _file_labels(names: Sequence[str]) -> list[str]:
    """Returns short names of files: the parts of their paths in which they differ."""
    parts = [PurePath(name).with_suffix("").parts for name in names]
    for place in (-2, -1):  # the folder of results.json, or the name of another file
        chosen = [each[place] if len(each) >= -place else each[-1] for each in parts]
        if len(set(chosen)) == len(chosen):
            return chosen
    return list(names)
