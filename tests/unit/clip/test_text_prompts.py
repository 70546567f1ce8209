"""Text prompts: every position, sharing and depth against NumPy, and the exactness of the shortcuts."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import TextPrompt, embed_tokens, encode_classes, encode_text, text
from gram_jax.testing import tiny_clip
from tests.unit.clip import reference

IMAGES, CONTEXT = 2, 3
# name: (leading axes of the context, leading axes of deep or None, m, deep layers); 4 layers in all.
CASES = {
    "shared": ((), None, 0, None),
    "shared_deep": ((), (), 2, None),
    "per_class": (("C",), None, 0, None),
    "per_class_deep": (("C",), ("C",), 3, (2,)),
    "per_image": (("B", 1), None, 0, None),
    "per_image_deep": (("B", 1), ("B", 1), 3, (1, 3)),
    "shared_context_deep_per_image": ((), ("B", 1), 1, (2, 3)),
    "per_image_context_shared_deep": (("B", 1), (), 3, (1, 2, 3)),
    "per_image_and_class": (("B", "C"), ("C",), 2, (1,)),
}


def make_prompt(case, width, classes, class_position, seed=0):
    context, deep, m, layers = CASES[case]
    sizes = {"B": IMAGES, "C": classes}
    rng = np.random.default_rng(seed)

    def draw(leading, *rest):
        return jnp.float32(rng.normal(size=(*(sizes.get(axis, axis) for axis in leading), *rest)))

    depth = len(layers) if layers else 2
    return TextPrompt(
        context=draw(context, CONTEXT, width),
        deep=None if deep is None else jnp.stack([draw(deep, m, width) for _ in range(depth)]),
        class_position=class_position,
        deep_layers=layers,
    )


def numpy_features(clip, classes, prompt):
    """Returns features of every image and class, computed one by one, `[images, classes, embed_dim]`."""
    params, config, count = reference.to_numpy(clip.params["text"]), clip.config.text, len(classes.tail_ids)
    n, width = prompt.context.shape[-2:]
    context = np.broadcast_to(prompt.context, (IMAGES, count, n, width))
    deep = {}
    if prompt.deep is not None:
        layers = prompt.deep_layers or range(1, 1 + len(prompt.deep))
        shape = (IMAGES, count, *prompt.deep.shape[-2:])
        deep = {layer: np.broadcast_to(one, shape) for layer, one in zip(layers, prompt.deep, strict=True)}
    features = np.zeros((IMAGES, count, clip.config.embed_dim))
    for b in range(IMAGES):
        for c in range(count):
            tail = np.asarray(classes.tail_ids[c])[: int(classes.tail_eot[c]) + 1]
            name, rest = np.split(tail, [int(classes.name_length[c])])
            features[b, c] = reference.class_feature(
                params,
                config,
                clip.tokenizer.bos_token_id,
                name,
                rest,
                np.float64(context[b, c]),
                prompt.class_position,
                {layer: np.float64(one[b, c]) for layer, one in deep.items()},
            )
    return reference.unit(features)


@functools.partial(jax.jit, static_argnames="share")
def raw_features(clip, classes, prompt, share):
    return text.class_features(clip.params["text"], clip.config, classes, prompt, share)


@pytest.mark.parametrize(
    ("case", "class_position"),
    [(case, "end") for case in CASES]
    + [(case, "middle") for case in ("shared", "shared_deep", "per_class_deep", "per_image_and_class")]
    + [(case, "front") for case in ("shared_deep", "per_image_deep")],
)
def test_prompted_features_equal_numpy(clip, classes, case, class_position):
    prompt = make_prompt(case, clip.config.text.width, len(classes.tail_ids), class_position)
    expected = numpy_features(clip, classes, prompt)
    features = encode_classes(clip, classes, prompt)
    per_image = "B" in CASES[case][0] or "B" in (CASES[case][1] or ())
    assert features.shape == (expected.shape if per_image else expected.shape[1:])
    np.testing.assert_allclose(np.broadcast_to(features, expected.shape), expected, atol=3e-6)


def in_chunks(clip, class_chunk):
    return clip.replace(config=dataclasses.replace(clip.config, class_chunk=class_chunk))


# The quick cases split every type of axis; the others split the same types and take as long to compile.
SPLIT = {"shared", "per_class_deep", "per_image_and_class"}


@pytest.mark.parametrize(
    ("case", "class_position", "class_chunk"),
    [
        *(pytest.param(case, "end", 3, marks=() if case in SPLIT else pytest.mark.slow) for case in CASES),
        ("per_class_deep", "middle", 1),
        ("shared_deep", "front", 2),
    ],
)
def test_chunks_of_classes_equal_numpy_and_all_at_once(clip, classes, case, class_position, class_chunk):
    count = len(classes.tail_ids)
    assert class_chunk < count
    prompt = make_prompt(case, clip.config.text.width, count, class_position)

    @jax.jit
    def value_and_gradient(prompt, clip):
        def loss(prompt):
            features = encode_classes(clip, classes, prompt)
            return jnp.sum(features * jnp.cos(jnp.arange(features.size).reshape(features.shape))), features

        return jax.value_and_grad(loss, has_aux=True)(prompt)

    (_, features), gradient = value_and_gradient(prompt, in_chunks(clip, class_chunk))
    (_, _), whole = value_and_gradient(prompt, in_chunks(clip, 0))
    expected = numpy_features(clip, classes, prompt)
    np.testing.assert_allclose(np.broadcast_to(features, expected.shape), expected, atol=3e-6)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
    assert scale > 1e-2
    chex.assert_trees_all_close(gradient, whole, atol=2e-6 * max(1.0, scale))


def test_memory_does_not_grow_with_the_chunks(clip):
    prompt = make_prompt("shared", clip.config.text.width, 1, "end")

    def scratch(names, class_chunk):
        words = ("small", "red", "green", "large", "blue", "cat", "dog", "bird", "frog", "fish", "house", "boat")
        classes = clip.class_tokens([" ".join(name) for name in itertools.permutations(words, 2)][:names])
        loss = jax.grad(lambda prompt, clip: encode_classes(clip, classes, prompt).sum())
        found = jax.jit(loss).lower(prompt, in_chunks(clip, class_chunk)).compile().memory_analysis()
        return found.temp_size_in_bytes

    at_once = scratch(64, 0)
    assert scratch(128, 0) > 1.7 * at_once
    assert scratch(128, 16) < 1.2 * scratch(64, 16) < 0.5 * at_once


def test_positions_and_depth_make_a_difference(clip, classes):
    shallow = {place: make_prompt("shared", clip.config.text.width, 4, place) for place in ("end", "middle", "front")}
    deep = make_prompt("shared_deep", clip.config.text.width, 4, "end")
    features = [encode_classes(clip, classes, prompt) for prompt in (*shallow.values(), deep)]
    for i, one in enumerate(features):
        for other in features[i + 1 :]:
            assert jnp.abs(one - other).max(axis=-1).min() > 1e-3


@pytest.mark.parametrize("end", [{}, {"text_eos_token_id": 2}])
def test_plain_classes_and_start_token_under_both_end_rules(end):
    # Files with the legacy rule also have a wrong start token: 0.
    clip = tiny_clip(seed=2, text_bos_token_id=0, text_layers=2, **end)
    classes = clip.class_tokens(["cat", "small dog"], template="{} drawing")
    params = reference.to_numpy(clip.params["text"])
    expected = [reference.plain_text_feature(params, clip.config.text, row) for row in classes.token_ids]
    np.testing.assert_allclose(encode_classes(clip, classes), reference.unit(np.stack(expected)), atol=3e-6)
    prompt = make_prompt("shared", clip.config.text.width, 2, "end")
    np.testing.assert_allclose(
        encode_classes(clip, classes, prompt), numpy_features(clip, classes, prompt)[0], atol=3e-6
    )


def test_a_context_of_words_gives_the_feature_of_the_text(clip, classes):
    words = clip.tokenize(["a photo of a"])[0, 1:-1]
    prompt = TextPrompt(embed_tokens(clip, words))
    plain = encode_classes(clip, classes)
    np.testing.assert_allclose(encode_classes(clip, classes, prompt), plain, atol=1e-6)
    full, same = raw_features(clip, classes, prompt, False), encode_text(clip, classes.token_ids, normalize=False)
    np.testing.assert_allclose(full, same, atol=3e-6)


def test_words_around_a_name_give_the_feature_of_the_text(clip):
    classes = clip.class_tokens(["cat", "small dog"])
    for class_position, words, texts in (
        ("middle", "the drawing", ["the cat drawing.", "the small dog drawing."]),
        ("front", "photo of", ["cat photo of.", "small dog photo of."]),
    ):
        token_ids = clip.tokenize(texts)
        context = embed_tokens(clip, clip.tokenize([words])[0, 1:-1])
        features = encode_classes(clip, classes, TextPrompt(context, class_position=class_position))
        assert token_ids.shape[1] == 1 + len(context) + classes.tail_ids.shape[1]
        np.testing.assert_allclose(features, encode_text(clip, token_ids), atol=1e-6)


@pytest.mark.parametrize("case", ["shared_deep", "shared_context_deep_per_image"])
def test_shared_prefix_equals_the_full_run(clip, classes, case):
    prompt = make_prompt(case, clip.config.text.width, 4, "end")

    @functools.partial(jax.jit, static_argnames="share")
    def value_and_gradient(prompt, clip, share):
        def loss(prompt):
            features = text.class_features(clip.params["text"], clip.config, classes, prompt, share)
            features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
            return jnp.sum(features * jnp.cos(jnp.arange(features.size).reshape(features.shape))), features

        return jax.value_and_grad(loss, has_aux=True)(prompt)

    (_, shared), shared_gradient = value_and_gradient(prompt, clip, True)
    (_, full), full_gradient = value_and_gradient(prompt, clip, False)
    np.testing.assert_allclose(shared, full, atol=1e-6)
    scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(full_gradient))
    assert scale > 1e-2
    chex.assert_trees_all_close(shared_gradient, full_gradient, atol=2e-6 * max(1.0, float(scale)))


def test_other_names_and_values_do_not_retrace(clip):
    run = jax.jit(chex.assert_max_traces(lambda prompt, clip, classes: encode_classes(clip, classes, prompt), n=1))
    prompt = make_prompt("shared", clip.config.text.width, 2, "end")
    first = run(prompt, clip, clip.class_tokens(["cat", "dog"]))
    second = run(jax.tree.map(lambda leaf: 2 * leaf, prompt), clip, clip.class_tokens(["frog", "bird"]))
    again = run(prompt, tiny_like(clip), clip.class_tokens(["cat", "dog"]))
    np.testing.assert_array_equal(first, again)
    assert not jnp.allclose(first, second)


def tiny_like(clip):
    """Returns an equal clip whose static parts are other objects."""
    return clip.replace(params=jax.tree.map(jnp.copy, clip.params), config=type(clip.config)(**vars(clip.config)))


def test_vmap_over_prompts_and_tasks_equals_a_loop(clip):
    tasks = [clip.class_tokens(["cat", "dog"]), clip.class_tokens(["frog", "bird"])]
    prompts = [make_prompt("shared_deep", clip.config.text.width, 2, "end", seed) for seed in (0, 1)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    features = jax.vmap(lambda prompt, classes: encode_classes(clip, classes, prompt))(stack(*prompts), stack(*tasks))
    loop = [encode_classes(clip, classes, prompt) for prompt, classes in zip(prompts, tasks, strict=True)]
    np.testing.assert_allclose(features, jnp.stack(loop), atol=1e-6)


def zeros(*shape):
    return jnp.zeros((*shape, 24))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (zeros(3), "Array.*TextPrompt"),
        (TextPrompt(zeros(3), class_position="begin"), "class_position='begin'.* end, middle, front"),
        (TextPrompt(jnp.zeros((3, 25))), r"context is float32\[3, 25\].* width 24"),
        (TextPrompt(jnp.zeros(24)), r"context is float32\[24\].* 2 to 4 axes"),
        (TextPrompt(zeros(0)), r"context is float32\[0, 24\]"),
        (TextPrompt(jnp.zeros((3, 24), jnp.int32)), r"context is int32\[3, 24\]"),
        (TextPrompt(zeros(5, 3)), "context is for 5 classes, but there are 4"),
        (TextPrompt(zeros(18)), "25 tokens .*18 context tokens, 6 .* 24"),
        (TextPrompt(zeros(3), zeros(2, 4)), "deep has 4 tokens .* 3"),
        (TextPrompt(zeros(3), zeros(2, 5, 3)), "deep is for 5 classes, but there are 4"),
        (TextPrompt(zeros(3), zeros(4, 3)), r"deep_layers=\(1, 2, 3, 4\).* 1 to 3"),
        (TextPrompt(zeros(3), zeros(1, 3), deep_layers=(0,)), r"deep_layers=\(0,\).* 1 to 3"),
        (TextPrompt(zeros(3), zeros(2, 3), deep_layers=(2, 1)), r"deep_layers=\(2, 1\)"),
        (TextPrompt(zeros(3), zeros(2, 3), deep_layers=(1,)), r"deep_layers=\(1,\): expected 2 "),
        (TextPrompt(zeros(3), deep_layers=(1,)), r"deep_layers=\(1,\)"),
        (TextPrompt(zeros(2, 1, 3), zeros(1, 3, 1, 2)), "context is for 2 images, but deep is for 3"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(clip, classes, prompt, message):
    assert classes.tail_ids.shape == (4, 6)
    with pytest.raises(ValueError, match=message):
        encode_classes(clip, classes, prompt)
