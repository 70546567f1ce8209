"""Themes of pairs: k-means on the informative words that many small clusters share."""

from __future__ import annotations

from typing import Any

import numpy as np

from gram_jax.data.lazy import LazyRows
from gram_jax.tasks.clustering import Report, assign, group_counts, group_sums, kmeans, no_report, normalize
from gram_jax.tasks.phrases import Vocabulary

_SHARE, _SPREAD = 0.3, 0.003  # a theme's word: in this share of a cluster's captions, in this share of the clusters
_NOISE = 0.1  # a word in a smaller share of a cluster's captions is ignored
_CENTROID_WEIGHT = 0.3  # weight of text features relative to words
_ITERATIONS = 25


def small_clusters(
    text: Any, image: Any, clusters: int, *, seed: int, sample: int, report: Report = no_report
) -> np.ndarray:
    """Returns the small cluster of each pair, int `[pairs]`, by k-means on [text, image] features."""
    report("centroids of small clusters", 0, 0)
    features = LazyRows(
        (len(text), text.shape[1] + image.shape[1]),
        lambda pairs: np.concatenate([text[pairs], image[pairs]], axis=1, dtype=np.float32),
    )
    centroids = kmeans(features, clusters, seed=seed, sample=sample)
    return assign(features, centroids, report=lambda done: report("pairs in small clusters", done, len(text)))


def find_themes(
    clusters: np.ndarray,
    vocabulary: Vocabulary,
    text: Any,
    themes: int,
    *,
    seed: int,
    sample: int | None = None,
    report: Report = no_report,
) -> np.ndarray:
    """Returns the theme of each pair, by k-means on the words of its caption and of its small cluster.

    A word counts if it occurs in more than 30 % of the captions of at least 0.3 % of the clusters, with the fourth root
    of this share of clusters as its weight: a word for many things names their theme.
    """
    report("centroids of themes", 0, 0)
    informative = vocabulary.informative
    count = int(clusters.max()) + 1
    sizes = np.maximum(np.bincount(clusters, minlength=count), 1)
    share = (group_counts(clusters, count, vocabulary.matrix) / sizes[:, None]).tocsc()
    often = np.repeat(np.arange(len(informative)), np.diff(share.indptr))[share.data > _SHARE]
    spread = np.bincount(often, minlength=len(informative)) / count
    columns = np.flatnonzero((spread >= _SPREAD) & informative)
    weights = spread[columns] ** 0.25
    own = _unit_rows(vocabulary.matrix[:, columns], weights.astype(np.float32))
    common = share[:, columns].toarray()
    common = normalize(np.where(common > _NOISE, common, 0.0) * weights)
    centroids = _CENTROID_WEIGHT * normalize(group_sums(clusters, count, text))

    def rows(pairs: np.ndarray) -> np.ndarray:
        own_words, cluster = own[pairs].tocoo(), clusters[pairs]
        features = np.empty((len(cluster), len(columns) + centroids.shape[1]), np.float32)
        words = features[:, : len(columns)]
        words[:] = common[cluster]
        words[own_words.coords] += own_words.data
        words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-9)
        features[:, len(columns) :] = centroids[cluster]
        return features

    features = LazyRows((len(clusters), len(columns) + centroids.shape[1]), rows)
    k = min(themes, len(clusters) if sample is None else min(sample, len(clusters)))
    found = kmeans(features, k, seed=seed, iterations=_ITERATIONS, sample=sample)
    theme_of_pair = assign(features, found, report=lambda done: report("pairs in themes", done, len(clusters)))
    return np.unique(theme_of_pair, return_inverse=True)[1]


def _unit_rows(matrix: Any, weights: np.ndarray) -> Any:
    """Returns a sparse matrix of ones with weighted columns and rows of unit norm."""
    norms = np.maximum(np.sqrt(matrix @ weights**2), 1e-9)
    data = weights[matrix.indices] / np.repeat(norms, np.diff(matrix.indptr))
    return type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape)
