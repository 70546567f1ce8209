"""Published accuracies of CLIP ViT-B/16, as printed in the named source, for comparison with measured ones.

`assets/published.json` contains the numbers. Missing ones were not available, such as UNIGRAM's and the larger few-shot
tables, or belong to other protocols: TPT adapts to test images; PromptKD learns from a larger teacher on unlabeled
images of all classes. Base-to-new, cross-dataset, domain generalization and long tails use 16 shots (16 images of the
largest class).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.data.readers import coop
from gram_jax.evaluation.results import Results
from gram_jax.evaluation.statistics import harmonic_of_means, mean_of_harmonics

FILE = Path(__file__).parent.parent / "assets" / "published.json"
SHOTS = 16
PREFIX = "coop:"
ELEVEN = {f"{PREFIX}{name}" for name in coop.ELEVEN}
SOURCE = f"{PREFIX}imagenet"


class Published(NamedTuple):
    """A row of a published table: fractions by column, and the source."""

    method: str
    values: dict[str, float]
    source: str


@functools.cache
def _table(name: str) -> list[Published]:
    rows = json.loads(FILE.read_text(encoding="utf-8"))[name]
    return [
        Published(row["method"], {name: percent / 100 for name, percent in row["values"].items()}, row["source"])
        for row in rows
    ]


def unlike(results: Results) -> dict[str, str]:
    """Returns datasets with the name of a published one that differ from it, and the first reason for each.

    Reasons are a limited number of test images, a split that replaces the published one, and other numbers of classes
    or images than published. The config of the results describes how each dataset was read.
    """
    about = results.config.get("datasets")
    about = about if isinstance(about, Mapping) else {}
    differing = {}
    for name in sorted({*about, *(row.dataset for row in results.rows)}):
        if name.startswith(PREFIX) and (reasons := _reasons(about.get(name, {}), results.config)):
            differing[name] = reasons[0] + f", and {len(reasons) - 1} more" * (len(reasons) > 1)
    return differing


def _reasons(about: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    reasons = []
    if config.get("max_test_images"):
        reasons.append(f"{config['max_test_images']} test images per class")
    if str(about.get("split", "")).startswith("made"):
        reasons.append("its split was made")
    return reasons + [note for note in about.get("notes", ()) if note.endswith("are published")]


def base_to_new(datasets: Collection[str]) -> list[Published]:
    """Returns rows with "base", "new", "H of means" and, if numbers of each dataset are known, "mean of H".

    There are rows only if all datasets are among the eleven; if only the averages of a method are known, only for all
    eleven datasets.

    Example:
      >>> {row.method: round(100 * row.values["new"], 2) for row in base_to_new(["coop:dtd", "coop:eurosat"])}["CoOp"]
      47.96
    """
    if not datasets or not ELEVEN.issuperset(datasets):
        return []
    rows = []
    for row in _table("base_to_new"):
        base, new = (np.array([row.values[f"{name}, {split}"] for name in datasets]) for split in ("base", "new"))
        values = {"base": float(base.mean()), "new": float(new.mean())}
        values |= {"H of means": harmonic_of_means(base, new), "mean of H": mean_of_harmonics(base, new)}
        rows.append(row._replace(values=values))
    return rows + (_table("base_to_new, averages") if set(datasets) == ELEVEN else [])


def transfer(protocol: str, source: str, others: Sequence[str]) -> list[Published]:
    """Returns rows of cross-dataset transfer or domain generalization: source, targets by name, and their "mean".

    There are rows only if the source is ImageNet and all targets (`others`, as in rows) are in the published table.

    Example:
      >>> rows = transfer("domain_generalization", "coop:imagenet", ["imagenet_a", "imagenet_r"])
      >>> {row.method: round(100 * row.values["mean"], 3) for row in rows}["MaPLe"]
      63.94
    """
    table = _table(protocol)
    targets = table[0].values.keys() - {SOURCE}
    if source != SOURCE or not others or not targets.issuperset(others):
        return []
    rows = []
    for row in table:
        values = {name: row.values[name] for name in (source, *others)}
        rows.append(row._replace(values=values | {"mean": float(np.mean([values[name] for name in others]))}))
    every = protocol == "cross_dataset" and targets == set(others)
    return rows + (_table("cross_dataset, averages") if every else [])


def imbalanced(tau: float, datasets: Collection[str]) -> list[Published]:
    """Returns rows with "mean of H" of base-to-new with a long tail; only for exactly the eleven datasets."""
    column, table = str(float(tau)), _table("imbalanced") if set(datasets) == ELEVEN else []
    return [row._replace(values={"mean of H": row.values[column]}) for row in table if column in row.values]


def few_shot(datasets: Mapping[int | None, Collection[str]]) -> list[Published]:
    """Returns rows of accuracy by the number of shots, as text, if exactly the eleven datasets were measured."""
    complete = [str(shots) for shots, names in datasets.items() if set(names) == ELEVEN]
    rows = [
        row._replace(values={shots: row.values[shots] for shots in complete if shots in row.values})
        for row in _table("few_shot")
    ]
    return [row for row in rows if row.values]


def compositional(dataset: str, world: str) -> list[Published]:
    """Returns rows with "S", "U", "H" and "AUC" of a published dataset of pairs with ViT-L/14; else none.

    Example:
      >>> round({row.method: row.values["AUC"] for row in compositional("czsl:mit-states", "closed")}["CSP"], 3)
      0.194
    """
    begin = f"{dataset}, "
    return [
        row._replace(values=values)
        for row in _table(f"compositional, {world}")
        if (values := {key.removeprefix(begin): row.values[key] for key in row.values if key.startswith(begin)})
    ]
