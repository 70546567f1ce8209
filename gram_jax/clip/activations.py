"""The activation functions of CLIP's transformers, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns OpenAI's approximation of GELU, `x * sigmoid(1.702 x)` (github.com/openai/CLIP, clip/model.py)."""
    return x * jax.nn.sigmoid(1.702 * x)


# The names are the values of Hugging Face's `hidden_act`.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
