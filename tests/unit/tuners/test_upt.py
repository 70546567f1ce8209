"""UPT against NumPy: one small transformer layer over projected prompts, written from the published formula."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax import tuners
from tests.unit.clip import reference
from tests.unit.tuners.restated import check, class_features, image_features

KEY = jax.random.key(0)
SMALL = types.SimpleNamespace(heads=1, norm_eps=1e-5, activation="quick_gelu")


def wander(tree, seed=0):
    """Returns parameters away from the initial norms and biases."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.float32(0.1 * rng.normal(size=leaf.shape)), tree)


@pytest.mark.parametrize(
    ("settings", "position"),
    [
        ({"num_text": 4, "num_visual": 2, "depth": 3}, "middle"),
        ({"num_text": 3, "num_visual": 1, "depth": 1, "position": "end"}, "end"),
    ],
)
def test_upt_equals_numpy(clip, classes, images, settings, position):
    tuner = tuners.upt(width=6, **settings)
    prompt = wander(tuner.init(KEY, clip, classes))
    drawn = reference.to_numpy(prompt)
    n, m, depth = settings["num_text"], settings["num_visual"], settings["depth"]
    rows = [reference.dense(vector, drawn["down"]["text"]) for vector in drawn["context"]]
    rows += [reference.dense(vector, drawn["down"]["visual"]) for layer in drawn["tokens"] for vector in layer]
    assert len(rows) == n + depth * m
    mixed = reference.layer(np.stack(rows), drawn["block"], SMALL, causal=False)
    context = reference.dense(mixed[:n], drawn["up"]["text"])
    tokens = reference.dense(mixed[n:], drawn["up"]["visual"]).reshape(depth, m, -1)
    deep = dict(enumerate(tokens[1:], start=1))
    found = image_features(clip, images, tokens=tokens[0], placement="after_class", deep=deep)
    texts = class_features(clip, classes, [context] * 4, position)
    check(tuner.apply(prompt, clip, classes, images), clip, found, texts)


def test_upt_starts_as_published(clip):
    prompt = tuners.upt(num_text=50, num_visual=50, depth=4, width=64).init(KEY, clip, None)
    assert float(prompt["context"].std()) == pytest.approx(0.02, rel=0.06)
    vision = clip.config.vision
    block, bounds = prompt["block"], {}
    bounds["tokens"] = (prompt["tokens"], 6 / (3 * vision.patch_size**2 + vision.width))
    for name in ("query", "key", "value"):
        bounds[name] = (block["attention"][name]["kernel"], 6 / (4 * 64))
    bounds["out"] = (block["attention"]["out"]["kernel"], 1 / 64)
    bounds["mlp"] = (block["mlp"]["down"]["kernel"], 1 / 256)
    bounds["down"] = (prompt["down"]["visual"]["kernel"], 1 / vision.width)
    for name, (leaf, square) in bounds.items():
        assert 0.95 * square**0.5 < np.abs(leaf).max() <= square**0.5 * (1 + 1e-6), name
    for one in ("norm_1", "norm_2"):
        np.testing.assert_array_equal(block[one]["scale"], np.ones(64))
        np.testing.assert_array_equal(block[one]["bias"], np.zeros(64))
    assert not any(np.any(part["bias"]) for part in block["attention"].values())
