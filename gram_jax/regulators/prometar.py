"""ProMetaR: the task's gradient plus a regularizer's gradient, each entry of it times a learned gate."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_bool, require_int, require_known
from gram_jax.regulators.base import Regulator, leafwise, rms, unit_rms

Array = jax.Array

PER = ("layer", "all")


def prometar(rate: int = 8, per: str = "layer", normalized: bool = False, reference: str = "prometar") -> Regulator:
    """Returns a regulator that adds a reference gradient, modulated by a linear network of both gradients.

    For each block of a leaf (its last two axes: n tokens of width d), with g the gradient of the task, r the reference
    gradient, vec flattening a block, and every output of the network shared by `rate` neighboring entries,

        gamma = sigma(W_2 W_1 [vec g ; vec r])        W_1: 2 n d -> n d / rate,  W_2: n d / rate -> n d / rate
        R(g)  = g + gamma * r

    W_1 and W_2 are initialized like PyTorch's linear layers, U(-1 / sqrt(inputs), 1 / sqrt(inputs)), so gamma is near
    1/2. Gradients are small numbers: without `normalized` they hardly change the gate. R is the identity for r = 0.

    Args:
      rate: entries that share a gate.
      per: the scope of a network. "layer": every block of a leaf, as published, for deep prompts; a class-specific
        prompt would get one per class. "all": a leaf, shared by its blocks.
      normalized: divide the network's inputs by their common root mean square, so that R(a g) = a R(g) for a > 0 if the
        reference is scaled too. Published: False.
      reference: text of `gram_jax.objectives.parse`, the regularizers of r. The context is r, a pytree like the prompt.

    Example:
      >>> regulator, prompt = prometar(), {"context": jnp.zeros((2, 4))}
      >>> phi = jax.tree.map(jnp.zeros_like, regulator.init(jax.random.key(0), prompt))
      >>> ones = {"context": jnp.ones((2, 4))}
      >>> regulator.apply(phi, ones, ones)["context"][0].tolist()
      [1.5, 1.5, 1.5, 1.5]

    Reference:
      "Prompt Learning via Meta-Regularization" (ProMetaR), section 4.2, in the form of its public code, which has
      neither "all" nor `normalized`. That code never advances the schedule of the network's rate: it learns at the
      1e-6 of the warm-up throughout. Here it follows the schedule.
    """
    require_int("rate", rate)
    require_known("per", per, PER)
    require_bool("normalized", normalized)

    def init_leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        size = math.prod(shape[-2:])
        gates = -(-size // rate)
        own = shape[:-2] if per == "layer" else ()
        inner, outer = jax.random.split(key)
        shapes = {"inner": (inner, 2 * size), "outer": (outer, gates)}
        return {
            name: jax.random.uniform(own_key, (*own, inputs, gates), dtype, -(inputs**-0.5), inputs**-0.5)
            for name, (own_key, inputs) in shapes.items()
        }

    def apply_leaf(phi: dict[str, Array], gradient: Array, reference: Array) -> Array:
        blocks = gradient.shape[:-2]
        size = math.prod(gradient.shape[-2:])
        inputs = jnp.concatenate([gradient.reshape(*blocks, size), reference.reshape(*blocks, size)], axis=-1)
        if normalized:
            inputs = unit_rms(inputs, rms(inputs, 1))
        hidden = jnp.einsum("...i,...ih->...h", inputs, phi["inner"])
        score = jnp.einsum("...h,...hk->...k", hidden, phi["outer"])
        gate = jnp.repeat(jax.nn.sigmoid(score), rate, axis=-1)[..., :size]
        return gradient + gate.reshape(gradient.shape) * reference

    settings = {"rate": rate, "per": per, "normalized": normalized, "reference": reference}
    return leafwise("prometar", settings, init_leaf, apply_leaf)
