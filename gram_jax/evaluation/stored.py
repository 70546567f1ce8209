"""Predictions in files: what one run of a method predicts for every test image of a unit."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gram_jax.errors import InputError
from gram_jax.evaluation.prediction import Predictions
from gram_jax.evaluation.protocols import Part
from gram_jax.evaluation.results import Row
from gram_jax.io import PathLike, write_npz

_HEADER, _ARRAYS = "header", ("labels", "predicted", "probability", "references")


class Stored(NamedTuple):
    """The predictions of one run for the images of a part.

    Attributes:
      split, domain, seed: as in the rows of results.
      class_names: in label order.
      labels, predicted: int `[images]`.
      probability: float16 `[images]`, of the predicted class.
      references: the JSON text of each image's reference in its dataset.
    """

    split: str
    domain: str | None
    seed: int | None
    class_names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    references: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of images whose prediction is right."""
        return float(np.mean(self.labels == self.predicted))


def save_predictions(
    path: PathLike, measured: Iterable[tuple[Part, Predictions | None]], run: int = 0, seed: int | None = None
) -> None:
    """Writes the predictions of one run for each part that its method can classify; about 10 bytes per image.

    Args:
      path, measured: the file, and the parts with their predictions.
      run, seed: the position of the run in the predictions, and its seed.
    """
    header: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for part, predictions in measured:
        if predictions is None:
            continue
        dataset, number = part.dataset, len(header)
        small = np.uint16 if len(dataset.class_names) <= 2**16 else np.uint32
        values = (
            dataset.labels.astype(small),
            predictions.labels[run].astype(small),
            predictions.confidence[run].astype(np.float16),
            np.array([json.dumps(each) for each in dataset.references]),
        )
        arrays |= {f"{number}/{name}": value for name, value in zip(_ARRAYS, values, strict=True)}
        names = list(dataset.class_names)
        header.append({"split": part.split, "domain": part.domain, "seed": seed, "class_names": names})
    text = json.dumps(header).encode()
    write_npz(path, {_HEADER: np.frombuffer(text, np.uint8), **arrays})


def read_predictions(path: PathLike) -> list[Stored]:
    """Returns the predictions in a file, a part each; raises InputError if it is none of `save_predictions`.

    Args:
      path: the file.
    """
    try:
        with epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            header = json.loads(arrays[_HEADER].tobytes())
            parts = [_part(each, [arrays[f"{n}/{name}"] for name in _ARRAYS]) for n, each in enumerate(header)]
    except (ValueError, TypeError, KeyError, IndexError, EOFError, zipfile.BadZipFile, RecursionError) as error:
        raise InputError(
            f"{path} holds no predictions ({error!r:.100}); measure again with --save_predictions"
        ) from error
    return parts


def require_belongs(stored: Iterable[Stored], rows: Iterable[Row], path: PathLike) -> None:
    """Raises InputError unless predictions have the accuracy that the last row of their seed tells.

    Args:
      stored, path: the content of a file, and the file.
      rows: the rows of its unit, of all seeds and steps.
    """
    own = [row for row in rows if row.metric == "accuracy"]
    for each in stored:
        where = each.split, each.domain, each.seed
        of_seed = [row for row in own if (row.split, row.domain, row.seed) == where]
        last = max(of_seed, key=lambda row: row.step or 0, default=None)
        if last is None or abs(last.value - each.accuracy) > 1e-6:
            raise InputError(f"{path} holds predictions of another run; measure again with --save_predictions")


def _part(about: dict[str, Any], arrays: list[np.ndarray]) -> Stored:
    names = tuple(map(str, about["class_names"]))
    labels, predicted, probability, references = arrays
    if len({each.shape for each in arrays}) > 1 or labels.ndim != 1 or not len(labels):
        raise ValueError(f"arrays of shapes {[each.shape for each in arrays]}")
    if any(each.dtype.kind not in "iu" or each.min() < 0 or each.max() >= len(names) for each in (labels, predicted)):
        raise ValueError(f"labels beyond {len(names)} classes")
    if probability.dtype.kind != "f" or references.dtype.kind != "U":
        raise ValueError(f"arrays of {probability.dtype} and {references.dtype}")
    return Stored(about["split"], about["domain"], about["seed"], names, labels.astype(int), predicted.astype(int),
                  probability.astype(np.float64), references)  # fmt: skip
