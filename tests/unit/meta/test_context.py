"""The context of a task and its relation to prototypes."""

import numpy as np
import pytest

from gram_jax import meta
from gram_jax.errors import InputError
from gram_jax.testing import tiny_clip


def test_task_context_is_two_means():
    clip, rng = tiny_clip(), np.random.default_rng(9)
    images, texts = rng.normal(size=(5, 16)), rng.normal(size=(3, 16))
    expected = [*(sum(images) / 5), *(sum(texts) / 3)]
    np.testing.assert_allclose(meta.task_context(clip, images, texts), expected, rtol=1e-5)
    with pytest.raises(InputError, match=r"text_features .*16"):
        meta.task_context(clip, images, texts[:, :3])
