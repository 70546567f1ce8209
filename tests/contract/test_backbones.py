"""The contract of every backbone: a new one enters by adding a row."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import artifacts, tuners
from gram_jax.clip import (
    ResNetConfig,
    Slots,
    TextPrompt,
    encode_classes,
    encode_image,
    encode_patches,
    encode_text,
    weights_hash,
)
from gram_jax.clip.formats.weights import read_weights, write_weights
from gram_jax.objectives import cross_entropy
from gram_jax.testing import tiny_clip, tiny_siglip
from tests.conftest import NAMES

# id: the settings of `tiny_clip` (of `tiny_siglip` for "siglip"). Every property of a configuration has a row in which
# it differs from CLIP's.
ROWS = {
    "clip": {},
    "clip-without-pre-norm": {"vision_pre_norm": False},
    "resnet": {"vision": ResNetConfig(width=4, layers=(1, 2, 1, 1), heads=2, image_size=32)},
    "perception": {"vision_pooling": "attention", "vision_pool_heads": 4, "vision_rotary": True},
    "siglip": {},
}
TUNERS = {
    "text": ("text_deep", {"num_tokens": 2, "depth": 2, "init_text": None}),
    "visual": ("vpt", {"num_tokens": 2, "depth": 2, "placement": "after_class"}),
}
LABELS = jnp.array([2, 0])


def wave(tree):
    return jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), tree)


@pytest.fixture(scope="module", params=ROWS)
def row(request):
    return request.param


@pytest.fixture(scope="module")
def clip(row):
    make = tiny_siglip if row == "siglip" else tiny_clip
    return make(**{"text_layers": 2} | ({} if "vision" in ROWS[row] else {"vision_layers": 2}) | ROWS[row])


@pytest.mark.parametrize("kind", TUNERS)
def test_a_tuner_runs_and_has_every_derivative_or_is_refused(kind, clip, classes, images, tmp_path):
    name, settings = TUNERS[kind]
    tuner = tuners.make(name, **settings)
    if kind == "visual" and not clip.config.vision.takes_prompts:
        with pytest.raises(ValueError, match=r"visual prompts .*vision transformer.*coop"):
            tuner.init(jax.random.key(0), clip, classes)
        return
    prompt = tuner.init(jax.random.key(0), clip, classes)
    other = jax.tree.map(lambda leaf, step: leaf + 0.1 * step, prompt, wave(prompt))

    def loss(prompt, clip, images):
        return cross_entropy(tuner.apply(prompt, clip, classes, images), LABELS)

    @jax.jit
    def run(both, clip, images):
        def gradient(prompt):
            return jax.grad(loss)(prompt, clip, images)

        first = jax.tree.map(lambda leaf: leaf[1], both)
        mapped = jax.vmap(tuner.apply, in_axes=(0, None, None, None))(both, clip, classes, images)
        return mapped.logits, *jax.jvp(gradient, (first,), (wave(first),))

    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), prompt, other)
    logits, gradient, curvature = run(both, clip, images)
    for index, each in enumerate((prompt, other)):
        eager = tuner.apply(each, clip, classes, images).logits
        np.testing.assert_allclose(logits[index], eager, atol=5e-5)
    assert jnp.abs(logits[0] - logits[1]).max() > 1e-3
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, prompt)
    chex.assert_tree_all_finite((gradient, curvature))
    assert all(jnp.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves((gradient, curvature)))
    step = jax.tree.map(lambda leaf: 1e-2 * leaf / optax_norm(gradient), gradient)
    ends = [jax.tree.map(lambda leaf, way, s=sign: leaf + s * way, other, step) for sign in (1, -1)]
    slope = (loss(ends[0], clip, images) - loss(ends[1], clip, images)) / 2e-2
    assert float(slope) == pytest.approx(float(optax_norm(gradient)), rel=0.05)
    artifacts.save_prompt(tmp_path / "prompt.safetensors", prompt, tuner, clip)
    chex.assert_trees_all_equal(artifacts.load_prompt(tmp_path / "prompt.safetensors", clip).prompt, prompt)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_slots_have_every_derivative_and_zeros_change_nothing(tower, clip, classes, images):
    config = getattr(clip.config, tower)

    def features(slots):
        return (
            encode_classes(clip, classes, slots=slots) if tower == "text" else encode_image(clip, images, slots=slots)
        )

    def normal(seed, *shape):
        return 0.3 * jax.random.normal(jax.random.key(seed), (config.layers, *shape))

    if isinstance(config, ResNetConfig):
        with pytest.raises(ValueError, match=r"transformer.*ResNet"):
            features(Slots((0,), prompts=jnp.zeros((1, 2, config.width))))
        return
    width = config.width
    slots = Slots(
        tuple(range(config.layers)),
        prompts=normal(0, 2, width),
        low_rank={name: (normal(1, width, 2), normal(2, 2, width)) for name in ("query", "out")},
        norms={"norm_2": {"scale": normal(3, width)}},
        adapters={"mlp": {"down": normal(4, width, 2), "up": normal(5, 2, width)}},
    )

    @jax.jit
    def run(slots):
        gradient = jax.grad(lambda slots: features(slots)[:, 0].sum())
        return features(slots), *jax.jvp(gradient, (slots,), (wave(slots),))

    found, gradient, curvature = run(slots)
    np.testing.assert_allclose(found, features(slots), atol=1e-5)
    chex.assert_tree_all_finite((gradient, curvature))
    assert all(jnp.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves((gradient, curvature)))
    zero = jax.tree.map(jnp.zeros_like, slots).replace(prompts=None)
    plain = features(None)
    np.testing.assert_allclose(features(zero), plain, atol=1e-6)
    assert jnp.abs(found - plain).max() > 1e-3


def optax_norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def test_what_follows_the_end_of_a_text_has_no_effect(clip):
    ids = clip.tokenize(["a photo of a cat", "a small red dog"])
    short = encode_text(clip, jnp.asarray(ids))
    filled = np.full((2, clip.config.text.context_length), 7, np.int32)
    filled[:, : ids.shape[1]] = ids
    end = clip.tokenizer.eos_token_id
    filled = np.where((filled == end).cumsum(axis=1) - (filled == end) > 0, 7, filled)
    np.testing.assert_allclose(encode_text(clip, jnp.asarray(filled)), short, atol=1e-6)


def test_a_shared_context_equals_the_same_context_for_every_class(clip, classes):
    width = clip.config.text.width
    context, deep = (0.5 * jax.random.normal(jax.random.key(n), (3, width)) for n in range(2))
    each = jnp.broadcast_to(context, (len(NAMES), 3, width))
    shared = encode_classes(clip, classes, TextPrompt(context, deep[None]))
    np.testing.assert_allclose(shared, encode_classes(clip, classes, TextPrompt(each, deep[None])), atol=1e-5)


def test_a_context_of_words_is_the_template(clip, classes):
    tuner = tuners.coop(init_text="a photo of a")
    prompt = tuner.init(jax.random.key(0), clip, classes)
    texts = encode_classes(clip, classes, TextPrompt(prompt["context"]))
    np.testing.assert_allclose(texts, encode_classes(clip, classes), atol=1e-5)


def test_features_of_patches_are_in_the_joint_space(clip, images):
    features, patches = encode_patches(clip, images)
    assert features.shape == (2, clip.config.embed_dim)
    assert patches.shape == (2, clip.config.vision.num_patches, clip.config.embed_dim)
    assert jnp.abs(patches[:, 0] - patches[:, -1]).max() > 1e-3 or clip.config.vision.num_patches == 1


def test_weights_are_written_and_read_exactly(clip, tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(clip.params, clip.config, path)
    read = read_weights([path], clip.config)
    chex.assert_trees_all_equal(read, clip.params)
    assert weights_hash(read) == weights_hash(clip.params)
