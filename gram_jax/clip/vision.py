"""The image tower: a vision transformer, with prompts, or a ResNet."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from gram_jax.clip import resnet
from gram_jax.clip.config import ClipConfig, ResNetConfig, VisionConfig
from gram_jax.clip.modules import (
    AttentionPool,
    apply_norm,
    at_least_float32,
    make_block,
    project,
    run_block,
    run_layers,
    slice_layers,
)
from gram_jax.clip.prompts import MaskedTokens, VisualPrompt
from gram_jax.clip.slots import Slots
from gram_jax.clip.validation import check_made_prompt

Array = jax.Array
LayerPrompts = Mapping[int, Callable[[Array], Any]]
# By pooling, the only token that the last layer computes: its query, its row of attention and its perceptron.
_READ = {"class": 0, "attention": None}


def patchify(images: Array, patch_size: int) -> Array:
    """Cuts images into flat patches `[images, patches, patch_size * patch_size * channels]`, in row-major order.

    Each is ordered (row, column, channel); a remainder at the right and lower edge is dropped.

    Example:
      >>> patchify(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
      [2.0, 3.0, 6.0, 7.0]
    """
    rows, columns = images.shape[1] // patch_size, images.shape[2] // patch_size
    images = images[:, : rows * patch_size, : columns * patch_size]
    images = images.reshape(-1, rows, patch_size, columns, patch_size, images.shape[-1])
    return images.swapaxes(2, 3).reshape(images.shape[0], rows * columns, -1)


def image_features(
    params: Any,
    config: ClipConfig,
    images: Array,
    prompt: VisualPrompt | None = None,
    layer_prompts: LayerPrompts | None = None,
    slots: Slots | None = None,
) -> tuple[Array, dict[int, Any]]:
    """Returns image features `[images, embed_dim]`, not normalized, and auxiliary outputs of `layer_prompts` by layer.

    `params` is the `vision` branch of the parameters. Each function in `layer_prompts` maps the tokens of its layer to
    (prompt tokens or `MaskedTokens`, auxiliary output).
    """
    if isinstance(config.vision, ResNetConfig):
        return resnet.image_features(params, config, images), {}
    return _transform(params, config, config.vision, images, prompt or VisualPrompt(None), layer_prompts or {}, slots)


def _transform(
    params: Any,
    config: ClipConfig,
    vision: VisionConfig,
    images: Array,
    prompt: VisualPrompt,
    layer_prompts: LayerPrompts,
    slots: Slots | None,
) -> tuple[Array, dict[int, Any]]:
    # The tokens before the prompts; None: all of the image's.
    before = int(vision.class_token) if prompt.placement == "after_class" else None
    block = make_block(vision, config.compute_dtype)
    x = _embed(params, vision, images, config.compute_dtype)  # [images, class token and patches, width]
    x = x.astype(jnp.result_type(x, *jax.tree.leaves((prompt, slots))))
    count = 0
    if prompt.tokens is not None and prompt.placement == "before_norm":
        x, count = _swap(x, count, prompt.tokens, before)
    x = _pre_norm(params, vision, x)
    if prompt.tokens is not None and prompt.placement != "before_norm":
        x, count = _swap(x, count, prompt.tokens, before)
    mask = None  # bool [images, 1, tokens]: the tokens that may be attended to; None: all

    def step(x: Array, layer: Any, deep: Array | None, slots: Slots | None) -> Array:
        if deep is not None:
            x, _ = _swap(x, deep.shape[-2], deep, before)
        return run_block(block, layer, x, mask, angles=_angles(vision, x.shape[-2], before), slots=slots)[0]

    aux = {}
    last, pooling = vision.layers - 1, vision.pooling
    for start, stop in itertools.pairwise([*_breaks(last, prompt, layer_prompts), last + 1]):
        if start in layer_prompts:
            made, aux[start] = layer_prompts[start](_remove(x, count, before))
            tokens, keep = made if isinstance(made, MaskedTokens) else (made, None)
            check_made_prompt(tokens, keep, start, config, x.shape[0])
            mask = None if keep is None else _mask(x.shape[-2] - count, keep, before)
            x, count = _swap(x, count, tokens, before)
        elif prompt.deep is not None and start in prompt.layers:
            x, count = _swap(x, count, prompt.deep[prompt.layers.index(start)], before)
            mask = None
        if start < last:
            x = run_layers(step, x, params["layers"], range(start, stop), prompt.deep, prompt.layers, config, slots)
        else:
            layer, angles = slice_layers(params["layers"], last), _angles(vision, x.shape[-2], before)
            filled = None if slots is None else slots.at(last)
            x, _ = run_block(block, layer, x, mask, read=_READ[pooling], angles=angles, slots=filled)
    return _pool(params, vision, x if pooling == "class" else _remove(x, count, before), config.compute_dtype), aux


def token_features(params: Any, config: ClipConfig, images: Array, slots: Slots | None = None) -> tuple[Array, Array]:
    """Returns the feature `[images, embed_dim]`, not normalized, and features of all patches `[images, patches, ...]`.

    Those are pooled and projected as the image is, one patch at a time.
    """
    if isinstance(vision := config.vision, ResNetConfig):
        return resnet.token_features(params, config, images)
    block = make_block(vision, config.compute_dtype)

    def step(x: Array, layer: Any, _: None, slots: Slots | None) -> Array:
        return run_block(block, layer, x, angles=_angles(vision, x.shape[-2], None), slots=slots)[0]

    x = _pre_norm(params, vision, _embed(params, vision, images, config.compute_dtype))
    x = run_layers(step, x, params["layers"], range(vision.layers), config=config, slots=slots)
    patches = x[:, int(vision.class_token) :, None]  # [images, patches, 1, width]
    pool = functools.partial(_pool, params, vision, compute_dtype=config.compute_dtype)
    return pool(x), pool(patches)


def fold_slots(
    params: Any,
    config: ClipConfig,
    images: Array,
    slots: Slots,
    fold: Callable[[Any, Any, Slots, Array], Any],
    total: Any,
) -> Any:
    """Runs the vision transformer and returns `total = fold(total, layer, slots, x)`, folded over layers with slots.

    `layer` are the parameters of a layer, `slots` its parts and x its input tokens `[images, tokens, width]`.
    """
    vision = config.vision
    assert isinstance(vision, VisionConfig)
    block = make_block(vision, config.compute_dtype)

    def step(carry: tuple[Array, Any], layer: Any, _: None, slots: Slots | None) -> tuple[Array, Any]:
        x, total = carry
        total = total if slots is None else fold(total, layer, slots, x)
        return run_block(block, layer, x, angles=_angles(vision, x.shape[-2], None), slots=slots)[0], total

    x = _pre_norm(params, vision, _embed(params, vision, images, config.compute_dtype))
    return run_layers(step, (x, total), params["layers"], range(slots.layers[-1] + 1), slots=slots)[1]


def _embed(params: Any, config: VisionConfig, images: Array, compute_dtype: str) -> Array:
    patches = at_least_float32(patchify(images, config.patch_size))
    kernel = params["patch_embedding"]
    if compute_dtype == "bfloat16":
        patches, kernel = patches.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    tokens = at_least_float32(patches @ kernel)  # [images, patches, width]
    if config.patch_bias:
        tokens = tokens + params["patch_bias"]
    if config.class_token:
        first = jnp.broadcast_to(params["class_embedding"], (tokens.shape[0], 1, tokens.shape[-1]))
        tokens = jnp.concatenate([first, tokens], axis=1)
    return tokens + params["position_embedding"]


def _angles(config: VisionConfig, tokens: int, before: int | None) -> Array | None:
    """Returns the angles by which attention rotates tokens, `[tokens, head width / 2]`; None without rotations.

    A patch at column x and row y has the angles x w_i and then y w_i, with w_i = 10000^(-4 i / head width), i >= 0.
    Columns and rows count from 1 after a class token, otherwise from 0. The class token and prompts are not rotated.
    """
    if not config.rotary:
        return None
    size, first = config.width // config.heads, int(config.class_token)
    side = config.image_size // config.patch_size
    frequencies = 10000.0 ** (-4 / size * jnp.arange(size // 4))
    axis = (jnp.arange(side) + first)[:, None] * frequencies  # [side, head width / 4]
    columns, rows = jnp.tile(axis, (side, 1)), jnp.repeat(axis, side, axis=0)
    patches = jnp.concatenate([columns, rows], axis=-1)
    image = jnp.pad(patches, ((first, 0), (0, 0)))
    prompts = jnp.zeros((tokens - len(image), size // 2))
    return jnp.concatenate([image, prompts] if before is None else [image[:before], prompts, image[before:]])


def _pre_norm(params: Any, config: VisionConfig, x: Array) -> Array:
    return apply_norm(config.norm_eps, params["pre_norm"], x) if config.pre_norm else x


def _pool(params: Any, config: VisionConfig, x: Array, compute_dtype: str) -> Array:
    """Returns the feature `[..., embed_dim]` of the tokens `[..., tokens, width]` after the last layer."""
    if config.pooling == "class":
        return project(apply_norm(config.norm_eps, params["post_norm"], x[..., 0, :]), params)
    dtype = jnp.bfloat16 if compute_dtype == "bfloat16" else None
    heads, hidden = config.pool_heads or config.heads, config.pool_mlp_width or config.mlp_width
    pool = AttentionPool(heads, hidden, config.activation, config.norm_eps, dtype)
    pooled = pool.apply({"params": params["pool"]}, apply_norm(config.norm_eps, params["post_norm"], x))
    return project(cast(Array, pooled), params)


def _breaks(last: int, prompt: VisualPrompt, layer_prompts: LayerPrompts) -> list[int]:
    """Returns the layers before which the scan stops: prompts change there, or it is the last layer."""
    breaks = {0, last}
    for layer in layer_prompts:
        breaks.update((layer, layer + 1))
        breaks.update(next(((deep,) for deep in prompt.layers if deep > layer), ()))
    if prompt.tokens is None:
        breaks.update(prompt.layers[:1])
    return sorted(breaks - {last + 1})


def _mask(count: int, keep: Array, before: int | None) -> Array:
    """Returns which of `count` image tokens and the prompt tokens may be attended to, bool `[images, 1, tokens]`."""
    image = jnp.ones((keep.shape[0], count), bool)
    return jnp.concatenate([image[:, :before], keep, image[:, count if before is None else before :]], axis=-1)[:, None]


def _remove(x: Array, count: int, before: int | None) -> Array:
    """Removes the `count` prompt tokens from a sequence, which follow its first `before` tokens (None: at the end)."""
    if before is None:
        return x[..., : x.shape[-2] - count, :]
    return jnp.concatenate([x[..., :before, :], x[..., before + count :, :]], axis=-2)


def _swap(x: Array, count: int, tokens: Array, before: int | None) -> tuple[Array, int]:
    """Replaces the `count` prompt tokens of a sequence; returns the sequence and the new number of prompt tokens."""
    tokens = jnp.broadcast_to(tokens, (*x.shape[:-2], *tokens.shape[-2:])).astype(x.dtype)
    x = _remove(x, count, before)
    parts = [x, tokens] if before is None else [x[..., :before, :], tokens, x[..., before:, :]]
    return jnp.concatenate(parts, axis=-2), tokens.shape[-2]
