"""No regulation: plain gradient descent, and plain MAML in the outer loop."""

from __future__ import annotations

from gram_jax.regulators.base import Regulator, leafwise


def identity() -> Regulator:
    """Leaves every gradient as it is: the control without a learned regulator.

        R(g) = g

    Returns:
      The regulator; it has no parameters and reads no context.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> regulator = identity()
      >>> phi = regulator.init(jax.random.key(0), {"tokens": jnp.zeros((2, 3))})
      >>> regulator.apply(phi, {"tokens": jnp.ones((2, 3))}, None)["tokens"].tolist()
      [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

    Reference:
      "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", algorithm 1.
    """
    return leafwise("identity", {}, lambda key, shape, dtype: {}, lambda phi, gradient, context: gradient)
