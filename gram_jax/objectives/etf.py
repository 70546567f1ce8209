"""The simplex equiangular tight frame: the most separated directions that K classes can have."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.errors import InputError

Array = jax.Array


def simplex_etf(num_classes: int, dim: int, seed: int | None = None) -> np.ndarray:
    """Returns the vertices of a simplex equiangular tight frame.

        M = sqrt(K / (K - 1)) (I - 1 1^T / K) U^T,    <m_k, m_j> = -1 / (K - 1) for j != k,    |m_k| = 1

    The columns of I - 1 1^T / K span K - 1 dimensions, so K - 1 orthonormal columns of U are enough: a frame of K
    classes exists in d dimensions if K <= d + 1.

    Args:
      num_classes: K, at least 2.
      dim: d, at least K - 1.
      seed: draws U, the rotation of the frame. None: the first coordinates.

    Returns:
      float64 `[classes, dim]`, one vertex per row.

    Example:
      >>> vertices = simplex_etf(3, 2)
      >>> (vertices @ vertices.T).round(6).tolist()
      [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]

    Reference:
      Papyan, Han and Donoho, "Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training".
    """
    if num_classes < 2 or num_classes > dim + 1:
        raise InputError(
            f"there is no simplex equiangular tight frame of {num_classes} classes in {dim} dimensions, only of 2 to "
            f"{dim + 1}; cluster the classes with class_clusters and give each cluster a frame"
        )
    # Orthonormal rows that are orthogonal to (1, ..., 1): all but the first left factor of the centered identity.
    basis = np.linalg.qr(np.column_stack([np.ones(num_classes), np.eye(num_classes)[:, :-1]]))[0][:, 1:]
    rotation = np.eye(dim)
    if seed is not None:
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    return np.sqrt(num_classes / (num_classes - 1)) * basis @ rotation[:, : num_classes - 1].T


def simplex_floor(num_classes: Any, dim: int) -> Array:
    """Returns the least mean squared difference between the cosines of K unit vectors and those of a simplex frame.

        min over unit t of  sum_{i != j} (<t_i, t_j> + 1 / (K - 1))^2 / (K (K - 1))
            = K max(0, K - 1 - d) / (d (K - 1)^2)

    It is 0 up to K = d + 1, where the frame exists. Beyond, sum_ij <t_i, t_j>^2 >= K^2 / d (Welch) and
    |sum_i t_i|^2 >= 0, with equality for centered tight frames of equal norm, which always exist there.

    Args:
      num_classes: K, a number or array.
      dim: d.

    Returns:
      float32, of the shape of `num_classes`; 0 for K below 2.

    Example:
      >>> simplex_floor(513, 512).item(), round(simplex_floor(1000, 512).item() * 1000 * 999, 1)
      (0.0, 952.1)

    Reference:
      Welch, "Lower Bounds on the Maximum Cross Correlation of Signals", from which it is derived.
    """
    count = jnp.asarray(num_classes, jnp.float32)
    return count * jnp.maximum(0.0, count - 1.0 - dim) / (dim * jnp.maximum(count - 1.0, 1.0) ** 2)


def simplex_loss(vectors: Array, groups: Array) -> Array:
    """Returns the squared differences between the cosines within groups of classes and those of a simplex frame.

        L_m = sum_{i != j in m} (<t_i, t_j> + 1 / (k_m - 1))^2 - k_m (k_m - 1) floor(k_m, d),    0 if k_m < 2

    The normalized vectors are `[..., classes, dim]`; the groups are bool `[classes, classes]`, True for two classes of
    one group, all False for a class that does not count. The result `[...]` is the sum of L_m over the groups.
    """
    cosines = jnp.einsum("...id,...jd->...ij", vectors, vectors, precision="highest")
    size = jnp.sum(groups, axis=-1).astype(cosines.dtype)  # [classes], of the group of each class
    wanted = -1.0 / jnp.maximum(size - 1.0, 1.0)
    pairs = groups & ~jnp.eye(len(groups), dtype=bool)
    distance = jnp.sum(jnp.where(pairs, (cosines - wanted[:, None]) ** 2, 0.0), axis=(-2, -1))
    return distance - jnp.sum(jnp.maximum(size - 1.0, 0.0) * simplex_floor(size, vectors.shape[-1]))
