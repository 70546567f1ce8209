"""A turn and a scale of the gradient that depend on the task's relation to prototypes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_int
from gram_jax.regulators.base import Regulator, leafwise, read_vector, turned

Array = jax.Array


def structured(prototypes: int | None = None, rank: int = 4) -> Regulator:
    """Returns a regulator that turns the gradient's rows and scales their channels, by mixtures over the prototypes.

    The context is the relation w of the task to P prototypes, `[P]`, from `meta.relation`: positive, sum 1. For each
    row g of a leaf (one token, width d), with unit row u = g / |g| and r = min(rank, d),

        U(w)  = U_0 + sum_p w_p U_p,        s(w) = s_0 + sum_p w_p s_p
        d(u)  = U(w)^T tanh(sqrt(d) V^T u + a)               V: d -> r, U: r -> d
        x     = |g| (u + d(u)) / |u + d(u)|                  as long as g
        R(g)  = (1 + tanh s(w)) * x                          each channel by a factor from 0 to 2

    U and s are 0 at initialization: R is exactly the identity. All prototypes share U_0 and s_0; each has its own U_p
    and s_p. The parameters of a leaf are shared by its rows: tokens, layers and classes.

    Args:
      prototypes: P, e.g. `len(meta.structure.prototypes)` of a `Meta`; required.
      rank: rank of each U.

    Example:
      >>> prompt, regulator = {"context": jnp.zeros((4, 8))}, structured(prototypes=3)
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> phi["context"]["up"].shape, phi["context"]["scale"].shape
      ((3, 4, 8), (3, 8))

    Reference:
      A reconstruction: the journal version of GRAM, "Structure-Induced Gradient Regulation", relates a task to
      prototypes of the hierarchy, but its formula is not public. The turn is that of `gated_low_rank`.
    """
    require_int("prototypes", prototypes)
    assert prototypes is not None  # checked just now
    require_int("rank", rank)

    def init_leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        width = shape[-1]
        inner = min(rank, width)
        return {
            "down": jax.random.normal(key, (width, inner), dtype) * width**-0.5,
            "bias": jnp.zeros(inner, dtype),
            "shared_up": jnp.zeros((inner, width), dtype),
            "up": jnp.zeros((prototypes, inner, width), dtype),
            "shared_scale": jnp.zeros(width, dtype),
            "scale": jnp.zeros((prototypes, width), dtype),
        }

    def apply_leaf(phi: dict[str, Array], gradient: Array, context: Any) -> Array:
        weights = read_vector("structured", "prototypes", prototypes, context).astype(gradient.dtype)
        up = phi["shared_up"] + jnp.tensordot(weights, phi["up"], 1)
        scale = phi["shared_scale"] + weights @ phi["scale"]
        change = turned(gradient, lambda row: jnp.tanh(row @ phi["down"] + phi["bias"]) @ up)
        return (1.0 + jnp.tanh(scale)) * (gradient + change)

    return leafwise("structured", {"prototypes": prototypes, "rank": rank}, init_leaf, apply_leaf)
