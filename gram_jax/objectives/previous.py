"""Regularizers of a stream of tasks: a prompt stays near the one after the last task."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32

Array = jax.Array


def norm_consistency(prompt: Any, previous: Any) -> Array:
    """Returns the distance of a prompt's norm statistics to those of the previous prompt.

        L = sum over layers of  mean_i |mu(P_i) - mu(P_i')| + mean_i |sigma(P_i) - sigma(P_i')|

    mu and sigma are the mean and the population standard deviation of the token P_i over its channels.

    Args:
      prompt, previous: pytrees of tokens `[layers, tokens, width]`.

    Example:
      >>> previous = {"prompts": jnp.array([[[0.0, 2.0]]])}
      >>> float(norm_consistency({"prompts": jnp.array([[[1.0, 5.0]]])}, previous))
      3.0

    Reference:
      "Visual Prompt Tuning in Null Space for Continual Learning", equation 16, with the means of its public code.
    """

    def one(leaf: Array, old: Array) -> Array:
        leaf, old = at_least_float32(leaf), jax.lax.stop_gradient(at_least_float32(old))
        mean = jnp.abs(leaf.mean(-1) - old.mean(-1))
        return jnp.sum(jnp.mean(mean + jnp.abs(_deviation(leaf) - _deviation(old)), axis=-1))

    return sum(jax.tree.leaves(jax.tree.map(one, prompt, previous)), jnp.zeros(()))


def prompt_distance(prompt: Any, previous: Any) -> Array:
    """Returns  |P - P'|^2 / 2  summed over all leaves: elastic weight consolidation with equal importance.

    Args:
      prompt, previous: pytrees of equal structure.

    Example:
      >>> float(prompt_distance({"a": jnp.ones(4)}, {"a": jnp.zeros(4)}))
      2.0

    Reference:
      "Overcoming catastrophic forgetting in neural networks", equation 3, with F = 1 and lambda = 1.
    """
    squares = jax.tree.map(lambda leaf, old: jnp.sum((leaf - jax.lax.stop_gradient(old)) ** 2), prompt, previous)
    return sum(jax.tree.leaves(squares), jnp.zeros(())) / 2


def _deviation(x: Array) -> Array:
    """Returns the population standard deviation; its derivative is finite for a constant token."""
    return jnp.sqrt(jnp.mean((x - x.mean(-1, keepdims=True)) ** 2, axis=-1) + 1e-12)
