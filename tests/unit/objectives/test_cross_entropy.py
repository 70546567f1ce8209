"""Cross-entropy and the sum of regularizers against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.objectives import cross_entropy, regularized
from gram_jax.tuners import Outputs

RNG = np.random.default_rng(0)
LOGITS, LABELS = 5 * RNG.normal(size=(4, 3)), np.array([2, 0, 1, 1])


def outputs(logits=LOGITS):
    return Outputs(jnp.float32(logits), jnp.float32(RNG.normal(size=(4, 5))), jnp.float32(RNG.normal(size=(3, 5))))


def losses(logits=LOGITS, labels=LABELS):
    """Returns the losses, one row at a time."""
    return [np.log(sum(np.exp(row))) - row[label] for row, label in zip(logits, labels, strict=True)]


def test_equals_a_loop_and_its_gradient_is_softmax_minus_one_hot():
    assert float(cross_entropy(outputs(), LABELS)) == pytest.approx(np.mean(losses()), rel=1e-5)
    gradient = jax.grad(lambda logits: cross_entropy(Outputs(logits, None, None), LABELS))(jnp.float32(LOGITS))
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, (softmax - np.eye(3)[LABELS]) / 4, atol=1e-6)


def test_weights_average_and_mask():
    weights = np.array([0.5, 2.0, 0.0, 1.5])
    expected = np.dot(weights, losses()) / 4.0
    assert float(cross_entropy(outputs(), LABELS, weights=weights)) == pytest.approx(expected, rel=1e-5)
    # A masked image may have any label, and has no gradient.
    padded = np.where(weights > 0, LABELS, [-1, -1, 99, -1])

    def loss(logits, weights):
        return cross_entropy(Outputs(logits, None, None), padded, weights=weights)

    value, gradient = jax.value_and_grad(loss)(jnp.float32(LOGITS), weights)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[2] == 0)
    value, gradient = jax.value_and_grad(loss)(jnp.float32(LOGITS), np.zeros(4))
    assert float(value) == 0
    assert np.all(gradient == 0)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_no_number(label):
    assert np.isnan(cross_entropy(outputs(), np.array([0, 1, label, 2])))


def test_half_precision_logits_are_summed_in_full():
    logits = jnp.full((1, 4096), 1.0, jnp.bfloat16)
    loss = cross_entropy(Outputs(logits, None, None), jnp.array([0]))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(np.log(4096), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (np.zeros(3, int), None, r"\[4, 3\] and \[3\]"),
        (np.zeros(4), None, "labels .* float"),
        (LABELS, np.ones(3), r"weights .*\[4\].*\[3\]"),
    ],
)
def test_misfits_are_refused(labels, weights, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(outputs(), labels, weights=weights)


def squared_norm(prompt, outputs, labels, reference):
    return jnp.sum(prompt["context"] ** 2)


def away(prompt, outputs, labels, reference):
    return jnp.mean(jnp.abs(outputs.text_features - reference.text_features))


def own_class(prompt, outputs, labels, reference):
    return jnp.mean(jnp.sum((outputs.image_features - outputs.text_features[labels]) ** 2, axis=-1))


def test_the_sum_is_by_weight_and_every_regularizer_gets_what_it_needs():
    objective = regularized({"norm": (0.5, squared_norm), "away": (25.0, away), "own_class": (-2, own_class)})
    found, frozen, prompt = outputs(), outputs(), {"context": jnp.float32(RNG.normal(size=(2, 5)))}
    (loss, parts), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(prompt, found, LABELS, frozen)
    images, texts = np.float64(found.image_features), np.float64(found.text_features)
    expected = {
        "cross_entropy": np.mean(losses()),
        "norm": np.sum(np.float64(prompt["context"]) ** 2),
        "away": np.mean(np.abs(texts - np.float64(frozen.text_features))),
        "own_class": np.mean([np.sum((images[b] - texts[LABELS[b]]) ** 2) for b in range(4)]),
    }
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(expected, rel=1e-5)
    total = expected["cross_entropy"] + 0.5 * expected["norm"] + 25 * expected["away"] - 2 * expected["own_class"]
    assert float(loss) == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(gradient["context"], prompt["context"], rtol=1e-6)  # 0.5 * 2 * context


def test_without_regularizers_it_is_cross_entropy():
    loss, parts = regularized({})({}, outputs(), LABELS)
    assert float(loss) == float(parts["cross_entropy"]) == pytest.approx(np.mean(losses()), rel=1e-5)
    assert list(parts) == ["cross_entropy"]


@pytest.mark.parametrize(
    ("regularizers", "message"),
    [
        ({"cross_entropy": (1.0, away)}, "'cross_entropy'"),
        ({"away": away}, "'away'"),
        ({"away": (1.0, 2.0)}, "'away'"),
        ({"away": (float("nan"), away)}, "'away': weight=nan"),
        ({"away": ("1", away)}, "'away': weight='1'"),
    ],
)
def test_impossible_regularizers_are_refused(regularizers, message):
    with pytest.raises(ValueError, match=message):
        regularized(regularizers)


def test_a_regularizer_that_is_no_scalar_is_named():
    objective = regularized({"rows": (1.0, lambda prompt, outputs, labels, reference: outputs.logits.sum(axis=1))})
    with pytest.raises(ValueError, match=r"'rows' .*\[4\]"):
        objective({}, outputs(), LABELS)
