"""Tuners of both sides against NumPy: independent prompts, and visual prompts computed from text prompts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gram_jax import tuners
from tests.unit.clip import reference
from tests.unit.tuners.restated import check, class_features, image_features, words

KEY = jax.random.key(0)


def text_features(clip, classes, text, frozen=()):
    """Returns features under deep text prompts, followed by frozen words."""
    context = np.concatenate([text["context"], *([frozen] if len(frozen) else [])])
    deep = dict(enumerate(text.get("deep", ()), start=1))
    return class_features(clip, classes, [context] * len(classes.tail_ids), "end", deep)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({"depth": 3}, "of a"),  # the published two vectors on "a photo of a"
        ({"depth": 2, "num_tokens": 3, "init_text": None, "placement": "after_norm"}, ""),
        ({"depth": 1, "num_tokens": None}, ""),
    ],
)
def test_maple_equals_numpy(clip, classes, images, settings, frozen):
    tuner = tuners.maple(**settings)
    prompt = jax.tree.map(lambda leaf: 10 * leaf, tuner.init(KEY, clip, classes))
    drawn = reference.to_numpy(prompt)
    text, coupling = drawn["text"], drawn["coupling"]
    assert "deep" in text or settings["depth"] == 1
    maps = [coupling["first"]]
    for layer in range(settings["depth"] - 1):
        maps.append({name: stack[layer] for name, stack in coupling["deep"].items()})
    layers = [text["context"], *text.get("deep", ())]
    # Row by row: v W_l + b_l.
    visual = [
        np.stack([sum(value * row for value, row in zip(vector, own["kernel"], strict=True)) for vector in vectors])
        + own["bias"]
        for vectors, own in zip(layers, maps, strict=True)
    ]
    placement = settings.get("placement", "before_norm")
    deep = dict(enumerate(visual[1:], start=1))
    found = image_features(clip, images, tokens=visual[0], placement=placement, deep=deep)
    texts = text_features(clip, classes, text, words(clip, frozen) if frozen else ())
    check(tuner.apply(prompt, clip, classes, images), clip, found, texts)


def test_maple_starts_as_published(clip):
    prompt = tuners.maple(depth=4).init(KEY, clip, None)
    np.testing.assert_array_equal(prompt["text"]["context"], np.float32(words(clip, "a photo")))
    first, deep = prompt["coupling"]["first"], prompt["coupling"]["deep"]
    bound = clip.config.text.width**-0.5
    for leaf in jax.tree.leaves(prompt["coupling"]):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    for name, stack in deep.items():
        np.testing.assert_array_equal(stack[0], stack[1])  # copies of one layer
        np.testing.assert_array_equal(stack[0], stack[2])
        assert np.abs(stack[0] - first[name]).max() > 0.1 * bound


def test_ivlp_keeps_words_that_are_not_learned(clip, classes, images):
    # MaPLe's settings of independent prompts, as deep as this clip.
    tuner = tuners.ivlp(num_text=2, num_visual=2, depth=4)
    prompt = tuner.init(KEY, clip, classes)
    np.testing.assert_array_equal(prompt["text"]["context"], np.float32(words(clip, "a photo")))
    prompt = jax.tree.map(lambda leaf: 20 * leaf, prompt)
    drawn = reference.to_numpy(prompt)
    deep = dict(enumerate(drawn["visual"]["deep"], start=1))
    found = image_features(clip, images, tokens=drawn["visual"]["tokens"], deep=deep)
    texts = text_features(clip, classes, drawn["text"], words(clip, "of a"))
    check(tuner.apply(prompt, clip, classes, images), clip, found, texts)


def test_fewer_words_than_vectors_are_refused(clip, classes):
    for tuner in (tuners.maple(5, depth=1), tuners.text_deep(5, depth=1)):
        with pytest.raises(ValueError, match=r"'a photo of a' .*4 tokens.*num_tokens=5"):
            tuner.init(KEY, clip, classes)
    # Frozen words need room too.
    long = tuners.maple(1, depth=1, init_text="a photo " * 10)
    with pytest.raises(ValueError, match="20 context tokens"):
        long.init(KEY, clip, classes)
