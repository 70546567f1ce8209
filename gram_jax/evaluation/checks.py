"""What an evaluation refuses a dataset for: one list, which check_data and the programs that measure share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from gram_jax.clip import Clip
from gram_jax.data import Dataset, coop
from gram_jax.data.spellings import require_distinct
from gram_jax.errors import InputError, examples, explain
from gram_jax.evaluation import draws


def problems(dataset: Dataset, split: str = "test", shots: Sequence[int] = ()) -> list[str]:
    """Returns why a dataset cannot be used, one text each.

    It has one class, classes with the same tokens (published lists may have some), no image in the split that is
    measured, or fewer training images of a class than shots.

    Args:
      dataset: the dataset.
      split: the split that is measured.
      shots: labeled images per class that are to be drawn.

    Example:
      >>> from gram_jax.data import load_dataset, restrict
      >>> problems(restrict(load_dataset("glyphs:chess"), [0]))
      ["dataset 'glyphs:chess' has one class, 'white king'; it needs two"]
    """
    found = []
    if len(dataset.class_names) < 2:
        found.append(f"dataset {dataset.name!r} has one class, {dataset.class_names[0]!r}; it needs two")
    if coop.facts(dataset.name) is None:
        found += _message(lambda: require_distinct(dataset.class_names, dataset.name))
    found += _message(lambda: dataset.select(split))
    for each in shots:
        found += _message(functools.partial(draws.few_shot, dataset, each, seed=1))
    return found


def require_readable(clip: Clip, dataset: Dataset, names: Sequence[str], template: str, reader: str) -> None:
    """Raises InputError if a clip cannot read class names under a template: too long, without tokens, or equal.

    Args:
      clip, dataset: the clip, and the dataset that the names belong to; names of published lists may be equal.
      names, template: the names, and a text with one "{}".
      reader: who reads them, for the message.
    """
    published = coop.facts(dataset.name) is not None
    with explain(f"{reader} on {dataset.name}, template {template!r}: "):
        clip.class_tokens(list(names), template, allow_duplicates=published)


def require_usable(dataset: Dataset, split: str = "test") -> None:
    """Raises InputError with the first of a dataset's `problems`."""
    for problem in problems(dataset, split):
        raise InputError(problem)


def remarks(dataset: Dataset) -> list[str]:
    """Returns what an evaluation of a dataset cannot do, one text each: select settings without a val split."""
    if (dataset.splits == "val").any():
        return []
    return ["there is no val split to select settings on: give one value of each, such as --learning_rate=1"]


def scarce(dataset: Dataset, shots: int) -> list[str]:
    """Returns a note if classes have fewer training images than shots."""
    counts = np.bincount(dataset.labels[dataset.splits == "train"], minlength=len(dataset.class_names))
    names = [name for name, count in zip(dataset.class_names, counts, strict=True) if count < shots]
    if not names:
        return []
    return [f"{len(names)} classes have fewer than {shots} training images, all of which are taken: {examples(names)}"]


def most_shots(dataset: Dataset) -> tuple[int, str]:
    """Returns the largest number of shots that every class has training images for, and the smallest class."""
    counts = np.bincount(dataset.labels[dataset.splits == "train"], minlength=len(dataset.class_names))
    return int(counts.min()), dataset.class_names[int(counts.argmin())]


def _message(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except InputError as error:
        return [str(error)]
    return []
