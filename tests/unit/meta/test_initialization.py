"""Structured initializations: against NumPy, a closed form, and through a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gram_jax import regulators
from gram_jax.meta import (
    Structure,
    Task,
    gated_prompt,
    init_meta,
    initial_prompt,
    make_meta_step,
    meta_objective,
    regulator_context,
    relation,
    with_parts_of,
    with_structure,
)

RATE, STEPS, TAU = 0.3, 4, 0.2


def by_hand(prototypes, context, temperature):
    center = prototypes.mean(0)
    scores = []
    for prototype in prototypes:
        a, b = prototype - center, context - center
        scores.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b) / temperature)
    shares = np.exp(np.array(scores) - max(scores))
    return shares / shares.sum()


@pytest.fixture
def prototypes():
    return np.random.default_rng(0).normal(size=(5, 6)) + 3.0


@pytest.fixture
def structured(prototypes):
    rng = np.random.default_rng(1)
    meta = with_structure(init_meta({"x": jnp.zeros((2, 3))}, {"x": {}}, RATE), prototypes, TAU)
    return meta.replace(
        prompt={"x": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)},
        offsets={"x": jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32)},
    )


def test_relation_is_that_of_the_formula(structured, prototypes):
    context = np.random.default_rng(2).normal(size=6) + 3.0
    found = relation(structured.structure, jnp.asarray(context))
    np.testing.assert_allclose(found, by_hand(prototypes, context, TAU), rtol=1e-4)
    moved = Structure(structured.structure.prototypes + 7, structured.structure.center + 7, jnp.float32(TAU))
    np.testing.assert_allclose(relation(moved, jnp.asarray(context) + 7), found, rtol=1e-3)


def test_initial_prompt_is_the_weighted_sum(structured, prototypes):
    context = prototypes[3] + 0.1
    weights = by_hand(prototypes, context, TAU)
    expected = np.asarray(structured.prompt["x"], np.float64)
    for weight, offset in zip(weights, np.asarray(structured.offsets["x"]), strict=True):
        expected = expected + weight * offset
    np.testing.assert_allclose(initial_prompt(structured, jnp.asarray(context))["x"], expected, rtol=1e-4, atol=1e-5)


def test_new_offsets_change_nothing(prototypes):
    meta = init_meta({"x": jnp.arange(3.0)}, {"x": {}}, RATE)
    assert initial_prompt(meta) is meta.prompt
    found = initial_prompt(with_structure(meta, prototypes), jnp.ones(6))
    np.testing.assert_array_equal(found["x"], meta.prompt["x"])


def test_gradient_of_offsets_has_its_closed_form(structured, prototypes):
    """L = |x - b|^2 / 2, a = (1 - rate)^K: theta_K = b_s + a (theta_0 - b_s), dL/dDelta_p = w_p a (theta_K - b_q)."""
    rng = np.random.default_rng(3)
    support, query = rng.normal(size=(2, 2, 3))
    context = prototypes[1] + rng.normal(size=6)
    task = Task(support=jnp.asarray(support), same=jnp.asarray(query), context=jnp.asarray(context))
    tasks = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32)[None], task)

    def objective(offsets):
        meta = structured.replace(offsets=offsets)
        loss = lambda prompt, target: 0.5 * jnp.sum((prompt["x"] - target) ** 2)  # noqa: E731
        return meta_objective(loss, meta, tasks, regulator=regulators.identity(), steps=STEPS, cross_weight=0)[0]

    found = jax.grad(objective)(structured.offsets)["x"]
    weights, shrink = by_hand(prototypes, context, TAU), (1 - RATE) ** STEPS
    first = np.asarray(structured.prompt["x"]) + np.tensordot(weights, np.asarray(structured.offsets["x"]), 1)
    last = support + shrink * (first - support)
    np.testing.assert_allclose(found, weights[:, None, None] * shrink * (last - query), rtol=1e-4, atol=1e-6)


def test_a_step_learns_offsets_and_nothing_else(structured, prototypes):
    loss = lambda prompt, frozen, batch: jnp.sum((prompt["x"] - batch) ** 2) + 0 * frozen  # noqa: E731
    step = make_meta_step(
        loss, regulators.identity(), optax.sgd(0.1), steps=1, cross_weight=0, learn=("offsets",),
        devices=jax.devices()[:1],
    )  # fmt: skip
    tasks = Task(
        support=jnp.ones((4, 2, 3)), same=jnp.ones((4, 2, 3)), context=jnp.asarray(prototypes[:4], jnp.float32)
    )
    state, metrics = step(step.init(structured), jnp.zeros(()), tasks)
    moved = np.abs(np.asarray(state.meta.offsets["x"] - structured.offsets["x"])).sum((1, 2))
    assert (moved[:4] > 2 * moved[4]).all()  # no task was near the last prototype
    np.testing.assert_array_equal(state.meta.prompt["x"], structured.prompt["x"])
    np.testing.assert_array_equal(state.meta.structure.prototypes, structured.structure.prototypes)
    assert metrics["offsets_gradient_norm"] > 0
    with pytest.raises(ValueError, match="with_structure"):
        step.init(init_meta({"x": jnp.zeros(3)}, {"x": {}}, RATE))


def test_a_structured_regulator_reads_the_relation(prototypes):
    """One step of L = |x - b|^2 / 2 by R(g) = (1 + tanh s(w)) g; another regulator is given the context itself."""
    rng = np.random.default_rng(4)
    regulator = regulators.structured(prototypes=5, rank=1)
    phi = {name: jnp.asarray(leaf) for name, leaf in regulator.init(jax.random.key(0), jnp.zeros((2, 3))).items()}
    phi["scale"] = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    meta = init_meta(jnp.zeros((2, 3)), phi, RATE)
    meta = with_structure(meta, prototypes, TAU, offsets=False)
    assert meta.offsets is None
    contexts, support, query = rng.normal(size=(4, 6)) + 3.0, rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 2, 3))
    tasks = Task(support=jnp.asarray(support), same=jnp.asarray(query), context=jnp.asarray(contexts))
    loss = lambda prompt, target: 0.5 * jnp.sum((prompt - target) ** 2)  # noqa: E731
    metrics = meta_objective(loss, meta, tasks, regulator=regulator, steps=1, cross_weight=0)[1]
    for index, context in enumerate(contexts):
        factor = 1 + np.tanh(by_hand(prototypes, context, TAU) @ np.asarray(phi["scale"]))
        expected = 0.5 * np.sum((RATE * factor * support[index] - query[index]) ** 2)
        np.testing.assert_allclose(metrics["same"][index], expected, rtol=1e-4)
    assert regulator_context(meta, regulators.mask(context_dim=6), context) is context
    assert regulator_context(meta, regulators.affine()) is None


STRUCTURED = regulators.structured(prototypes=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda meta: regulator_context(meta, STRUCTURED, jnp.ones(4)), "prototypes=4, found 0"),
        (
            lambda meta: regulator_context(with_structure(meta, np.eye(5)), STRUCTURED, jnp.ones(5)),
            "prototypes=4, found 5",
        ),
        (lambda meta: regulator_context(with_structure(meta, np.eye(4)), STRUCTURED), "task_context"),
        (lambda meta: with_structure(meta, np.zeros((0, 4))), r"shape \[0, 4\]"),
        (lambda meta: with_structure(meta, np.zeros(4)), r"shape \[4\]"),
        (lambda meta: with_structure(meta, np.eye(4), 0.0), r"temperature=0\.0"),
        (lambda meta: initial_prompt(with_structure(meta, np.eye(4))), "task_context"),
        (lambda meta: initial_prompt(with_structure(meta, np.eye(4)), jnp.ones(3)), r"shape \[3\].* 4 channels"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(init_meta({"x": jnp.zeros(3)}, {"x": {}}, RATE))


def test_the_gate_is_that_of_the_smallest_loss():
    theta, whole = {"x": jnp.zeros(2), "y": jnp.ones(1)}, {"x": jnp.array([1.0, -2.0]), "y": jnp.zeros(1)}

    def loss(prompt):  # smallest at g = 0.3: nearest among the gates is 0.25
        return ((prompt["x"] - 0.3 * jnp.array([1.0, -2.0])) ** 2).sum() + (prompt["y"][0] - 0.7) ** 2

    prompt, gate = gated_prompt(theta, whole, loss)
    assert gate == 0.25
    np.testing.assert_allclose(prompt["x"], [0.25, -0.5])
    np.testing.assert_allclose(prompt["y"], [0.75])
    assert gated_prompt(theta, whole, lambda prompt: 0.0, (0.5, 1.0))[1] == 0.5  # of equal losses, the first
    for gates in ((), (0.5, float("nan"))):
        with pytest.raises(ValueError, match="gates="):
            gated_prompt(theta, whole, loss, gates)


def test_parts_of_another_tuner_are_taken_over_by_name_and_shape(prototypes):
    ours = {"text": {"context": jnp.zeros((2, 3))}, "visual": {"tokens": jnp.full((2, 3), 7.0)}, "deep": jnp.zeros(4)}
    theirs = {"context": jnp.arange(6.0).reshape(2, 3), "deep": jnp.ones(5), "net": jnp.ones(2)}
    other = with_structure(init_meta(theirs, {}, RATE), prototypes, TAU)
    offset = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    other = other.replace(offsets={**other.offsets, "context": jnp.asarray(offset)})
    meta = with_structure(init_meta(ours, {"x": 1.0}, RATE), prototypes, TAU)
    found, parts = with_parts_of(meta, other)
    assert parts == ("text/context",)  # "deep" has another length, "net" is unknown
    np.testing.assert_array_equal(found.prompt["text"]["context"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found.prompt["visual"]["tokens"], np.full((2, 3), 7))
    np.testing.assert_array_equal(found.offsets["text"]["context"], offset)
    assert not np.any(found.offsets["visual"]["tokens"])
    assert not np.any(found.offsets["deep"])
    assert found.phi == {"x": 1.0}
    assert jax.tree.structure(found) == jax.tree.structure(meta)


def test_parts_come_without_offsets_where_one_side_has_none(prototypes):
    bare = init_meta({"context": jnp.ones(3)}, {}, RATE)
    full = with_structure(bare, prototypes, TAU)
    deeper = init_meta({"text": {"context": jnp.zeros(3)}}, {}, RATE)
    assert with_parts_of(deeper, full)[0].offsets is None
    found, _ = with_parts_of(with_structure(deeper, prototypes, TAU), bare)
    np.testing.assert_array_equal(found.offsets["text"]["context"], np.zeros((5, 3)))


@pytest.mark.parametrize("other", [{"mycontext": jnp.ones(3)}, {"context": jnp.ones(4)}, {"text": jnp.ones(3)}])
def test_parts_of_another_name_or_shape_are_not_taken_over(other):
    meta = init_meta({"text": {"context": jnp.zeros(3)}}, {}, RATE)
    found, parts = with_parts_of(meta, init_meta(other, {}, RATE))
    assert parts == ()
    np.testing.assert_array_equal(found.prompt["text"]["context"], np.zeros(3))
