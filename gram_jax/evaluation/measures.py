"""What is measured of predictions: metrics as rows of results, and confusion matrices in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from gram_jax.evaluation.metrics import calibration_error, confusion_matrix, macro_f1, per_class_accuracy
from gram_jax.evaluation.protocols import Part, imbalance, thirds
from gram_jax.evaluation.results import Row
from gram_jax.tuning import Cost

_IMAGES = 4096


class Outcome(NamedTuple):
    """The predicted label of each image and its probability, each ``[runs, images]``."""

    predicted: np.ndarray
    confidence: np.ndarray


def outcome(logits: np.ndarray) -> Outcome:
    """What is left of logits ``[runs, images, classes]``, of which a thousand classes would fill the memory."""
    best = logits.max(-1, keepdims=True)
    return Outcome(logits.argmax(-1), 1 / np.exp(logits - best).sum(-1))


def _recall(predicted: np.ndarray, confidence: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns the accuracy within each class that has images."""
    del confidence
    recall = per_class_accuracy(confusion_matrix(predicted, labels, classes))
    return recall[~np.isnan(recall)]


def _macro_f1(predicted: np.ndarray, confidence: np.ndarray, labels: np.ndarray, classes: int) -> float:
    del confidence
    return float(macro_f1(confusion_matrix(predicted, labels, classes)))


def _calibration(predicted: np.ndarray, confidence: np.ndarray, labels: np.ndarray, classes: int) -> float:
    del classes
    # Filled up, so that sets of images of all lengths share compiled programs.
    room = (0, -len(labels) % _IMAGES)
    there = np.pad(np.ones(len(labels)), room)
    return float(calibration_error(np.pad(confidence, room), np.pad(predicted == labels, room), there))


# name -> metric of one run: predicted [images], confidence [images], labels [images], number of classes.
METRICS: dict[str, Callable[..., float]] = {
    "accuracy": lambda predicted, confidence, labels, classes: float(np.mean(predicted == labels)),
    "per_class_accuracy": lambda *found: float(np.mean(_recall(*found))),
    "worst_class_accuracy": lambda *found: float(np.min(_recall(*found))),
    "macro_f1": _macro_f1,
    "expected_calibration_error": _calibration,
}

ALL, COST = "all", "cost"
BESIDE = tuple(name for name in METRICS if name != "accuracy")
CHOICES = (*BESIDE, COST, ALL)
SECONDS, BYTES = COSTS = ("tuning_seconds", "step_bytes")  # the metrics of rows that tell a cost


def asked_for(names: Sequence[str]) -> list[str]:
    """The metrics of predictions that a list of names stands for; accuracy is always one of them."""
    return ["accuracy", *(name for name in BESIDE if name in names or ALL in names)]


def cost_rows(
    method: str, protocol: str, name: str, cost: Cost, shots: int, runs: int, split: str, step: int
) -> Iterator[Row]:
    """What tuning cost: the time of a run, its share of all side by side, and the memory of a step of all."""
    for metric, value in zip(COSTS, (cost.seconds * step / runs, float(cost.bytes)), strict=True):
        yield Row(method, protocol, name, metric, value, None, shots, None, split, step)


def rows(
    method: str,
    protocol: str,
    name: str,
    measured: Iterable[tuple[Part, Outcome]],
    metrics: Sequence[str],
    shots: int | None = None,
    seeds: Sequence[int | None] = (None,),
    step: int | None = None,
) -> Iterator[Row]:
    """The rows of a method on the parts of a dataset, one for each metric, part and seed.

    Args:
      method: its name.
      protocol: as rows name it; an imbalanced one brings the accuracy of the head, middle and tail third of its base
        classes, each image being classified among all of them.
      name: the dataset's name.
      measured: parts, with what was predicted on them.
      metrics: keys of ``METRICS``.
      shots: labeled images a class; None where nothing was tuned.
      seeds: one for each run.
      step: of the tuning.

    Yields:
      The rows.
    """
    for part, found in measured:
        labels, classes = part.dataset.labels, len(part.dataset.class_names)
        for metric in metrics:
            for seed, *run in zip(seeds, *found, strict=True):
                value = METRICS[metric](*run, labels, classes)
                yield Row(method, protocol, name, metric, value, part.domain, shots, seed, part.split, step)
        if part.split == "base" and imbalance(protocol) is not None:
            for third, members in thirds(classes).items():
                of_third = np.isin(labels, members)
                for seed, predicted in zip(seeds, found.predicted, strict=True):
                    value = float(np.mean(predicted[of_third] == labels[of_third]))
                    yield Row(method, protocol, name, "accuracy", value, part.domain, shots, seed, third, step)


def file_name(unit: Sequence[str | int]) -> str:
    """What a unit, (method, dataset, protocol, shots), calls its files."""
    method, *rest = unit
    return "-".join(map(str, (*rest, method))).replace(":", "_").replace("/", "_").replace("+", "_")


def save_confusion(path: epath.Path, measured: Iterable[tuple[Part, Outcome]]) -> None:
    """Writes, for each part, counts of true (rows) against predicted classes ``[runs, classes, classes]``."""
    arrays = {}
    for part, found in measured:
        labels, names = part.dataset.labels, part.dataset.class_names
        counts = [confusion_matrix(predicted, labels, len(names)) for predicted in found.predicted]
        arrays |= {key(part, "counts"): np.stack(counts).astype(np.int32), key(part, "class_names"): np.array(names)}
    save_arrays(path, arrays)


def key(part: Part, what: str) -> str:
    """The name of an array of a part in a file: "base/counts", "all@noise/counts"."""
    return part.split + (f"@{part.domain.replace('/', '-')}" if part.domain else "") + f"/{what}"


def save_arrays(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f"{path.name}.part"
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)
