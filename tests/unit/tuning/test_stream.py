"""One step along a stream: what moves, what is masked, and the refined projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import tuners
from gram_jax.testing import tiny_clip
from gram_jax.tuning.nullspace import observe, task_covariances
from gram_jax.tuning.stream import make_stream_tuning, project_jump, refine_projection

RATE = 0.01


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(vision_layers=2, text_layers=1)


@pytest.fixture(scope="module")
def tuner():
    return tuners.vpt_kv(num_tokens=3)


def batch(clip, images):
    texts = jax.random.normal(jax.random.key(1), (4, clip.config.embed_dim))
    texts /= jnp.linalg.norm(texts, axis=-1, keepdims=True)
    valid = jnp.array([True, False, True, False])
    return {"images": images, "labels": jnp.array([0, 2]), "texts": texts, "valid": valid}


def weights(**given):
    return {"rate": jnp.float32(RATE)} | {name: jnp.float32(given.get(name, 0.0)) for name in ("norm", "distance")}


@pytest.mark.parametrize("head", ["text", "linear"])
def test_the_first_step_is_the_sign_of_the_gradient_and_spares_other_classes(clip, tuner, images, head):
    tuning = make_stream_tuning(tuner, head=head, temperature=2.0)
    state = tuning.init(tuner.init(jax.random.key(0), clip, None), clip, 4)
    given = batch(clip, images)

    def loss(learned):
        scores = tuning.logits(learned["prompt"], learned["head"], clip, given["texts"], images)[:, ::2] / 2.0
        return -jax.nn.log_softmax(scores)[jnp.arange(2), jnp.arange(2)].mean()

    before = {"prompt": state.prompt, "head": state.head}
    value, grads = jax.value_and_grad(loss)(before)
    after, found = tuning.step(state, None, None, clip, given, weights())
    assert float(found) == pytest.approx(float(value), rel=1e-5)
    moved = jax.tree.map(jnp.subtract, {"prompt": after.prompt, "head": after.head}, before)
    for step, slope in zip(jax.tree.leaves(moved), jax.tree.leaves(grads), strict=True):
        clear = jnp.abs(slope) > 1e-5  # Adam's first step is rate g / (|g| + 1e-8)
        np.testing.assert_allclose(step[clear], -RATE * jnp.sign(slope)[clear], rtol=2e-3)
    if head == "linear":
        assert jnp.abs(moved["head"]["kernel"][1::2]).max() == 0
        decayed = make_stream_tuning(tuner, head=head, weight_decay=0.1)
        after, _ = decayed.step(state, None, None, clip, given, weights())
        np.testing.assert_array_equal(after.head["kernel"][1::2], state.head["kernel"][1::2])


def test_penalties_pull_towards_the_previous_prompt(clip, tuner, images):
    tuning = make_stream_tuning(tuner)
    state = tuning.begin(tuning.init(tuner.init(jax.random.key(0), clip, None), clip, 4))
    away = state.replace(prompt={"prompts": state.prompt["prompts"] + 0.3})
    for name, far in (("distance", 0.05), ("norm", 0.6)):  # the deviation is a second term of the norm's
        after, _ = tuning.step(away, None, None, clip, batch(clip, images), weights(**{name: 1e4}))
        assert float((after.prompt["prompts"] - away.prompt["prompts"]).mean()) == pytest.approx(-RATE, rel=far)


def test_a_jump_reaches_its_target_or_stays_in_the_null_space(clip, tuner, images):
    tuning = make_stream_tuning(tuner)
    state = tuning.init(tuner.init(jax.random.key(0), clip, None), clip, 4)
    target = tuner.init(jax.random.key(5), clip, None)
    np.testing.assert_array_equal(project_jump(state, target)["prompts"], target["prompts"])
    found = task_covariances(clip, [images], tuners.kv_slots(state.prompt))
    state = state.replace(space=observe(state.space, found))
    jump = project_jump(state, target)["prompts"] - state.prompt["prompts"]
    one, two = state.space.projections
    for layer in range(2):
        # A projection leaves what it returned as it is.
        np.testing.assert_allclose(two[layer] @ jump[layer] @ one[layer], jump[layer], atol=1e-5)
    assert 0.01 < jnp.abs(jump).max() < jnp.abs(target["prompts"] - state.prompt["prompts"]).max()


def test_a_refined_projection_separates_gaussians():
    width, embed = 6, 3
    means = 3 * jnp.eye(width)[:3]
    covariances = jnp.tile(0.1 * jnp.eye(width), (3, 1, 1))
    start = jax.random.normal(jax.random.key(0), (width, embed)) / width**0.5
    texts = jnp.eye(embed)[jnp.array([1, 2, 0])]
    refined = refine_projection(start, means, covariances, texts, jnp.log(20.0), jax.random.key(1))

    def right(projection):
        return float((jnp.argmax(means @ projection @ texts.T, axis=-1) == jnp.arange(3)).mean())

    assert right(refined) == 1.0
    assert refined.shape == start.shape
    margins = [jnp.diag(means @ each @ texts.T).min() for each in (start, refined)]
    assert margins[1] > margins[0]
