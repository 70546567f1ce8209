"""ProGrad: a gradient loses the part that conflicts with the knowledge of the frozen clip."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_number
from gram_jax.regulators.base import Regulator, leafwise, mean_over, rms, unit_rms

Array = jax.Array


def prograd(strength: float = 1.0, reference: str = "distillation") -> Regulator:
    """Returns a regulator that removes from a gradient its component against a reference gradient.

    For each block of a leaf (its last two axes: the tokens and channels of one layer or class), with g the gradient of
    the task and r the reference gradient,

        R(g) = g - lambda (g . r^) r^    if g . r < 0,    r^ = r / |r|
        R(g) = g                         otherwise

    At lambda = 1 a step does not increase the loss of r, to first order. (GRMP-IQA removes the part that agrees.) R has
    no parameters; it is exactly the identity for r = 0.

    Args:
      strength: lambda, >= 0.
      reference: text of `gram_jax.objectives.parse`, the regularizers of r. The context is r, a pytree like the prompt.

    Example:
      >>> regulator = prograd()
      >>> phi = regulator.init(jax.random.key(0), {"context": jnp.zeros((1, 2))})
      >>> grads, reference = {"context": jnp.array([[1.0, -1.0]])}, {"context": jnp.array([[0.0, 3.0]])}
      >>> regulator.apply(phi, grads, reference)["context"].round(4).tolist()
      [[1.0, 0.0]]

    Reference:
      "Prompt-aligned Gradient for Prompt Tuning" (ProGrad), by parameter as in its public code: there each layer's
      prompt is one parameter, and so is a class-specific context, whose classes are separate blocks here.
    """
    require_number("strength", strength, least=0)

    def apply_leaf(phi: dict[str, Any], gradient: Array, reference: Array) -> Array:
        size = rms(reference, 2)
        direction = unit_rms(reference, size)
        # The mean over a block of g r / rms(r)^2 is (g . r) / |r|^2.
        conflict = jnp.minimum(mean_over(gradient * direction, 2), 0.0)
        return gradient - strength * jnp.where(size > 0, conflict, 0.0) * direction

    settings = {"strength": strength, "reference": reference}
    return leafwise("prograd", settings, lambda key, shape, dtype: {}, apply_leaf)
