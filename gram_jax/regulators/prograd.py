"""ProGrad: a gradient that conflicts with what the frozen clip knows loses the part that conflicts."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.regulators.base import Regulator, rms, unit_rms
from gram_jax.regulators.reference import with_reference

Array = jax.Array


def prograd(strength: float = 1.0, reference: str = "distillation") -> Regulator:
    """Projects a gradient off a reference gradient where the two point apart.

    For each block of a leaf (its last two axes: the tokens and channels of one layer or class), with g the gradient of
    the task and r the reference gradient,

        R(g) = g - lambda (g . r^) r^    where g . r < 0,    r^ = r / |r|
        R(g) = g                         elsewhere

    At lambda = 1 a step does not increase the loss that r belongs to, to first order. (GRMP-IQA takes the other branch:
    it removes what agrees.)

    Args:
      strength: lambda, >= 0.
      reference: what r is the gradient of, as `gram_jax.objectives.parse` reads it. That gradient is given as the
        context, a pytree like the prompt.

    Returns:
      The regulator. It has no parameters; it is exactly the identity where the reference is 0.

    Raises:
      InputError: if a setting has an impossible value; on application, if the context is missing or unlike the prompt.

    Example:
      >>> regulator = prograd()
      >>> phi = regulator.init(jax.random.key(0), {"context": jnp.zeros((1, 2))})
      >>> grads, reference = {"context": jnp.array([[1.0, -1.0]])}, {"context": jnp.array([[0.0, 3.0]])}
      >>> regulator.apply(phi, grads, reference)["context"].round(4).tolist()
      [[1.0, 0.0]]

    Reference:
      "Prompt-aligned Gradient for Prompt Tuning" (ProGrad), by parameter as in its public code: there each layer's
      prompt is one, and so is a class-specific context, whose classes are blocks of their own here.
    """
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < math.inf:
        raise InputError(f"prograd: strength is {strength!r}; give a number of at least 0.")

    def apply_leaf(phi: dict[str, Any], gradient: Array, reference: Array) -> Array:
        del phi
        direction = unit_rms(reference, rms(reference, 2))
        # The mean over a block of g r / rms(r)^2 is (g . r) / |r|^2.
        axes = tuple(range(-min(2, gradient.ndim), 0))
        conflict = jnp.minimum(jnp.mean(gradient * direction, axis=axes, keepdims=True), 0.0)
        return gradient - strength * jnp.where(rms(reference, 2) > 0, conflict, 0.0) * direction

    settings = {"strength": strength, "reference": reference}
    return with_reference("prograd", settings, lambda key, shape, dtype: {}, apply_leaf)
