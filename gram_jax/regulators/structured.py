"""A gradient turned and scaled as the prototypes that a task is related to ask for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.regulators.base import Regulator, leafwise, positive, turned

Array = jax.Array


def structured(prototypes: int | None = None, rank: int = 4) -> Regulator:
    """Turns the rows of the gradient and scales their channels, each by a mixture over the prototypes.

    The context is the relation w of the task to P prototypes, `[P]`, as `meta.relation` makes it: positive, sum 1. For
    each row g of a leaf (one token, width d), with unit row u = g / |g| and r = min(rank, d),

        U(w)  = U_0 + sum_p w_p U_p,        s(w) = s_0 + sum_p w_p s_p
        d(u)  = U(w)^T tanh(sqrt(d) V^T u + a)               V: d -> r, U: r -> d
        x     = |g| (u + d(u)) / |u + d(u)|                  as long as g
        R(g)  = (1 + tanh s(w)) * x                          each channel by a factor from 0 to 2

    U and s are 0 at initialization: R is exactly the identity. U_0 and s_0 are what all prototypes share, U_p and s_p
    what each of them changes. The parameters belong to a leaf and are shared by its rows: tokens, layers and classes.

    Args:
      prototypes: P, how many there are.
      rank: rank of each U.

    Returns:
      The regulator.

    Raises:
      InputError: if a setting is not a positive integer; on application, if the relation is missing or of another
        length.

    Example:
      >>> prompt = {"context": jnp.zeros((4, 8))}
      >>> regulator = structured(prototypes=3)
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> phi["context"]["up"].shape, phi["context"]["scale"].shape
      ((3, 4, 8), (3, 8))
      >>> relation = jnp.array([0.7, 0.2, 0.1])
      >>> regulator.apply(phi, {"context": jnp.ones((4, 8))}, relation)["context"].sum().item()
      32.0

    Reference:
      A reconstruction: the journal version of GRAM, "Structure-Induced Gradient Regulation", relates a task to
      prototypes of the hierarchy; its formula is not public to us, and this one is our own choice. The turn is that of
      `gated_low_rank`.
    """
    if prototypes is None:
        raise InputError(
            "structured: prototypes is None; say how many there are, e.g. len(meta.structure.prototypes) of a Meta."
        )
    settings = {
        "prototypes": positive("structured", "prototypes", prototypes),
        "rank": positive("structured", "rank", rank),
    }

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
        weights = _relation(context, prototypes).astype(gradient.dtype)
        up = phi["shared_up"] + jnp.tensordot(weights, phi["up"], 1)
        scale = phi["shared_scale"] + weights @ phi["scale"]
        change = turned(gradient, lambda row: jnp.tanh(row @ phi["down"] + phi["bias"]) @ up)
        return (1.0 + jnp.tanh(scale)) * (gradient + change)

    return leafwise("structured", settings, init_leaf, apply_leaf)


def _relation(context: Any, prototypes: int) -> Array:
    """The context, if it is a relation to so many prototypes."""
    if context is None:
        raise InputError(
            f"structured was made with prototypes={prototypes} and is given no context; pass context=, the relation of "
            "the task to them, as meta.relation makes it."
        )
    context = jnp.asarray(context)
    if context.shape != (prototypes,):
        raise InputError(
            f"structured was made with prototypes={prototypes} and is given a context of shape {list(context.shape)}; "
            f"pass the relation of the task to them, one vector [{prototypes}], as meta.relation makes it."
        )
    return context
