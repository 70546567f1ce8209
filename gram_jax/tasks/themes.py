"""Themes of pairs by the words that kinds of things share, and classes within themes by features and words."""

from __future__ import annotations

from typing import Any

import numpy as np

from gram_jax.tasks.clustering import Computed, Watch, assign, group_sums, ignore, kmeans, one_thread
from gram_jax.tasks.naming import Grouping, normalize
from gram_jax.tasks.phrases import Terms, group_counts

_SHARE, _SPREAD = 0.3, 0.003  # a theme's word: in this share of a cluster's captions, in this share of the clusters
_NOISE = 0.1  # share of a cluster's captions below which a word is an accident
_CENTROID_WEIGHT = 0.3  # of text features, where themes are told apart by words
_CLASS_WORDS = 64  # directions that the word vectors of a theme are reduced to
_ROWS_A_CLASS = 4  # pairs of a sample for each class, at least


def find_themes(
    micro: np.ndarray,
    telling: np.ndarray,
    vocabulary: Terms,
    text: Any,
    themes: int,
    *,
    seed: int,
    sample: int | None = None,
    watch: Watch = ignore,
) -> np.ndarray:
    """Themes: k-means on the words that many small clusters share, those of a pair's caption and of its cluster.

    A word tells a theme if it is in the captions of more than 30 % of the members of at least 0.3 % of the clusters,
    and counts with the fourth root of their number: what is said of many things says what kind of thing they are.

    Args:
      micro: int `[pairs]`, the cluster of each pair.
      telling: bool `[words]`, False for words for looks.
      vocabulary: words of the captions.
      text: float `[pairs, embed_dim]`, read block by block.
      themes: how many.
      seed: of k-means.
      sample: most pairs that k-means looks at. Default: all.
      watch: told how many pairs are assigned.

    Returns:
      int `[pairs]`, the theme of each pair.
    """
    watch("centroids of themes", 0, 0)
    clusters = int(micro.max()) + 1
    sizes = np.maximum(np.bincount(micro, minlength=clusters), 1)
    share = (group_counts(micro, clusters, vocabulary.matrix) / sizes[:, None]).tocsc()
    often = np.repeat(np.arange(len(telling)), np.diff(share.indptr))[share.data > _SHARE]
    spread = np.bincount(often, minlength=len(telling)) / clusters
    columns = np.flatnonzero((spread >= _SPREAD) & telling)
    weights = spread[columns] ** 0.25
    own = _unit_rows(vocabulary.matrix[:, columns], weights.astype(np.float32))
    common = share[:, columns].toarray()
    common = normalize(np.where(common > _NOISE, common, 0.0) * weights)
    centroids = _CENTROID_WEIGHT * normalize(group_sums(micro, clusters, text))

    def rows(key: Any) -> np.ndarray:
        said, cluster = own[key].tocoo(), micro[key]
        found = np.empty((len(cluster), len(columns) + centroids.shape[1]), np.float32)
        words = found[:, : len(columns)]
        words[:] = common[cluster]
        words[said.coords] += said.data
        words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-9)
        found[:, len(columns) :] = centroids[cluster]
        return found

    pairs = Computed((len(micro), len(columns) + centroids.shape[1]), rows)
    count = min(themes, len(micro) if sample is None else min(sample, len(micro)))
    found = kmeans(pairs, count, seed=seed, iterations=25, sample=sample)
    found = assign(pairs, found, watch=lambda done: watch("pairs in themes", done, len(micro)))
    return np.unique(found, return_inverse=True)[1]


def find_classes(
    theme_of_pair: np.ndarray,
    telling: np.ndarray,
    vocabulary: Terms,
    text: Any,
    image: Any,
    classes: int,
    *,
    seed: int,
    sample: int | None = None,
    watch: Watch = ignore,
) -> Grouping:
    """Classes within each theme: k-means on text and image features and on telling words by TF-IDF.

    Args:
      theme_of_pair: int `[pairs]`.
      telling: bool `[words]`.
      vocabulary: words of the captions.
      text: float `[pairs, embed_dim]`, read block by block.
      image: float `[pairs, embed_dim]`, likewise.
      classes: how many over all themes; a theme gets them in proportion to its pairs, but at least two.
      seed: of k-means.
      sample: most pairs of all themes that k-means looks at, but four for each class. Default: all.
      watch: told how many pairs have a class.

    Returns:
      The `Grouping`.
    """
    total = len(theme_of_pair)
    labels, themes, done = np.full(total, -1), [], 0
    for theme in range(int(theme_of_pair.max()) + 1):
        pairs = np.flatnonzero(theme_of_pair == theme)
        share = np.asarray(vocabulary.matrix[pairs].sum(0)).ravel() / len(pairs)
        columns = np.flatnonzero((share > 0) & telling)
        weighted = vocabulary.matrix[pairs].tocsc()[:, columns] * np.log(1 / share[columns])
        said = _reduced(weighted, _CLASS_WORDS, seed)

        def rows(key: Any, pairs: np.ndarray = pairs, said: np.ndarray = said) -> np.ndarray:
            return np.concatenate([text[pairs[key]], image[pairs[key]], said[key]], axis=1, dtype=np.float32)

        features = Computed((len(pairs), text.shape[1] + image.shape[1] + said.shape[1]), rows)
        count = min(len(pairs), max(2, round(classes * len(pairs) / total)))
        looked_at = None if sample is None else max(_ROWS_A_CLASS * count, round(sample * len(pairs) / total))
        found = assign(features, kmeans(features, count, seed=seed, sample=looked_at))
        found = np.unique(found, return_inverse=True)[1]
        labels[pairs] = found + len(themes)
        themes += [theme] * (int(found.max()) + 1)
        done += len(pairs)
        watch("pairs in classes", done, total)
    look = frozenset(name for name, tells in zip(vocabulary.names, telling, strict=True) if not tells)
    return Grouping(labels, np.array(themes), look)


def _unit_rows(matrix: Any, weights: np.ndarray) -> Any:
    """A sparse matrix of ones with its columns weighted, and then its rows divided by their Euclidean norms."""
    norms = np.maximum(np.sqrt(matrix @ weights**2), 1e-9)
    found = matrix.copy()
    found.data = weights[matrix.indices] / np.repeat(norms, np.diff(matrix.indptr))
    return found


def _reduced(matrix: Any, most: int, seed: int) -> np.ndarray:
    """Normalized rows of a sparse matrix; in their leading directions, where it has more columns than `most`."""
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    if not matrix.shape[1]:
        return matrix.toarray()
    matrix = normalize(matrix)
    if min(matrix.shape) <= most:
        return matrix.toarray()
    with one_thread():
        left, values, _ = randomized_svd(matrix, most, n_iter=3, random_state=seed)
    return left * values
