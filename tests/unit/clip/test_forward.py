"""The forward passes without prompts against NumPy; precision, tracing and errors."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import ClipConfig, VisionConfig, embed_tokens, encode_image, encode_text, logits
from gram_jax.clip.model import Clip, init_params
from gram_jax.testing import tiny_clip, tiny_config
from tests.unit.clip import reference

TEXTS = ["a photo of a cat.", "a small green frog", "dog"]

CONFIGS = {
    "quick_gelu": {},
    "gelu": {"text_activation": "gelu", "vision_activation": "gelu", "text_heads": 3, "vision_heads": 1},
    "gelu_new": {"text_activation": "gelu_new", "vision_activation": "gelu_pytorch_tanh", "vision_width": 30},
    "legacy": {"text_eos_token_id": 2, "text_bos_token_id": 0, "text_pad_token_id": 1, "vision_heads": 4},
    "a loop": {"unroll": 0},
    "one_layer": {"text_layers": 1, "vision_layers": 1, "vision_patch_size": 5, "text_norm_eps": 1e-3},
}


def random_images(config: VisionConfig, count: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (count, config.image_size, config.image_size, config.channels))


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_features_equal_numpy(name):
    clip = tiny_clip(seed=1, **CONFIGS[name])
    params = reference.to_numpy(clip.params)
    token_ids, images = clip.tokenize(TEXTS), random_images(clip.config.vision)
    text = [reference.plain_text_feature(params["text"], clip.config.text, row) for row in token_ids]
    image = [reference.image_feature(params["vision"], clip.config.vision, np.float64(one)) for one in images]
    np.testing.assert_allclose(encode_text(clip, token_ids, normalize=False), text, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encode_image(clip, images, normalize=False), image, rtol=1e-4, atol=1e-5)


def test_normalized_features_are_on_the_sphere(clip, images):
    raw, features = encode_image(clip, images, normalize=False), encode_image(clip, images)
    np.testing.assert_allclose(features, reference.unit(np.float64(raw)), atol=1e-6)


def test_cut_text_equals_padded_text():
    clip = tiny_clip(text_context_length=77)
    cut, padded = clip.tokenize(TEXTS), clip.tokenizer.encode(TEXTS, length=77)
    assert cut.shape[1] < 12
    assert padded.shape[1] == 77
    np.testing.assert_allclose(encode_text(clip, cut), encode_text(clip, padded), atol=1e-6)


def test_tokens_after_the_end_have_no_effect(clip):
    token_ids = clip.tokenizer.encode(TEXTS, length=20)
    behind = np.arange(20) > np.argmax(token_ids, axis=1)[:, None]
    noise = np.random.default_rng(0).integers(0, clip.config.text.eos_token_id, token_ids.shape, np.int32)
    changed = np.where(behind, noise, token_ids)
    assert (changed != token_ids).any(axis=1).all()
    np.testing.assert_array_equal(encode_text(clip, token_ids), encode_text(clip, changed))


def test_leading_axes_of_texts(clip):
    token_ids = clip.tokenize([*TEXTS, "a red fish"])
    flat = encode_text(clip, token_ids)
    nested = encode_text(clip, token_ids.reshape(2, 2, -1))
    np.testing.assert_allclose(nested, flat.reshape(2, 2, -1), atol=1e-6)


def test_an_unknown_token_id_gives_nan(clip):
    assert jnp.isnan(encode_text(clip, jnp.full((1, 3), clip.config.text.vocab_size))).all()


def test_logits_equal_a_loop():
    image, text = np.random.default_rng(0).normal(size=(2, 3, 5))
    per_image = np.random.default_rng(1).normal(size=(3, 4, 5))
    expected = [[np.exp(1.5) * sum(i * t) for t in text] for i in image]
    np.testing.assert_allclose(logits(jnp.float32(image), jnp.float32(text), 1.5), expected, rtol=1e-4)
    expected = [[np.exp(1.5) * sum(i * t) for t in one] for i, one in zip(image, per_image, strict=True)]
    np.testing.assert_allclose(
        logits(jnp.float32(image), jnp.float32(per_image), jnp.log(jnp.exp(1.5))), expected, rtol=1e-4
    )


def test_bfloat16_compute_stays_close(clip, images):
    config = ClipConfig(clip.config.text, clip.config.vision, clip.config.embed_dim, compute_dtype="bfloat16")
    half, token_ids = clip.replace(config=config), clip.tokenize(TEXTS)
    for encode, inputs in ((encode_image, images), (encode_text, token_ids)):
        exact, close = encode(clip, inputs), encode(half, inputs)
        assert close.dtype == jnp.float32
        # bfloat16 has 8 bits: an error of 2^-8 per product, averaged over the width; the bound is 4 times that.
        cosine = jnp.sum(exact * close, axis=-1)
        assert (cosine > 1 - 4 * 2.0**-8).all()
        assert not jnp.array_equal(exact, close)
    gradient = jax.jit(jax.grad(lambda images: encode_image(half, images).sum()))(images)
    assert gradient.dtype == jnp.float32
    assert jnp.isfinite(gradient).all()


def test_half_precision_parameters_compute_in_float32(clip, images):
    token_ids = clip.tokenize(TEXTS)
    for dtype, encode, inputs in ((jnp.float16, encode_image, images), (jnp.bfloat16, encode_text, token_ids)):
        stored = clip.replace(params=jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), clip.params))
        widened = clip.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored.params))
        features = encode(stored, inputs)
        assert features.dtype == jnp.float32
        np.testing.assert_allclose(features, encode(widened, inputs), atol=2e-6)


def test_recomputation_changes_nothing(clip, images):
    @jax.jit
    def gradient(clip, images):
        return jax.grad(lambda images: encode_image(clip, images)[:, 0].sum())(images)

    config = ClipConfig(clip.config.text, clip.config.vision, clip.config.embed_dim, remat=True)
    stored, recomputed = gradient(clip, images), gradient(clip.replace(config=config), images)
    np.testing.assert_allclose(stored, recomputed, atol=1e-6)
    assert jnp.abs(stored).max() > 1e-3


def test_a_clip_is_an_argument_and_other_weights_do_not_retrace(clip, images):
    features = jax.jit(chex.assert_max_traces(lambda clip, images: encode_image(clip, images), n=1))
    first = features(clip, images)
    other = tiny_clip(seed=5, text_layers=4, text_heads=3, vision_layers=4, vision_width=30, vision_heads=5, unroll=2)
    assert not jnp.allclose(first, features(other, images))
    np.testing.assert_allclose(first, encode_image(clip, images), atol=1e-6)


def test_vmap_over_weights_equals_a_loop(images):
    clips = [tiny_clip(seed, vision_layers=2) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clips)
    features = jax.vmap(lambda clip: encode_image(clip, images))(stacked)
    np.testing.assert_allclose(features, jnp.stack([encode_image(clip, images) for clip in clips]), atol=1e-6)


def test_initial_parameters_have_the_stated_deviations():
    config = tiny_config(text_width=192, text_mlp_width=768, vision_width=96, vision_mlp_width=384, embed_dim=128)
    params = init_params(jax.random.key(0), config)
    text, vision = params["text"], params["vision"]
    layers = config.text.layers
    expected = {
        "token": (text["token_embedding"], 0.02),
        "positions": (text["position_embedding"], 0.01),
        "query": (text["layers"]["attention"]["query"]["kernel"], 192**-0.5),
        "out": (text["layers"]["attention"]["out"]["kernel"], 192**-0.5 / (2 * layers) ** 0.5),
        "up": (text["layers"]["mlp"]["up"]["kernel"], 384**-0.5),
        "down": (text["layers"]["mlp"]["down"]["kernel"], 192**-0.5 / (2 * layers) ** 0.5),
        "projection": (text["projection"], 192**-0.5),
        "patches": (vision["patch_embedding"], (3 * 48) ** -0.5),
    }
    for name, (leaf, deviation) in expected.items():
        np.testing.assert_allclose(jnp.std(leaf), deviation, rtol=0.05, err_msg=name)
        assert abs(jnp.mean(leaf)) < 0.05 * deviation, name
    assert params["logit_scale"] == jnp.float32(2.6592)
    assert not jnp.array_equal(text["layers"]["mlp"]["up"]["kernel"][0], text["layers"]["mlp"]["up"]["kernel"][1])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 12, 13, 3), jnp.float32, r"float32\[2, 12, 13, 3\].*\[images, 12, 12, 3\].*clip.preprocess"),
        ((2, 3, 12, 12), jnp.float32, r"float32\[2, 3, 12, 12\]"),
        ((12, 12, 3), jnp.float32, r"float32\[12, 12, 3\]"),
        ((2, 12, 12, 3), jnp.uint8, r"uint8\[2, 12, 12, 3\]"),
    ],
)
def test_wrong_images_are_refused(clip, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        encode_image(clip, jnp.zeros(shape, dtype))


def test_wrong_token_ids_are_refused(clip):
    with pytest.raises(ValueError, match=r"token_ids are float32\[1, 4\]"):
        encode_text(clip, jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"int32\[1, 25\].* 24 tokens"):
        encode_text(clip, jnp.zeros((1, 25), jnp.int32))
    with pytest.raises(ValueError, match=r"int32\[0\]"):
        embed_tokens(clip, jnp.zeros(0, jnp.int32))


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 4\] .*\[3, 5\]"):
        logits(jnp.ones((2, 4)), jnp.ones((3, 5)), 0.0)
    with pytest.raises(ValueError, match=r"\[2, 4\] .*\[3, 3, 4\]"):
        logits(jnp.ones((2, 4)), jnp.ones((3, 3, 4)), 0.0)


def test_a_missing_tokenizer_or_transform_is_reported(clip):
    bare = Clip(clip.params, clip.config)
    with pytest.raises(ValueError, match=r"clip.replace\(tokenizer"):
        bare.class_tokens(["cat"])
    with pytest.raises(ValueError, match=r"clip.replace\(tokenizer"):
        bare.tokenize(["cat"])
    with pytest.raises(ValueError, match=r"clip.replace\(transform"):
        bare.preprocess([])
