"""The contrastive loss against a NumPy loop and a closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.objectives import contrastive_loss


def test_equals_a_loop():
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(6, 5)) for _ in range(2))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    scale = 2.3
    total = 0.0
    for i in range(6):
        row = [np.exp(scale) * float(images[i] @ texts[j]) for j in range(6)]
        column = [np.exp(scale) * float(images[j] @ texts[i]) for j in range(6)]
        total += np.log(np.sum(np.exp(row))) - row[i] + np.log(np.sum(np.exp(column))) - column[i]
    found = contrastive_loss(jnp.asarray(images), jnp.asarray(texts), jnp.float32(scale))
    assert float(found) == pytest.approx(total / 12, rel=1e-5)


def test_equal_features_cost_log_n():
    features = jnp.tile(jnp.array([[0.6, 0.8]]), (8, 1))
    assert float(contrastive_loss(features, features, jnp.float32(3.0))) == pytest.approx(np.log(8), rel=1e-6)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(2, 2\)"):
        contrastive_loss(jnp.zeros((3, 2)), jnp.zeros((2, 2)), jnp.float32(0.0))
