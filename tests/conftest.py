"""Clips and inputs that many tests share; built once."""

from __future__ import annotations

import os

import jax
import jaxlib
import pytest

from gram_jax.testing import tiny_clip

# The tests compile far more than they run: XLA's cheapest code takes half the time to compile, and a fifth of it with
# an older emitter, in one piece, because every core has a test of its own. That emitter is gone after 0.10: there its
# flag would end the program. Programs that tests start inherit this; `XLA_FLAGS= pytest` tests what users run. Read
# when a device is first used.
CHEAPEST = "--xla_backend_optimization_level=0"
if jaxlib.__version__.startswith("0.10."):
    CHEAPEST += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", CHEAPEST)

# Names of one to four tokens, so that the class name's place differs from class to class.
NAMES = ["cat", "small_dog", "large green frog", "a small red fish"]


@pytest.fixture(scope="session")
def clip():
    # Up to two layers in a row are written out, three are a loop.
    return tiny_clip(text_layers=4, text_heads=3, vision_layers=4, vision_width=30, vision_heads=5, unroll=2)


# Per module, for a module's own `clip`.
@pytest.fixture(scope="module")
def classes(clip):
    return clip.class_tokens(NAMES)


@pytest.fixture(scope="module")
def images(clip):
    size = clip.config.vision.image_size
    return jax.random.normal(jax.random.key(7), (2, size, size, 3))
