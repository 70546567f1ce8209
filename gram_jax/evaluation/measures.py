"""Measurements of predictions: metrics as rows of results, confusion matrices in files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gram_jax.batching import pad_to, round_up
from gram_jax.evaluation.metrics import calibration_error, confusion_matrix, macro_f1, per_class_accuracy
from gram_jax.evaluation.prediction import Predictions
from gram_jax.evaluation.protocols import Part, Protocol
from gram_jax.evaluation.results import Row
from gram_jax.io import PathLike, write_npz
from gram_jax.tuning import Tuned

_IMAGES = 4096  # sets of images are padded to a multiple of this many, so that they share compiled programs
REGULATION_STEPS = 12  # the number of steps of a run at which the regulation is reported


def _recall(predicted: np.ndarray, confidence: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns the accuracy within each class that has images."""
    recall = np.asarray(per_class_accuracy(confusion_matrix(predicted, labels, classes)))
    return recall[~np.isnan(recall)]


def _calibration(predicted: np.ndarray, confidence: np.ndarray, labels: np.ndarray, classes: int) -> float:
    size = round_up(len(labels), _IMAGES)
    arrays = (pad_to(array, size, fill=0) for array in (confidence, predicted == labels, np.ones(len(labels))))
    return float(calibration_error(*arrays))


# name -> metric of one run: predicted [images], confidence [images], labels [images], number of classes.
METRICS: dict[str, Callable[..., float]] = {
    "accuracy": lambda predicted, confidence, labels, classes: float(np.mean(predicted == labels)),
    "per_class_accuracy": lambda *run: float(np.mean(_recall(*run))),
    "worst_class_accuracy": lambda *run: float(np.min(_recall(*run))),
    "macro_f1": lambda predicted, _, labels, classes: float(macro_f1(confusion_matrix(predicted, labels, classes))),
    "expected_calibration_error": _calibration,
}
ALL, COST = "all", "cost"
BESIDE = tuple(name for name in METRICS if name != "accuracy")
SECONDS, BYTES = COSTS = ("tuning_seconds", "step_bytes")  # the metrics of rows that report a cost


def asked_for(names: Sequence[str]) -> list[str]:
    """Returns the metrics of predictions that a list of names stands for; accuracy is always one of them."""
    return ["accuracy", *(name for name in BESIDE if name in names or ALL in names)]


def asks_for_cost(names: Sequence[str]) -> bool:
    """Returns whether a list of names asks for the cost of tuning."""
    return COST in names or ALL in names


def rows(
    method: str,
    protocol: Protocol,
    dataset: str,
    measured: Iterable[tuple[Part, Predictions | None]],
    metrics: Sequence[str],
    shots: int | None = None,
    seeds: Sequence[int | None] = (None,),
    step: int | None = None,
) -> Iterator[Row]:
    """Yields the rows of a method on the parts of a dataset, one for each metric, part and seed.

    A part that the method cannot classify, without predictions, is left out. The protocol may add the accuracy of
    groups of classes, each image classified among all classes. `shots` and `step` are None if nothing was tuned.
    """
    for part, predictions in measured:
        if predictions is None:
            continue
        labels, classes = part.dataset.labels, len(part.dataset.class_names)
        for metric in metrics:
            for seed, *run in zip(seeds, *predictions, strict=True):
                value = METRICS[metric](*run, labels, classes)
                yield Row(method, protocol.name, dataset, metric, value, part.domain, shots, seed, part.split, step)
        for group, members in protocol.groups(part).items():
            of_group = np.isin(labels, members)
            for seed, predicted in zip(seeds, predictions.labels, strict=True):
                value = float(np.mean(predicted[of_group] == labels[of_group]))
                yield Row(method, protocol.name, dataset, "accuracy", value, part.domain, shots, seed, group, step)


def cost_rows(
    method: str, protocol: Protocol, dataset: str, tuned: Tuned, shots: int | None, split: str
) -> Iterator[Row]:
    """Yields what tuning cost: the time of a run and the memory of a step."""
    if tuned.cost is None:
        return
    last = max(tuned.prompts)
    for metric, value in zip(COSTS, (tuned.cost.seconds * last, float(tuned.cost.bytes)), strict=True):
        yield Row(method, protocol.name, dataset, metric, value, None, shots, None, split, last)


def regulation_rows(
    method: str, dataset: str, tuned: Tuned, shots: int, seeds: Sequence[int], split: str
) -> Iterator[Row]:
    """Yields how a regulator changes the gradients along a run, under the protocol name "regulation"."""
    for step in sorted({int(step) for step in np.linspace(1, max(tuned.prompts), REGULATION_STEPS)}):
        for metric in ("gradient_norm_ratio", "gradient_cosine"):
            for seed, value in zip(seeds, tuned.metrics[metric][step - 1], strict=True):
                yield Row(method, "regulation", dataset, metric, float(value), None, shots, seed, split, step)


def file_name(unit: Sequence[str | int | None]) -> str:
    """Returns the name of the files of a unit, (method, dataset, protocol, shots).

    Example:
      >>> file_name(("coop+gram:init_only", "glyphs:chess", "base_to_new", 4))
      'glyphs_chess-base_to_new-4-coop_gram_init_only'
    """
    method, *rest = unit
    return re.sub(r"[^\w.=-]", "_", "-".join(str(each) for each in (*rest, method) if each is not None))


def save_confusion(path: PathLike, measured: Iterable[tuple[Part, Predictions | None]]) -> None:
    """Writes counts of true (rows) against predicted classes for each part, ``[runs, classes, classes]``."""
    arrays: dict[str, Any] = {}
    for part, predictions in measured:
        if predictions is not None:
            labels, names = part.dataset.labels, np.array(part.dataset.class_names)
            counts = [confusion_matrix(predicted, labels, len(names)) for predicted in predictions.labels]
            arrays |= {array_name(part, "counts"): np.array(counts, np.int32), array_name(part, "class_names"): names}
    write_npz(path, arrays)


def array_name(part: Part, what: str) -> str:
    """Returns the name of an array of a part in a file, such as "base/counts" or "all@noise/counts"."""
    return part.split + (f"@{part.domain.replace('/', '-')}" if part.domain else "") + f"/{what}"
