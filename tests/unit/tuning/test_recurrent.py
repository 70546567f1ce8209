"""The recurrent schedule: what is frozen stays, phase lengths, Adam's moments against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import regulators, tuners, tuning
from gram_jax.errors import InputError
from gram_jax.objectives import pair_loss
from gram_jax.testing import tiny_clip
from gram_jax.tuning.recurrent import phases, recurrent, tune_in_phases

RATE, STEPS = 0.01, 6


@pytest.fixture(scope="module")
def setting():
    clip, tuner = tiny_clip(text_layers=1), tuners.csp(dropout=0.0)
    classes = tuners.pair_classes(clip, ["red", "small"], ["cat", "dog"], [[0, 0], [0, 1], [1, 1]])
    images = jax.random.normal(jax.random.key(1), (1, 6, 16)) / 4
    batch = {"classes": classes, "images": images, "labels": jnp.array([[0, 1, 2, 0, 1, 2]])}
    prompt = tuner.init(jax.random.key(0), clip, classes)
    loss = pair_loss(tuner)
    compiled = tuning.make_tuning(tuner, regulators.identity(), loss=loss, optimizer="adam")
    phi = regulators.identity().init(jax.random.key(0), prompt)

    def run(schedule, steps=STEPS):
        return tune_in_phases(compiled, prompt, phi, clip, [batch] * steps, schedule, steps, RATE)

    gradient = jax.jit(jax.grad(loss))

    def slope(prompt, **weights):
        one = {"classes": classes, "images": images[0], "labels": batch["labels"][0], "term_weights": weights}
        return jax.tree.map(np.float64, gradient(jax.tree.map(jnp.float32, prompt), clip, one))

    return prompt, run, slope


def test_phases_divide_the_steps():
    assert [tuple(each) for each in phases(recurrent(rounds=2), 10)] == [
        (2, "objects"), (3, "attributes"), (2, "objects"), (3, "attributes")
    ]  # fmt: skip
    assert [each.active for each in phases(recurrent(rounds=1, first="attributes"), 4)] == ["attributes", "objects"]
    assert [tuple(each) for each in phases(recurrent(rounds=0), 7)] == [(7, "")]
    with pytest.raises(InputError, match="steps=3"):
        phases(recurrent(rounds=2), 3)
    with pytest.raises(InputError, match=r"'object'.*'objects'"):
        recurrent(first="object")


def adam(prompt, slope, plan, restart):
    """Adam as in its paper, one table at a time; `plan` lists the active tables and the weights of each step."""
    prompt = {name: np.float64(table) for name, table in prompt.items()}
    moments, begun = {}, None
    for active, weights in plan:
        if not moments or (restart and active != begun):
            moments = {name: [np.zeros_like(table), np.zeros_like(table), 0] for name, table in prompt.items()}
        begun = active
        slopes = slope(prompt, **weights)
        for name, state in moments.items():
            state[0] = 0.9 * state[0] + 0.1 * slopes[name]
            state[1] = 0.999 * state[1] + 0.001 * slopes[name] ** 2
            state[2] += 1
            if name in active:
                first, second = state[0] / (1 - 0.9 ** state[2]), state[1] / (1 - 0.999 ** state[2])
                prompt[name] = prompt[name] - RATE * first / (np.sqrt(second) + 1e-8)
    return prompt


@pytest.mark.parametrize("restart", [True, False])
def test_a_run_equals_adam_on_one_table_at_a_time(setting, restart):
    prompt, run, slope = setting
    found, losses = run(recurrent(rounds=1, independence=0.5, balance=0.0, restart=restart))
    plan = [(("objects",), {"attribute": 0.0, "object": 0.5})] * 3
    plan += [(("attributes",), {"attribute": 0.5, "object": 0.0})] * 3
    expected = adam(prompt, slope, plan, restart)
    for name, table in expected.items():
        np.testing.assert_allclose(found[name], table, atol=1e-4)
        assert np.abs(found[name] - prompt[name]).max() > 1e-2
    assert losses.shape == (STEPS,)


def test_a_frozen_table_keeps_every_bit(setting):
    prompt, run, _ = setting
    for first, frozen in (("objects", "attributes"), ("attributes", "objects")):
        found, _ = run(recurrent(rounds=1, first=first, independence=0.0), steps=2)
        assert np.abs(found[first] - prompt[first]).max() > 0
        once, _ = run(recurrent(rounds=0, independence=0.0), steps=2)
        assert np.abs(once[frozen] - prompt[frozen]).max() > 0


def test_without_rounds_both_tables_are_tuned_together(setting):
    prompt, run, slope = setting
    found, _ = run(recurrent(rounds=0, independence=0.0))
    expected = adam(prompt, slope, [(("attributes", "objects"), {})] * STEPS, restart=True)
    for name, table in expected.items():
        np.testing.assert_allclose(found[name], table, atol=1e-4)
