"""OpenAI's modified ResNet: three convolutions at the start, average pooling for strides, attention pooling at the end.

Batch norms are frozen: they use the statistics in the file. The four stages have 1, 2, 4 and 8 times the width of the
first one, their blocks four times as many output channels, and each stage but the first halves the sides.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.config import ClipConfig, ResNetConfig
from gram_jax.clip.modules import Attention, at_least_float32, slice_layers

Array = jax.Array
Params = dict[str, Any]
_BATCH_NORM_EPS = 1e-5
_EXPANSION = 4  # of a block's output over its inner channels


def image_features(params: Any, config: ClipConfig, images: Array) -> Array:
    """Returns image features `[images, embed_dim]`, not normalized; `params` is the `vision` branch."""
    tokens = _tokens(params, config, images)
    return _attend(params["pool"], config, tokens[:, :1], tokens)[:, 0]


def token_features(params: Any, config: ClipConfig, images: Array) -> tuple[Array, Array]:
    """Returns the features, and those of all positions `[images, positions, embed_dim]`: each is a query of the pool.

    Reference:
      "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", section 3.2, for the local features.
    """
    tokens = _tokens(params, config, images)
    features = _attend(params["pool"], config, tokens, tokens)
    return features[:, 0], features[:, 1:]


def _tokens(params: Any, config: ClipConfig, images: Array) -> Array:
    """Returns the mean and the positions of the last feature map, embedded, `[images, 1 + positions, 32 width]`."""
    dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
    x = at_least_float32(images)
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = jax.nn.relu(_convolve(params["stem"][f"conv_{number}"], x, dtype, stride))
    x = _average(x)
    for number in range(1, 5):
        stage = params[f"stage_{number}"]
        x = _block(stage["first"], x, dtype, halve=number > 1)

        def step(x: Array, block: Any) -> tuple[Array, None]:
            return _block(block, x, dtype), None

        step = jax.checkpoint(step, prevent_cse=False) if config.remat else step
        x = jax.lax.scan(step, x, stage["rest"])[0]
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    return x + params["pool"]["position_embedding"]


def _block(params: Any, x: Array, dtype: Any, halve: bool = False) -> Array:
    """Runs a bottleneck: 1x1, 3x3 and 1x1 convolutions, and a shortcut, which is a convolution if shapes change."""
    out = jax.nn.relu(_convolve(params["conv_1"], x, dtype))
    out = jax.nn.relu(_convolve(params["conv_2"], out, dtype))
    out = _convolve(params["conv_3"], _average(out) if halve else out, dtype)
    if "shortcut" in params:
        x = _convolve(params["shortcut"], _average(x) if halve else x, dtype)
    return jax.nn.relu(out + x)


def _convolve(params: Any, x: Array, dtype: Any, stride: int = 1) -> Array:
    """Returns a convolution without bias, padded to keep the sides, and its frozen batch norm; at least float32."""
    kernel, norm = params["kernel"], jax.tree.map(at_least_float32, params["norm"])
    dtype = jnp.promote_types(x.dtype, kernel.dtype) if dtype is None else dtype
    pad = kernel.shape[0] // 2
    x = jax.lax.conv_general_dilated(
        x.astype(dtype), kernel.astype(dtype), (stride, stride), 2 * [(pad, pad)], dimension_numbers=_LAYOUT
    )
    scale = norm["scale"] / jnp.sqrt(norm["variance"] + _BATCH_NORM_EPS)
    return at_least_float32(x) * scale + (norm["bias"] - norm["mean"] * scale)


_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _average(x: Array) -> Array:
    """Averages squares of 2 by 2 pixels; the sides are even."""
    images, height, width, channels = x.shape
    return x.reshape(images, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _attend(params: Any, config: ClipConfig, queries: Array, tokens: Array) -> Array:
    """Returns the attention pool's output for each query, `[images, queries, embed_dim]`."""
    dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
    attention = Attention(config.vision.heads, dtype, out_width=config.embed_dim)
    output, _ = attention.apply({"params": params["attention"]}, queries, tokens)
    return at_least_float32(output)


def init_resnet(key: Array, config: ResNetConfig, embed_dim: int) -> Params:
    """Draws random parameters: kernels as PyTorch does, attention from N(0, 1 / its width).

    The last batch norm of a block has scale 0, so that the block is its shortcut.

    Args:
      key, config, embed_dim: a PRNG key, the sizes, and the width of the features.

    Reference:
      github.com/openai/CLIP, clip/model.py, `initialize_parameters`.
    """
    keys = iter(jax.random.split(key, 6))
    half = config.width // 2
    channels = (config.channels, half, half, config.width)
    stem_keys = jax.random.split(next(keys), 3)
    params: Params = {"stem": {}}
    for number, stem_key in enumerate(stem_keys, 1):
        params["stem"][f"conv_{number}"] = _init_convolution(stem_key, 3, channels[number - 1], channels[number])
    inputs = config.width
    for number, count in enumerate(config.layers, 1):
        inner = config.width * 2 ** (number - 1)
        first_key, *rest_keys = jax.random.split(next(keys), count)
        outputs = _EXPANSION * inner
        rest = jax.vmap(lambda key, inner=inner, outputs=outputs: _init_block(key, outputs, inner, False))
        # The first key only gives the shapes of a stage without further blocks.
        stacked = rest(jnp.stack([first_key, *rest_keys]))
        params[f"stage_{number}"] = {
            "first": _init_block(first_key, inputs, inner, True),
            "rest": slice_layers(stacked, slice(1, None)),
        }
        inputs = outputs
    params["pool"] = _init_pool(next(keys), config, inputs, embed_dim)
    return params


def _init_block(key: Array, inputs: int, inner: int, shortcut: bool) -> Params:
    keys = jax.random.split(key, 4)
    block = {
        "conv_1": _init_convolution(keys[0], 1, inputs, inner),
        "conv_2": _init_convolution(keys[1], 3, inner, inner),
        "conv_3": _init_convolution(keys[2], 1, inner, _EXPANSION * inner),
    }
    block["conv_3"]["norm"]["scale"] = jnp.zeros(_EXPANSION * inner, jnp.float32)
    if shortcut:
        block["shortcut"] = _init_convolution(keys[3], 1, inputs, _EXPANSION * inner)
    return block


def _init_convolution(key: Array, side: int, inputs: int, outputs: int) -> Params:
    bound = (side * side * inputs) ** -0.5
    kernel = jax.random.uniform(key, (side, side, inputs, outputs), jnp.float32, -bound, bound)
    ones, zeros = jnp.ones(outputs, jnp.float32), jnp.zeros(outputs, jnp.float32)
    return {"kernel": kernel, "norm": {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}}


def _init_pool(key: Array, config: ResNetConfig, width: int, embed_dim: int) -> Params:
    keys = iter(jax.random.split(key, 5))

    def normal(*shape: int) -> Array:
        return width**-0.5 * jax.random.normal(next(keys), shape, jnp.float32)

    positions = normal(1 + config.num_patches, width)
    outputs = {"query": width, "key": width, "value": width, "out": embed_dim}
    attention = {
        name: {"kernel": normal(width, out), "bias": jnp.zeros(out, jnp.float32)} for name, out in outputs.items()
    }
    return {"position_embedding": positions, "attention": attention}
