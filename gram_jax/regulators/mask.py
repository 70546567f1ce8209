"""A soft mask over the gradient, computed from the gradient and the task's context."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_int
from gram_jax.regulators.base import Regulator, leafwise, read_context, rms, unit_rms

Array = jax.Array


def mask(hidden: int = 16, context_dim: int | None = None) -> Regulator:
    """Returns a regulator that multiplies each entry of the gradient by a gate between 0 and 2.

    For each row g_t (one token) of a leaf, with g^ = g / rms(g) over the leaf's last two axes, c^ = c / rms(c) and
    the sigmoid function sigma,

        h_t    = tanh(V^T g^_t + W^T c^ + a)                     hidden units
        R(g)_t = 2 sigma(U^T h_t + b) * g_t.

    U and b are 0 at initialization, where the gate is exactly 1 and the gradient with respect to U and b is not 0. Each
    leaf has its own network, shared by its rows: tokens, layers and classes.

    Args:
      hidden: units of the network.
      context_dim: length of the task's context vector; None: no context.

    Example:
      >>> prompt, regulator = {"context": jnp.zeros((4, 8))}, mask(context_dim=3)
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> regulator.apply(phi, {"context": jnp.ones((4, 8))}, jnp.ones(3))["context"].sum().item()
      32.0

    Reference:
      A sigmoid gate computed from the gradient as in "Prompt Learning via Meta-Regularization" (ProMetaR), section 4.2,
      here on the task's own gradient.
    """
    require_int("hidden", hidden)
    if context_dim is not None:
        require_int("context_dim", context_dim)

    def init_leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        width = shape[-1]
        of_gradient, of_context = jax.random.split(key)
        phi = {
            "gradient": jax.random.normal(of_gradient, (width, hidden), dtype) * width**-0.5,
            "bias": jnp.zeros(hidden, dtype),
            "out": jnp.zeros((hidden, width), dtype),
            "out_bias": jnp.zeros(width, dtype),
        }
        if context_dim is not None:
            phi["context"] = jax.random.normal(of_context, (context_dim, hidden), dtype) * context_dim**-0.5
        return phi

    def apply_leaf(phi: dict[str, Array], gradient: Array, context: Any) -> Array:
        inputs = unit_rms(gradient, rms(gradient, 2)) @ phi["gradient"] + phi["bias"]
        if context_dim is not None:
            inputs = inputs + read_context("mask", context, context_dim) @ phi["context"]
        score = jnp.tanh(inputs) @ phi["out"] + phi["out_bias"]
        # 2 sigma(x) = 1 + tanh(x / 2), which is exactly 1 at 0 on every device.
        return (1.0 + jnp.tanh(score / 2.0)) * gradient

    return leafwise("mask", {"hidden": hidden, "context_dim": context_dim}, init_leaf, apply_leaf)
