"""A transformer block inside prompts: tokens attend to others, then a perceptron; plain dictionaries of arrays."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.tuners.networks import dense, dense_init, norm, norm_init

Array = jax.Array
_EXPANSION = 4  # hidden units of the perceptron per unit of width, as in CLIP


def block_init(key: Array, width: int, *stack: int) -> dict[str, Any]:
    """Draws a block, or a stack of them, that begins as the identity: both layers before a sum are 0."""
    keys = iter(jax.random.split(key, 6))
    layers = {name: dense_init(next(keys), width, width, *stack) for name in ("query", "key", "value", "out")}
    layers["up"] = dense_init(next(keys), width, _EXPANSION * width, *stack)
    layers["down"] = dense_init(next(keys), _EXPANSION * width, width, *stack)
    for name in ("out", "down"):
        layers[name] = jax.tree.map(jnp.zeros_like, layers[name])
    return layers | {name: norm_init(width, *stack) for name in ("norm_tokens", "norm_memory", "norm_mlp")}


def block(params: dict[str, Any], heads: int, tokens: Array, memory: Array, keep: Array | None = None) -> Array:
    """Returns x + MLP(norm(x)) with x = tokens + attention(norm(tokens), norm(memory)).

    Args:
      params, heads: those of `block_init`, and the number of attention heads, which divides the width.
      tokens, memory: `[..., n, width]` and `[..., m, width]`; leading axes broadcast.
      keep: bool `[m]`; no token attends to a memory token where this is False.
    """
    seen = norm(params["norm_memory"], memory)
    queries = _split(dense(params["query"], norm(params["norm_tokens"], tokens)), heads)
    keys, values = (_split(dense(params[name], seen), heads) for name in ("key", "value"))
    scores = jnp.einsum("...nhd,...mhd->...hnm", queries, keys, precision="highest") / math.sqrt(queries.shape[-1])
    weights = jax.nn.softmax(scores if keep is None else jnp.where(keep, scores, -1e9))
    mixed = jnp.einsum("...hnm,...mhd->...nhd", weights, values, precision="highest")
    x = tokens + dense(params["out"], mixed.reshape(*mixed.shape[:-2], -1))
    hidden = dense(params["up"], norm(params["norm_mlp"], x))
    return x + dense(params["down"], hidden * jax.nn.sigmoid(1.702 * hidden))


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, -1)
