"""A learned regulator inside any Optax optimizer."""

from __future__ import annotations

from typing import Any

import optax

from gram_jax.regulators.base import Regulator


def as_optax(regulator: Regulator, phi: Any, context: Any = None) -> optax.GradientTransformation:
    """An Optax transformation that regulates gradients, to be chained in front of an optimizer.

    The optimizer sees R_phi(g, c) in place of g. The transformation keeps no state, so a state of the chain is
    small, and phi stays frozen.

    Args:
      regulator: the regulator.
      phi: its parameters, as its `init` or `load_meta` gives them.
      context: what describes the task, or None where the regulator reads none.

    Returns:
      The transformation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gram_jax.regulators import affine
      >>> prompt = {"context": jnp.zeros((4, 8))}
      >>> regulator = affine()
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> optimizer = optax.chain(as_optax(regulator, phi), optax.sgd(0.5))
      >>> updates, state = optimizer.update({"context": jnp.ones((4, 8))}, optimizer.init(prompt), prompt)
      >>> updates["context"].sum().item()
      -16.0

    Reference:
      Our own choice; "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models" keeps the
      regulating function during downstream adaptation.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        return regulator.apply(phi, updates, context), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
