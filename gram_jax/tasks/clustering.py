"""k-means: centroids on the host, assignment on all devices."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_MANY = 200  # above so many clusters, careful seeding costs more than it brings
_SMALLEST_ROWS, _SMALLEST_CLUSTERS = 256, 16
_LARGEST = 1 << 26  # distances at once


def kmeans(
    features: np.ndarray,
    k: int,
    *,
    seed: int,
    weights: np.ndarray | None = None,
    iterations: int = 15,
    restarts: int = 1,
    sample: int | None = None,
) -> np.ndarray:
    """Centroids of k clusters, by Lloyd's iterations.

        min over c_1, ..., c_k of   sum_i w_i min_j |x_i - c_j|^2

    Up to 200 clusters start from k-means++, more from rows drawn evenly. One thread does it, so that the result hangs
    on the seed alone and not on how many threads there are.

    Args:
      features: float `[rows, dim]`.
      k: clusters, from 1 to the number of rows.
      seed: the seed of the start.
      weights: w, float `[rows]`, >= 0; default: 1.
      iterations: most iterations.
      restarts: starts, of which the best counts.
      sample: most rows that are looked at; more are sampled evenly. Default: all.

    Returns:
      float32 `[k, dim]`.

    Raises:
      ValueError: if there are fewer rows (or rows of the sample) than clusters.

    Example:
      >>> rows = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]])
      >>> sorted(kmeans(rows, 2, seed=0).tolist())
      [[0.0, 1.0], [9.0, 1.0]]

    Reference:
      Lloyd (1982); k-means++: Arthur and Vassilvitskii (2007); scikit-learn's `KMeans`.
    """
    features = np.asarray(features, np.float32)
    rows = len(features) if sample is None else min(sample, len(features))
    if not 1 <= k <= rows:
        raise ValueError(
            f"{k} clusters of {rows} rows: there must be at least 1 cluster, and a row for each; use fewer clusters or "
            "more pairs."
        )
    if rows < len(features):
        chosen = np.sort(np.random.default_rng(seed).choice(len(features), rows, replace=False))
        features, weights = features[chosen], None if weights is None else weights[chosen]
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(
        k, init="random" if k > _MANY else "k-means++", n_init=restarts, max_iter=iterations, random_state=seed
    )
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: some clusters stay empty
        return model.fit(features, sample_weight=weights).cluster_centers_.astype(np.float32)


def assign(features: np.ndarray, centroids: np.ndarray, *, block: int = 65536) -> np.ndarray:
    """The nearest centroid of every row, computed in blocks that are sharded over the devices of this host.

        label_i = argmin_j |c_j|^2 - 2 <x_i, c_j>

    Rows and centroids are filled up to powers of two, so that blocks of many sizes share few compiled programs.

    Args:
      features: float `[rows, dim]`.
      centroids: float `[k, dim]`.
      block: most rows at once; fewer where there are many centroids.

    Returns:
      int32 `[rows]`; of centroids equally near, the first.

    Raises:
      ValueError: if the widths differ, or there are no centroids.

    Example:
      >>> assign(np.array([[0.0, 1.0], [5.0, 5.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [4.0, 4.0]])).tolist()
      [0, 1, 0]

    Reference:
      Our own choice.
    """
    features, centroids = np.asarray(features, np.float32), np.asarray(centroids, np.float32)
    if features.ndim != 2 or centroids.ndim != 2 or features.shape[1] != centroids.shape[1] or not len(centroids):
        raise ValueError(
            f"features {list(features.shape)} and centroids {list(centroids.shape)} do not fit together; both need "
            "shape [count, dim] with the same dim, and at least one centroid."
        )
    devices = jax.local_devices()
    clusters = max(_SMALLEST_CLUSTERS, _power(len(centroids)))
    rows = min(max(_SMALLEST_ROWS, _power(len(features))), block, max(_SMALLEST_ROWS, _LARGEST // clusters))
    rows = -(-rows // len(devices)) * len(devices)
    filled = np.pad(centroids, ((0, clusters - len(centroids)), (0, 0)))
    square = np.full(clusters, np.inf, np.float32)  # what was added is infinitely far
    square[: len(centroids)] = np.sum(centroids**2, axis=1)
    mesh = Mesh(np.array(devices), ("rows",))
    sharded, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("rows"), PartitionSpec()))
    filled, square = jax.device_put((filled, square), whole)
    labels = []
    for start in range(0, len(features), rows):
        part = features[start : start + rows]
        part = jax.device_put(np.pad(part, ((0, rows - len(part)), (0, 0))), sharded)
        labels.append(_nearest(part, filled, square))
    return np.concatenate([np.asarray(part) for part in labels] or [np.zeros(0, np.int32)])[: len(features)]


@jax.jit
def _nearest(features: jax.Array, centroids: jax.Array, square: jax.Array) -> jax.Array:
    product = jnp.einsum("nd,kd->nk", features, centroids, precision="highest")
    return jnp.argmin(square - 2 * product, axis=1).astype(jnp.int32)


def _power(count: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(0, count - 1).bit_length()


def one_thread() -> Any:
    """A context in which host linear algebra runs on one thread.

    Sums then have one order, so that results do not hang on the number of threads; and small problems are faster.
    """
    return _thread_pools().limit(limits=1)


@functools.cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
