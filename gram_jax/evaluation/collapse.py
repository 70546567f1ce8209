"""Measures of neural collapse of text features, of class means of image features, and of their alignment.

All are pure functions. Shapes: N images, K classes, D features. A mask, bool or float [N], excludes images with 0; None
includes all. `valid`, bool [K], is False for classes that do not count; None includes all. `centered` removes the mean
of a set of vectors first, because CLIP's features lie in a narrow cone and frames are about directions from its axis.
Shapes that do not fit raise InputError.

Reference: Papyan, Han and Donoho, "Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training"
(2020), for NC1 to NC4; the relation to generalization of prompts: "Neural Collapse Anchored Prompt Tuning for
Generalizable Vision-Language Models".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError
from gram_jax.objectives.base import by_class, normalize, weighted_mean

Array = jax.Array


def class_means(features: Array, labels: Array, num_classes: int, mask: Array | None = None) -> tuple[Array, Array]:
    """Returns the mean feature of the images of each class, float [K, D], and which classes have images, bool [K].

    m_k = sum_{i : y_i = k} w_i f_i / sum_{i : y_i = k} w_i,  0 without images.

    Args:
      features, labels: float [N, D] and int [N]; an image with a label outside 0..num_classes-1 is ignored.
      num_classes, mask: K, and the weights w, see the module.

    Example:
      >>> means, present = class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 2]), 3)
      >>> means[:, 0].tolist(), present.tolist()
      ([2.0, 0.0, 5.0], [True, False, True])
    """
    _check(features, labels, mask)
    return by_class(at_least_float32(features), labels, num_classes, mask)


def within_class_variability(features: Array, labels: Array, num_classes: int, mask: Array | None = None) -> Array:
    """Returns NC1: the scatter of images around the mean of their class, relative to the scatter of the means.

        NC1 = tr(S_W S_B^+) / K
        S_W = mean_k mean_{i in k} (f_i - m_k)(f_i - m_k)^T,    S_B = mean_k (m_k - m)(m_k - m)^T

    with m = mean_k m_k over the K classes with images; every class has the same weight, whatever its number of images.
    It is 0 if every image is at its class mean, NaN for fewer than two classes with images.

    Args:
      features, labels, num_classes, mask: see `class_means`; here every label is in 0..num_classes-1.
    """
    means, present = class_means(features, labels, num_classes, mask)
    features, count = at_least_float32(features), jnp.sum(present)
    # Directions and variances of S_B come from the means themselves: their squares would lose half of the digits.
    _, sizes, directions = jnp.linalg.svd(_center(means, present), full_matrices=False)
    kept = sizes > sizes[0] * max(means.shape) * jnp.finfo(sizes.dtype).eps
    own = means[jnp.clip(labels, 0, num_classes - 1)]
    along = jnp.matmul(features - own, directions.T, precision="highest")
    scatter = weighted_mean(by_class(along**2, labels, num_classes, mask)[0], present[:, None], axis=0)
    return jnp.where(count > 1, jnp.sum(jnp.where(kept, scatter / jnp.where(kept, sizes, 1.0) ** 2, 0.0)), jnp.nan)


def equiangularity(vectors: Array, valid: Array | None = None, *, centered: bool = True) -> tuple[Array, Array]:
    """Returns NC2: mean and standard deviation of  cos(v_i, v_j) + 1 / (K - 1)  over i != j.

    The mean is the excess of the cosines over those of a simplex equiangular tight frame. Both are 0 for such a frame,
    NaN for fewer than two classes.

    Args:
      vectors, valid, centered: text features or class means, float [K, D]; see the module.

    Example:
      >>> [round(float(value), 4) for value in equiangularity(jnp.eye(3), centered=False)]
      [0.5, 0.0]
    """
    vectors, valid = _prepare(vectors, valid, centered)
    vectors = normalize(vectors)
    cosines = jnp.matmul(vectors, vectors.T, precision="highest")
    pairs = valid[:, None] & valid[None] & ~jnp.eye(len(vectors), dtype=bool)
    excess = cosines + 1.0 / jnp.maximum(jnp.sum(valid) - 1, 1)
    return jnp.mean(excess, where=pairs), jnp.std(excess, where=pairs)


def simplex_distance(
    vectors: Array, others: Array | None = None, valid: Array | None = None, *, centered: bool = True
) -> Array:
    """Returns the distance of products of vectors, at any scale, from those of a simplex equiangular tight frame.

    || G / |G|_F - (I - 1 1^T / K) / sqrt(K - 1) ||_F,    G_ij = <v_i, u_j>

    For one set of vectors (u = v) this is their distance from a frame; for two, text features and class means of
    images, it is small if both are near the same frame. It is from 0 to 2, NaN for fewer than two classes. For
    K > D + 1, where no frame exists, it is at least sqrt(2 - 2 sqrt(D / (K - 1))).

    Args:
      vectors, others, valid, centered: v and u, float [K, D], u = v by default; see the module.

    Example:
      >>> round(float(simplex_distance(jnp.eye(4))), 4), round(float(simplex_distance(jnp.eye(4), -jnp.eye(4))), 4)
      (0.0, 2.0)

    Reference: Zhu et al., "A Geometric Analysis of Neural Collapse with Unconstrained Features", NC2 and NC3.
    """
    vectors, others, valid = _prepare_both(vectors, vectors if others is None else others, valid, centered)
    count = jnp.sum(valid)
    frame = jnp.where(valid[:, None] & valid[None], jnp.eye(len(vectors)) - 1.0 / count, 0.0) / jnp.sqrt(count - 1.0)
    return jnp.where(count > 1, jnp.linalg.norm(_gram(vectors, others, valid) - frame), jnp.nan)


def duality(
    text_features: Array, image_means: Array, valid: Array | None = None, *, centered: bool = True
) -> tuple[Array, Array]:
    """Returns NC3: whether text features and class means of images are equal, up to a rotation and exactly.

    || G_t / |G_t|_F - G_m / |G_m|_F ||_F  of the two Gram matrices, and  mean_k cos(t_k, m_k);  0 and 1 if the two are
    equal, NaN without a class.

    Args:
      text_features, image_means, valid, centered: t and m, float [K, D]; see the module.
    """
    texts, means, valid = _prepare_both(text_features, image_means, valid, centered)
    distance = jnp.linalg.norm(_gram(texts, texts, valid) - _gram(means, means, valid))
    cosine = jnp.mean(jnp.sum(normalize(texts) * normalize(means), axis=-1), where=valid)
    return jnp.where(jnp.any(valid), distance, jnp.nan), cosine


def nearest_mean_agreement(
    logits: Array, features: Array, means: Array, present: Array | None = None, mask: Array | None = None
) -> Array:
    """Returns NC4: the share of images for which the classifier agrees with the nearest class mean.

    mean_i [ argmax_k logits_ik = argmin_k |f_i - m_k| ],  NaN if no image is included.

    Args:
      logits, features: float [N, K] and [N, D].
      means, present: from `class_means`, float [K, D] and bool [K]; by default, all classes have a mean.
      mask: see the module.
    """
    shapes = [jnp.shape(each) for each in (logits, features, means)]
    if [len(shape) for shape in shapes] != [2, 2, 2] or shapes[0] != (shapes[1][0], shapes[2][0]):
        raise InputError(f"expected logits [N, K], features [N, D] and means [K, D]; found {shapes}")
    _check(features, jnp.argmax(logits, axis=-1), mask)
    features, means = at_least_float32(features), at_least_float32(means)
    # |f - m|^2 = |f|^2 - 2 <f, m> + |m|^2; the first term is the same for all classes.
    distance = jnp.sum(means**2, axis=-1) - 2.0 * jnp.matmul(features, means.T, precision="highest")
    distance = distance if present is None else jnp.where(present, distance, jnp.inf)
    agree = (jnp.argmin(distance, axis=-1) == jnp.argmax(logits, axis=-1)).astype(jnp.float32)
    weights = jnp.ones(len(agree)) if mask is None else mask.astype(jnp.float32)
    return jnp.sum(agree * weights) / jnp.sum(weights)


def neural_collapse(
    logits: Array,
    image_features: Array,
    text_features: Array,
    labels: Array,
    mask: Array | None = None,
    *,
    centered: bool = True,
) -> dict[str, Array]:
    """Returns all measures of this module for a prompted clip on labeled images.

    Measures of text features include all classes; those of image means, and of both, the classes with images.

    Args:
      logits, image_features, labels: float [N, K], float [N, D], normalized, and int [N], in 0..K-1.
      text_features: normalized, float [K, D], or [N, K, D] if they depend on the image: then the normalized mean of
        each class over the images counts.
      mask, centered: see the module.

    Returns:
      float [] each: "nc1"; "nc2_text_mean", "nc2_text_std", "nc2_image_mean", "nc2_image_std" of `equiangularity`;
      "nc3_gram", "nc3_cosine" of `duality`; "nc4"; "simplex_text", "simplex_image", "simplex_both" of
      `simplex_distance`.

    Example:
      >>> from gram_jax.objectives import simplex_etf
      >>> text, labels = jnp.asarray(simplex_etf(3, 4), jnp.float32), jnp.array([0, 1, 2, 0])
      >>> measures = neural_collapse(text[labels] @ text.T, text[labels], text, labels)
      >>> bool(measures["simplex_both"] < 1e-5), float(measures["nc4"])
      (True, 1.0)
    """
    if jnp.ndim(text_features) == 3:
        _check(image_features, labels, mask)
        chosen = None if mask is None else jnp.reshape(mask, (-1, 1, 1))
        text_features = normalize(weighted_mean(at_least_float32(text_features), chosen, axis=0))
    num_classes = jnp.shape(text_features)[0]
    means, present = class_means(image_features, labels, num_classes, mask)
    measures = {"nc1": within_class_variability(image_features, labels, num_classes, mask)}
    for name, vectors, valid in (("text", text_features, None), ("image", means, present)):
        measures[f"nc2_{name}_mean"], measures[f"nc2_{name}_std"] = equiangularity(vectors, valid, centered=centered)
        measures[f"simplex_{name}"] = simplex_distance(vectors, None, valid, centered=centered)
    measures["nc3_gram"], measures["nc3_cosine"] = duality(text_features, means, present, centered=centered)
    measures["simplex_both"] = simplex_distance(text_features, means, present, centered=centered)
    measures["nc4"] = nearest_mean_agreement(logits, image_features, means, present, mask)
    return measures


def _prepare(vectors: Array, valid: Array | None, centered: bool) -> tuple[Array, Array]:
    """Returns the vectors, 0 if they do not count, and which count."""
    shape, mask = jnp.shape(vectors), None if valid is None else jnp.shape(valid)
    if len(shape) != 2 or mask not in (None, shape[:1]):
        raise InputError(f"expected vectors [K, D] and valid [K] or None; found {shape} and {mask}")
    vectors = at_least_float32(jnp.asarray(vectors))
    valid = jnp.ones(len(vectors), bool) if valid is None else jnp.asarray(valid, bool)
    return (_center(vectors, valid) if centered else jnp.where(valid[:, None], vectors, 0.0)), valid


def _prepare_both(vectors: Array, others: Array, valid: Array | None, centered: bool) -> tuple[Array, Array, Array]:
    if jnp.shape(vectors) != jnp.shape(others):
        raise InputError(f"expected two sets of vectors [K, D]; found {jnp.shape(vectors)} and {jnp.shape(others)}")
    (vectors, counted), (others, _) = (_prepare(each, valid, centered) for each in (vectors, others))
    return vectors, others, counted


def _center(vectors: Array, valid: Array) -> Array:
    middle = weighted_mean(vectors, valid[:, None], axis=0)
    return jnp.where(valid[:, None], vectors - middle, 0.0)


def _gram(vectors: Array, others: Array, valid: Array) -> Array:
    """Returns the products of valid vectors as a matrix of Frobenius norm 1."""
    products = jnp.where(valid[:, None] & valid[None], jnp.matmul(vectors, others.T, precision="highest"), 0.0)
    length = jnp.linalg.norm(products)
    return products / jnp.where(length > 0, length, 1.0)


def _check(features: Array, labels: Array, mask: Array | None) -> None:
    shape, count, found = jnp.shape(features), jnp.shape(labels), None if mask is None else jnp.shape(mask)
    if len(shape) != 2 or count != shape[:1] or found not in (None, count):
        raise InputError(
            f"expected features [N, D], labels [N] and a mask [N] or None; found {shape}, {count} and {found}"
        )
