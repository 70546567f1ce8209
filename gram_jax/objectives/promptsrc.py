"""PromptSRC: prompted features and logits stay near the frozen clip's, whose text features average many templates."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError
from gram_jax.objectives.base import (
    Reference,
    Regularizer,
    Regularizers,
    log_probabilities,
    mean_of_classes,
    mean_of_images,
    normalize,
    read,
    scaled,
)

Array = jax.Array


def promptsrc(weight: float = 1.0, *, text: float = 25.0, image: float = 10.0, logits: float = 1.0) -> Regularizers:
    """Makes the three self-consistency terms of PromptSRC.

    With t^, f^, p^ = softmax(z^) the frozen clip's text features, image features and probabilities, d the width of
    features, B images and K classes,

        text     sum_k |t_k - t^_k|_1 / (K d)
        image    sum_b |f_b - f^_b|_1 / (B d)
        logits   sum_bk p^_bk (log p^_bk - log p_bk) / (B K)

    The last one is KL(p^ || p) over the number of *elements*, as in the public code: the mean over images divided by K.

    Args:
      weight: multiplies all three.
      text, image, logits: the weights of the terms.

    Returns:
      `{"promptsrc_text": ..., "promptsrc_image": ..., "promptsrc_logits": ...}`, without those of weight 0. They read
      `reference.text_features` (see `textual_diversity`), `image_features` of the same views of the same images, and
      `logits` of these two.

    Example:
      >>> sorted(promptsrc(2.0, image=0.0)), promptsrc(2.0)["promptsrc_text"].weight
      (['promptsrc_logits', 'promptsrc_text'], 50.0)

    Reference:
      "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", section 3.2, mutual agreement; its
      public code.
    """
    parts = _distances("promptsrc", text=text, image=image)
    return scaled(weight, parts | {"promptsrc_logits": Regularizer(logits, _logits, reads=("logits",))})


def prometar(weight: float = 1.0, *, text: float = 50.0, image: float = 20.0) -> Regularizers:
    """Makes the two regularizers whose gradient ProMetaR modulates: two terms of `promptsrc` with other weights.

    Args:
      weight: multiplies both.
      text, image: the weights of the mean absolute differences of text and of image features.

    Returns:
      `{"prometar_text": ..., "prometar_image": ...}`, without those of weight 0. They read `reference.text_features`
      (see `textual_diversity`) and `reference.image_features`.

    Example:
      >>> {name: part.weight for name, part in prometar().items()}
      {'prometar_text': 50.0, 'prometar_image': 20.0}

    Reference:
      "Prompt Learning via Meta-Regularization", the weights of its public code.
    """
    return scaled(weight, _distances("prometar", text=text, image=image))


def textual_diversity(features: Array) -> Array:
    """Returns the frozen text features that `promptsrc` and `prometar` read: one per class, from many templates.

        t^_k = u_k / |u_k|,    u_k = mean_j text(template_j(name_k)),

    the mean of features that are *not* normalized. (CLIP's own ensembles average normalized ones.)

    Args:
      features: float `[templates, classes, embed]`, of `encode_text(clip, token_ids, normalize=False)`.

    Returns:
      Normalized, at least float32 `[classes, embed]`.

    Example:
      >>> mean = textual_diversity(jnp.array([[[3.0, 0.0]], [[0.0, 4.0]]]))
      >>> bool(jnp.allclose(mean, jnp.array([[0.6, 0.8]])))
      True

    Reference:
      "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", section 3.2, textual diversity. Its
      60 templates are `gram_jax.data.templates.ensemble("promptsrc_60")`; mean before norm as in the public code.
    """
    if jnp.ndim(features) != 3 or not jnp.shape(features)[0]:
        raise InputError(
            f"textual_diversity needs features [templates, classes, embed] of at least one template, not "
            f"{list(jnp.shape(features))}"
        )
    return normalize(jnp.mean(at_least_float32(jnp.asarray(features)), axis=0))


def _distances(method: str, **weights: float) -> Regularizers:
    """Returns the mean absolute differences from the frozen features of the sides "text" and "image"."""

    def distance(side: str, prompt: Any, outputs: Any, labels: Any, reference: Reference) -> Array:
        features = at_least_float32(getattr(outputs, f"{side}_features"))
        frozen = read(f"{method}_{side}", reference, f"{side}_features", features.shape[-2:])
        mean = mean_of_classes if side == "text" else mean_of_images
        return mean(jnp.mean(jnp.abs(features - frozen), axis=-1), reference)

    return {
        f"{method}_{side}": Regularizer(weight, functools.partial(distance, side), (f"{side}_features",), (side,))
        for side, weight in weights.items()
    }


def _logits(prompt: Any, outputs: Any, labels: Any, reference: Reference) -> Array:
    own = log_probabilities(outputs.logits, reference)
    frozen = log_probabilities(read("promptsrc_logits", reference, "logits", jnp.shape(outputs.logits)), reference)
    return mean_of_classes(jnp.exp(frozen) * (frozen - own), reference)
