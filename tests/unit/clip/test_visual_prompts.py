"""Visual prompts: every placement, sharing and depth, and prompts made inside a layer, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import MaskedTokens, VisualPrompt, encode_image
from tests.unit.clip import reference

COUNT = 3
PLACEMENTS = ("before_norm", "after_norm", "after_class")
# name: (tokens per image? None: no tokens, deep per image? None: no deep, deep layers); 4 layers in all.
CASES = {
    "shared": (False, None, None),
    "per_image": (True, None, None),
    "deep": (False, False, None),
    "deep_per_image_with_a_gap": (True, True, (1, 3)),
    "deep_only": (None, False, (0, 1, 2, 3)),
    "deep_only_from_layer_2": (None, True, (2, 3)),
}


def make_prompt(case, width, images, placement, seed=0):
    tokens, deep, layers = CASES[case]
    rng = np.random.default_rng(seed)

    def draw(*leading, per_image):
        return jnp.float32(rng.normal(size=(*leading, *((images,) if per_image else ()), COUNT, width)))

    return VisualPrompt(
        tokens=None if tokens is None else draw(per_image=tokens),
        deep=None if deep is None else draw(len(layers or (1, 2)), per_image=deep),
        placement=placement,
        deep_layers=layers,
    )


def numpy_features(clip, images, prompt, made=None):
    """Returns features of every image, computed one by one; `made[layer](b, body)` makes the prompt of image b."""
    params, config = reference.to_numpy(clip.params["vision"]), clip.config.vision
    layers = prompt.deep_layers or range(1, 1 + len(() if prompt.deep is None else prompt.deep))
    features = []
    for b, image in enumerate(np.float64(images)):
        one = jax.tree.map(lambda leaf: np.float64(leaf), prompt)
        tokens = None if one.tokens is None else one.tokens[b] if one.tokens.ndim == 3 else one.tokens
        deep = {} if one.deep is None else dict(zip(layers, one.deep, strict=True))
        deep = {layer: rows[b] if rows.ndim == 3 else rows for layer, rows in deep.items()}
        functions = {layer: lambda body, make=make, b=b: make(b, body) for layer, make in (made or {}).items()}
        features.append(reference.image_feature(params, config, image, tokens, prompt.placement, deep, functions))
    return reference.unit(np.stack(features))


@pytest.mark.parametrize(
    ("case", "placement"),
    [(case, placement) for case in ("shared", "deep_per_image_with_a_gap") for placement in PLACEMENTS]
    + [("per_image", "before_norm"), ("deep", "before_norm"), ("deep", "after_class")]
    + [("deep_only", "after_norm"), ("deep_only_from_layer_2", "after_class")],
)
def test_prompted_features_equal_numpy(clip, images, case, placement):
    prompt = make_prompt(case, clip.config.vision.width, len(images), placement)
    features = encode_image(clip, images, prompt)
    np.testing.assert_allclose(features, numpy_features(clip, images, prompt), atol=3e-6)


def test_norm_and_depth_make_a_difference(clip, images):
    width = clip.config.vision.width
    prompts = [
        make_prompt("shared", width, 2, "before_norm"),
        make_prompt("shared", width, 2, "after_norm"),
        make_prompt("deep", width, 2, "after_norm"),
    ]
    features = [encode_image(clip, images), *(encode_image(clip, images, prompt) for prompt in prompts)]
    for i, one in enumerate(features):
        for other in features[i + 1 :]:
            assert jnp.abs(one - other).max(axis=-1).min() > 1e-3


def test_order_has_no_effect_without_positions(clip, images):
    # Attention without a mask ignores the order: this checks the indices around the class token.
    end, after_class = (
        make_prompt("deep_per_image_with_a_gap", clip.config.vision.width, 2, placement)
        for placement in ("after_norm", "after_class")
    )
    np.testing.assert_allclose(encode_image(clip, images, end), encode_image(clip, images, after_class), atol=2e-6)


@pytest.mark.parametrize(("placement", "layers"), [("after_norm", (3,)), ("after_class", (1, 2)), (None, (0,))])
def test_prompts_made_inside_a_layer_equal_numpy(clip, images, placement, layers):
    width = clip.config.vision.width
    # Each layer has another number of prompt tokens, mixed from the layer's own tokens.
    mixers = {
        layer: np.random.default_rng(layer).normal(size=(2 + layer, 1 + clip.config.vision.num_patches))
        for layer in layers
    }
    seen = {}

    def make(layer, tokens):
        seen[layer] = tokens.shape
        return jnp.tanh(jnp.float32(mixers[layer]) @ tokens)

    prompt = None if placement is None else make_prompt("shared", width, len(images), placement)
    if placement == "after_class":
        deep = make_prompt("deep_only_from_layer_2", width, len(images), placement).deep[:1]
        prompt = prompt.replace(deep=deep, deep_layers=(3,))
    functions = {layer: lambda tokens, layer=layer: make(layer, tokens) for layer in layers}
    features = jax.jit(lambda clip, images: encode_image(clip, images, prompt, layer_prompts=functions))(clip, images)
    in_numpy = {layer: lambda b, body, layer=layer: np.tanh(mixers[layer] @ body) for layer in layers}
    expected = numpy_features(clip, images, VisualPrompt(None) if prompt is None else prompt, in_numpy)
    np.testing.assert_allclose(features, expected, atol=3e-6)
    # A function sees the class token and the patches only, not the previous prompt tokens.
    assert set(seen.values()) == {(len(images), 1 + clip.config.vision.num_patches, width)}


@pytest.mark.parametrize("placement", ["after_norm", "after_class"])
def test_masked_tokens_have_no_effect(clip, images, placement):
    width = clip.config.vision.width
    start = make_prompt("shared", width, len(images), placement)
    made = jnp.float32(np.random.default_rng(3).normal(size=(len(images), 4, width)))
    keep = jnp.array([[True, False, True, True], [False, False, False, True]])
    later = make_prompt("shared", width, len(images), placement, seed=1).tokens
    # Tokens made before layer 1 are present in layers 1 and 2 and replaced before layer 3.
    prompt = start.replace(deep=later[None], deep_layers=(3,))
    functions = {1: lambda tokens: MaskedTokens(made, keep)}
    features = jax.jit(lambda clip, images: encode_image(clip, images, prompt, layer_prompts=functions))(clip, images)
    in_numpy = {1: lambda b, body: np.float64(made[b])[np.asarray(keep[b])]}
    np.testing.assert_allclose(features, numpy_features(clip, images, prompt, in_numpy), atol=3e-6)


def test_functions_may_return_more_than_tokens(clip, images):
    width = clip.config.vision.width

    @jax.jit
    @jax.value_and_grad
    def loss(vector, clip):
        def make(tokens):
            return jnp.broadcast_to(vector, (len(images), 1, width)), jax.lax.stop_gradient(
                tokens
            ).mean() + vector.sum()

        features, aux = encode_image(clip, images, layer_prompts={3: make}, has_aux=True)
        return features[:, 0].sum() + aux[3]

    value, gradient = loss(jnp.ones(width), clip)
    assert jnp.isfinite(value)
    assert jnp.abs(gradient - 1).max() > 1e-3  # the gradient flows through the features and through the second output


def test_vmap_over_prompts_equals_a_loop(clip, images):
    prompts = [make_prompt("deep", clip.config.vision.width, 2, "before_norm", seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *prompts)
    features = jax.vmap(lambda prompt: encode_image(clip, images, prompt))(stacked)
    np.testing.assert_allclose(features, jnp.stack([encode_image(clip, images, p) for p in prompts]), atol=1e-6)


def zeros(*shape):
    return jnp.zeros((*shape, 30))


@pytest.mark.parametrize(
    ("prompt", "layer_prompts", "message"),
    [
        (zeros(3), None, "Array.*VisualPrompt"),
        (VisualPrompt(zeros(3), placement="behind"), None, "placement='behind'.* after_class"),
        (VisualPrompt(None), None, "visual prompt is empty"),
        (VisualPrompt(jnp.zeros((3, 31))), None, r"tokens is float32\[3, 31\].* width 30"),
        (VisualPrompt(zeros(0)), None, r"tokens is float32\[0, 30\]"),
        (VisualPrompt(zeros(3, 2)), None, "tokens is for 3 images, but there are 2"),
        (VisualPrompt(zeros(1, 1, 3)), None, r"tokens is float32\[1, 1, 3, 30\].* 2 to 3 axes"),
        (VisualPrompt(zeros(3), zeros(2, 4)), None, "deep has 4 tokens .*tokens has 3"),
        (VisualPrompt(zeros(3), zeros(2, 5, 3)), None, "deep is for 5 images, but there are 2"),
        (VisualPrompt(zeros(3), zeros(4, 3)), None, r"deep_layers=\(1, 2, 3, 4\).* 1 to 3"),
        (VisualPrompt(zeros(3), zeros(1, 3), deep_layers=(0,)), None, r"deep_layers=\(0,\).* 1 to 3"),
        (VisualPrompt(None, zeros(2, 3), deep_layers=(3, 4)), None, r"deep_layers=\(3, 4\).* 0 to 3"),
        (VisualPrompt(zeros(3), deep_layers=(1,)), None, r"deep_layers=\(1,\)"),
        (None, {4: zeros}, r"layer_prompts\[4\].* 0 to 3"),
        (None, {1: 5}, r"layer_prompts\[1\]=5"),
        (VisualPrompt(zeros(3), zeros(2, 3)), {2: zeros}, r"layers \[2\] .*layer_prompts"),
        (None, {2: lambda tokens: tokens[..., :7]}, r"layer_prompts\[2\] is float32\[2, 10, 7\].* width 30"),
        (
            None,
            {2: lambda tokens: MaskedTokens(tokens, jnp.ones((2, 3)))},
            r"layer_prompts\[2\] .*float32\[2, 3\].* bool\[2, 10\]",
        ),
    ],
)
def test_prompts_that_do_not_fit_are_refused(clip, images, prompt, layer_prompts, message):
    with pytest.raises(ValueError, match=message):
        encode_image(clip, images, prompt, layer_prompts=layer_prompts)
