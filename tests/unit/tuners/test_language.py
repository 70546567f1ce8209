"""Tuners of the text side against NumPy: contexts in deep layers, and contexts that images shift."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import tuners
from gram_jax.objectives import cross_entropy
from gram_jax.testing import tiny_clip
from tests.unit.clip import reference
from tests.unit.tuners.restated import check, class_features, image_features, words

KEY = jax.random.key(0)


@pytest.mark.parametrize(("n", "position"), [(4, "end"), (3, "end"), (2, "middle")])
def test_text_deep_equals_numpy(clip, classes, images, n, position):
    tuner = tuners.text_deep(num_tokens=n, depth=3, position=position)
    prompt = tuner.init(KEY, clip, classes)
    np.testing.assert_array_equal(prompt["context"], np.float32(words(clip, "a photo of a"))[:n])
    prompt = jax.tree.map(lambda leaf: 20 * leaf, prompt)
    drawn = reference.to_numpy(prompt)
    # Frozen words follow the learned ones, and no deep prompt replaces them.
    context = np.concatenate([drawn["context"], words(clip, "a photo of a")[n:]])
    deep = dict(enumerate(drawn["deep"], start=1))
    assert drawn["deep"].shape == (2, n, clip.config.text.width)
    texts = class_features(clip, classes, [context] * 4, position, deep)
    check(tuner.apply(prompt, clip, classes, images), clip, image_features(clip, images), texts)


def test_text_deep_of_depth_1_is_coop(clip, classes, images):
    for settings in ({"init_text": "a photo of a"}, {"num_tokens": 5, "init_text": None, "position": "front"}):
        deep, shallow = tuners.text_deep(depth=1, **settings), tuners.coop(**settings)
        prompt = deep.init(KEY, clip, classes)
        chex.assert_trees_all_equal_shapes(prompt, shallow.init(KEY, clip, classes))
        both = [tuner.apply(prompt, clip, classes, images).logits for tuner in (deep, shallow)]
        np.testing.assert_array_equal(*both)


def shifted(prompt, feature):
    """Returns the context of one image: the network of the image feature shifts every vector."""
    first, second = prompt["network"]["hidden"], prompt["network"]["out"]
    columns = zip(first["kernel"].T, first["bias"], strict=True)
    hidden = [max(0.0, float(feature @ column + bias)) for column, bias in columns]
    shift = sum(unit * row for unit, row in zip(hidden, second["kernel"], strict=True)) + second["bias"]
    return np.stack([vector + shift for vector in prompt["context"]])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_cocoop_equals_numpy(clip, classes, chunk):
    tuner = tuners.cocoop(num_tokens=3, init_text=None, hidden=5, chunk=chunk)
    prompt = jax.tree.map(lambda leaf: 2 * leaf, tuner.init(KEY, clip, classes))
    prompt["context"] *= 10
    size = clip.config.vision.image_size
    images = jax.random.normal(jax.random.key(1), (3, size, size, 3))
    features = image_features(clip, images)
    contexts = [shifted(reference.to_numpy(prompt), feature) for feature in features]
    assert np.abs(contexts[0] - contexts[1]).max() > 0.1
    texts = np.stack([class_features(clip, classes, [context] * 4, "end") for context in contexts])
    check(tuner.apply(prompt, clip, classes, images), clip, features, texts)


def test_cocoop_without_its_network_is_coop(clip, classes, images):
    tuner, plain = tuners.cocoop(), tuners.coop(init_text="a photo of a")
    prompt = tuner.init(KEY, clip, classes)
    assert prompt["network"]["hidden"]["kernel"].shape == (16, 1)  # a sixteenth of the features
    prompt["network"] = jax.tree.map(jnp.zeros_like, prompt["network"])
    outputs = tuner.apply(prompt, clip, classes, images)
    expected = plain.apply({"context": prompt["context"]}, clip, classes, images)
    np.testing.assert_allclose(outputs.logits, expected.logits, atol=2e-5)


def test_memory_of_cocoop_grows_with_the_chunk_and_not_with_the_images():
    clip = tiny_clip(text_layers=1)
    names = [f"{color} {animal}" for color in ("red", "blue", "old", "new") for animal in "abcdefgh"]
    classes = clip.class_tokens(names)

    def temporary_bytes(images, chunk):
        tuner = tuners.cocoop(chunk=chunk)

        def loss(prompt, clip, features):
            return cross_entropy(tuner.apply(prompt, clip, classes, features), jnp.zeros(images, int))

        prompt = tuner.init(KEY, clip, classes)
        compiled = jax.jit(jax.grad(loss)).lower(prompt, clip, jnp.ones((images, 16))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many, wide = temporary_bytes(2, 1), temporary_bytes(16, 1), temporary_bytes(16, 8)
    assert many < 2 * few  # only the features themselves grow
    assert wide > 3 * many
