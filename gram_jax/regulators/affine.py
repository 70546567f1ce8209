"""A scale and a shift per channel of the gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.errors import require_known
from gram_jax.regulators.base import Regulator, leafwise, rms

Array = jax.Array

PER = {"channel": 1, "token": 2, "layer": 3}


def affine(per: str = "channel") -> Regulator:
    """Returns a regulator that scales each channel and shifts it by a multiple of the gradient's own size.

    With s and b learned, 0 at initialization, and rms(g) the root mean square over the last two axes of a leaf (the
    tokens and channels of one layer or class),

        R(g) = (1 + s) * g + rms(g) * b.

    It reads no context. The factor rms(g) makes R(a g) = a R(g) for a > 0, so the meaning of b depends neither on
    the scale of the loss nor on the distance to a minimum, where g vanishes.

    Args:
      per: the axes that s and b have. "channel": the last axis, shared by all tokens, layers and classes; "token": the
        last two axes, shared by layers and classes; "layer": the last three axes, for deep prompts that all classes
        share (a class-specific prompt `[classes, n, width]` would get parameters per class).

    Example:
      >>> prompt = {"context": jnp.zeros((10, 4, 8))}
      >>> affine().init(jax.random.key(0), prompt)["context"]["scale"].shape
      (8,)

    Reference:
      The scale is that of "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", section 3.2, shared by tokens.
    """
    require_known("per", per, PER)
    axes = PER[per]

    def init_leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        return {"scale": jnp.zeros(shape[-axes:], dtype), "shift": jnp.zeros(shape[-axes:], dtype)}

    def apply_leaf(phi: dict[str, Array], gradient: Array, context: Any) -> Array:
        return (1.0 + phi["scale"]) * gradient + rms(gradient, 2) * phi["shift"]

    return leafwise("affine", {"per": per}, init_leaf, apply_leaf)
