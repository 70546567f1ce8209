"""Metrics against loops over samples in plain Python."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.evaluation import accuracy, confusion_matrix, expected_calibration_error, macro_f1, per_class_accuracy


@pytest.fixture(params=[(50, 4, 0), (7, 6, 1), (1, 2, 2), (40, 3, 3)])
def problem(request):
    samples, classes, seed = request.param
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(samples, classes)).astype(np.float32) * 2
    labels = generator.integers(0, max(classes - 1, 1), size=samples)  # the last class never occurs
    mask = generator.integers(0, 2, size=samples)
    mask[0] = 1
    return logits, labels, mask


def count(logits, labels, mask):
    classes = logits.shape[1]
    table = [[0] * classes for _ in range(classes)]
    for row, label, keep in zip(logits, labels, mask, strict=True):
        if keep:
            best = max(range(classes), key=lambda c: row[c])
            table[label][best] += 1
    return table


def test_counts_and_what_follows_from_them(problem):
    logits, labels, mask = problem
    table = count(logits, labels, mask)
    classes = range(len(table))
    total = sum(map(sum, table))
    recalls, scores = [], []
    for c in classes:
        true_positives = table[c][c]
        false_negatives = sum(table[c][p] for p in classes if p != c)
        false_positives = sum(table[t][c] for t in classes if t != c)
        if true_positives + false_negatives == 0:
            recalls.append(float("nan"))
            continue
        recall = true_positives / (true_positives + false_negatives)
        precision = true_positives / (true_positives + false_positives) if true_positives + false_positives else 0.0
        recalls.append(recall)
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)

    arguments = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask)
    predicted = jnp.argmax(arguments[0], axis=-1)
    confusion = jax.jit(confusion_matrix, static_argnums=2)(predicted, arguments[1], len(table), arguments[2])
    np.testing.assert_array_equal(confusion, table)
    on_host = confusion_matrix(logits.argmax(-1), labels, len(table), mask)
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_array_equal(on_host, table)
    np.testing.assert_allclose(per_class_accuracy(on_host), recalls)
    np.testing.assert_allclose(jax.jit(accuracy)(*arguments), sum(table[c][c] for c in classes) / total, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(per_class_accuracy)(confusion), recalls, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(macro_f1)(confusion), np.mean(scores), rtol=1e-6)


def test_matrices_of_batches_add_up():
    generator = np.random.default_rng(0)
    predicted, labels = generator.integers(0, 3, (2, 10))
    for cast in (np.asarray, jnp.asarray):
        first, rest = (confusion_matrix(cast(predicted[at]), cast(labels[at]), 3) for at in (np.s_[:4], np.s_[4:]))
        np.testing.assert_array_equal(first + rest, confusion_matrix(predicted, labels, 3))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_against_a_loop(problem, bins):
    logits, labels, mask = problem
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    kept = [i for i in range(len(labels)) if mask[i]]
    error = 0.0
    for b in range(bins):
        members = [i for i in kept if b / bins < probabilities[i].max() <= (b + 1) / bins]
        if members:
            right = np.mean([probabilities[i].argmax() == labels[i] for i in members])
            sure = np.mean([probabilities[i].max() for i in members])
            error += len(members) / len(kept) * abs(right - sure)
    found = jax.jit(expected_calibration_error, static_argnames="bins")(
        jnp.asarray(probabilities), jnp.asarray(labels), jnp.asarray(mask), bins=bins
    )
    np.testing.assert_allclose(found, error, atol=1e-6)


def test_calibration_error_of_known_classifiers():
    labels = jnp.array([0, 0, 1, 1])
    certain_and_half_right = jnp.array([[1.0, 0.0]] * 4)
    assert float(expected_calibration_error(certain_and_half_right, labels)) == 0.5
    assert float(expected_calibration_error(jax.nn.one_hot(labels, 2), labels)) == 0.0


def test_masks_do_not_retrace():
    traced = jax.jit(chex.assert_max_traces(accuracy, n=1))
    logits, labels = jnp.eye(3), jnp.arange(3)
    assert float(traced(logits, labels, jnp.array([1, 1, 1]))) == 1.0
    assert float(traced(logits, labels[::-1], jnp.array([1, 0, 0]))) == 0.0


@pytest.mark.parametrize("function", [accuracy, expected_calibration_error])
def test_shapes_are_checked(function):
    with pytest.raises(ValueError, match=r"\(3, 2\), \(2,\) and None"):
        function(jnp.zeros((3, 2)), jnp.zeros(2, int))
    with pytest.raises(ValueError, match=r"\(2, 2\), \(2,\) and \(3,\)"):
        function(jnp.zeros((2, 2)), jnp.zeros(2, int), jnp.ones(3))
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\) and None"):
        confusion_matrix(jnp.zeros(3, int), jnp.zeros(2, int), 2)
    with pytest.raises(ValueError, match=r"\(2,\), \(2,\) and \(3,\)"):
        confusion_matrix(np.zeros(2, int), np.zeros(2, int), 2, np.ones(3))
    with pytest.raises(ValueError, match="bins=0"):
        expected_calibration_error(jnp.zeros((2, 2)), jnp.zeros(2, int), bins=0)
