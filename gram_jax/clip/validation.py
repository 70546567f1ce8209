"""Checks of the arguments of the forward passes, made on static shapes before tracing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from gram_jax.clip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from gram_jax.clip.prompts import CLASS_POSITIONS, PLACEMENTS, TextPrompt, VisualPrompt
from gram_jax.clip.slots import NORMS, PLACES, PROJECTIONS, Slots
from gram_jax.errors import InputError, require_known


def check_images(images: Any, config: VisionConfig | ResNetConfig) -> None:
    """Raises InputError unless images are floats `[images, size, size, channels]`."""
    shape, dtype = jnp.shape(images), jnp.result_type(images)
    size = [config.image_size, config.image_size, config.channels]
    if len(shape) != 4 or [*shape[1:]] != size or not jnp.issubdtype(dtype, jnp.floating):
        wanted = f"floats [images, {', '.join(map(str, size))}] from clip.preprocess"
        raise InputError(f"images are {dtype}{list(shape)}; expected {wanted}")


def check_token_ids(token_ids: Any, config: TextConfig) -> None:
    """Raises InputError unless token ids are integers `[..., tokens]` that fit the context length."""
    shape, dtype = jnp.shape(token_ids), jnp.result_type(token_ids)
    if not jnp.issubdtype(dtype, jnp.integer) or not shape or not 1 <= shape[-1] <= config.context_length:
        wanted = f"integers [..., 1 to {config.context_length} tokens], see clip.tokenize"
        raise InputError(f"token_ids are {dtype}{list(shape)}; expected {wanted}")


def check_text_prompt(prompt: Any, config: TextConfig, tail_shape: tuple[int, ...]) -> None:
    """Raises InputError unless a text prompt fits the text transformer and classes with tails of this shape."""
    if not isinstance(prompt, TextPrompt):
        raise InputError(f"prompt is of type {type(prompt).__name__}; expected TextPrompt or None")
    require_known("class_position", prompt.class_position, CLASS_POSITIONS)
    classes, tail = tail_shape
    shape = _check_tokens("context", prompt.context, config.width, (2, 4))
    _check_axis("context", "classes", shape[:-2][-1:], classes)
    first = int(config.start_token)
    length = first + shape[-2] + tail
    if length > config.context_length:
        raise InputError(
            f"the prompt has {length} tokens ({first} start token, {shape[-2]} context tokens, {tail} for the longest "
            f"class name and its end), the context length is {config.context_length}; shorten the context or the "
            "class names"
        )
    if prompt.deep is None:
        return _check_layers(prompt, range(0))
    deep = _check_tokens("deep", prompt.deep, config.width, (3, 5))
    _check_layers(prompt, range(1, config.layers))
    _check_axis("deep", "classes", deep[1:-2][-1:], classes)
    if deep[-2] > shape[-2]:
        raise InputError(f"deep has {deep[-2]} tokens per layer, but context has {shape[-2]}; use at most as many")
    if len(shape) == 4 and len(deep) == 5 and 1 not in (shape[0], deep[1]) and shape[0] != deep[1]:
        raise InputError(f"context is for {shape[0]} images, but deep is for {deep[1]}")


def require_visual_prompts(config: VisionConfig | ResNetConfig) -> VisionConfig:
    """Returns the configuration of an image tower that takes visual prompts; raises InputError for another one."""
    if not config.takes_prompts:
        raise InputError(
            "visual prompts join the tokens of a vision transformer, but this clip's image tower has none; use a tuner "
            "of the text side, such as coop"
        )
    return cast(VisionConfig, config)


def check_visual_prompt(
    prompt: Any, tower: VisionConfig | ResNetConfig, images: int, layer_prompts: Mapping[int, Any]
) -> None:
    """Raises InputError unless a visual prompt fits the vision transformer, the number of images and the functions."""
    if prompt is None and not layer_prompts:
        return
    config = require_visual_prompts(tower)
    for layer, function in layer_prompts.items():
        if not 0 <= layer < config.layers or not callable(function):
            raise InputError(
                f"layer_prompts[{layer}]={function!r}: expected a function for a layer from 0 to {config.layers - 1}"
            )
    if prompt is None:
        return
    if not isinstance(prompt, VisualPrompt):
        raise InputError(f"prompt is of type {type(prompt).__name__}; expected VisualPrompt or None")
    require_known("placement", prompt.placement, PLACEMENTS)
    if prompt.tokens is None and prompt.deep is None and not layer_prompts:
        raise InputError("the visual prompt is empty; give it tokens or deep, or pass layer_prompts")
    shape = None
    if prompt.tokens is not None:
        shape = _check_tokens("tokens", prompt.tokens, config.width, (2, 3))
        _check_axis("tokens", "images", shape[:-2], images)
    if prompt.deep is None:
        return _check_layers(prompt, range(0))
    deep = _check_tokens("deep", prompt.deep, config.width, (3, 4))
    _check_layers(prompt, range(0 if shape is None else 1, config.layers))
    _check_axis("deep", "images", deep[1:-2], images)
    if shape is not None and deep[-2] != shape[-2]:
        raise InputError(f"deep has {deep[-2]} tokens per layer, but tokens has {shape[-2]}; they must agree")
    both = sorted(set(prompt.layers) & set(layer_prompts))
    if both:
        raise InputError(f"layers {both} have both a deep prompt and a function in layer_prompts; keep one of them")


def check_made_prompt(tokens: Any, keep: Any, layer: int, config: ClipConfig, images: int) -> None:
    """Raises InputError unless a function in layer_prompts returned prompt tokens, and flags that fit them."""
    name = f"the result of layer_prompts[{layer}]"
    shape = _check_tokens(name, tokens, config.vision.width, (2, 3))
    _check_axis(name, "images", shape[:-2], images)
    if keep is not None:
        found, wanted = f"{jnp.result_type(keep)}{list(jnp.shape(keep))}", f"bool[{images}, {shape[-2]}]"
        if found != wanted:
            raise InputError(f"{name} has keep of {found}; expected {wanted}")


def check_slots(slots: Any, config: TextConfig | VisionConfig | ResNetConfig, images: int | None = None) -> None:
    """Raises InputError unless slots fit a transformer, and the number of images if it is the vision transformer."""
    if slots is None:
        return
    if not isinstance(slots, Slots):
        raise InputError(f"slots is of type {type(slots).__name__}; expected Slots or None")
    if isinstance(config, ResNetConfig):
        raise InputError("slots belong to the blocks of a transformer, but this clip's image tower is a ResNet")
    layers = slots.layers
    if list(layers) != sorted(set(layers)) or not set(layers) <= set(range(config.layers)):
        raise InputError(f"slots.layers={layers}: expected increasing layer numbers from 0 to {config.layers - 1}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(slots):
        if jnp.shape(leaf)[:1] != (len(layers),):
            name = f"slots{jax.tree_util.keystr(path)}"
            raise InputError(
                f"{name} has shape {list(jnp.shape(leaf))}; expected first an axis of {len(layers)} layers"
            )
    if slots.prompts is not None:
        shape = _check_tokens("slots.prompts", slots.prompts, config.width, (3, 3 if images is None else 4))
        _check_axis("slots.prompts", "images", shape[1:-2], images or 0)
    _check_slot_parts(slots, config.width)


def _check_slot_parts(slots: Slots, width: int) -> None:
    for key in slots.adapters:
        require_known("slots.adapters", key, PLACES)
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {}
    for key, (down, up) in slots.low_rank.items():
        require_known("slots.low_rank", key, PROJECTIONS)
        rank = jnp.shape(down)[-1]
        expected |= {f"low_rank[{key!r}][0]": (down, (width, rank)), f"low_rank[{key!r}][1]": (up, (rank, width))}
    for key, deltas in slots.norms.items():
        require_known("slots.norms", key, NORMS)
        for part, delta in deltas.items():
            require_known(f"slots.norms[{key!r}]", part, ("scale", "bias"))
            expected[f"norms[{key!r}][{part!r}]"] = delta, (width,)
    for name, (leaf, shape) in expected.items():
        if jnp.shape(leaf)[1:] != shape:
            raise InputError(f"slots.{name} has shape {list(jnp.shape(leaf))}; expected [layers, {str([*shape])[1:]}")


def check_features(image_features: Any, text_features: Any) -> None:
    """Raises InputError unless image features `[B, E]` and text features `[C, E]` or `[B, C, E]` fit together."""
    image, text = jnp.shape(image_features), jnp.shape(text_features)
    if len(image) != 2 or len(text) not in (2, 3) or image[-1] != text[-1] or (len(text) == 3 and image[0] != text[0]):
        raise InputError(
            f"image features {list(image)} and text features {list(text)} do not fit; expected [images, dim], and "
            "[classes, dim] or [images, classes, dim]"
        )


def _check_tokens(name: str, tokens: Any, width: int, ranks: tuple[int, int]) -> tuple[int, ...]:
    shape, dtype = jnp.shape(tokens), jnp.result_type(tokens)
    ranked = ranks[0] <= len(shape) <= ranks[1]
    if not ranked or shape[-1] != width or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"{name} is {dtype}{list(shape)}; expected floats with {ranks[0]} to {ranks[1]} axes, at least one token, "
            f"and width {width} on the last axis"
        )
    return shape


def _check_axis(name: str, axis: str, size: tuple[int, ...], expected: int) -> None:
    if size and size[0] not in (1, expected):
        raise InputError(f"{name} is for {size[0]} {axis}, but there are {expected}")


def _check_layers(prompt: TextPrompt | VisualPrompt, allowed: range) -> None:
    if prompt.deep is None:
        if prompt.deep_layers:
            raise InputError(f"deep_layers={prompt.deep_layers}: there are no deep prompts")
        return
    layers, depth = prompt.layers, prompt.deep.shape[0]
    if len(layers) != depth or list(layers) != sorted(set(layers)) or not set(layers) <= set(allowed):
        raise InputError(
            f"deep_layers={layers}: expected {depth} increasing layer numbers (one per deep prompt) from "
            f"{allowed.start} to {allowed.stop - 1}"
        )
