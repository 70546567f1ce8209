"""k-means and assignment against plain NumPy."""

import numpy as np
import pytest

from gram_jax.data.lazy import LazyRows
from gram_jax.tasks import assign, clustering, kmeans
from gram_jax.tasks.clustering import group_sums, one_thread


@pytest.mark.parametrize(("rows", "clusters", "block"), [(1, 1, 64), (700, 37, 256), (700, 37, 65536), (513, 300, 300)])
def test_assign_is_the_nearest_centroid(rows, clusters, block):
    rng = np.random.default_rng(rows)
    features, centroids = rng.standard_normal((rows, 6)), rng.standard_normal((clusters, 6))
    labels = assign(features, centroids, block=block)
    distances = ((features[:, None] - centroids[None]) ** 2).sum(-1)
    assert (labels.dtype, labels.shape) == (np.int32, (rows,))
    np.testing.assert_array_equal(labels, distances.argmin(1))


def test_assign_of_nothing():
    assert assign(np.zeros((0, 3)), np.ones((2, 3))).shape == (0,)


@pytest.mark.parametrize("clusters", [4, 250])
def test_kmeans_finds_planted_centres_and_is_deterministic(clusters):
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((4, 5)) * 10
    rows = centers[rng.integers(0, 4, 2000)] + 0.01 * rng.standard_normal((2000, 5))
    found = kmeans(rows, clusters, seed=3)
    assert (found.dtype, found.shape) == (np.float32, (clusters, 5))
    nearest = np.linalg.norm(found[:, None] - centers[None], axis=-1)
    assert nearest.min(1).max() < 0.1
    assert nearest.min(0).max() < 0.1
    np.testing.assert_array_equal(found, kmeans(rows, clusters, seed=3))
    if clusters > 200:
        assert np.abs(found - kmeans(rows, clusters, seed=4)).max() > 0


def test_weights_and_sample():
    rows = np.array([[0.0], [1.0], [10.0]])
    np.testing.assert_allclose(sorted(kmeans(rows, 2, seed=0, weights=np.array([3.0, 1.0, 1.0])).ravel()), [0.25, 10])
    many = np.repeat([[0.0], [8.0]], 500, axis=0)
    np.testing.assert_allclose(sorted(kmeans(many, 2, seed=0, sample=50).ravel()), [0, 8], atol=1e-5)
    assert kmeans(np.ones((5, 2)), 3, seed=0).tolist() == [[1.0, 1.0]] * 3  # equal rows are no error


class Read:
    """Rows of which one can tell afterwards how many were asked for at once."""

    def __init__(self, rows):
        self.rows, self.shape, self.asked = rows, rows.shape, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        found = self.rows[key]
        self.asked.append(len(found))
        return found


def test_rows_are_read_in_blocks_and_only_those_of_the_sample(tmp_path):
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((5, 8))[rng.integers(0, 5, 3000)] + 0.1 * rng.standard_normal((3000, 8))).astype("f2")
    np.save(tmp_path / "rows.npy", rows)
    kept = Read(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    centroids = kmeans(kept, 5, seed=0, sample=400)
    assert kept.asked == [400]
    chosen = np.sort(np.random.default_rng(0).choice(3000, 400, replace=False))
    np.testing.assert_array_equal(centroids, kmeans(rows[chosen].astype(np.float32), 5, seed=0))
    seen = []
    labels = assign(kept, centroids, block=1024, report=seen.append)
    assert kept.asked[1:] == [1024, 1024, 952]
    assert seen == [1024, 2048, 3000]
    distances = ((rows[:, None].astype(float) - centroids) ** 2).sum(-1)
    np.testing.assert_array_equal(labels, distances.argmin(1))
    computed = LazyRows(rows.shape, lambda key: rows[key].astype(np.float32))
    np.testing.assert_array_equal(labels, assign(computed, centroids))
    np.testing.assert_array_equal(centroids, kmeans(computed, 5, seed=0, sample=400))


@pytest.mark.parametrize("block", [7, 1 << 17])
def test_sums_of_groups(monkeypatch, block):
    monkeypatch.setattr(clustering, "BLOCK", block)
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((100, 3)).astype(np.float16), rng.integers(-1, 6, 100)
    labels[labels == 4] = -1
    expected = np.zeros((6, 3))
    np.add.at(expected, labels[labels >= 0], rows[labels >= 0].astype(float))
    found = group_sums(labels, 6, rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kmeans(np.zeros((5, 2)), 6, seed=0), "6 clusters of 5 rows"),
        (lambda: kmeans(np.zeros((5, 2)), 4, seed=0, sample=3), "4 clusters of 3 rows"),
        (lambda: kmeans(np.zeros((5, 2)), 0, seed=0), "0 clusters of 5 rows"),
        (lambda: assign(np.zeros((5, 2)), np.zeros((3, 4))), r"\[5, 2\].*\[3, 4\]"),
        (lambda: assign(np.zeros((5, 2)), np.zeros((0, 2))), r"\[0, 2\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_thread_is_one_thread_of_every_library():
    from threadpoolctl import threadpool_info

    with one_thread():
        found = {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()}
    assert set(found) == {"blas", "openmp"}
    assert set(found.values()) == {1}
