"""Long tails against PyTorch's weighted cross-entropy and a closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.objectives import Reference, class_weights, logit_adjustment, long_tailed
from gram_jax.tuners import Outputs

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="the reference is written in PyTorch, which is not installed")

RNG = np.random.default_rng(0)
LOGITS, LABELS = 3 * RNG.normal(size=(7, 4)), np.array([0, 1, 2, 3, 0, 0, 1])
COUNTS = np.array([16, 8, 5, 1])


@needs_torch
@pytest.mark.parametrize(("adjustment", "exponent"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.5), (0.0, 0.0)])
def test_loss_and_gradient_equal_pytorch(adjustment, exponent):
    logits = torch.tensor(LOGITS, requires_grad=True)
    prior = torch.tensor(COUNTS / COUNTS.sum())
    weights = torch.tensor(1.0 / COUNTS**exponent)  # a common factor cancels in the weighted mean
    expected = F.cross_entropy(logits + adjustment * prior.log(), torch.tensor(LABELS), weight=weights)
    expected.backward()

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        reference = Reference(counts=jnp.asarray(COUNTS))
        return long_tailed(adjustment, exponent)(Outputs(logits, None, None), LABELS, reference)

    value, gradient = loss(jnp.float32(LOGITS))
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_mean_weight_of_the_training_images_is_1(exponent):
    weights = np.float64(class_weights(COUNTS, exponent))
    assert np.repeat(weights, COUNTS).mean() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(weights / weights[0], (COUNTS[0] / COUNTS) ** exponent, rtol=1e-5)


def test_adjusted_logits_of_no_knowledge_are_the_prior():
    # If all logits are equal, the adjusted classifier predicts the prior, and the gradient that favors a class is 0.
    shares = np.float64(jax.nn.softmax(logit_adjustment(COUNTS)))
    np.testing.assert_allclose(shares, COUNTS / COUNTS.sum(), rtol=1e-5)
    labels = np.repeat(np.arange(4), COUNTS)
    reference = Reference(counts=jnp.asarray(COUNTS))
    gradient = jax.jit(
        jax.grad(lambda z: long_tailed(1.0)(Outputs(jnp.tile(z, (30, 1)), None, None), labels, reference))
    )
    np.testing.assert_allclose(gradient(jnp.zeros(4)), 0, atol=1e-6)


def test_a_class_without_images_is_not_seen():
    counts, without = np.array([16, 0, 8, 5]), np.array([16, 8, 5])
    labels = np.array([0, 2, 3])
    logits = LOGITS[:3]
    reference, smaller = (Reference(counts=jnp.asarray(own)) for own in (counts, without))
    loss = jax.jit(long_tailed(1.0, 1.0))
    found = loss(Outputs(jnp.float32(logits), None, None), labels, reference)
    kept = Outputs(jnp.float32(np.delete(logits, 1, axis=1)), None, None)
    expected = loss(kept, np.array([0, 1, 2]), smaller)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert class_weights(counts)[1] == 0
    assert not np.any(logit_adjustment(counts, 0.0))


@pytest.mark.parametrize("setting", [{"adjustment": -1.0}, {"exponent": float("inf")}, {"adjustment": "1"}])
def test_impossible_settings_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        long_tailed(**setting)


def test_counts_of_other_classes_are_refused():
    reference = Reference(counts=jnp.ones(3))
    with pytest.raises(ValueError, match=r"counts .*\[4\].*\[3\]"):
        long_tailed(1.0)(Outputs(jnp.float32(LOGITS), None, None), LABELS, reference)
