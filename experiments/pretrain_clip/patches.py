"""A clip with patches of another size, to continue its training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

import gram_jax as gram
from gram_jax.clip.config import VisionConfig
from gram_jax.errors import InputError


def with_patches(clip: gram.Clip, patch_size: int) -> gram.Clip:
    """Returns a clip whose image tower cuts the same images into patches of another size.

        w' = U^T w U    for each channel and each output

    U resizes one axis of a new patch to the old size, linearly. So a new patch is embedded as it was when resized to an
    old one. Positions are resized in the same way. The features differ from those before: the clip needs training.

    Args:
      clip: a clip with a vision transformer.
      patch_size: the side of the new patches, in pixels; it must divide that of the images.

    Reference:
      "FlexiViT: One Model for All Patch Sizes", section 3.4, where the resize of embeddings is a pseudo-inverse.
    """
    vision = clip.config.vision
    if not isinstance(vision, VisionConfig) or vision.image_size % patch_size:
        raise InputError(f"patch_size={patch_size}: the clip needs a vision transformer, with sides that it divides")
    params, old, width = dict(clip.params["vision"]), vision.patch_size, vision.width
    resize = jax.image.resize(jnp.eye(patch_size), (old, patch_size), "linear")
    kernel = params["patch_embedding"].reshape(old, old, vision.channels, width)
    kernel = jnp.einsum("ai,bj,abcw->ijcw", resize, resize, kernel)
    params["patch_embedding"] = kernel.reshape(-1, width)
    first, before, after = int(vision.class_token), vision.image_size // old, vision.image_size // patch_size
    grid = params["position_embedding"][first:].reshape(before, before, width)
    grid = jax.image.resize(grid, (after, after, width), "linear").reshape(-1, width)
    params["position_embedding"] = jnp.concatenate([params["position_embedding"][:first], grid])
    config = dataclasses.replace(clip.config, vision=dataclasses.replace(vision, patch_size=patch_size))
    return clip.replace(params={**clip.params, "vision": params}, config=config)
