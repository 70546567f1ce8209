"""Every learned regulator against its formula in NumPy, and in an optax chain; invalid settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gram_jax import regulators

WIDTH, TOKENS, CLASSES, CONTEXT = 6, 4, 3, 5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def affine(phi, block, context):
    return (1 + phi["scale"]) * block + np.sqrt(np.mean(block**2)) * phi["shift"]


def mask(phi, block, context):
    unit = block / np.sqrt(np.mean(block**2))
    rows = []
    for row, unit_row in zip(block, unit, strict=True):
        hidden = np.tanh(unit_row @ phi["gradient"] + context @ phi["context"] + phi["bias"])
        rows.append(2 * sigmoid(hidden @ phi["out"] + phi["out_bias"]) * row)
    return np.stack(rows)


def gated_low_rank(phi, block, context):
    gate = phi["gate"]
    share = sigmoid(np.tanh(context @ gate["context"] + gate["bias"]) @ gate["out"] + gate["out_bias"])
    rows = []
    for row in block:
        unit = row / np.linalg.norm(row)
        turned = unit + np.tanh(np.sqrt(WIDTH) * unit @ phi["down"] + phi["bias"]) @ phi["up"]
        rows.append((1 - share) * np.linalg.norm(row) * turned / np.linalg.norm(turned) + share * row)
    return np.stack(rows)


def structured(phi, block, relation):
    up, scale = phi["shared_up"], phi["shared_scale"]
    for weight, own_up, own_scale in zip(relation, phi["up"], phi["scale"], strict=True):
        up, scale = up + weight * own_up, scale + weight * own_scale
    rows = []
    for row in block:
        unit = row / np.linalg.norm(row)
        turned = unit + np.tanh(np.sqrt(WIDTH) * unit @ phi["down"] + phi["bias"]) @ up
        rows.append((1 + np.tanh(scale)) * np.linalg.norm(row) * turned / np.linalg.norm(turned))
    return np.stack(rows)


def kronecker_matrix(phi, tokens, width):
    """Returns B^T B of the regulator on flattened blocks, from B's matrix, made of Kronecker products."""
    mix = np.kron(np.eye(tokens) + phi["tokens"], np.eye(width))
    low_rank = np.kron(np.eye(tokens), (phi["down"] @ phi["up"]).T)
    matrix = np.diag(np.exp(phi["log_scale"]).ravel()) @ mix + low_rank
    return matrix.T @ matrix


def kronecker(phi, block, context):
    return (kronecker_matrix(phi, *block.shape) @ block.ravel()).reshape(block.shape)


@pytest.mark.parametrize(
    ("formula", "settings"),
    [
        (affine, {}),
        (kronecker, {"rank": 2}),
        (mask, {"context_dim": CONTEXT}),
        (gated_low_rank, {"rank": 2, "hidden": 7, "context_dim": CONTEXT}),
        (structured, {"prototypes": CONTEXT, "rank": 2}),
    ],
)
def test_a_class_specific_prompt_is_regulated_by_the_formula(formula, settings):
    rng = np.random.default_rng(0)
    regulator = regulators.make(formula.__name__, **settings)
    grads = rng.normal(size=(CLASSES, TOKENS, WIDTH)) * [[[1e-3]], [[1.0]], [[30.0]]]
    context = rng.normal(size=CONTEXT)
    if formula is structured:
        context = rng.dirichlet(np.ones(CONTEXT))
    phi = regulator.init(jax.random.key(0), jnp.asarray(grads, jnp.float32))
    phi = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32), phi)
    found = regulator.apply(phi, jnp.asarray(grads, jnp.float32), jnp.asarray(context, jnp.float32))
    read = context if formula is structured else context / np.sqrt(np.mean(context**2))
    expected = np.stack([formula(phi, block, read) for block in grads])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5 * np.abs(other).max())


def test_affine_shares_by_its_setting():
    deep = {"deep": jnp.ones((3, 4, 6)), "bias": jnp.ones(5)}
    shapes = {
        per: jax.tree.map(jnp.shape, regulators.affine(per).init(jax.random.key(0), deep))
        for per in ("channel", "token", "layer")
    }
    assert [shapes[per]["deep"]["scale"] for per in shapes] == [(6,), (4, 6), (3, 4, 6)]
    assert {shapes[per]["bias"]["shift"] for per in shapes} == {(5,)}


