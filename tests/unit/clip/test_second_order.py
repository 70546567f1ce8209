"""Second derivatives of prompted losses against central finite differences, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import TextPrompt, VisualPrompt, encode_classes, encode_image, logits
from gram_jax.testing import tiny_clip

STEP = 1e-3


def text_prompt(rng, config):
    width = config.text.width
    return TextPrompt(rng.normal(size=(3, width)), rng.normal(size=(2, 2, width)))


def middle_prompt(rng, config):
    return TextPrompt(rng.normal(size=(2, 1, 3, config.text.width)), class_position="middle")


def visual_prompt(rng, config):
    width = config.vision.width
    return VisualPrompt(rng.normal(size=(2, width)), rng.normal(size=(1, 2, width)))


@pytest.mark.parametrize(
    ("make", "settings"),
    [(text_prompt, {}), (text_prompt, {"unroll": 0}), (visual_prompt, {"unroll": 0}), (middle_prompt, {"remat": True})],
)
def test_second_derivatives_equal_finite_differences(make, settings):
    clip = tiny_clip(seed=3, **settings)
    classes = clip.class_tokens(["cat", "small dog"])
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        clip = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), clip)
        prompt = jax.tree.map(jnp.asarray, make(rng, clip.config))
        images = jnp.asarray(rng.normal(size=(2, 12, 12, 3)))
        u, v = (jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), prompt) for _ in range(2))

        def loss(prompt, clip):
            on_text = isinstance(prompt, TextPrompt)
            image = encode_image(clip, images, None if on_text else prompt)
            text = encode_classes(clip, classes, prompt if on_text else None)
            scores = jax.nn.log_softmax(logits(image, text, clip.params["logit_scale"]))
            return -jnp.mean(scores[jnp.arange(2), jnp.array([0, 1])])

        def at(a, b):
            return jax.tree.map(lambda p, u, v: p + a * STEP * u + b * STEP * v, prompt, u, v)

        def product(a, b):
            return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

        @jax.jit
        def exact(clip):
            hessian_v = jax.jvp(lambda prompt: jax.grad(loss)(prompt, clip), (prompt,), (v,))[1]
            return product(u, hessian_v), product(v, hessian_v)

        value = jax.jit(loss)
        mixed, pure = exact(clip)
        mixed_difference = sum(s * t * value(at(s, t), clip) for s in (1, -1) for t in (1, -1)) / (4 * STEP**2)
        pure_difference = (value(at(0, 1), clip) - 2 * value(at(0, 0), clip) + value(at(0, -1), clip)) / STEP**2
        assert mixed.dtype == value(prompt, clip).dtype == jnp.float64
        # The differences are off by STEP^2 times fourth derivatives, and by 1e-16 / STEP^2.
        np.testing.assert_allclose(mixed, mixed_difference, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(pure, pure_difference, rtol=1e-3, atol=1e-5)
        assert abs(mixed) > 1e-2
        assert abs(pure) > 1e-2
