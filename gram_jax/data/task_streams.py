"""Streams of tasks: the classes of one dataset cut into tasks, or several datasets one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gram_jax.data.dataset import Dataset
from gram_jax.errors import InputError, require_int


class StreamTask(NamedTuple):
    """A task of a stream; labels are those of the whole stream.

    Attributes:
      name, labels: its name, and the classes that it teaches, in increasing order.
      train, test: its images; `test` are those that are measured, of the split that was asked for.
    """

    name: str
    labels: np.ndarray
    train: Dataset
    test: Dataset


class TaskStream(NamedTuple):
    """A stream: its name, the class names of all tasks, in label order, and the tasks."""

    name: str
    class_names: tuple[str, ...]
    tasks: tuple[StreamTask, ...]


def class_stream(dataset: Dataset, tasks: int, seed: int, split: str = "test") -> TaskStream:
    """Returns a class-incremental stream: the classes, shuffled by NumPy's PCG64, cut into equal tasks.

    If the number of classes is no multiple of that of tasks, the first tasks have one class more.

    Args:
      dataset, tasks, seed: a dataset with training images, the number of tasks, and the seed of the order.
      split: that of the images that are measured, "val" to choose settings.

    Example:
      >>> from gram_jax.data import load_dataset
      >>> stream = class_stream(load_dataset("glyphs:chess"), 4, seed=2024)
      >>> [task.labels.tolist() for task in stream.tasks][:2]
      [[5, 7, 10], [2, 3, 11]]

    Reference:
      The public code of "Visual Prompt Tuning in Null Space for Continual Learning", seeds 2024 to 2026.
    """
    count = len(dataset.class_names)
    require_int("tasks", tasks, 1, count)
    order = np.arange(count)
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    made = []
    for number, labels in enumerate(np.array_split(order, tasks), 1):
        train, measured = (
            dataset.take([i for i in dataset.select(each) if dataset.labels[i] in labels]) for each in ("train", split)
        )
        made.append(_task(f"task {number}", np.sort(labels), train, measured, split))
    return TaskStream(dataset.name, dataset.class_names, tuple(made))


def joined_stream(datasets: Sequence[Dataset], split: str = "test") -> TaskStream:
    """Returns a stream of whole datasets; equal class names are one class.

    So visual domains of one dataset are domain-incremental, and other datasets dataset-incremental.

    Args:
      datasets, split: two or more, each with training images; the split that is measured, as in `class_stream`.
    """
    if len(datasets) < 2:
        raise InputError("a stream of datasets needs two or more of them; cut one dataset with class_stream")
    names = tuple(dict.fromkeys(name for dataset in datasets for name in dataset.class_names))
    place = {name: label for label, name in enumerate(names)}
    made = []
    for dataset in datasets:
        moved = np.array([place[name] for name in dataset.class_names], np.int32)
        labels = moved[dataset.labels] if len(dataset) else dataset.labels
        whole = dataclasses.replace(dataset, labels=labels, class_names=names)
        train, measured = (whole.take(whole.select(each)) for each in ("train", split))
        made.append(_task(dataset.name, np.unique(moved), train, measured, split))
    return TaskStream("+".join(dataset.name for dataset in datasets), names, tuple(made))


def limit(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Returns at most `count` images of every class, drawn by a seed, in their order; all of them for 0.

    Args:
      dataset, count, seed: images, the largest number per class, and the seed of the draw.
    """
    if not count:
        return dataset
    rng = np.random.Generator(np.random.PCG64(seed))
    kept = []
    for label in np.unique(dataset.labels):
        members = np.flatnonzero(dataset.labels == label)
        kept.append(np.sort(rng.permutation(members)[:count]))
    return dataset.take(np.concatenate(kept)) if kept else dataset


def _task(name: str, labels: np.ndarray, train: Dataset, test: Dataset, split: str) -> StreamTask:
    for each, part in (("train", train), (split, test)):
        if not len(part):
            raise InputError(f"{name} of {part.name!r} has no {each} images; use fewer tasks or another dataset")
    return StreamTask(name, labels, train, test)
