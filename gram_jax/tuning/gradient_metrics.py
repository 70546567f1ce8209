"""What a regulator made of a gradient, in three numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def regulation(grads: PyTree, regulated: PyTree) -> dict[str, jax.Array]:
    """How long and in which direction the regulated gradient is, measured against the raw one.

    Args:
      grads: g, of a prompt.
      regulated: R(g), like it.

    Returns:
      Scalars, over all leaves together: "gradient_norm" |g|, "gradient_norm_ratio" |R(g)| / |g| and "gradient_cosine"
      <R(g), g> / |R(g)| |g|; where g is 0 the last two are 1.

    Example:
      >>> found = regulation({"context": jnp.array([3.0, 4.0])}, {"context": jnp.array([4.0, 3.0])})
      >>> [round(float(found[name]), 2) for name in ("gradient_norm", "gradient_norm_ratio", "gradient_cosine")]
      [5.0, 1.0, 0.96]

    Reference:
      Our own choice.
    """
    norm, after = optax.tree.norm(grads), optax.tree.norm(regulated)
    product = optax.tree.vdot(grads, regulated)
    ratio = jnp.where(norm > 0, after / jnp.where(norm > 0, norm, 1.0), 1.0)
    both = norm * after
    cosine = jnp.where(both > 0, product / jnp.where(both > 0, both, 1.0), 1.0)
    return {"gradient_norm": norm, "gradient_norm_ratio": ratio, "gradient_cosine": cosine}
