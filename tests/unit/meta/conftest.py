"""A small clip and a regulator for the tests of meta-learning."""

from __future__ import annotations

import pytest

from gram_jax import regulators
from gram_jax.testing import tiny_clip


@pytest.fixture(scope="session")
def small_clip():  # of one layer: meta-gradients of more take long to compile
    return tiny_clip(seed=3, text_layers=1, vision_layers=1)


@pytest.fixture(scope="session")
def regulator():
    return regulators.gated_low_rank(rank=3, hidden=4, context_dim=4)
