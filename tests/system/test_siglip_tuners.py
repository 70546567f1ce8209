"""Every tuner, and GRAM's meta step, on a clip like SigLIP: bidirectional text, no class token, attention pooling."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gram_jax import meta, regulators, tuners
from gram_jax.objectives import cross_entropy
from gram_jax.testing import tiny_siglip
from gram_jax.tuning import classification_loss, pad_classes
from tests.conftest import NAMES
from tests.contract.test_tuners import ROWS, wave

LABELS = jnp.array([2, 0])


@pytest.fixture(scope="module")
def clip():
    return tiny_siglip(text_layers=2, vision_layers=2)


@pytest.mark.parametrize("row", ROWS)
def test_a_tuner_runs_and_every_part_of_its_prompt_learns(row, clip, classes, images):
    name, settings = ROWS[row]
    tuner = tuners.make(name, **settings)
    prompt = tuner.init(jax.random.key(0), clip, classes)
    other = jax.tree.map(lambda leaf, step: leaf + 0.1 * step, prompt, wave(prompt))

    @jax.jit
    def run(prompt):
        def loss(prompt):
            outputs = tuner.apply(prompt, clip, classes, images)
            return cross_entropy(outputs, LABELS), outputs

        return jax.value_and_grad(loss, has_aux=True)(prompt)

    (_, outputs), gradient = run(other)
    assert outputs.logits.shape == (2, len(NAMES))
    chex.assert_tree_all_finite((outputs, gradient))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        # A bias of keys adds the same number to all scores of a query.
        assert jnp.abs(leaf).max() > 1e-7 or path[-1].key == "bias", path
    frozen = tuners.frozen_outputs(clip, classes, images)
    assert jnp.abs(outputs.logits - frozen.logits).max() > 1e-3


def test_padded_class_lists_give_the_same_logits(clip, classes, images):
    """Other ids behind the end of a name, and more classes, change nothing, although text is bidirectional."""
    tuner = tuners.coop(num_tokens=2)
    prompt = tuner.init(jax.random.key(0), clip, classes)
    padded, valid = pad_classes(clip, classes, prompt)
    assert padded.tail_ids.shape > classes.tail_ids.shape
    expected = tuner.apply(prompt, clip, classes, images).logits
    np.testing.assert_allclose(tuner.apply(prompt, clip, padded, images).logits[:, valid], expected, atol=1e-5)


def test_a_meta_step(classes, images):
    clip = tiny_siglip(text_layers=1, vision_layers=1)  # meta-gradients of more take long to compile
    tuner, regulator = tuners.ivlp(num_text=2, num_visual=1, depth=1, init_text=None), regulators.affine()
    prompt = tuner.init(jax.random.key(0), clip, classes)
    start = meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.05)
    batch = {"classes": classes, "images": images, "labels": LABELS}
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), meta.Task(batch, batch, batch))
    step = meta.make_meta_step(
        classification_loss(tuner), regulator, optax.sgd(0.1), steps=1, devices=jax.devices()[:1]
    )
    state, metrics = step(step.init(start), clip, tasks)
    assert np.isfinite(np.asarray(metrics["loss"])).all()
    assert float(metrics["prompt_gradient_norm"]) > 0
    moved = jax.tree.map(lambda old, new: float(jnp.abs(old - new).max()), start.phi, state.meta.phi)
    assert max(jax.tree.leaves(moved)) > 0
