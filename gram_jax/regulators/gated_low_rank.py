"""A norm-preserving low-rank network, mixed with the raw gradient by a gate on the task's context."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.regulators.base import Regulator, leafwise, positive, read_context, turned

Array = jax.Array


def gated_low_rank(rank: int = 16, hidden: int = 24, context_dim: int | None = None) -> Regulator:
    """Turns the rows of the gradient by a low-rank network, keeps their length, and mixes them with the raw ones.

    For each row g of a leaf (one token, width d), with unit row u = g / |g|, r = min(rank, d), c^ = c / rms(c) and the
    sigmoid function sigma,

        d(u)  = U^T tanh(sqrt(d) V^T u + a)                      V: d -> r, U: r -> d
        x     = |g| (u + d(u)) / |u + d(u)|
        gate  = sigma(w^T tanh(W^T c^ + a') + b)                 a scalar for each leaf
        R(g)  = (1 - gate) x + gate g.

    U is 0 at initialization: R is exactly the identity, and the gate, which stands near 1/2, lets the gradient with
    respect to U through. The network belongs to a leaf and is shared by its rows: tokens, layers and classes.

    Args:
      rank: rank of the network.
      hidden: hidden units of the gate.
      context_dim: length of the task's context vector; None reads no context, and the gate is one learned number.

    Returns:
      The regulator.

    Raises:
      InputError: if a setting is not a positive integer; on application, if the context has another length.

    Example:
      >>> prompt = {"context": jnp.zeros((4, 8))}
      >>> regulator = gated_low_rank(rank=2)
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> regulator.apply(phi, {"context": jnp.ones((4, 8))}, None)["context"].sum().item()
      32.0

    Reference:
      "Self-supervised Meta-Prompt Learning with Meta-Gradient Regularization for Few-shot Generalization" (SUPMER),
      section 3.3. The residual form, which makes the identity possible, tanh in place of ReLU, and a network without
      a last non-linearity, which would keep all entries positive, are our own choices.
    """
    settings = {
        "rank": positive("gated_low_rank", "rank", rank),
        "hidden": positive("gated_low_rank", "hidden", hidden),
        "context_dim": positive("gated_low_rank", "context_dim", context_dim, optional=True),
    }

    def init_leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        width = shape[-1]
        inner = min(rank, width)
        of_network, of_context, of_gate = jax.random.split(key, 3)
        gate = {"out_bias": jnp.zeros((), dtype)}
        if context_dim is not None:
            gate["context"] = jax.random.normal(of_context, (context_dim, hidden), dtype) * context_dim**-0.5
            gate["bias"] = jnp.zeros(hidden, dtype)
            gate["out"] = jax.random.normal(of_gate, (hidden,), dtype) * hidden**-0.5
        return {
            "down": jax.random.normal(of_network, (width, inner), dtype) * width**-0.5,
            "bias": jnp.zeros(inner, dtype),
            "up": jnp.zeros((inner, width), dtype),
            "gate": gate,
        }

    def apply_leaf(phi: dict[str, Any], gradient: Array, context: Any) -> Array:
        score = phi["gate"]["out_bias"]
        if context_dim is not None:
            vector = read_context("gated_low_rank", context, context_dim)
            units = jnp.tanh(vector @ phi["gate"]["context"] + phi["gate"]["bias"])
            score = score + units @ phi["gate"]["out"]
        change = turned(gradient, lambda row: jnp.tanh(row @ phi["down"] + phi["bias"]) @ phi["up"])
        return gradient + (1.0 - jax.nn.sigmoid(score)) * change

    return leafwise("gated_low_rank", settings, init_leaf, apply_leaf)
