"""Meta-learning works with every tuner: one exact step of each, and first-order steps of three."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gram_jax import regulators, tuners
from gram_jax.clip import encode_image
from gram_jax.meta import Task, init_meta, make_meta_step
from gram_jax.testing import tiny_clip
from gram_jax.tuning import classification_loss, pad_classes
from tests.contract.test_tuners import ROWS, wave

RATE = 0.05
# The first row of each tuner, because class-specific prompts are not meta-learned; as shallow as the clip.
SETTINGS = {
    name: settings | ({"depth": 1} if "depth" in settings else {}) for name, settings in reversed(ROWS.values())
}
# A context, prompts of both sides, and a network: the others would add nothing to a first-order step, and the contract
# tests the curvature of every leaf of every tuner.
COMPARED = {"coop", "ivlp", "cocoop"}


@pytest.fixture(scope="module")
def clip():
    """Returns a clip of one layer: second derivatives compile slowly, and the contract tests those of deep prompts."""
    return tiny_clip(text_layers=1, vision_layers=1)


def make_tasks(clip, tuner):
    """Returns two tasks of two classes each, padded."""
    rng, size, tasks = np.random.default_rng(0), clip.config.vision.image_size, []
    for names in (["cat", "small dog"], ["green frog", "bird"]):
        classes, valid = pad_classes(clip, clip.class_tokens(names))
        if not tuner.needs_names:
            classes = tuners.frozen_outputs(clip, classes, jnp.zeros((1, clip.config.embed_dim))).text_features
        batches = []
        for _ in range(2):
            images = jnp.float32(rng.normal(size=(2, size, size, 3)))
            images = images if tuner.needs_pixels else encode_image(clip, images)
            batches.append({"classes": classes, "valid": valid, "images": images, "labels": np.arange(2)})
        tasks.append(Task(*batches))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)


def gradient_of_a_step(gradient, name, clip):
    """Returns the change of one outer step, which is the gradient for SGD with rate 1, and the losses."""
    tuner, regulator = tuners.make(name, **SETTINGS[name]), regulators.affine()
    prompt = tuner.init(jax.random.key(0), clip, None)
    prompt = jax.tree.map(lambda leaf, way: leaf + 0.1 * way, prompt, wave(prompt))  # where its gradients do not vanish
    meta = init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=RATE)
    settings = {"learn": ("prompt", "phi", "log_rates"), "cross_weight": 0, "devices": jax.devices()[:1]}
    step = make_meta_step(classification_loss(tuner), regulator, optax.sgd(1.0), steps=1, gradient=gradient, **settings)
    state, metrics = step(step.init(meta), clip, make_tasks(clip, tuner))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))
    return jax.tree.map(lambda before, after: np.asarray(before - after), meta, state.meta), metrics["loss"]


def length(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("name", tuners.NAMES)
def test_one_exact_step(name, clip):
    exact, loss = gradient_of_a_step("exact", name, clip)
    for part in ("prompt", "phi", "log_rates"):
        assert length(getattr(exact, part)) > 1e-3, part
    if name not in COMPARED:
        return
    first, same_loss = gradient_of_a_step("first_order", name, clip)
    np.testing.assert_allclose(loss, same_loss, rtol=1e-6)
    # After one step, phi and the step sizes act on the same raw gradient in both; only the prompt sees its slope.
    for part in ("phi", "log_rates"):
        for one, other in zip(
            jax.tree.leaves(getattr(exact, part)), jax.tree.leaves(getattr(first, part)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-6)
    assert length(first.prompt) > 1e-2
    assert length(jax.tree.map(np.subtract, exact.prompt, first.prompt)) > 1e-3 * length(first.prompt)
