"""Metrics that compare a regulated gradient with the raw one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def regulation(grads: PyTree, regulated: PyTree) -> dict[str, jax.Array]:
    """Returns the norm of a gradient, and the relative norm and the cosine of the regulated gradient.

    Args:
      grads: g, the gradient of a prompt.
      regulated: R(g), with the same structure.

    Returns:
      Scalars over all leaves together: "gradient_norm" |g|, "gradient_norm_ratio" |R(g)| / |g| and "gradient_cosine"
      <R(g), g> / |R(g)| |g|. If g is 0, the last two are 1.

    Example:
      >>> metrics = regulation({"context": jnp.array([3.0, 4.0])}, {"context": jnp.array([4.0, 3.0])})
      >>> [round(float(metrics[name]), 2) for name in ("gradient_norm", "gradient_norm_ratio", "gradient_cosine")]
      [5.0, 1.0, 0.96]
    """
    norm, after = optax.tree.norm(grads), optax.tree.norm(regulated)
    product = optax.tree.vdot(grads, regulated)
    ratio = jnp.where(norm > 0, after / jnp.where(norm > 0, norm, 1.0), 1.0)
    both = norm * after
    cosine = jnp.where(both > 0, product / jnp.where(both > 0, both, 1.0), 1.0)
    return {"gradient_norm": norm, "gradient_norm_ratio": ratio, "gradient_cosine": cosine}
