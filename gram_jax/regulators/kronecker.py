"""A linear map of the gradient: over tokens, per entry, and of low rank over channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_int
from gram_jax.regulators.base import Regulator, leafwise

Array = jax.Array


def kronecker(rank: int = 8) -> Regulator:
    """Returns a linear regulator: a preconditioner that decides along which directions a prompt may move.

    For each leaf, with g its last two axes (n tokens of width d) and r = min(rank, d),

        R(g) = exp(s) * ((I + A) g) + (g V) U          A: n x n,  s: n x d,  V: d -> r,  U: r -> d

    A, s and U are 0 at initialization: R is exactly the identity. The parameters of a leaf are shared by the axes
    before the last two: layers and classes. A leaf of one axis has n = 1.

    R is linear, so the prompt after any number of steps is its initialization minus R of the sum of all raw steps: in
    long runs as in short ones, the prompt moves only as far as R lets it along each direction.

    Args:
      rank: rank of V U.

    Example:
      >>> prompt, regulator = {"context": jnp.zeros((4, 8))}, kronecker(rank=2)
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> {name: leaf.shape for name, leaf in phi["context"].items()}
      {'tokens': (4, 4), 'log_scale': (4, 8), 'down': (8, 2), 'up': (2, 8)}

    Reference:
      The factors over tokens and channels are those of "Meta-Curvature" (Park and Oliva, 2019), in residual form, with
      the diagonal of "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning".
    """
    require_int("rank", rank)

    def init_leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        tokens, width = shape[-2:] if len(shape) > 1 else (1, shape[-1])
        inner = min(rank, width)
        return {
            "tokens": jnp.zeros((tokens, tokens), dtype),
            "log_scale": jnp.zeros((tokens, width), dtype),
            "down": jax.random.normal(key, (width, inner), dtype) * width**-0.5,
            "up": jnp.zeros((inner, width), dtype),
        }

    def apply_leaf(phi: dict[str, Array], gradient: Array, context: Any) -> Array:
        rows = gradient if gradient.ndim > 1 else gradient[None]
        mixed = (rows + phi["tokens"] @ rows) * jnp.exp(phi["log_scale"])
        return (mixed + (rows @ phi["down"]) @ phi["up"]).reshape(gradient.shape)

    return leafwise("kronecker", {"rank": rank}, init_leaf, apply_leaf)
