"""CPT: one simplex frame per cluster of classes; images stay near their text, and text near its frozen features."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gram_jax.clip.modules import at_least_float32
from gram_jax.errors import InputError, require_int
from gram_jax.objectives.base import (
    Reference,
    Regularizer,
    Regularizers,
    by_class,
    mean_of_classes,
    mean_of_images,
    read,
    scaled,
    text_of_images,
    valid_classes,
    weighted_mean,
)
from gram_jax.objectives.etf import simplex_loss

Array = jax.Array

_MAX_CLUSTERS, _CLUSTER_SIZE = 16, 4  # by default: at most so many clusters, of so many classes on average


def cpt(
    weight: float = 1.0, *, simplex: float = 0.25, convergence: float = 0.15, rotation: float = 0.10
) -> Regularizers:
    """Makes the terms of cluster-aware simplex frames, class convergence and rotation stabilization.

    With M clusters of the K classes, k_m classes in cluster m, C the cosines of text features t, and t^ those of the
    frozen clip,

        simplex       (1 / M) sum_m  sum_{i != j in m} (C_ij + 1 / (k_m - 1))^2
        convergence   (1 / K) sum_k (1 / N_k) sum_{i in k} |f_i - t_k|^2
        rotation      (1 / K) sum_k |t_k - t^_k|_1

    As published, the first also counts the diagonal of C, which adds the number of classes over M, a constant. Clusters
    of one class add nothing; for a cluster of more than d + 1 classes, which no frame in d dimensions holds, the least
    possible value is subtracted (see `npt`). In the second, K counts the classes of the batch. All features are
    normalized. If text features depend on the image, the first and third term are averaged over the images, and the
    second uses each image's own.

    Args:
      weight: multiplies all three.
      simplex, convergence, rotation: the weights of the terms.

    Returns:
      `{"cpt_simplex": ..., "cpt_convergence": ..., "cpt_rotation": ...}`, without those of weight 0. They read
      `reference.clusters` (see `class_clusters`) and `reference.text_features`.

    Example:
      >>> {name: part.weight for name, part in cpt(2.0).items()}
      {'cpt_simplex': 0.5, 'cpt_convergence': 0.3, 'cpt_rotation': 0.2}

    Reference:
      CPT (arXiv 2605.11939), after a note on it; the three weights are the published ones.
    """
    parts = {
        "cpt_simplex": Regularizer(simplex, _simplex, reads=("clusters",), sides=("text",)),
        "cpt_convergence": Regularizer(convergence, _convergence),
        "cpt_rotation": Regularizer(rotation, _rotation, reads=("text_features",), sides=("text",)),
    }
    return scaled(weight, parts)


def class_clusters(text_features: ArrayLike, num_clusters: int | None = None, seed: int = 0) -> np.ndarray:
    """Returns the clusters of classes for `cpt`: k-means on the frozen text features, once before tuning.

    Args:
      text_features: of the frozen clip, float `[classes, embed]`, without classes that only pad a shape.
      num_clusters: M; None: one cluster per 4 classes, at most 16.
      seed: seed of the initialization.

    Returns:
      int32 `[classes]`, numbers from 0 to M - 1.

    Example:
      >>> class_clusters(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 2).tolist() in ([0, 0, 1], [1, 1, 0])
      True

    Reference:
      CPT (arXiv 2605.11939): one k-means on frozen text features. The default number of clusters is not published.
    """
    features = np.asarray(text_features, np.float32)
    if features.ndim != 2 or not len(features):
        raise InputError(f"class_clusters needs text features [classes, embed], not {list(features.shape)}")
    count = min(_MAX_CLUSTERS, max(1, len(features) // _CLUSTER_SIZE)) if num_clusters is None else num_clusters
    require_int("num_clusters", count)
    if count > len(features):
        raise InputError(f"num_clusters={count}: there are only {len(features)} classes")
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # On one thread, so that the clusters depend on the seed alone.
    with threadpool_limits(limits=1):
        return KMeans(count, n_init=10, random_state=seed).fit_predict(features).astype(np.int32)


def _simplex(prompt: Any, outputs: Any, labels: Any, reference: Reference) -> Array:
    vectors = at_least_float32(outputs.text_features)
    clusters = read("cpt_simplex", reference, "clusters", vectors.shape[-2:-1])
    valid = valid_classes(reference, len(clusters))
    groups = (clusters[:, None] == clusters[None]) & valid[:, None] & valid[None]
    size = jnp.sum(groups, axis=-1)
    # M, as each class is one k_m-th of its cluster.
    number = jnp.sum(jnp.where(valid, 1.0 / jnp.maximum(size, 1), 0.0))
    return mean_of_images(simplex_loss(vectors, groups) / jnp.maximum(number, 1.0), reference)


def _convergence(prompt: Any, outputs: Any, labels: Array, reference: Reference) -> Array:
    texts, images = at_least_float32(outputs.text_features), at_least_float32(outputs.image_features)
    distance = jnp.sum((images - text_of_images(texts, labels)) ** 2, axis=-1)
    return weighted_mean(*by_class(distance, labels, texts.shape[-2], reference.weights))


def _rotation(prompt: Any, outputs: Any, labels: Any, reference: Reference) -> Array:
    features = at_least_float32(outputs.text_features)
    frozen = read("cpt_rotation", reference, "text_features", features.shape[-2:])
    return mean_of_classes(jnp.sum(jnp.abs(features - frozen), axis=-1), reference)
