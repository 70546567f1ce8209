"""Adaptation of prompts on a clip: meta-gradients against finite differences, memory, Optax."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gram_jax import regulators
from gram_jax.meta import Task, adapt, make_meta_step, meta_objective, random_depths
from gram_jax.testing import tiny_clip
from tests.unit.meta.problem import clip_loss, make_batch, make_meta, make_tasks

DELTA = 1e-4


def shifted(point, direction, step):
    return jax.tree.map(lambda x, d: x + step * d, point, direction)


def random_direction(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


def product(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_exact_meta_gradients_equal_finite_differences(steps, small_clip, regulator):
    with jax.enable_x64(True):
        clip = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), small_clip)
        meta = make_meta(clip, regulator, np.random.default_rng(0), np.float64)
        tasks = make_tasks(clip, 1, 4, dtype=np.float64)

        @jax.jit
        def value_and_gradient(meta, clip):
            def objective(meta):
                settings = {"regulator": regulator, "steps": steps, "cross_weight": 0}
                return meta_objective(lambda prompt, batch: clip_loss(prompt, clip, batch), meta, tasks, **settings)[0]

            return jax.value_and_grad(objective)(meta)

        _, gradient = value_and_gradient(meta, clip)
        for part in ("prompt", "phi", "log_rates"):
            direction = random_direction(getattr(meta, part), seed=1)
            ends = [
                value_and_gradient(meta.replace(**{part: shifted(getattr(meta, part), direction, step)}), clip)[0]
                for step in (DELTA, -DELTA)
            ]
            difference = (ends[0] - ends[1]) / (2 * DELTA)
            exact = product(getattr(gradient, part), direction)
            assert exact.dtype == jnp.float64
            assert abs(exact) > 1e-4
            np.testing.assert_allclose(exact, difference, rtol=2e-4)


@pytest.mark.parametrize(
    ("steps", "schedule", "depths"),
    [(3, "constant", None), (50, "cosine", (0, 7, 50))],
)
def test_first_order_meta_gradients_equal_those_of_constant_raw_gradients(
    small_clip, regulator, steps, schedule, depths
):
    # The estimator spelled out: collect the raw gradients along the path, then walk the path again with these numbers
    # in their places, and differentiate that walk by finite differences.
    scales = [1.0 if schedule == "constant" else (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
    with jax.enable_x64(True):
        clip = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), small_clip)
        meta = make_meta(clip, regulator, np.random.default_rng(2), np.float64)
        task = jax.tree.map(lambda leaf: leaf[0], make_tasks(clip, 1, 4, dtype=np.float64))
        loss = jax.jit(clip_loss)
        raw_gradient = jax.jit(jax.grad(clip_loss))

        def forward(theta, phi, log_rates, raw, scale):
            rates = jax.tree.map(lambda log_rate: scale * jnp.exp(log_rate), log_rates)
            regulated = regulator.apply(phi, raw, task.context)
            return jax.tree.map(lambda leaf, rate, grad: leaf - rate * grad, theta, rates, regulated)

        forward = jax.jit(forward)
        raws, theta = [], meta.prompt
        for scale in scales:
            raws.append(raw_gradient(theta, clip, task.support))
            theta = forward(theta, meta.phi, meta.log_rates, raws[-1], scale)

        def walk(meta):
            thetas = [meta.prompt]
            for raw, scale in zip(raws, scales, strict=True):
                thetas.append(forward(thetas[-1], meta.phi, meta.log_rates, raw, scale))
            return np.mean([loss(thetas[depth], clip, task.same) for depth in depths or (steps,)])

        @jax.jit
        def gradient(meta, clip):
            tasks = jax.tree.map(lambda leaf: leaf[None], task)
            tasks = tasks.replace(depths=None if depths is None else jnp.array([depths]))
            settings = {"regulator": regulator, "steps": steps, "schedule": schedule}
            settings |= {"gradient": "first_order", "cross_weight": 0}

            def objective(meta):
                return meta_objective(lambda prompt, batch: clip_loss(prompt, clip, batch), meta, tasks, **settings)[0]

            return jax.value_and_grad(objective)(meta)

        value, found = gradient(meta, clip)
        np.testing.assert_allclose(value, walk(meta), rtol=1e-12)
        for part in ("prompt", "phi", "log_rates"):
            direction = random_direction(getattr(meta, part), seed=3)
            ends = [
                walk(meta.replace(**{part: shifted(getattr(meta, part), direction, step)})) for step in (DELTA, -DELTA)
            ]
            difference = (ends[0] - ends[1]) / (2 * DELTA)
            assert abs(difference) > 1e-4
            np.testing.assert_allclose(product(getattr(found, part), direction), difference, rtol=2e-4)


def test_adapting_equals_the_regulator_chained_with_sgd(small_clip):
    regulator = regulators.affine()
    meta = make_meta(small_clip, regulator, np.random.default_rng(4))
    batch = make_batch(np.random.default_rng(5), small_clip, 3)

    def loss(prompt, batch):
        return clip_loss(prompt, small_clip, batch)

    settings = {"regulator": regulator, "steps": 4, "learning_rate": 0.02}
    adapted = jax.jit(lambda meta: adapt(loss, meta.prompt, meta.phi, batch, **settings))(meta)
    optimizer = optax.chain(regulators.as_optax(regulator, meta.phi), optax.sgd(0.02))

    @jax.jit
    def step(prompt, state):
        updates, state = optimizer.update(jax.grad(loss)(prompt, batch), state, prompt)
        return optax.apply_updates(prompt, updates), state

    prompt, state = meta.prompt, optimizer.init(meta.prompt)
    for _ in range(4):
        prompt, state = step(prompt, state)
    for one, other, initial in zip(*map(jax.tree.leaves, (adapted, prompt, meta.prompt)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert np.abs(one - initial).max() > 1e-3


def test_memory_does_not_grow_with_the_inner_steps():
    clip = tiny_clip(text_layers=1, vision_layers=3)
    regulator = regulators.affine()
    meta = make_meta(clip, regulator, np.random.default_rng(6), sides=["vision"])
    batch = make_batch(np.random.default_rng(7), clip, 48)

    def temporary_bytes(steps):
        def value(meta, clip, batch):
            def loss(prompt, batch):
                return clip_loss(prompt, clip, batch)

            settings = {"regulator": regulator, "steps": steps, "learning_rate": meta.rates}
            return loss(adapt(loss, meta.prompt, meta.phi, batch, **settings), batch)

        compiled = jax.jit(jax.grad(value)).lower(meta, clip, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, eight = temporary_bytes(1), temporary_bytes(8)
    assert one > 1e6  # activations, not prompts
    assert eight <= 1.5 * one


def test_a_first_order_step_through_200_inner_steps_takes_little_more_memory_than_one_through_3():
    clip = tiny_clip(text_layers=1, vision_layers=3)
    regulator = regulators.kronecker()
    meta = make_meta(clip, regulator, np.random.default_rng(6))
    support, query = (make_batch(np.random.default_rng(7), clip, size) for size in (256, 2))
    tasks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[Task(support, query, query)] * 2)

    def temporary_bytes(steps):
        step = make_meta_step(
            clip_loss,
            regulator,
            optax.adam(1e-3),
            steps=steps,
            schedule="cosine",
            gradient="first_order",
            devices=jax.devices()[:1],
        )
        depths = random_depths(0, 0, 2, steps=steps, depths=3)
        lowered = step.update.lower(step.init(meta), clip, tasks.replace(depths=depths))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short = temporary_bytes(3)
    assert short > 4e6  # activations, not prompts
    assert temporary_bytes(200) <= 1.3 * short
