"""Slots inside blocks: against NumPy, one sequence, one head and one query at a time, and through every transform."""

from __future__ import annotations

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import Slots, TextPrompt, encode_classes, encode_image, encode_patches, encode_text
from gram_jax.clip.slots import NORMS, PROJECTIONS
from gram_jax.clip.text import class_features
from gram_jax.testing import tiny_clip
from tests.unit.clip import reference

LAYERS = {"all": (0, 1, 2, 3), "a gap and not the last": (0, 2), "the last": (3,)}
RANK = 2


def draw(width, layers, per_image=None, seed=0):
    """Returns slots with every part, and the values so large that each part matters."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.float32(rng.normal(size=(len(layers), *shape)) / 3)

    return Slots(
        layers,
        prompts=3 * normal(*(() if per_image is None else (per_image,)), 3, width),
        low_rank={name: (normal(width, RANK), normal(RANK, width)) for name in PROJECTIONS},
        norms={name: {"scale": normal(width), "bias": normal(width)} for name in NORMS},
        adapters={
            "attention": {"down": normal(width, RANK), "up": normal(RANK, width)},
            "mlp": {"down": normal(width, 4), "down_bias": normal(4), "up": normal(4, width), "up_bias": normal(width)},
            "block": {"down": normal(width, RANK), "up": normal(RANK, width)},
        },
    )


def at(slots, layer, image=None):
    """Returns one layer's slots in float64, of one image."""
    if layer not in slots.layers:
        return None
    one = jax.tree.map(lambda leaf: np.float64(leaf[slots.layers.index(layer)]), slots)
    return one if image is None or one.prompts.ndim == 2 else one.replace(prompts=one.prompts[image])


def adapter(params, x):
    hidden = np.maximum(x @ params["down"] + params.get("down_bias", 0), 0)
    return hidden @ params["up"] + params.get("up_bias", 0)


