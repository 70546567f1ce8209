"""k-means: centroids on the host, assignment on all devices; features may be larger than memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gram_jax.errors import InputError

_MANY = 200  # above so many clusters, careful seeding costs more than it brings
_SMALLEST_ROWS, _SMALLEST_CLUSTERS = 256, 16
_LARGEST = 1 << 26  # distances at once
BLOCK = 1 << 17  # rows at once, where features are summed or copied

SAMPLE = 100_000  # pairs that centroids are looked for among, at most

Watch = Callable[[str, int, int], None]  # told what runs, how many pairs are done, and of how many (0: nobody knows)


@dataclasses.dataclass(frozen=True)
class Computed:
    """Rows that are computed where they are asked for: what `kmeans` and `assign` take in place of a large array.

    Attributes:
      shape: of all rows together.
      rows: float `[rows, dim]` of a slice, or of an array of numbers.

    Example:
      >>> squares = Computed((1000, 1), lambda key: np.arange(1000.0)[key, None] ** 2)
      >>> len(squares), squares[2:4].tolist()
      (1000, [[4.0], [9.0]])
    """

    shape: tuple[int, int]
    rows: Callable[[Any], np.ndarray]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.rows(key)


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
    """Centroids of k clusters, by Lloyd's iterations.

        min over c_1, ..., c_k of   sum_i w_i min_j |x_i - c_j|^2

    Up to 200 clusters start from k-means++, more from rows drawn evenly. One thread does it, so that the result hangs
    on the seed alone and not on how many threads there are.

    Args:
      features: float `[rows, dim]`: an array, or what gives arrays where it is sliced and indexed (a memory map, a part
        of a feature store, `Computed` rows); only the rows that are looked at are read.
      k: clusters, from 1 to the number of rows.
      seed: the seed of the start.
      weights: w, float `[rows]`, >= 0; default: 1.
      iterations: most iterations.
      restarts: starts, of which the best counts.
      sample: most rows that are looked at; more are sampled evenly. Default: all.

    Returns:
      float32 `[k, dim]`.

    Raises:
      InputError: if there are fewer rows (or rows of the sample) than clusters.

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
        raise InputError(
            f"{k} clusters of {rows} rows: there must be at least 1 cluster, and a row for each; use fewer clusters or "
            "more pairs."
        )
    if rows < len(features):
        chosen = np.sort(np.random.default_rng(seed).choice(len(features), rows, replace=False))
        features, weights = features[chosen], None if weights is None else weights[chosen]
    features = np.asarray(features[:], np.float32)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(
        k, init="random" if k > _MANY else "k-means++", n_init=restarts, max_iter=iterations, random_state=seed
    )
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: some clusters stay empty
        return model.fit(features, sample_weight=weights).cluster_centers_.astype(np.float32)


def assign(
    features: Any,
    centroids: np.ndarray,
    *,
    block: int = 65536,
    watch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The nearest centroid of every row, computed in blocks that are sharded over the devices of this host.

        label_i = argmin_j |c_j|^2 - 2 <x_i, c_j>

    Rows and centroids are filled up to powers of two, so that blocks of many sizes share few compiled programs.

    Args:
      features: float `[rows, dim]`, as for `kmeans`; read block by block, three of which are in memory.
      centroids: float `[k, dim]`.
      block: most rows at once; fewer where there are many centroids.
      watch: called with the number of rows that are done.

    Returns:
      int32 `[rows]`; of centroids equally near, the first.

    Raises:
      InputError: if the widths differ, or there are no centroids.

    Example:
      >>> assign(np.array([[0.0, 1.0], [5.0, 5.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [4.0, 4.0]])).tolist()
      [0, 1, 0]

    Reference:
      Our own choice.
    """
    features, centroids = sliceable(features), np.asarray(centroids, np.float32)
    if len(features.shape) != 2 or centroids.ndim != 2 or features.shape[1] != centroids.shape[1] or not len(centroids):
        raise InputError(
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
    labels = np.empty(len(features), np.int32)
    running: collections.deque[tuple[int, jax.Array]] = collections.deque()

    def collect() -> None:
        start, found = running.popleft()
        labels[start : start + rows] = np.asarray(found)[: len(features) - start]
        if watch is not None:
            watch(min(start + rows, len(features)))

    for start in range(0, len(features), rows):
        part = np.asarray(features[start : start + rows], np.float32)
        part = jax.device_put(np.pad(part, ((0, rows - len(part)), (0, 0))), sharded)
        running.append((start, _nearest(part, filled, square)))
        if len(running) > 1:
            collect()  # the next block is read while this one runs; no third waits for it
    while running:
        collect()
    return labels


def group_sums(labels: np.ndarray, groups: int, features: Any) -> np.ndarray:
    """Sums the features of each group, block by block; rows with a negative label belong to none.

    Args:
      labels: int `[rows]`.
      groups: how many groups there are.
      features: float `[rows, dim]`, as for `kmeans`.

    Returns:
      float32 `[groups, dim]`.

    Example:
      >>> group_sums(np.array([1, -1, 1]), 2, np.array([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]])).tolist()
      [[0.0, 0.0], [4.0, 6.0]]

    Reference:
      Our own choice.
    """
    from scipy.sparse import csr_array

    total = np.zeros((groups, features.shape[1]), np.float32)
    for start in range(0, len(labels), BLOCK):
        part = labels[start : start + BLOCK]
        rows = np.flatnonzero(part >= 0)
        chosen = csr_array((np.ones(len(rows), np.float32), (part[rows], rows)), shape=(groups, len(part)))
        total += chosen @ np.asarray(features[start : start + BLOCK], np.float32)
    return total


def ignore(part: str, done: int, total: int) -> None:
    """Watches nothing."""
    del part, done, total


def sliceable(features: Any) -> Any:
    """What has a shape is sliced as it is; anything else becomes an array."""
    return features if hasattr(features, "shape") else np.asarray(features, np.float32)


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
    import sklearn.cluster  # noqa: F401, its threads can be limited only once they are there
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
