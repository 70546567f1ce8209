"""The contract of regularizers, and the means over images and classes that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError
from gram_jax.tuners import Outputs

Array = jax.Array

EXCLUDED = -1e9  # the logit of a class that must get no probability
_SHORT = 1e-12  # squared length below which a vector has no direction

_REMEDY = {
    "logits": "pass those of gram_jax.tuners.frozen_outputs for the same images and classes",
    "image_features": "pass those of gram_jax.tuners.frozen_outputs for the same images",
    "text_features": "pass those of gram_jax.tuners.frozen_outputs for the same classes",
    "counts": "pass the number of training images per class",
    "clusters": "pass the result of gram_jax.objectives.class_clusters for the frozen text features",
}


class Reference(NamedTuple):
    """The outputs of the frozen clip for a batch, and facts about its classes and images.

    A field may be None if nothing reads it; `gram_jax.objectives.parse(text).reads` lists the fields that are read.

    Attributes:
      logits: of the frozen clip, float `[images, classes]`.
      image_features: of the frozen clip, normalized, float `[images, embed]`.
      text_features: of the frozen clip, normalized, float `[classes, embed]`; the mean over templates in
        `textual_diversity`.
      valid: bool `[classes]`, False for classes that only pad a shape. None: all classes count.
      weights: non-negative float `[images]`, 0 for images that only pad a batch. None: equal weights.
      counts: training images per class, `[classes]`.
      clusters: the cluster of each class, int `[classes]`, see `class_clusters`.
    """

    logits: Array | None = None
    image_features: Array | None = None
    text_features: Array | None = None
    valid: Array | None = None
    weights: Array | None = None
    counts: Array | None = None
    clusters: Array | None = None


class Regularizer(NamedTuple):
    """A penalty with its weight.

    Attributes:
      weight: its weight in the loss.
      function: `function(prompt, outputs, labels, reference) -> scalar`: of the prompt, the `Outputs` of the prompted
        clip, the labels int `[images]`, and a `Reference`. A pure function.
      reads: the fields of the `Reference` that it reads.
      sides: the features that it acts on, "text", "image" or both.
    """

    weight: float
    function: Callable[[Any, Outputs, Any, Reference], Array]
    reads: tuple[str, ...] = ()
    sides: tuple[str, ...] = ("text", "image")


Regularizers = dict[str, Regularizer]
Classification = Callable[[Outputs, Array, Reference], Array]  # (outputs, labels, reference) -> scalar


def scaled(weight: float, parts: Mapping[str, Regularizer]) -> Regularizers:
    """Multiplies the weights of regularizers; leaves out those whose weight is 0."""
    products = {name: part._replace(weight=weight * part.weight) for name, part in parts.items()}
    return {name: part for name, part in products.items() if part.weight != 0}


def as_reference(reference: Reference | Outputs | None) -> Reference:
    """Returns a `Reference`, from one, from the `Outputs` of the frozen clip, or from None."""
    if isinstance(reference, Reference):
        return reference
    return Reference() if reference is None else Reference(*reference)


def read(name: str, reference: Any, field: str, *shapes: tuple[int, ...]) -> Array:
    """Returns a field of the reference, at least float32 if a float; InputError if it is None or of other shapes."""
    value = getattr(as_reference(reference), field)
    if value is None:
        raise InputError(f"{name} reads reference.{field}, which is None; {_REMEDY[field]}")
    if shapes and jnp.shape(value) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise InputError(
            f"{name} needs reference.{field} of shape {wanted}, not {list(jnp.shape(value))}; {_REMEDY[field]}"
        )
    value = jnp.asarray(value)
    return at_least_float32(value) if jnp.issubdtype(value.dtype, jnp.floating) else value


def exclude(logits: Array, valid: Array | None) -> Array:
    """Lowers the logits of classes that do not count until their probability is 0."""
    return logits if valid is None else jnp.where(valid, logits, EXCLUDED)


def log_probabilities(logits: Array, reference: Reference) -> Array:
    """Returns log softmax over the classes that count; the others get a value that is finite but meaningless."""
    return jax.nn.log_softmax(exclude(at_least_float32(logits), reference.valid), axis=-1)


def weighted_mean(values: Array, weights: Array | None, axis: int | None = None) -> Array:
    """Returns sum w x / sum w along an axis (None: all axes), 0 if all weights are 0.

    A value of weight 0 may be anything, NaN included.
    """
    if weights is None:
        return jnp.mean(values, axis=axis)
    weights = jnp.broadcast_to(weights, values.shape).astype(values.dtype)
    total = jnp.sum(weights, axis=axis)
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights, axis=axis) / jnp.where(total > 0, total, 1.0)


def mean_of_images(values: Array, reference: Reference) -> Array:
    """Returns the mean of one value per image, `[images]`; a scalar, which no image changes, is returned as it is."""
    return weighted_mean(values, reference.weights) if values.ndim else values


def mean_of_classes(values: Array, reference: Reference) -> Array:
    """Returns the mean of one value per class, `[classes]`, or per image and class, `[images, classes]`."""
    return mean_of_images(weighted_mean(values, reference.valid, axis=-1), reference)


def valid_classes(reference: Reference, num_classes: int) -> Array:
    """Returns which classes count, bool `[classes]`."""
    return jnp.ones(num_classes, bool) if reference.valid is None else jnp.asarray(reference.valid, bool)


def text_of_images(text_features: Array, labels: Array) -> Array:
    """Returns the text feature of each image's class, `[images, embed]`; of some class if the label is no class."""
    labels = jnp.clip(labels, 0, text_features.shape[-2] - 1)
    if text_features.ndim == 2:
        return text_features[labels]
    return jnp.take_along_axis(text_features, labels[:, None, None], axis=1)[:, 0]


def by_class(values: Array, labels: Array, num_classes: int, weights: Array | None) -> tuple[Array, Array]:
    """Averages values `[images, ...]` over the images of each class, with non-negative weights `[images]` or None.

    Returns the means `[classes, ...]`, 0 for a class without images, and which classes have images, bool `[classes]`.
    An image whose label is no class is ignored.
    """
    member = jax.nn.one_hot(labels, num_classes, dtype=values.dtype)
    if weights is not None:
        member = member * jnp.asarray(weights, values.dtype)[:, None]
        values = jnp.where(jnp.reshape(weights > 0, (-1,) + (1,) * (values.ndim - 1)), values, 0.0)
    total = jnp.sum(member, axis=0)
    sums = jnp.tensordot(member.T, values, axes=1, precision="highest")
    return sums / jnp.reshape(jnp.where(total > 0, total, 1.0), (-1,) + (1,) * (values.ndim - 1)), total > 0


def normalize(vectors: Array) -> Array:
    """Scales the vectors of the last axis to length 1; vectors of length 0 stay near 0."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, _SHORT))
