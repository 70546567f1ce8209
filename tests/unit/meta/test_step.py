"""The outer step: what it computes, on how many devices, how often it is compiled."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gram_jax import regulators
from gram_jax.meta import Task, init_meta, make_meta_step
from tests.unit.meta.problem import clip_loss, make_meta, make_tasks

RATE = 0.25


def toy_loss(prompt, frozen, batch):
    """(frozen x - mean of the batch)^2 / 2, for one number x."""
    return jnp.mean((frozen * prompt["x"] - jnp.mean(batch)) ** 2) / 2


def toy_tasks():
    rng = np.random.default_rng(0)
    support, same, cross = rng.normal(size=(3, 6, 5)).astype(np.float32)
    return Task(support, same, cross)


def toy_step(regulator=None, optimizer=None, **settings):
    settings = {"steps": 3, "cross_weight": 0.5, "devices": jax.devices()[:1], **settings}
    return make_meta_step(toy_loss, regulator or regulators.affine(), optimizer or optax.sgd(0.1), **settings)


def toy_meta(first=0.7):
    prompt = {"x": jnp.full((1, 1), first)}
    return init_meta(prompt, regulators.affine().init(jax.random.key(0), prompt), learning_rate=RATE)


def test_a_step_is_a_gradient_step_on_the_mean_over_tasks():
    frozen, first, tasks = 1.5, 0.7, toy_tasks()
    step = toy_step()
    state, metrics = step(step.init(toy_meta(first)), jnp.float32(frozen), tasks)
    # x_K = best + shrink^K (x - best) for each task, with best = mean of the support / frozen.
    support, same, cross = (np.mean(batch, axis=1) for batch in (tasks.support, tasks.same, tasks.cross))
    shrink = 1 - RATE * frozen**2
    end = support / frozen + shrink**3 * (first - support / frozen)
    np.testing.assert_allclose(metrics["same"], (frozen * end - same) ** 2 / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["cross"], (frozen * end - cross) ** 2 / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], metrics["same"] + 0.5 * metrics["cross"], rtol=1e-6)
    np.testing.assert_allclose(metrics["support"][:, 0], (frozen * first - support) ** 2 / 2, rtol=1e-5)
    residual = frozen * (frozen * end - same) + 0.5 * frozen * (frozen * end - cross)
    gradient = np.mean(residual * shrink**3)
    np.testing.assert_allclose(state.meta.prompt["x"], [[first - 0.1 * gradient]], rtol=1e-5)
    np.testing.assert_allclose(metrics["prompt_gradient_norm"], abs(gradient), rtol=1e-4)
    by_scale = np.mean(residual * -3 * RATE * frozen**2 * shrink**2 * (first - support / frozen))
    np.testing.assert_allclose(state.meta.phi["x"]["scale"], [-0.1 * by_scale], rtol=1e-4)
    assert state.step == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_of_tasks_make_the_same_step(size):
    ends = []
    for tasks_at_once in (None, size):
        step = toy_step(tasks_at_once=tasks_at_once, learn=("prompt", "phi", "log_rates"))
        ends.append(step(step.init(toy_meta()), jnp.float32(1.5), toy_tasks()))
    chex.assert_trees_all_close(*ends, rtol=1e-5)
    assert ends[1][1]["support"].shape == (6, 3)


def test_a_group_of_tasks_takes_less_memory(small_clip):
    regulator = regulators.affine()
    tasks = make_tasks(small_clip, 16, 4)

    def scratch(tasks_at_once):
        settings = {"steps": 2, "devices": jax.devices()[:1], "tasks_at_once": tasks_at_once}
        step = make_meta_step(clip_loss, regulator, optax.sgd(0.1), **settings)
        state = step.init(make_meta(small_clip, regulator, np.random.default_rng(0), sides=["vision"]))
        return step.update.lower(state, small_clip, tasks).compile().memory_analysis().temp_size_in_bytes

    assert scratch(1) < scratch(None) / 4


@pytest.mark.parametrize("learn", [("prompt",), ("phi",), ("prompt", "phi", "log_rates")])
def test_only_what_is_to_be_learned_changes(learn):
    # Weight decay would change what merely has a gradient of zero.
    step = toy_step(optimizer=optax.adamw(0.1, weight_decay=0.1), learn=learn)
    meta = toy_meta()
    state, metrics = step(step.init(meta), jnp.float32(1.5), toy_tasks())
    for part in ("prompt", "phi", "log_rates"):
        before, after = jax.tree.leaves(getattr(meta, part)), jax.tree.leaves(getattr(state.meta, part))
        changed = any(np.any(one != other) for one, other in zip(before, after, strict=True))
        assert changed == (part in learn)
        assert (f"{part}_gradient_norm" in metrics) == (part in learn)


def test_it_compiles_once_and_uses_up_its_state_alone():
    traces = []

    def loss(prompt, frozen, batch):
        traces.append(None)
        return toy_loss(prompt, frozen, batch)

    step = make_meta_step(loss, regulators.affine(), optax.adam(0.1), steps=3, devices=jax.devices()[:1])
    meta, frozen = toy_meta(), jnp.float32(1.5)
    before = step.init(meta)
    state, _ = step(before, frozen, toy_tasks())
    count = len(traces)
    for _ in range(3):
        state, _ = step(state, step.place(frozen), jax.tree.map(jnp.asarray, toy_tasks()))
    assert len(traces) == count
    assert before.meta.prompt["x"].is_deleted()
    assert meta.prompt["x"].item() == pytest.approx(0.7)
    assert frozen.item() == 1.5


def test_a_task_that_is_not_finite_can_be_named():
    tasks = toy_tasks()
    tasks.same[4, 0] = np.nan
    step = toy_step()
    _, metrics = step(step.init(toy_meta()), jnp.float32(1.5), tasks)
    assert np.flatnonzero(~np.isfinite(metrics["loss"])).tolist() == [4]


def test_the_same_seed_gives_the_same_bits(small_clip, regulator):
    tasks = make_tasks(small_clip, 2, 4)
    settings = {"steps": 2, "cross_weight": 0, "devices": jax.devices()[:1]}
    step = make_meta_step(clip_loss, regulator, optax.adam(1e-2), **settings)
    ends = []
    for _ in range(2):
        state = step.init(make_meta(small_clip, regulator, np.random.default_rng(0), sides=["text"]))
        for _ in range(2):
            state, _ = step(state, small_clip, tasks)
        ends.append(state)
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ends[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learn": ()}, r"learn=\(\)"),
        ({"learn": ("prompt", "rates")}, "learn=.*'rates'.*log_rates"),
        ({"mapper": "vmap"}, "mapper='vmap'"),
        ({"cross_weight": -1}, "cross_weight=-1"),
        ({"gradient": 4}, "gradient=4 .*steps=3"),
        ({"devices": []}, r"devices=\[\]"),
        ({"tasks_at_once": 0}, "tasks_at_once=0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        toy_step(**settings)


def test_groups_that_do_not_divide_the_tasks_are_refused():
    step = toy_step(tasks_at_once=4)
    with pytest.raises(ValueError, match=r"tasks_at_once=4 .* 6 tasks"):
        step(step.init(toy_meta()), jnp.float32(1.5), toy_tasks())


@pytest.mark.parametrize("tasks_at_once", [None, 2])
def test_evaluation_measures_what_a_step_measures_before_its_update(tasks_at_once):
    step = toy_step(tasks_at_once=tasks_at_once)
    state = step.init(toy_meta())
    measured = step.evaluate(state.meta, jnp.float32(1.5), toy_tasks())
    _, metrics = step(state, jnp.float32(1.5), toy_tasks())
    assert set(measured) == {"loss", "same", "cross", "support"}
    for name, values in measured.items():
        np.testing.assert_allclose(values, metrics[name], rtol=1e-6)


def test_tasks_that_cannot_be_shared_out_are_refused():
    step = toy_step()
    state, tasks = step.init(toy_meta()), toy_tasks()
    with pytest.raises(ValueError, match="6 tasks on 4 devices"):
        step._replace(devices=4)(state, jnp.float32(1), tasks)
    with pytest.raises(ValueError, match="0 tasks"):
        step(state, jnp.float32(1), jax.tree.map(lambda leaf: leaf[:0], tasks))
    with pytest.raises(ValueError, match=r"\(5,\), \(6,\)"):
        step(state, jnp.float32(1), tasks.replace(cross=np.ones((5, 5), np.float32)))
    with pytest.raises(ValueError, match=r"cross_weight=0\.5"):
        step(state, jnp.float32(1), tasks.replace(cross=None))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_size_must_be_positive(rate):
    with pytest.raises(ValueError, match="learning_rate="):
        init_meta({"x": jnp.ones(3)}, {"x": {}}, learning_rate=rate)