def block(x, params, config, slots, causal):
    """Returns the tokens `[tokens, width]` of one sequence after a block with slots."""
    if slots is None:
        return reference.layer(x, params, config, causal)
    norms = {name: {key: params[name][key] + slots.norms[name][key] for key in ("scale", "bias")} for name in NORMS}
    normed, prompts = (reference.norm(one, norms["norm_1"], config.norm_eps) for one in (x, slots.prompts))
    projections = {}
    for name in PROJECTIONS:
        down, up = slots.low_rank[name]
        weights = params["attention"][name]
        projections[name] = lambda y, w=weights, d=down, u=up: y @ (w["kernel"] + d @ u) + w["bias"]
    query = projections["query"](normed)
    key, value = (np.concatenate([projections[name](prompts), projections[name](normed)]) for name in ("key", "value"))
    size, mixed = config.width // config.heads, np.zeros_like(x)
    for head in range(config.heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            seen = len(prompts) + (i + 1 if causal else len(x))
            scores = key[:seen, part] @ query[i, part] / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            mixed[i, part] = weights @ value[:seen, part] / weights.sum()
    y = x + projections["out"](mixed) + adapter(slots.adapters["attention"], x)
    hidden = reference.dense(reference.norm(y, norms["norm_2"], config.norm_eps), params["mlp"]["up"])
    mlp = reference.dense(reference.activation(config.activation, hidden), params["mlp"]["down"])
    return y + mlp + adapter(slots.adapters["mlp"], y) + adapter(slots.adapters["block"], normed)


def image_feature(clip, image, slots, index):
    params, config = reference.to_numpy(clip.params["vision"]), clip.config.vision
    side, count = config.patch_size, config.image_size // config.patch_size
    grid = np.float64(image).reshape(count, side, count, side, 3).swapaxes(1, 2).reshape(count**2, -1)
    x = np.concatenate([params["class_embedding"][None], grid @ params["patch_embedding"]])
    x = reference.norm(x + params["position_embedding"], params["pre_norm"], config.norm_eps)
    for layer in range(config.layers):
        x = block(x, reference.layer_params(params, layer), config, at(slots, layer, index), causal=False)
    return reference.norm(x, params["post_norm"], config.norm_eps) @ params["projection"]


def text_feature(clip, rows, slots):
    params, config = reference.to_numpy(clip.params["text"]), clip.config.text
    x = np.stack(rows) + params["position_embedding"][: len(rows)]
    for layer in range(config.layers):
        x = block(x, reference.layer_params(params, layer), config, at(slots, layer), causal=True)
    return reference.unit(reference.norm(x[-1], params["final_norm"], config.norm_eps) @ params["projection"])


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("per_image", [None, 2])
def test_the_image_tower_equals_numpy(clip, images, case, per_image):
    slots = draw(clip.config.vision.width, LAYERS[case], per_image=per_image)
    expected = np.stack([image_feature(clip, image, slots, index) for index, image in enumerate(images)])
    np.testing.assert_allclose(encode_image(clip, images, slots=slots), reference.unit(expected[:, 0]), atol=5e-6)
    features, patches = encode_patches(clip, images, slots=slots)
    np.testing.assert_allclose(features, reference.unit(expected[:, 0]), atol=5e-6)
    np.testing.assert_allclose(patches, expected[:, 1:], atol=2e-5)


@pytest.mark.parametrize("case", LAYERS)
def test_the_text_tower_equals_numpy(clip, classes, case):
    slots = draw(clip.config.text.width, LAYERS[case])
    embedding = np.float64(clip.params["text"]["token_embedding"])
    ids, ends = np.asarray(classes.token_ids), np.asarray(classes.eot)
    expected = [
        text_feature(clip, [embedding[i] for i in row[: end + 1]], slots) for row, end in zip(ids, ends, strict=True)
    ]
    np.testing.assert_allclose(encode_classes(clip, classes, slots=slots), expected, atol=5e-6)
    np.testing.assert_allclose(encode_text(clip, classes.token_ids, slots=slots), expected, atol=5e-6)


def test_a_shared_prefix_and_chunks_are_exact(clip, classes):
    slots = draw(clip.config.text.width, (0, 1, 3))
    prompt = TextPrompt(jnp.float32(np.random.default_rng(1).normal(size=(4, clip.config.text.width))))
    params = clip.params["text"]
    once = class_features(params, clip.config, classes, prompt, slots=slots)
    alone = class_features(params, clip.config, classes, prompt, share=False, slots=slots)
    np.testing.assert_allclose(once, alone, atol=5e-6)
    chunked = class_features(params, dataclasses.replace(clip.config, class_chunk=3), classes, prompt, slots=slots)
    np.testing.assert_allclose(chunked, once, atol=5e-6)


def test_zeros_change_nothing_and_prompts_alone_do(clip, images):
    width = clip.config.vision.width
    slots = draw(width, (0, 1, 2, 3))
    zero = jax.tree.map(jnp.zeros_like, slots).replace(prompts=None)
    plain = encode_image(clip, images)
    np.testing.assert_allclose(encode_image(clip, images, slots=zero), plain, atol=1e-6)
    for name in ("prompts", "low_rank", "norms", "adapters"):
        one = Slots(slots.layers, **{name: getattr(slots, name)})
        assert jnp.abs(encode_image(clip, images, slots=one) - plain).max() > 1e-2, name


def test_another_adapter_of_the_caller_is_used(clip, images):
    gains = {"gain": jnp.ones((2, 1))}
    slots = Slots((1, 3), adapters={"mlp": gains}, adapter=lambda params, x: params["gain"] * jnp.sin(x))
    sines = encode_image(clip, images, slots=slots)
    assert jnp.abs(sines - encode_image(clip, images)).max() > 1e-2
    half = slots.replace(adapter=lambda params, x: jnp.sin(x))
    np.testing.assert_array_equal(encode_image(clip, images, slots=half), sines)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_slots_pass_through_every_transform(tower, images):
    plain = tiny_clip(vision_layers=2, text_layers=2)
    classes = plain.class_tokens(["cat", "small dog"])
    with jax.enable_x64(True):
        clip = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), plain)
        slots, other = (
            jax.tree.map(
                lambda leaf: jnp.asarray(leaf, jnp.float64), draw(getattr(clip.config, tower).width, (0, 1), seed=seed)
            )
            for seed in (0, 1)
        )
        step = 1e-6
        near = [jax.tree.map(lambda a, b, s=s: a + s * step * b, slots, other) for s in (0, 1, -1)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *near)

        def features(slots):
            if tower == "text":
                return encode_classes(clip, classes, slots=slots)
            return encode_image(clip, jnp.float64(images), slots=slots)

        gradient = jax.grad(lambda slots: features(slots)[:, 0].sum())

        @jax.jit
        def run(stacked):
            _, (scanned, slopes) = jax.lax.scan(lambda carry, one: (carry, (features(one), gradient(one))), 0, stacked)
            return jax.vmap(features)(stacked), scanned, slopes, jax.jvp(gradient, (slots,), (other,))[1]

        mapped, scanned, slopes, curvature = run(stacked)
        np.testing.assert_allclose(mapped, scanned, atol=1e-12)
        chex.assert_trees_all_equal_shapes_and_dtypes(curvature, slots)
        for bent, slope in zip(jax.tree.leaves(curvature), jax.tree.leaves(slopes), strict=True):
            assert min(jnp.abs(bent).max(), jnp.abs(slope[0]).max()) > 1e-7
            np.testing.assert_allclose(
                bent, (slope[1] - slope[2]) / (2 * step), atol=1e-6 * float(jnp.abs(bent).max()) + 1e-8
            )


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"prompts": 0}, "dict.*Slots"),
        (Slots((4,), prompts=jnp.zeros((1, 2, 30))), r"layers=\(4,\).* 0 to 3"),
        (Slots((1, 0), prompts=jnp.zeros((2, 2, 30))), r"layers=\(1, 0\).*increasing"),
        (Slots((0, 1), prompts=jnp.zeros((1, 2, 30))), r"slots.prompts .*\[1, 2, 30\].* 2 layers"),
        (Slots((0,), prompts=jnp.zeros((1, 2, 31))), r"slots.prompts .*31.* width 30"),
        (Slots((0,), prompts=jnp.zeros((1, 3, 2, 30))), "slots.prompts is for 3 images, but there are 2"),
        (Slots((0,), low_rank={"q": (jnp.zeros((1, 30, 2)), jnp.zeros((1, 2, 30)))}), "low_rank='q'"),
        (Slots((0,), low_rank={"out": (jnp.zeros((1, 30, 2)), jnp.zeros((1, 3, 30)))}), r"\[1, 3, 30\].* 2, 30\]"),
        (Slots((0,), norms={"norm_3": {}}), "norms='norm_3'"),
        (Slots((0,), norms={"norm_1": {"scale": jnp.zeros((1, 5))}}), r"norm_1.*\[1, 5\].* 30\]"),
        (Slots((0,), adapters={"input": {}}), "adapters='input'.*attention"),
    ],
)
def test_slots_that_do_not_fit_are_refused(clip, images, slots, message):
    with pytest.raises(ValueError, match=message):
        encode_image(clip, images, slots=slots)
