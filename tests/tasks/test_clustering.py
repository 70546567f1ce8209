"""k-means and assignment against plain NumPy."""

import numpy as np
import pytest

from gram_jax.tasks import assign, kmeans


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
    centres = rng.standard_normal((4, 5)) * 10
    rows = centres[rng.integers(0, 4, 2000)] + 0.01 * rng.standard_normal((2000, 5))
    found = kmeans(rows, clusters, seed=3)
    assert (found.dtype, found.shape) == (np.float32, (clusters, 5))
    nearest = np.linalg.norm(found[:, None] - centres[None], axis=-1)
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kmeans(np.zeros((5, 2)), 6, seed=0), "6 clusters of 5 rows"),
        (lambda: kmeans(np.zeros((5, 2)), 4, seed=0, sample=3), "4 clusters of 3 rows"),
        (lambda: kmeans(np.zeros((5, 2)), 0, seed=0), "0 clusters of 5 rows"),
        (lambda: assign(np.zeros((5, 2)), np.zeros((3, 4))), r"features \[5, 2\] and centroids \[3, 4\]"),
        (lambda: assign(np.zeros((5, 2)), np.zeros((0, 2))), "at least one centroid"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
