"""ProMetaR: a regularizer's gradient is added to the task's, entry by entry as far as a learned gate lets it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import InputError
from gram_jax.regulators.base import Regulator, positive, rms, unit_rms
from gram_jax.regulators.reference import with_reference

Array = jax.Array

PER = ("layer", "all")


def prometar(rate: int = 8, per: str = "layer", normalized: bool = False, reference: str = "prometar") -> Regulator:
    """Adds a reference gradient, modulated by a linear network of both gradients.

    For each block of a leaf (its last two axes: n tokens of width d), with g the gradient of the task, r the reference
    gradient, vec flattening a block, and every output of the network shared by `rate` neighboring entries,

        gamma = sigma(W_2 W_1 [vec g ; vec r])        W_1: 2 n d -> n d / rate,  W_2: n d / rate -> n d / rate
        R(g)  = g + gamma * r

    W_1 and W_2 start as PyTorch's linear layers, U(-1 / sqrt(inputs), 1 / sqrt(inputs)), so that gamma starts near 1/2.
    Gradients are small numbers: as they are, they hardly move the gate.

    Args:
      rate: entries that share a gate.
      per: what has a network of its own. "layer": every block of a leaf, as published, which suits deep prompts; a
        class-specific prompt would get one for each class. "all": a leaf, shared by its blocks.
      normalized: divide the network's inputs by their common root mean square, so that R(a g) = a R(g) for a > 0 where
        the reference is scaled too. Published: False.
      reference: what r is the gradient of, as `gram_jax.objectives.parse` reads it. That gradient is given as the
        context, a pytree like the prompt.

    Returns:
      The regulator. It is exactly the identity where the reference is 0, whatever its parameters.

    Raises:
      InputError: if a setting has an impossible value; on application, if the context is missing or unlike the prompt.

    Example:
      >>> regulator, prompt = prometar(), {"context": jnp.zeros((2, 4))}
      >>> phi = jax.tree.map(jnp.zeros_like, regulator.init(jax.random.key(0), prompt))
      >>> ones = {"context": jnp.ones((2, 4))}
      >>> regulator.apply(phi, ones, ones)["context"][0].tolist()
      [1.5, 1.5, 1.5, 1.5]

    Reference:
      "Prompt Learning via Meta-Regularization" (ProMetaR), section 4.2, in the form of its public code; "all" and
      `normalized` are our own choices.
    """
    positive("prometar", "rate", rate)
    if per not in PER:
        raise InputError(f"prometar: per is {per!r}; choose one of {', '.join(map(repr, PER))}.")
    if not isinstance(normalized, bool):
        raise InputError(f"prometar: normalized is {normalized!r}; give True or False.")

    def init_leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        size = math.prod(shape[-2:])
        gates = -(-size // rate)
        own = shape[:-2] if per == "layer" else ()
        inner, outer = jax.random.split(key)
        return {
            "inner": _linear(inner, (*own, 2 * size, gates), dtype),
            "outer": _linear(outer, (*own, gates, gates), dtype),
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
    return with_reference("prometar", settings, init_leaf, apply_leaf)


def _linear(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
