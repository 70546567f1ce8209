"""A learned metric of the gradient: over tokens, per entry, and of low rank over channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_int
from gram_jax.regulators.base import Regulator, leafwise

Array = jax.Array


def kronecker(rank: int = 8) -> Regulator:
    """Returns a linear regulator: a learned metric that decides how far a prompt may move along each direction.

    For each leaf, with g its last two axes (n tokens of width d) and r = min(rank, d),

        R(g) = B^T B g,    B g = exp(s) * ((I + A) g) + (g V) U          A: n x n,  s: n x d,  V: d -> r,  U: r -> d

    A, s and U are 0 at initialization: R is exactly the identity. The parameters of a leaf are shared by the axes
    before the last two: layers and classes. A leaf of one axis has n = 1.

    R is linear, so the prompt after any number of steps is its initialization minus R of the sum of all raw steps. R is
    symmetric and positive semi-definite: <g, R(g)> = |B g|^2 >= 0, so no regulated step, however often it is repeated,
    climbs the loss of the support. A linear map without this property does: it learns to go uphill in some directions,
    which helps in the inner loops of meta-training and diverges in longer ones.

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
        rows, scale = gradient if gradient.ndim > 1 else gradient[None], jnp.exp(phi["log_scale"])
        half = scale * (rows + phi["tokens"] @ rows) + (rows @ phi["down"]) @ phi["up"]
        scaled = scale * half
        whole = scaled + phi["tokens"].T @ scaled + (half @ phi["up"].T) @ phi["down"].T
        return whole.reshape(gradient.shape)

    return leafwise("kronecker", {"rank": rank}, init_leaf, apply_leaf)
