"""k-means: centroids on the host, assignment on all devices; features may be larger than memory."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gram_jax.batching import pad_to, round_up
from gram_jax.errors import InputError

_MANY = 200  # above this number of clusters, k-means++ costs more than it improves
_SMALLEST_ROWS, _SMALLEST_CLUSTERS = 256, 16
_MAX_DISTANCES = 1 << 26  # computed at once
BLOCK = 1 << 17  # rows that are summed or copied at once

Report = Callable[[str, int, int], None]  # receives the running part, the pairs done, and their total (0: unknown)


def no_report(part: str, done: int, total: int) -> None:
    """Ignores progress."""


def kmeans(
    features: Any,
    k: int,
    *,
    seed: int,
    weights: np.ndarray | None = None,
    iterations: int = 15,
    restarts: int = 1,
    sample: int | None = None,
) -> np.ndarray:
    """Returns the centroids of k clusters by Lloyd's iterations, float32 `[k, dim]`.

        min over c_1, ..., c_k of   sum_i w_i min_j |x_i - c_j|^2

    Up to 200 clusters are initialized by k-means++, more by rows drawn evenly. One thread computes it, so that the
    result depends on the seed and not on the number of threads.

    Args:
      features: float `[rows, dim]`: an array, or an object whose slices are arrays (a memory map, `LazyRows`); only
        the rows of the sample are read.
      k, seed: the number of clusters, and the seed of sample and initialization.
      weights: w, float `[rows]`, >= 0; default: 1.
      iterations, restarts: largest number of iterations; number of initializations, of which the best counts.
      sample: largest number of rows to use, drawn evenly; default: all.

    Example:
      >>> rows = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]])
      >>> sorted(kmeans(rows, 2, seed=0).tolist())
      [[0.0, 1.0], [9.0, 1.0]]

    Reference:
      Lloyd (1982); k-means++: Arthur and Vassilvitskii (2007); scikit-learn's `KMeans`.
    """
    features = sliceable(features)
    rows = len(features) if sample is None else min(sample, len(features))
    if not 1 <= k <= rows:
        raise InputError(f"{k} clusters of {rows} rows; use 1 to {rows} clusters, or more pairs")
    if rows < len(features):
        chosen = np.sort(np.random.default_rng(seed).choice(len(features), rows, replace=False))
        features, weights = features[chosen], None if weights is None else weights[chosen]
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(
        k, init="random" if k > _MANY else "k-means++", n_init=restarts, max_iter=iterations, random_state=seed
    )
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with equal rows some clusters remain empty
        model.fit(np.asarray(features[:], np.float32), sample_weight=weights)
    return model.cluster_centers_.astype(np.float32)


def assign(
    features: Any, centroids: np.ndarray, *, block: int = 65536, report: Callable[[int], None] | None = None
) -> np.ndarray:
    """Returns the nearest centroid of every row, the first of equally near ones, int32 `[rows]`.

        label_i = argmin_j |c_j|^2 - 2 <x_i, c_j>

    Blocks of rows are sharded over the devices of this host, and padded to powers of two like the centroids, so that
    many sizes share few compiled programs.

    Args:
      features, centroids: float `[rows, dim]`, as for `kmeans`, with up to three blocks in memory; float `[k, dim]`.
      block: largest number of rows at once; many centroids reduce it.
      report: receives the number of finished rows.
    """
    features, centroids = sliceable(features), np.asarray(centroids, np.float32)
    if len(features.shape) != 2 or centroids.ndim != 2 or features.shape[1] != centroids.shape[1] or not len(centroids):
        raise InputError(
            f"features have shape {list(features.shape)}, centroids {list(centroids.shape)}; both must have shape "
            "[count, dim] with the same dim, and there must be a centroid"
        )
    devices = jax.local_devices()
    clusters, rows = (1 << max(0, len(array) - 1).bit_length() for array in (centroids, features))  # powers of two
    clusters = max(_SMALLEST_CLUSTERS, clusters)
    rows = max(_SMALLEST_ROWS, min(rows, _MAX_DISTANCES // clusters))
    rows = round_up(min(rows, block), len(devices))
    square = pad_to(np.sum(centroids**2, axis=1), clusters, fill=np.inf)  # padding is infinitely far away
    mesh = Mesh(np.array(devices), ("rows",))
    sharded, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec("rows"), PartitionSpec()))
    padded, square = jax.device_put((pad_to(centroids, clusters, fill=0), square), replicated)
    labels = np.empty(len(features), np.int32)
    running: collections.deque[tuple[int, jax.Array]] = collections.deque()

    def collect() -> None:
        first, nearest = running.popleft()
        labels[first : first + rows] = np.asarray(nearest)[: len(features) - first]
        if report is not None:
            report(min(first + rows, len(features)))

    for first in range(0, len(features), rows):
        part = pad_to(np.asarray(features[first : first + rows], np.float32), rows, fill=0)
        running.append((first, _nearest(jax.device_put(part, sharded), padded, square)))
        if len(running) > 1:
            collect()  # the next block is read while this one runs
    while running:
        collect()
    return labels


def group_counts(labels: np.ndarray, groups: int, matrix: Any) -> Any:
    """Sums the rows of each group of a sparse or dense matrix; rows with a negative label are ignored."""
    from scipy.sparse import csr_array

    rows = np.flatnonzero(labels >= 0)
    ones = np.ones(len(rows), matrix.dtype)
    return csr_array((ones, (labels[rows], rows)), shape=(groups, len(labels))) @ matrix


def group_sums(labels: np.ndarray, groups: int, features: Any) -> np.ndarray:
    """Returns `group_counts` of features as for `kmeans`, computed block by block, float32 `[groups, dim]`."""
    total = np.zeros((groups, features.shape[1]), np.float32)
    for first in range(0, len(labels), BLOCK):
        block = np.asarray(features[first : first + BLOCK], np.float32)
        total += group_counts(labels[first : first + BLOCK], groups, block)
    return total


def normalize(rows: np.ndarray) -> np.ndarray:
    """Returns rows divided by their Euclidean norms, float32."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def sliceable(features: Any) -> Any:
    """Returns an object with a shape unchanged, and anything else as an array."""
    return features if hasattr(features, "shape") else np.asarray(features, np.float32)


@jax.jit
def _nearest(features: jax.Array, centroids: jax.Array, square: jax.Array) -> jax.Array:
    product = jnp.einsum("nd,kd->nk", features, centroids, precision="highest")
    return jnp.argmin(square - 2 * product, axis=1).astype(jnp.int32)


def one_thread() -> Any:
    """Returns a context manager that limits host linear algebra to one thread, so that sums have a fixed order."""
    import sklearn.cluster  # noqa: F401, loads the thread pools that are limited
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)
