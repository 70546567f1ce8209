"""Zero-shot classification: class names in templates as the weights of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.clip.forward import encode_image, encode_text
from gram_jax.clip.model import Clip
from gram_jax.errors import InputError

_CLASSES, _TOKENS = 64, 8  # texts run in blocks of so many classes, padded to a multiple of so many tokens


def class_features(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> jax.Array:
    """One feature a class: the mean over templates of its normalized text features, normalized again.

    t_k = normalize( mean_j normalize( text(template_j(name_k)) ) )

    Args:
      clip: the clip, with its tokenizer.
      names: class names; two classes may have one name, as in ImageNet.
      templates: texts with one "{}" each; several make an ensemble.

    Returns:
      float32 ``[classes, embed]``, normalized.

    Raises:
      InputError: for an empty list of templates, or names that the tokenizer refuses.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> class_features(tiny_clip(), ["cat", "dog"], ["a photo of a {}.", "{}"]).shape[0]
      2

    Reference:
      Radford et al. (2021), section 3.1.4, prompt ensembling in embedding space.
    """
    if not templates:
        raise InputError("no template was given; give at least one text with one {} in it")
    total = sum(_text_features(clip, names, template) for template in templates)
    return jnp.asarray(total / np.linalg.norm(total, axis=-1, keepdims=True))


def _text_features(clip: Clip, names: Sequence[str], template: str) -> np.ndarray:
    """Normalized text features, computed in blocks of few shapes: many datasets share one compiled program."""
    token_ids = np.asarray(clip.class_tokens(list(names), template, allow_duplicates=True).token_ids)
    classes, tokens = token_ids.shape
    width = min(-(-tokens // _TOKENS) * _TOKENS, clip.config.text.context_length)
    # What stands behind the end-of-text token cannot matter; whole rows are repeated and dropped again.
    token_ids = np.pad(token_ids, ((0, 0), (0, width - tokens)), constant_values=clip.tokenizer.eos_token_id)
    token_ids = np.pad(token_ids, ((0, -classes % _CLASSES), (0, 0)), mode="edge")
    blocks = np.split(token_ids, len(token_ids) // _CLASSES)
    return np.concatenate([np.asarray(encode_text(clip, block)) for block in blocks])[:classes]


def image_features(clip: Clip, images: Sequence[Any], batch_size: int = 256) -> np.ndarray:
    """Frozen features of any number of images, computed batch by batch.

    The last batch is padded, so that one compiled step serves all.

    Args:
      clip: the clip, with its image transform.
      images: whatever ``Clip.preprocess`` takes; may be a lazy sequence.
      batch_size: images a step.

    Returns:
      float32 ``[images, embed]``, normalized, on the host.

    Raises:
      InputError: for no images, or a batch size below 1.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> image_features(tiny_clip(), [np.zeros((12, 12, 3), np.uint8)] * 3, batch_size=2).shape[0]
      3

    Reference:
      Our own choice.
    """
    if batch_size < 1 or not len(images):
        raise InputError(
            f"{len(images)} images in batches of {batch_size}: give at least one image, and a batch of at least 1"
        )
    batch_size = min(batch_size, len(images))
    features = []
    for start in range(0, len(images), batch_size):
        batch = [images[i] for i in range(start, min(start + batch_size, len(images)))]
        pixels = np.pad(clip.preprocess(batch), ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)))
        features.append(np.asarray(encode_image(clip, pixels))[: len(batch)])
    return np.concatenate(features)
