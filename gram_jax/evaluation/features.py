"""Features of images and of class names: frozen ones, and those under one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import objectives
from gram_jax.batching import map_batches, pad_to, padded_batches, round_up
from gram_jax.clip import Classes, Clip, encode_image, encode_text
from gram_jax.errors import InputError, require_int
from gram_jax.tuners import Tuner

# Rows of a compiled text program: of one template, and of many at once; tokens are padded to a multiple of the third.
_CLASSES, _TEXTS, _TOKENS = 64, 256, 8


def class_features(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> jax.Array:
    """Returns one feature per class: the mean over templates of its normalized text features, normalized again.

    t_k = normalize( mean_j normalize( text(template_j(name_k)) ) )

    Args:
      clip: the clip, with its tokenizer.
      names, templates: class names, which may be equal, as in ImageNet; texts with one "{}" each.

    Returns:
      float32 ``[classes, embed]``, normalized.

    Reference:
      Radford et al. (2021), section 3.1.4, prompt ensembling in embedding space.
    """
    if not templates:
        raise InputError("templates is empty; give at least one text with one {} in it")
    total = sum(_text_features(clip, names, [template], _CLASSES, normalize=True) for template in templates)
    return jax.device_put(total / np.linalg.norm(total, axis=-1, keepdims=True))


def averaged_class_features(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Returns one feature per class whose templates are averaged before they are normalized, as PromptSRC does.

    Args:
      clip, names, templates: as in `class_features`.

    Returns:
      float32 ``[classes, embed]``, normalized, on the host.
    """
    features = _text_features(clip, names, templates, _TEXTS, normalize=False)
    return np.asarray(objectives.textual_diversity(jnp.reshape(features, (len(templates), len(names), -1))))


def image_features(clip: Clip, images: Sequence[Any], batch_size: int = 256) -> np.ndarray:
    """Returns frozen features of any number of images, computed batch by batch with one compiled program.

    Args:
      clip: the clip, with its image transform.
      images: whatever ``Clip.preprocess`` accepts; may be a lazy sequence.
      batch_size: images per step.

    Returns:
      float32 ``[images, embed]``, normalized, on the host.

    Example:
      >>> from gram_jax.testing import tiny_clip
      >>> image_features(tiny_clip(), [np.zeros((12, 12, 3), np.uint8)] * 3, batch_size=2).shape[0]
      3
    """
    require_images(images, batch_size)

    def encode(positions: np.ndarray) -> Any:
        read, place = np.unique(positions, return_inverse=True)  # the last position may be repeated
        return encode_image(clip, jax.device_put(clip.preprocess([images[i] for i in read.tolist()])[place]))

    return map_batches(encode, np.arange(len(images)), min(batch_size, len(images)))


def prompted_features(
    tuner: Tuner,
    prompt: Any,
    clip: Clip,
    classes: Classes | jax.Array,
    valid: np.ndarray,
    images: Any,
    *,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features of images and of classes under one prompt, computed batch by batch.

    Args:
      tuner, prompt, clip: the tuner, one prompt of it (not a stack of them), and the frozen clip.
      classes, valid: the class list and a bool for each class, from `pad_classes`.
      images: images in the form that the tuner requires; any object with a length whose slices are arrays.
      batch_size: images per step.

    Returns:
      Image features `[images, embed_dim]` and text features `[valid classes, embed_dim]`, float32, on the host. Text
      features that depend on the image are averaged over the images.
    """
    require_images(images, batch_size)
    apply = jax.jit(tuner.apply)
    features: list[np.ndarray] = []
    texts: Any = 0.0
    for batch, count in padded_batches(images, batch_size):
        outputs = apply(prompt, clip, classes, batch.astype(np.float32))
        features.append(np.asarray(outputs.image_features, np.float32)[:count])
        own = np.asarray(outputs.text_features, np.float32)
        texts += count / len(images) * (own if own.ndim == 2 else own[:count].mean(0))
    return np.concatenate(features), texts[np.asarray(valid)].astype(np.float32)


def require_images(images: Any, batch_size: int) -> None:
    """Raises InputError if there are no images or the batch size is below 1."""
    require_int("batch_size", batch_size)
    if not len(images):
        raise InputError("there are no images; give at least one")


def _text_features(
    clip: Clip, names: Sequence[str], templates: Sequence[str], block: int, normalize: bool
) -> np.ndarray:
    """Returns features ``[templates * classes, embed]``, in blocks of few shapes: many datasets share one program."""
    rows = [clip.class_tokens(list(names), each, allow_duplicates=True).token_ids for each in templates]
    assert clip.tokenizer is not None  # it has read the names
    width = min(round_up(max(ids.shape[1] for ids in rows), _TOKENS), clip.config.text.context_length)
    # Tokens after the end-of-text token are never read.
    filled = [pad_to(ids, len(ids), width, fill=clip.tokenizer.eos_token_id) for ids in rows]
    return map_batches(
        lambda ids: encode_text(clip, jax.device_put(ids), normalize=normalize), np.concatenate(filled), block
    )
