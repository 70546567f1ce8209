"""What a regularizer is given besides the prompted outputs, and the means that all of them take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError

if TYPE_CHECKING:
    from gram_jax.tuners import Outputs

Array = jax.Array

# A pure function (prompt, outputs, labels, reference) -> scalar; regularizers by name, each with its weight.
Regularizer = Callable[[Any, "Outputs", Array, "Reference"], Array]
Regularizers = dict[str, tuple[float, Regularizer]]

_EXCLUDED = -1e9  # the logit of a class that only fills up the shape
_SHORT = 1e-12  # squared length below which a vector has no direction

_REMEDY = {
    "logits": "pass what gram_jax.tuners.frozen_outputs says of the same images and classes",
    "image_features": "pass what gram_jax.tuners.frozen_outputs says of the same images",
    "text_features": "pass what gram_jax.tuners.frozen_outputs says of the same classes",
    "counts": "pass the number of training images of each class",
    "clusters": "pass what gram_jax.objectives.class_clusters makes of the frozen text features",
}


class Reference(NamedTuple):
    """What a batch is held against: the frozen clip's outputs, and what is known of its classes and images.

    Every field may be None where nothing reads it; `gram_jax.objectives.make(spec).reads` says which ones are read.

    Attributes:
      logits: of the frozen clip, float `[images, classes]`.
      image_features: of the frozen clip, normalized, float `[images, embed]`.
      text_features: of the frozen clip, normalized, float `[classes, embed]`, e.g. of many templates, as
        `textual_diversity` makes them.
      valid: bool `[classes]`, False for classes that only fill up a shape. None: all count.
      weights: non-negative float `[images]`, e.g. 0 for images that only fill up a batch. None: all weigh the same.
      counts: training images of each class, `[classes]`.
      clusters: the cluster of each class, int `[classes]`, as `class_clusters` makes them.

    Example:
      >>> Reference(text_features=jnp.eye(3), counts=jnp.array([16, 8, 4])).logits is None
      True
    """

    logits: Array | None = None
    image_features: Array | None = None
    text_features: Array | None = None
    valid: Array | None = None
    weights: Array | None = None
    counts: Array | None = None
    clusters: Array | None = None


def as_reference(reference: Reference | Outputs | None) -> Reference:
    """A `Reference` of what a caller gives: one, the frozen clip's `Outputs`, or None."""
    if reference is None:
        return Reference()
    if isinstance(reference, Reference):
        return reference
    return Reference(reference.logits, reference.image_features, reference.text_features)


def read(name: str, reference: Any, field: str, *like: tuple[int, ...]) -> Array:
    """A field of the reference; ValueError where it is None or of none of the shapes `like` (not checked if empty)."""
    value = getattr(as_reference(reference), field)
    if value is None:
        raise InputError(f"{name} reads reference.{field}, which is None; {_REMEDY[field]}.")
    if like and jnp.shape(value) not in like:
        raise InputError(
            f"{name} needs reference.{field} of shape {' or '.join(str(list(shape)) for shape in like)}, found "
            f"{list(jnp.shape(value))}; {_REMEDY[field]}."
        )
    value = jnp.asarray(value)
    return at_least_float32(value) if jnp.issubdtype(value.dtype, jnp.floating) else value


def exclude(logits: Array, valid: Array | None) -> Array:
    """The logits, so low where a class does not count that it has no probability."""
    return logits if valid is None else jnp.where(valid, logits, _EXCLUDED)


def log_probabilities(logits: Array, reference: Reference) -> Array:
    """log softmax over the classes that count; the others have a log-probability that is finite and meaningless."""
    return jax.nn.log_softmax(exclude(at_least_float32(logits), reference.valid), axis=-1)


def weighted_mean(values: Array, weights: Array | None, axis: int | None = None) -> Array:
    """sum w x / sum w along an axis (None: all), 0 where there is no weight; what has none may hold any value."""
    if weights is None:
        return jnp.mean(values, axis=axis)
    weights = jnp.broadcast_to(weights, values.shape).astype(values.dtype)
    total = jnp.sum(weights, axis=axis)
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights, axis=axis) / jnp.where(total > 0, total, 1.0)


def mean_of_images(values: Array, reference: Reference) -> Array:
    """The mean of one value an image, `[images]`."""
    return weighted_mean(values, reference.weights)


def mean_of_classes(values: Array, reference: Reference) -> Array:
    """The mean of one value a class, `[classes]`, or of one an image and class, `[images, classes]`."""
    each = weighted_mean(values, reference.valid, axis=-1)
    return each if each.ndim == 0 else mean_of_images(each, reference)


def valid_classes(reference: Reference, num_classes: int) -> Array:
    """Which classes count, bool `[classes]`."""
    return jnp.ones(num_classes, bool) if reference.valid is None else jnp.asarray(reference.valid, bool)


def text_of_images(text_features: Array, labels: Array) -> Array:
    """The text feature of each image's own class, `[images, embed]`; of any class for a label outside of them."""
    labels = jnp.clip(labels, 0, text_features.shape[-2] - 1)
    if text_features.ndim == 2:
        return text_features[labels]
    return jnp.take_along_axis(text_features, labels[:, None, None], axis=1)[:, 0]


def by_class(values: Array, labels: Array, num_classes: int, weights: Array | None) -> tuple[Array, Array]:
    """The mean of the images of each class, and which classes have images.

    Args:
      values: `[images, ...]`.
      labels: int `[images]`; an image with a label outside the classes counts nowhere.
      num_classes: how many classes there are.
      weights: non-negative `[images]`, or None.

    Returns:
      `[classes, ...]`, 0 for a class without images, and bool `[classes]`.
    """
    member = jax.nn.one_hot(labels, num_classes, dtype=values.dtype)
    if weights is not None:
        member = member * jnp.asarray(weights, values.dtype)[:, None]
        values = jnp.where(jnp.reshape(weights > 0, (-1,) + (1,) * (values.ndim - 1)), values, 0.0)
    total = jnp.sum(member, axis=0)
    sums = jnp.tensordot(member.T, values, axes=1, precision="highest")
    return sums / jnp.reshape(jnp.where(total > 0, total, 1.0), (-1,) + (1,) * (values.ndim - 1)), total > 0


def normalize(vectors: Array) -> Array:
    """The vectors of the last axis at length 1; those without a direction stay near 0."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, _SHORT))
