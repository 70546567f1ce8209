"""Small networks inside prompts: dense layers and norms as plain dictionaries of float32 arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import layer_norm

Array = jax.Array
Params = dict[str, Array]
NORM_EPS = 1e-5  # that of PyTorch, which the published codes use


def dense_init(key: Array, fan_in: int, fan_out: int, *stack: int) -> Params:
    """Draws a dense layer, or a stack of them, from U(-b, b), b = fan_in^-1/2, as PyTorch does.

    Returns `{"kernel": [*stack, fan_in, fan_out], "bias": [*stack, fan_out]}`, float32.
    """
    kernel_key, bias_key = jax.random.split(key)
    bound = fan_in**-0.5
    kernel = uniform(kernel_key, bound, *stack, fan_in, fan_out)
    return {"kernel": kernel, "bias": uniform(bias_key, bound, *stack, fan_out)}


def uniform(key: Array, bound: float, *shape: int) -> Array:
    """Draws float32 values from U(-bound, bound)."""
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def dense(params: Params, x: Array) -> Array:
    """Returns x W + b `[..., fan_out]` for x `[..., fan_in]`, in full precision on every device."""
    return linear(params["kernel"], x) + params["bias"]


def linear(kernel: Array, x: Array) -> Array:
    """Returns x W, in full precision on every device."""
    return jnp.matmul(x, kernel, precision="highest")


def norm_init(width: int, *stack: int) -> Params:
    """Returns a layer norm with scale 1 and bias 0, `[*stack, width]` each."""
    return {"scale": jnp.ones((*stack, width), jnp.float32), "bias": jnp.zeros((*stack, width), jnp.float32)}


def norm(params: Params, x: Array) -> Array:
    """Normalizes the last axis.

    Example:
      >>> norm(norm_init(2), jnp.array([1.0, 3.0])).round(3).tolist()
      [-1.0, 1.0]
    """
    return jnp.asarray(layer_norm(NORM_EPS).apply({"params": params}, x))
