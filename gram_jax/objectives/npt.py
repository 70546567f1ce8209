"""NPT: text features and class means of image features collapse to one simplex equiangular tight frame."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.objectives.base import (
    Reference,
    Regularizer,
    Regularizers,
    by_class,
    mean_of_images,
    normalize,
    scaled,
    text_of_images,
    valid_classes,
    weighted_mean,
)
from gram_jax.objectives.etf import simplex_loss

Array = jax.Array


def npt(weight: float = 1.0, *, text: float = 1.0, image: float = 1.0, centered: bool = False) -> Regularizers:
    """Makes the regularizers of language-modality collapse and multi-modality isomorphism.

    With t_k the text features of K classes in d dimensions, and m_k = normalize(mean of f_i over the batch's images of
    class k),

        text    sum_{i != j} (<t_i, t_j> + 1 / (K - 1))^2 / (K (K - 1)) - floor(K, d)
        image   mean over the batch's classes of |m_k - t_k|^2

    The first is 0 exactly if the text features form a simplex frame; the second pulls the class means of the images
    onto the same frame. A frame exists for K <= d + 1. Beyond, `simplex_floor` is the least value that any features
    reach, and it is subtracted so that the optimum remains 0; gradients do not change. If there are many more classes
    than dimensions, `cpt` gives each cluster of classes a frame of its own.

    If text features depend on the image, the first term is averaged over the images, and the second uses the normalized
    mean of t_k over the images of class k.

    Args:
      weight, text, image: `weight` multiplies the weights `text` and `image` of the two terms.
      centered: subtract the mean before vectors are normalized: over all classes in the first term, over the batch's
        classes in the second. CLIP's features lie in two narrow cones, one per modality; centering leaves the cones in
        place and asks for frames around their axes.

    Returns:
      `{"npt_text": ..., "npt_image": ...}`, without those of weight 0. They read nothing of the frozen clip.

    Example:
      >>> from gram_jax.objectives import simplex_etf
      >>> from gram_jax.tuners import Outputs
      >>> frame, labels = jnp.asarray(simplex_etf(4, 6, seed=0), jnp.float32), jnp.array([2, 0, 2])
      >>> outputs = Outputs(None, frame[labels], frame)
      >>> [abs(round(float(part.function({}, outputs, labels, Reference())), 5)) for part in npt().values()]
      [0.0, 0.0]

    Reference:
      "Neural Collapse Anchored Prompt Tuning for Generalizable Vision-Language Models", whose text names the two
      regularizers. Their formulas, weights, floor and centering are a reconstruction.
    """

    def collapse(prompt: Any, outputs: Any, labels: Any, reference: Reference) -> Array:
        vectors = at_least_float32(outputs.text_features)
        valid = valid_classes(reference, vectors.shape[-2])
        if centered:
            vectors = center(vectors, valid)
        count = jnp.sum(valid)
        each = simplex_loss(vectors, valid[:, None] & valid[None]) / jnp.maximum(count * (count - 1), 1)
        return mean_of_images(each, reference)

    def isomorphism(prompt: Any, outputs: Any, labels: Array, reference: Reference) -> Array:
        texts, images = at_least_float32(outputs.text_features), at_least_float32(outputs.image_features)
        num_classes = texts.shape[-2]
        means, present = by_class(images, labels, num_classes, reference.weights)
        if texts.ndim == 3:
            texts = normalize(by_class(text_of_images(texts, labels), labels, num_classes, reference.weights)[0])
        if centered:
            means, texts = center(means, present), center(texts, present)
        return weighted_mean(jnp.sum((normalize(means) - texts) ** 2, axis=-1), present)

    parts = {"npt_text": Regularizer(text, collapse, sides=("text",)), "npt_image": Regularizer(image, isomorphism)}
    return scaled(weight, parts)


def center(vectors: Array, chosen: Array) -> Array:
    """Returns the directions `[..., classes, dim]` from the mean of the chosen classes."""
    middle = weighted_mean(vectors, jnp.broadcast_to(chosen[:, None], vectors.shape), axis=-2)
    return normalize(vectors - middle[..., None, :])
