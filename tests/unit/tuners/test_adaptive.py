"""The adaptive tuner against NumPy: attention from classes to patches, and its dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import tuners
from gram_jax.clip import encode_patches
from gram_jax.errors import InputError
from tests.unit.clip import reference
from tests.unit.tuners.restated import check, image_features, plain_features

KEY = jax.random.key(0)


def numpy_patches(clip, image):
    """Returns the patches of one image, projected like the class token, `[patches, embed_dim]`."""
    params, config = reference.to_numpy(clip.params["vision"]), clip.config.vision
    side = config.patch_size
    rows = [params["class_embedding"]]
    for row in range(0, image.shape[0], side):
        for column in range(0, image.shape[1], side):
            patch = image[row : row + side, column : column + side]
            rows.append(patch.reshape(-1) @ params["patch_embedding"])
    x = reference.norm(np.stack(rows) + params["position_embedding"], params["pre_norm"], config.norm_eps)
    for index in range(config.layers):
        x = reference.layer(x, reference.layer_params(params, index), config, causal=False)
    return reference.norm(x[1:], params["post_norm"], config.norm_eps) @ params["projection"]


def refined(prompt, words, patches, weigh=lambda weights: weights):
    """Returns the text features of one image, class by class; `weigh` changes the attention weights `[patches]`."""
    rows = []
    for word in words:
        scores = np.array([(word @ prompt["query"]) @ (patch @ prompt["key"]) for patch in patches])
        scores /= np.sqrt(prompt["query"].shape[1])
        weights = weigh(np.exp(scores) / np.exp(scores).sum())
        seen = sum(weight * (patch @ prompt["value"]) for weight, patch in zip(weights, patches, strict=True))
        rows.append(word + seen @ prompt["out"])
    return reference.unit(np.stack(rows))


def make(clip, **settings):
    tuner = tuners.adaptive(**settings)
    rng = np.random.default_rng(0)
    return tuner, jax.tree.map(
        lambda leaf: leaf + jnp.float32(0.2 * rng.normal(size=leaf.shape)), tuner.init(KEY, clip, None)
    )


def test_patches_equal_numpy(clip, images):
    features, patches = encode_patches(clip, images)
    np.testing.assert_allclose(features, image_features(clip, images), atol=3e-6)
    expected = np.stack([numpy_patches(clip, np.float64(image)) for image in images])
    np.testing.assert_allclose(patches, expected, atol=1e-5)
    with pytest.raises(ValueError, match="images"):
        encode_patches(clip, images[..., :2])


def test_adaptive_equals_numpy(clip, classes, images):
    tuner, prompt = make(clip, width=5)
    drawn, words = reference.to_numpy(prompt), plain_features(clip, classes)
    texts = np.stack([refined(drawn, words, numpy_patches(clip, np.float64(image))) for image in images])
    assert np.abs(texts[0] - texts[1]).max() > 1e-2
    check(tuner.apply(prompt, clip, classes, images), clip, image_features(clip, images), texts)


def test_the_start_is_zero_shot(clip, classes, images):
    tuner = tuners.adaptive()
    prompt = tuner.init(KEY, clip, None)
    assert prompt["query"].shape == prompt["out"].shape == (16, 16)
    frozen = tuners.frozen_outputs(clip, classes, images)
    np.testing.assert_allclose(tuner.apply(prompt, clip, classes, images).logits, frozen.logits, atol=2e-5)


def test_dropout_drops_attention_weights_and_keeps_their_mean(clip, classes, images):
    # With as many inner units as features and projections that change nothing, the change is the mixture of patches.
    tuner = tuners.adaptive(dropout=0.25)
    zero = jnp.zeros((16, 16))
    prompt = {"query": zero, "key": zero, "value": jnp.eye(16), "out": 0.1 * jnp.eye(16)}
    key = jax.random.key(3)
    outputs = tuner.apply(prompt, clip, classes, images, key)
    kept = np.asarray(jax.random.bernoulli(key, 0.75, (2, 4, 9)))
    assert 0 < kept.mean() < 1
    words, drawn = plain_features(clip, classes), reference.to_numpy(prompt)
    for b, image in enumerate(images):
        patches = numpy_patches(clip, np.float64(image))
        rows = iter(kept[b])
        texts = refined(drawn, words, patches, lambda weights, rows=rows: weights * next(rows) / 0.75)
        np.testing.assert_allclose(outputs.text_features[b], texts, atol=3e-6)
    without = tuners.adaptive(dropout=0.0)
    plain = without.apply(prompt, clip, classes, images)
    np.testing.assert_array_equal(without.apply(prompt, clip, classes, images, key).logits, plain.logits)
    assert jnp.abs(outputs.logits - plain.logits).max() > 1e-3


def test_misfits_are_refused():
    for settings, message in (
        ({"width": 0}, "width=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": "0.1"}, "dropout='0.1'"),
    ):
        with pytest.raises(InputError, match=message):
            tuners.adaptive(**settings)
