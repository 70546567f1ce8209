"""Small networks inside prompts: dense layers and norms as plain dictionaries of float32 arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import layer_norm

Array = jax.Array
Params = dict[str, Array]
NORM_EPS = 1e-5  # of the published codes, which use PyTorch's


def dense_init(key: Array, fan_in: int, fan_out: int, *stack: int) -> Params:
    """A dense layer, or a stack of them: kernel and bias drawn from U(-b, b), b = fan_in^-1/2, as PyTorch does.

    Args:
      key: a PRNG key.
      fan_in: width that comes in.
      fan_out: width that goes out.
      stack: leading axes.

    Returns:
      `{"kernel": [*stack, fan_in, fan_out], "bias": [*stack, fan_out]}`, float32.

    Example:
      >>> dense_init(jax.random.key(0), 4, 2, 3)["kernel"].shape
      (3, 4, 2)
    """
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": uniform(kernel_key, fan_in**-0.5, *stack, fan_in, fan_out),
        "bias": uniform(bias_key, fan_in**-0.5, *stack, fan_out),
    }


def uniform(key: Array, bound: float, *shape: int) -> Array:
    """Values drawn from U(-bound, bound), float32."""
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def dense(params: Params, x: Array) -> Array:
    """x W + b, in full precision on every device.

    Args:
      params: as `dense_init` makes them, without a stack.
      x: `[..., fan_in]`.

    Returns:
      `[..., fan_out]`.

    Example:
      >>> dense({"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}, jnp.array([1.0, 2.0])).tolist()
      [4.0]
    """
    return linear(params["kernel"], x) + params["bias"]


def linear(kernel: Array, x: Array) -> Array:
    """x W, in full precision on every device."""
    return jnp.matmul(x, kernel, precision="highest")


def norm_init(width: int, *stack: int) -> Params:
    """A layer norm that starts as scale 1 and bias 0, `[*stack, width]` each."""
    return {"scale": jnp.ones((*stack, width), jnp.float32), "bias": jnp.zeros((*stack, width), jnp.float32)}


def norm(params: Params, x: Array) -> Array:
    """Layer norm over the last axis.

    Args:
      params: as `norm_init` makes them, without a stack.
      x: `[..., width]`.

    Returns:
      `[..., width]`.

    Example:
      >>> norm(norm_init(2), jnp.array([1.0, 3.0])).round(3).tolist()
      [-1.0, 1.0]
    """
    return layer_norm(NORM_EPS).apply({"params": params}, x)
