"""Measures of a stream against loops, written from the papers' definitions, and how streams are cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gram_jax.data import load_dataset
from gram_jax.data.dataset import Dataset
from gram_jax.data.task_streams import class_stream, joined_stream, limit
from gram_jax.evaluation.continual import stream_metrics


def test_measures_equal_loops():
    rng = np.random.default_rng(0)
    tasks, counts = 5, [7, 11, 3, 20, 9]
    a = np.where(np.tril(np.ones((tasks, tasks))) > 0, rng.uniform(size=(tasks, tasks)), np.nan)
    found = stream_metrics(a, counts)
    right = sum(a[4, j] * counts[j] for j in range(5))
    assert found["last"] == pytest.approx(right / sum(counts))
    assert found["last_mean"] == pytest.approx(sum(a[4]) / 5)
    along = [sum(a[t, j] * counts[j] for j in range(t + 1)) / sum(counts[: t + 1]) for t in range(5)]
    assert found["average"] == pytest.approx(sum(along) / 5)
    assert found["average_mean"] == pytest.approx(sum(sum(a[t, : t + 1]) / (t + 1) for t in range(5)) / 5)
    assert found["forgetting"] == pytest.approx(sum(max(a[t, j] for t in range(j, 5)) - a[4, j] for j in range(4)) / 4)
    before = sum(max(a[t, j] for t in range(j, 4)) - a[4, j] for j in range(4)) / 4
    assert found["forgetting_before"] == pytest.approx(before)
    assert found["forgetting"] >= max(0, found["forgetting_before"])
    assert found["backward"] == pytest.approx(sum(a[4, j] - a[j, j] for j in range(4)) / 4)
    pairs = [a[t, j] - a[j, j] for t in range(5) for j in range(t)]
    assert found["backward_all"] == pytest.approx(sum(pairs) / len(pairs))


def test_one_task_and_a_last_row_alone():
    assert stream_metrics([[0.5]], [3]) == {
        "last": 0.5, "last_mean": 0.5, "average": 0.5, "average_mean": 0.5, "forgetting": 0.0,
        "forgetting_before": 0.0, "backward": 0.0, "backward_all": 0.0,
    }  # fmt: skip
    joint = np.full((2, 2), np.nan)
    joint[1] = 0.25, 0.75
    assert stream_metrics(joint, [1, 3]) == {"last": 0.625, "last_mean": 0.5}
    with pytest.raises(ValueError, match=r"\[2, 2\].* 3 tasks"):
        stream_metrics(joint, [1, 3, 5])


def test_classes_are_cut_as_the_public_code_does():
    dataset = load_dataset("glyphs:chess")
    stream = class_stream(dataset, 5, seed=2024)
    order = np.arange(12)
    np.random.Generator(np.random.PCG64(2024)).shuffle(order)
    assert [len(task.labels) for task in stream.tasks] == [3, 3, 2, 2, 2]
    assert [sorted(task.labels.tolist()) for task in stream.tasks[:2]] == [sorted(order[:3]), sorted(order[3:6])]
    assert sorted(np.concatenate([task.labels for task in stream.tasks])) == list(range(12))
    for split in ("train", "test"):
        shown = [reference for task in stream.tasks for reference in map(str, getattr(task, split).references)]
        assert sorted(shown) == sorted(str(dataset.references[i]) for i in dataset.select(split))
        assert all(set(getattr(task, split).labels) == set(task.labels) for task in stream.tasks)
    validation = class_stream(dataset, 5, seed=2024, split="val").tasks[1]
    assert {str(reference) for reference in validation.test.references} == {
        str(dataset.references[i]) for i in dataset.select("val") if dataset.labels[i] in order[3:6]
    }
    assert validation.train.references == stream.tasks[1].train.references
    with pytest.raises(ValueError, match="tasks=13"):
        class_stream(dataset, 13, 0)


def toy(name, names, labels, splits):
    labels, splits = np.array(labels, np.int32), np.array(splits)

    references = tuple(range(len(labels)))
    return Dataset(name, references, labels, splits, tuple(names), "{}", lambda reference: (name, reference))


def test_equal_names_of_several_datasets_are_one_class():
    one = toy("one", ["cat", "dog"], [0, 0, 1, 1], ["train", "test"] * 2)
    two = toy("two", ["bird", "cat"], [0, 0, 1, 1], ["train", "test"] * 2)
    stream = joined_stream([one, two])
    assert stream.class_names == ("cat", "dog", "bird")
    assert [task.labels.tolist() for task in stream.tasks] == [[0, 1], [0, 2]]
    assert stream.tasks[1].test.labels.tolist() == [2, 0]
    assert [stream.tasks[1].test[i] for i in range(2)] == [("two", 1), ("two", 3)]
    with pytest.raises(ValueError, match="two or more"):
        joined_stream([one])
    with pytest.raises(ValueError, match="'train'"):
        joined_stream([one, dataclasses.replace(two, splits=np.array(["test"] * 4))])


def test_a_limit_draws_the_same_images_of_every_class():
    dataset = toy("toy", ["a", "b"], [0] * 5 + [1] * 2, ["train"] * 7)
    drawn = limit(dataset, 3, seed=1)
    assert np.bincount(drawn.labels).tolist() == [3, 2]
    assert drawn.references == limit(dataset, 3, seed=1).references
    assert limit(dataset, 0, 1) is dataset
