"""No regulation: plain gradient descent, and plain MAML in the outer loop."""

from __future__ import annotations

from gram_jax.regulators.base import Regulator, leafwise


def identity() -> Regulator:
    """Returns a regulator that changes no gradient: the control without a learned regulator.

        R(g) = g

    It has no parameters and reads no context.

    Reference:
      "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", algorithm 1.
    """
    return leafwise("identity", {}, lambda key, shape, dtype: {}, lambda phi, gradient, context: gradient)
