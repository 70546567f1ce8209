"""Measures of neural collapse of text features, of class means of image features, and of their alignment."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError
from gram_jax.objectives.base import by_class, normalize, weighted_mean

Array = jax.Array


def class_means(features: Array, labels: Array, num_classes: int, mask: Array | None = None) -> tuple[Array, Array]:
    """The mean feature of each class's images.

    m_k = sum_{i : y_i = k} w_i f_i / sum_{i : y_i = k} w_i

    Args:
      features: float [N, D].
      labels: int [N], in 0..K-1; an image with another label counts nowhere.
      num_classes: K.
      mask: bool or float [N]; 0 leaves an image out. None keeps all.

    Returns:
      float [K, D], 0 for a class without images, and bool [K], which classes have images.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> means, present = class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 2]), 3)
      >>> means[:, 0].tolist(), present.tolist()
      ([2.0, 0.0, 5.0], [True, False, True])

    Reference:
      Standard.
    """
    _check(features, labels, mask)
    return by_class(at_least_float32(features), labels, num_classes, mask)


def within_class_variability(features: Array, labels: Array, num_classes: int, mask: Array | None = None) -> Array:
    """NC1: how far images scatter around the mean of their class, measured by how far the means lie apart.

        NC1 = tr(S_W S_B^+) / K
        S_W = mean_k mean_{i in k} (f_i - m_k)(f_i - m_k)^T,    S_B = mean_k (m_k - m)(m_k - m)^T

    with m = mean_k m_k over the K classes that have images: every class weighs the same, however many images it has.

    Args:
      features: float [N, D].
      labels: int [N], in 0..num_classes-1.
      num_classes: the number of classes.
      mask: bool or float [N]; 0 leaves an image out. None keeps all.

    Returns:
      float []; 0 where every image is at its class mean, NaN for fewer than two classes with images.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> features, labels = jnp.array([[0.0], [2.0], [4.0], [6.0]]), jnp.array([0, 0, 1, 1])
      >>> round(float(within_class_variability(features, labels, 2)), 4)
      0.125

    Reference:
      Papyan, Han and Donoho, "Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training".
    """
    means, present = class_means(features, labels, num_classes, mask)
    features, count = at_least_float32(features), jnp.sum(present)
    # The directions and variances of S_B from the means themselves: their squares would lose half of the digits.
    _, sizes, directions = jnp.linalg.svd(_centre(means, present), full_matrices=False)
    kept = sizes > sizes[0] * max(means.shape) * jnp.finfo(sizes.dtype).eps
    own = means[jnp.clip(labels, 0, num_classes - 1)]
    along = jnp.matmul(features - own, directions.T, precision="highest")
    scatter = weighted_mean(by_class(along**2, labels, num_classes, mask)[0], present[:, None], axis=0)
    return jnp.where(count > 1, jnp.sum(jnp.where(kept, scatter / jnp.where(kept, sizes, 1.0) ** 2, 0.0)), jnp.nan)


def equiangularity(vectors: Array, valid: Array | None = None, *, centered: bool = True) -> tuple[Array, Array]:
    """NC2: how much larger the cosines of different classes are than a simplex frame's, and how unequal they are.

    The mean and the standard deviation of  cos(v_i, v_j) + 1 / (K - 1)  over i != j.

    Args:
      vectors: text features or class means, float [K, D].
      valid: bool [K], False for classes that do not count. None: all do.
      centered: remove the mean of the vectors first. CLIP's features lie in a narrow cone; a statement about frames is
        one about directions from its axis.

    Returns:
      float [] twice; both 0 for a simplex equiangular tight frame, NaN for fewer than two classes.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> [round(float(value), 4) for value in equiangularity(jnp.eye(3), centered=False)]
      [0.5, 0.0]

    Reference:
      Papyan, Han and Donoho (2020), the maximal-angle and equiangularity measures.
    """
    vectors, valid = _prepare(vectors, valid, centered)
    vectors = normalize(vectors)
    cosines = jnp.matmul(vectors, vectors.T, precision="highest")
    pairs = valid[:, None] & valid[None] & ~jnp.eye(len(vectors), dtype=bool)
    count = jnp.sum(valid)
    excess = cosines + 1.0 / jnp.maximum(count - 1, 1)
    mean = jnp.mean(excess, where=pairs)
    return mean, jnp.std(excess, where=pairs)


def simplex_distance(
    vectors: Array, others: Array | None = None, valid: Array | None = None, *, centered: bool = True
) -> Array:
    """How far products of vectors, at any scale, are from those of a simplex equiangular tight frame.

    || G / |G|_F - (I - 1 1^T / K) / sqrt(K - 1) ||_F,    G_ij = <v_i, u_j>

    With one set of vectors (u = v) it says how near these are to a frame; with two, text features and class means of
    images, whether both are near one and the same frame.

    Args:
      vectors: v, float [K, D].
      others: u, float [K, D]. None: the vectors themselves.
      valid: bool [K], False for classes that do not count. None: all do.
      centered: remove the mean of each set first.

    Returns:
      float [], from 0 to 2; NaN for fewer than two classes. With K > D + 1, where no frame exists, it is at least
      sqrt(2 - 2 sqrt(D / (K - 1))).

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> round(float(simplex_distance(jnp.eye(4))), 4), round(float(simplex_distance(jnp.eye(4), -jnp.eye(4))), 4)
      (0.0, 2.0)

    Reference:
      Zhu et al., "A Geometric Analysis of Neural Collapse with Unconstrained Features", the measures NC2 and NC3.
    """
    others = vectors if others is None else others
    _check_alike(vectors, others)
    (vectors, valid), (others, _) = (_prepare(part, valid, centered) for part in (vectors, others))
    count = jnp.sum(valid)
    both = valid[:, None] & valid[None]
    frame = jnp.where(both, jnp.eye(len(vectors)) - 1.0 / count, 0.0) / jnp.sqrt(count - 1.0)
    products = jnp.matmul(vectors, others.T, precision="highest")
    distance = jnp.linalg.norm(_of_length_1(jnp.where(both, products, 0.0)) - frame)
    return jnp.where(count > 1, distance, jnp.nan)


def duality(
    text_features: Array, image_means: Array, valid: Array | None = None, *, centered: bool = True
) -> tuple[Array, Array]:
    """NC3: whether text features and class means of images are the same, up to a rotation and exactly.

    || G_t / |G_t|_F - G_m / |G_m|_F ||_F  of the two Gram matrices, and  mean_k cos(t_k, m_k).

    Args:
      text_features: t, float [K, D].
      image_means: m, float [K, D].
      valid: bool [K], False for classes that do not count, e.g. without images. None: all do.
      centered: remove the mean of each set first.

    Returns:
      float [] twice: 0 and 1 where the two are the same; NaN for no class.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> turned = jnp.array([[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
      >>> text = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
      >>> [round(float(value), 4) for value in duality(text, turned, centered=False)]
      [0.0, 0.0]

    Reference:
      Papyan, Han and Donoho (2020), convergence to self-duality; the comparison of Gram matrices is our own choice.
    """
    _check_alike(text_features, image_means)
    (texts, valid), (means, _) = (_prepare(part, valid, centered) for part in (text_features, image_means))
    both = valid[:, None] & valid[None]
    grams = [
        _of_length_1(jnp.where(both, jnp.matmul(part, part.T, precision="highest"), 0.0)) for part in (texts, means)
    ]
    cosine = jnp.mean(jnp.sum(normalize(texts) * normalize(means), axis=-1), where=valid)
    return jnp.where(jnp.any(valid), jnp.linalg.norm(grams[0] - grams[1]), jnp.nan), cosine


def nearest_mean_agreement(
    logits: Array, features: Array, means: Array, present: Array | None = None, mask: Array | None = None
) -> Array:
    """NC4: how often the classifier says what the nearest class mean says.

    mean_i [ argmax_k logits_ik = argmin_k |f_i - m_k| ]

    Args:
      logits: float [N, K].
      features: float [N, D].
      means: float [K, D], as `class_means` makes them.
      present: bool [K], which classes have a mean; others are nobody's nearest. None: all do.
      mask: bool or float [N]; 0 leaves an image out. None keeps all.

    Returns:
      float32 [], from 0 to 1; NaN if nothing is left.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> float(nearest_mean_agreement(jnp.eye(2), jnp.array([[1.0], [0.8]]), jnp.array([[1.0], [0.0]])))
      0.5

    Reference:
      Papyan, Han and Donoho (2020), simplification to the nearest class center.
    """
    shapes = [jnp.shape(part) for part in (logits, features, means)]
    if [len(shape) for shape in shapes] != [2, 2, 2] or shapes[0] != (shapes[1][0], shapes[2][0]):
        raise InputError(f"expected logits [N, K], features [N, D] and means [K, D]; found {shapes}")
    _check(features, jnp.argmax(logits, axis=-1), mask)
    features, means = at_least_float32(features), at_least_float32(means)
    # |f - m|^2 = |f|^2 - 2 <f, m> + |m|^2, of which the first is the same for all classes.
    distance = jnp.sum(means**2, axis=-1) - 2.0 * jnp.matmul(features, means.T, precision="highest")
    if present is not None:
        distance = jnp.where(present, distance, jnp.inf)
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
    """All measures of this module of a prompted clip on labeled images, for logs.

    Those of text features take all classes, those of image means and of both the classes that have images.

    Args:
      logits: float [N, K].
      image_features: normalized, float [N, D].
      text_features: normalized, float [K, D], or [N, K, D] where they depend on the image: then the normalized mean of
        each class over the images counts.
      labels: int [N], in 0..K-1.
      mask: bool or float [N]; 0 leaves an image out. None keeps all.
      centered: remove the mean of the text features, and of the image means, in NC2, NC3 and the distances.

    Returns:
      float [] each: "nc1"; "nc2_text_mean", "nc2_text_std", "nc2_image_mean", "nc2_image_std" of `equiangularity`;
      "nc3_gram", "nc3_cosine" of `duality`; "nc4"; "simplex_text", "simplex_image", "simplex_both" of
      `simplex_distance`.

    Raises:
      InputError: the shapes do not fit.

    Example:
      >>> from gram_jax.objectives import simplex_etf
      >>> text, labels = jnp.asarray(simplex_etf(3, 4), jnp.float32), jnp.array([0, 1, 2, 0])
      >>> measures = neural_collapse(text[labels] @ text.T, text[labels], text, labels)
      >>> bool(measures["simplex_both"] < 1e-5), float(measures["nc4"])
      (True, 1.0)

    Reference:
      Papyan, Han and Donoho (2020); the relation to generalization of prompts: "Neural Collapse Anchored Prompt Tuning
      for Generalizable Vision-Language Models".
    """
    if jnp.ndim(text_features) == 3:
        _check(image_features, labels, mask)
        chosen = None if mask is None else jnp.reshape(mask, (-1, 1, 1))
        text_features = normalize(weighted_mean(at_least_float32(text_features), chosen, axis=0))
    num_classes = jnp.shape(text_features)[0]
    means, present = class_means(image_features, labels, num_classes, mask)
    measures = {"nc1": within_class_variability(image_features, labels, num_classes, mask)}
    for name, vectors, valid in (("text", text_features, None), ("image", means, present)):
        angles = equiangularity(vectors, valid, centered=centered)
        measures[f"nc2_{name}_mean"], measures[f"nc2_{name}_std"] = angles
        measures[f"simplex_{name}"] = simplex_distance(vectors, None, valid, centered=centered)
    measures["nc3_gram"], measures["nc3_cosine"] = duality(text_features, means, present, centered=centered)
    measures["simplex_both"] = simplex_distance(text_features, means, present, centered=centered)
    measures["nc4"] = nearest_mean_agreement(logits, image_features, means, present, mask)
    return measures


def _prepare(vectors: Array, valid: Array | None, centered: bool) -> tuple[Array, Array]:
    """The vectors, 0 where they do not count, and which count."""
    if jnp.ndim(vectors) != 2 or (valid is not None and jnp.shape(valid) != jnp.shape(vectors)[:1]):
        raise InputError(
            f"expected vectors [K, D] and valid [K] or None; found {jnp.shape(vectors)} and "
            f"{None if valid is None else jnp.shape(valid)}"
        )
    vectors = at_least_float32(jnp.asarray(vectors))
    valid = jnp.ones(len(vectors), bool) if valid is None else jnp.asarray(valid, bool)
    return (_centre(vectors, valid) if centered else jnp.where(valid[:, None], vectors, 0.0)), valid


def _centre(vectors: Array, valid: Array) -> Array:
    middle = weighted_mean(vectors, valid[:, None], axis=0)
    return jnp.where(valid[:, None], vectors - middle, 0.0)


def _of_length_1(matrix: Array) -> Array:
    length = jnp.linalg.norm(matrix)
    return matrix / jnp.where(length > 0, length, 1.0)


def _check(features: Array, labels: Array, mask: Array | None) -> None:
    shape, count = jnp.shape(features), jnp.shape(labels)
    if len(shape) != 2 or count != shape[:1] or (mask is not None and jnp.shape(mask) != count):
        raise InputError(
            f"expected features [N, D], labels [N] and a mask [N] or None; found {shape}, {count} and "
            f"{None if mask is None else jnp.shape(mask)}"
        )


def _check_alike(vectors: Array, others: Array) -> None:
    if jnp.shape(vectors) != jnp.shape(others):
        raise InputError(f"expected two sets of vectors [K, D]; found {jnp.shape(vectors)} and {jnp.shape(others)}")
