"""A norm-preserving low-rank network, mixed with the raw gradient by a gate on the task's context."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_int
from gram_jax.regulators.base import Regulator, leafwise, read_context, turned

Array = jax.Array


def gated_low_rank(rank: int = 16, hidden: int = 24, context_dim: int | None = None) -> Regulator:
    """Returns a regulator that turns the gradient's rows by a low-rank network and mixes them with the raw ones.

    For each row g of a leaf (one token, width d), with unit row u = g / |g|, r = min(rank, d), c^ = c / rms(c) and the
    sigmoid function sigma,

        d(u)  = U^T tanh(sqrt(d) V^T u + a)                      V: d -> r, U: r -> d
        x     = |g| (u + d(u)) / |u + d(u)|
        gate  = sigma(w^T tanh(W^T c^ + a') + b)                 one scalar per leaf
        R(g)  = (1 - gate) x + gate g.

    U is 0 at initialization: R is exactly the identity, and the gate is near 1/2, so the gradient with respect to U is
    not 0. Each leaf has its own network, shared by its rows: tokens, layers and classes.

    Args:
      rank: rank of the network.
      hidden: hidden units of the gate.
      context_dim: length of the task's context vector; None: no context, and the gate is one learned number.

    Example:
      >>> prompt, regulator = {"context": jnp.zeros((4, 8))}, gated_low_rank(rank=2)
      >>> phi = regulator.init(jax.random.key(0), prompt)
      >>> regulator.apply(phi, {"context": jnp.ones((4, 8))}, None)["context"].sum().item()
      32.0

    Reference:
      "Self-supervised Meta-Prompt Learning with Meta-Gradient Regularization for Few-shot Generalization" (SUPMER),
      section 3.3. Three changes: the residual form, which makes the identity possible; tanh in place of ReLU; and no
      non-linearity at the end, which would keep all entries positive.
    """
    settings = {"rank": rank, "hidden": hidden, "context_dim": context_dim}
    for name, value in settings.items():
        if name != "context_dim" or value is not None:
            require_int(name, value)

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
