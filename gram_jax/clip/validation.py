"""Checks of what goes into the forward passes, made on static shapes before anything is traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from gram_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from gram_jax.clip.prompts import CLASS_POSITIONS, PLACEMENTS, TextPrompt, VisualPrompt
from gram_jax.errors import InputError


def check_images(images: Any, config: VisionConfig) -> None:
    """Raises InputError unless images are floats `[images, size, size, channels]`."""
    shape, size = jnp.shape(images), (config.image_size, config.image_size, config.channels)
    if len(shape) != 4 or shape[1:] != size:
        hint = ", channels last" if len(shape) == 4 and shape[1] == config.channels else ""
        raise InputError(
            f"images must have shape [images, {', '.join(map(str, size))}]{hint}, found {list(shape)}; "
            "clip.preprocess makes such arrays."
        )
    if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise InputError(
            f"images must be normalized floats, found {jnp.result_type(images)}; clip.preprocess makes such arrays."
        )


def check_token_ids(token_ids: Any, config: TextConfig) -> None:
    """Raises InputError unless token ids are integers `[..., tokens]` that fit the context length."""
    shape = jnp.shape(token_ids)
    if not jnp.issubdtype(jnp.result_type(token_ids), jnp.integer):
        raise InputError(f"token_ids must be integers, found {jnp.result_type(token_ids)}; clip.tokenize makes them.")
    if not shape or not 1 <= shape[-1] <= config.context_length:
        raise InputError(
            f"token_ids must have shape [..., tokens] with 1 to {config.context_length} tokens (the context length), "
            f"found {list(shape)}."
        )


def check_text_prompt(prompt: Any, config: TextConfig, tail_shape: tuple[int, ...]) -> None:
    """Raises InputError unless a text prompt fits the text transformer and classes with tails of this shape."""
    if not isinstance(prompt, TextPrompt):
        raise InputError(f"prompt must be a TextPrompt or None, found {type(prompt).__name__}.")
    if prompt.class_position not in CLASS_POSITIONS:
        raise InputError(f"class_position must be one of {list(CLASS_POSITIONS)}, found {prompt.class_position!r}.")
    classes, tail = tail_shape
    shape = _check_tokens("context", prompt.context, config.width, (2, 4))
    _check_class_axis("context", shape[:-2], classes)
    if 1 + shape[-2] + tail > config.context_length:
        raise InputError(
            f"The prompt is too long: 1 start token + {shape[-2]} context tokens + {tail} tokens of the longest class "
            f"name and its end are {1 + shape[-2] + tail}, the context length is {config.context_length}. "
            "Use fewer context tokens or shorter class names."
        )
    if prompt.deep is None:
        _check_no_layers(prompt)
        return
    deep = _check_tokens("deep", prompt.deep, config.width, (3, 5))
    _check_class_axis("deep", deep[1:-2], classes)
    if deep[-2] > shape[-2]:
        raise InputError(f"deep holds {deep[-2]} tokens a layer, but there are only {shape[-2]} context tokens.")
    if len(shape) == 4 and len(deep) == 5 and 1 not in (shape[0], deep[1]) and shape[0] != deep[1]:
        raise InputError(f"context is for {shape[0]} images, but deep is for {deep[1]}.")
    _check_layers(prompt.layers, deep[0], 1, config.layers, "the context stands before layer 0")


def check_visual_prompt(prompt: Any, config: VisionConfig, images: int, layer_prompts: Mapping[int, Any]) -> None:
    """Raises InputError unless a visual prompt fits the vision transformer, the number of images and the functions."""
    for layer, function in layer_prompts.items():
        if not 0 <= layer < config.layers:
            raise InputError(f"layer_prompts names layer {layer}, but layers go from 0 to {config.layers - 1}.")
        if not callable(function):
            raise InputError(f"layer_prompts[{layer}] must be a function of the tokens, found {function!r}.")
    if prompt is None:
        return
    if not isinstance(prompt, VisualPrompt):
        raise InputError(f"prompt must be a VisualPrompt or None, found {type(prompt).__name__}.")
    if prompt.placement not in PLACEMENTS:
        raise InputError(f"placement must be one of {list(PLACEMENTS)}, found {prompt.placement!r}.")
    if prompt.tokens is None and prompt.deep is None and not layer_prompts:
        raise InputError("The visual prompt is empty: give it tokens, deep prompts, or layer_prompts.")
    shape = None
    if prompt.tokens is not None:
        shape = _check_tokens("tokens", prompt.tokens, config.width, (2, 3))
        _check_image_axis("tokens", shape[:-2], images)
    if prompt.deep is None:
        _check_no_layers(prompt)
        return
    deep = _check_tokens("deep", prompt.deep, config.width, (3, 4))
    _check_image_axis("deep", deep[1:-2], images)
    if shape is not None and deep[-2] != shape[-2]:
        raise InputError(f"deep holds {deep[-2]} tokens a layer, but tokens holds {shape[-2]}; they must agree.")
    first, reason = (0, "") if shape is None else (1, "tokens stand before layer 0")
    _check_layers(prompt.layers, deep[0], first, config.layers, reason)
    both = sorted(set(prompt.layers) & set(layer_prompts))
    if both:
        raise InputError(f"Layers {both} have both a deep prompt and a function in layer_prompts; keep one of them.")


def check_made_prompt(tokens: Any, keep: Any, layer: int, config: ClipConfig, images: int) -> None:
    """Raises InputError unless what a function in layer_prompts returned are prompt tokens, and flags for them."""
    name = f"what layer_prompts[{layer}] returns"
    shape = _check_tokens(name, tokens, config.vision.width, (2, 3))
    _check_image_axis(name, shape[:-2], images)
    if keep is not None and (jnp.shape(keep) != (images, shape[-2]) or jnp.result_type(keep) != jnp.bool_):
        raise InputError(
            f"{name} must keep tokens by bool [{images}, {shape[-2]}], found {jnp.result_type(keep)} "
            f"{list(jnp.shape(keep))}."
        )


def check_features(image_features: Any, text_features: Any) -> None:
    """Raises InputError unless image features `[B, E]` and text features `[C, E]` or `[B, C, E]` fit together."""
    image, text = jnp.shape(image_features), jnp.shape(text_features)
    if len(image) != 2 or len(text) not in (2, 3) or image[-1] != text[-1] or (len(text) == 3 and image[0] != text[0]):
        raise InputError(
            "logits need image features [images, dim] and text features [classes, dim] or [images, classes, dim], "
            f"found {list(image)} and {list(text)}."
        )


def _check_tokens(name: str, tokens: Any, width: int, ranks: tuple[int, int]) -> tuple[int, ...]:
    shape = jnp.shape(tokens)
    if not ranks[0] <= len(shape) <= ranks[1]:
        raise InputError(f"{name} must have {ranks[0]} to {ranks[1]} axes, found shape {list(shape)}.")
    if shape[-1] != width:
        raise InputError(f"{name} must have the transformer's width {width} on its last axis, found {list(shape)}.")
    if 0 in shape:
        raise InputError(f"{name} holds no tokens: shape {list(shape)}; use at least one, or None.")
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.floating):
        raise InputError(f"{name} must be floats, found {jnp.result_type(tokens)}.")
    return shape


def _check_class_axis(name: str, leading: tuple[int, ...], classes: int) -> None:
    if leading and leading[-1] not in (1, classes):
        raise InputError(f"{name} is for {leading[-1]} classes, but there are {classes}; leading axes {list(leading)}.")


def _check_image_axis(name: str, leading: tuple[int, ...], images: int) -> None:
    if leading and leading[0] not in (1, images):
        raise InputError(f"{name} is for {leading[0]} images, but there are {images}.")


def _check_no_layers(prompt: TextPrompt | VisualPrompt) -> None:
    if prompt.deep_layers:
        raise InputError(f"deep_layers is {prompt.deep_layers}, but there are no deep prompts.")


def _check_layers(layers: tuple[int, ...], depth: int, first: int, stop: int, reason: str) -> None:
    if len(layers) != depth:
        raise InputError(f"deep holds prompts for {depth} layers, but deep_layers names {len(layers)}: {layers}.")
    if list(layers) != sorted(set(layers)):
        raise InputError(f"deep_layers must increase, found {layers}.")
    if layers[0] < first or layers[-1] >= stop:
        reason = f" ({reason})" if reason else ""
        raise InputError(f"deep_layers must lie between {first} and {stop - 1}{reason}, found {layers}.")