def test_gated_low_rank_keeps_the_length_of_every_row_when_its_gate_is_shut():
    rng = np.random.default_rng(1)
    regulator = regulators.gated_low_rank(rank=3)
    grads = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    phi = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), regulator.init(jax.random.key(0), grads))
    phi["gate"]["out_bias"] = -100.0
    turned = regulator.apply(phi, grads, None)
    norms = np.linalg.norm(turned, axis=-1), np.linalg.norm(grads, axis=-1)
    np.testing.assert_allclose(*norms, rtol=1e-5)
    cosine = np.sum(turned * grads, -1) / norms[0] / norms[1]
    assert (cosine < 0.99).all()


@pytest.mark.parametrize("name", ["mask", "gated_low_rank"])
def test_the_context_matters_and_its_scale_does_not(name):
    regulator = regulators.make(name, context_dim=CONTEXT)
    rng = np.random.default_rng(2)
    grads = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    phi = regulator.init(jax.random.key(0), grads)
    phi = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), phi)
    one, other = jnp.asarray(rng.normal(size=(2, CONTEXT)), jnp.float32)
    result = regulator.apply(phi, grads, one)
    assert np.abs(result - regulator.apply(phi, grads, other)).max() > 1e-2
    np.testing.assert_allclose(regulator.apply(phi, grads, 1e4 * one), result, rtol=1e-5, atol=1e-6)
    assert np.isfinite(regulator.apply(phi, grads, jnp.zeros(CONTEXT))).all()


@pytest.mark.parametrize("name", ["mask", "gated_low_rank"])
def test_a_missing_or_misshapen_context_is_named(name):
    regulator = regulators.make(name, context_dim=CONTEXT)
    phi = regulator.init(jax.random.key(0), jnp.ones((4, 6)))
    with pytest.raises(ValueError, match=r"context_dim=5.*None"):
        regulator.apply(phi, jnp.ones((4, 6)), None)
    with pytest.raises(ValueError, match=r"\[2, 5\]"):
        regulator.apply(phi, jnp.ones((4, 6)), jnp.ones((2, 5)))


def test_prototypes_that_a_task_is_not_related_to_do_not_matter():
    rng = np.random.default_rng(4)
    regulator = regulators.structured(prototypes=3, rank=2)
    grads = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    phi = regulator.init(jax.random.key(0), grads)
    phi = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), phi)
    other = {name: leaf.at[2].set(0) if name in ("up", "scale") else leaf for name, leaf in phi.items()}
    first, last = jnp.array([1.0, 0, 0]), jnp.array([0, 0, 1.0])
    np.testing.assert_array_equal(regulator.apply(phi, grads, first), regulator.apply(other, grads, first))
    assert np.abs(regulator.apply(phi, grads, last) - regulator.apply(other, grads, last)).max() > 1e-2
    with pytest.raises(ValueError, match=r"prototypes=3.*None"):
        regulator.apply(phi, grads, None)
    with pytest.raises(ValueError, match=r"prototypes=3.*\[5\]"):
        regulator.apply(phi, grads, jnp.ones(CONTEXT))


def test_as_optax_regulates_what_the_optimizer_sees():
    rng = np.random.default_rng(3)
    regulator = regulators.mask()
    prompt = {"context": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
    phi = regulator.init(jax.random.key(0), prompt)
    phi = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), phi)
    chain = optax.chain(regulators.as_optax(regulator, phi), optax.sgd(0.1, momentum=0.9))
    state, theta = chain.init(prompt), prompt
    velocity, expected = 0.0, np.asarray(prompt["context"])
    for _ in range(3):
        updates, state = jax.jit(chain.update)(theta, state, theta)  # the gradient of |theta|^2 / 2
        velocity = 0.9 * velocity + np.asarray(regulator.apply(phi, theta, None)["context"])
        theta, expected = optax.apply_updates(theta, updates), expected - 0.1 * velocity
        np.testing.assert_allclose(theta["context"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("afine", {}, "'afine'.*'affine'"),
        ("gated_low_rank", {"ranks": 3}, "'ranks'.*'rank'"),
        ("identity", {"rank": 3}, "'identity'.*'rank'"),
        ("gated_low_rank", {"rank": 0}, "rank=0"),
        ("gated_low_rank", {"hidden": 2.5}, "hidden=2.5"),
        ("mask", {"context_dim": True}, "context_dim=True"),
        ("affine", {"per": "row"}, "per='row'"),
        ("structured", {}, "prototypes=None"),
        ("structured", {"prototypes": 0}, "prototypes=0"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        regulators.make(name, **settings)
