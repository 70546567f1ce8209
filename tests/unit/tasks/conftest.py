"""A planted corpus: two themes of named things, captions with appearance words, features that contain both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from gram_jax.tasks import from_groups
from gram_jax.testing import tiny_clip

NAMES = {"letter": ("alpha", "beta", "gamma", "delta"), "pet": ("cat", "dog", "bird", "fish")}
APPEARANCES = ("on white", "on black", "in red")


class Planted(NamedTuple):
    captions: list[str]
    image: np.ndarray
    text: np.ndarray
    themes: list[str]
    classes: list[str]
    appearances: np.ndarray


@pytest.fixture(scope="package")
def planted():
    rng = np.random.default_rng(0)
    names = [(theme, name) for theme, group in NAMES.items() for name in group]
    number = rng.permutation(np.repeat(np.arange(8), 60))
    appearances = rng.integers(0, 2, len(number))
    captions = [f"a photo of a {names[n][0]} {names[n][1]}, {APPEARANCES[rng.integers(3)]}." for n in number]
    theme = number // 4

    def features(*parts):
        rows = np.concatenate([*parts, 0.02 * rng.standard_normal((len(number), 4))], axis=1).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    text = features(np.eye(8)[number], 0.5 * np.eye(2)[theme], np.zeros((len(number), 2)))
    image = features(np.eye(8)[number], np.zeros((len(number), 2)), 0.3 * np.eye(2)[appearances])
    return Planted(captions, image, text, [names[n][0] for n in number], [names[n][1] for n in number], appearances)


@pytest.fixture(scope="package")
def small_clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(scope="package")
def hierarchy(planted):
    return from_groups(planted.themes, planted.classes, planted.image, planted.text)
