"""Classes within themes: by name and by agreement of images, by k-means, or at random."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gram_jax.data.lazy import LazyRows
from gram_jax.errors import InputError
from gram_jax.tasks.clustering import (
    BLOCK,
    Report,
    assign,
    group_counts,
    group_sums,
    kmeans,
    no_report,
    normalize,
    one_thread,
)
from gram_jax.tasks.phrases import CaptionWords, Vocabulary, least_of_parts

_COMMON = 0.4  # a word in this share of a theme's captions belongs to the theme
_BETWEEN = 2  # words of the theme or of the appearance between two parts of a name
_NEAREST, _ROUNDS = 3, 2
_WORD_DIMENSIONS = 64  # dimensions to which the word vectors of a theme are reduced
_ROWS_PER_CLASS = 4  # pairs of a sample for each class, at least
_ENTRIES = 1 << 27  # entries of a matrix of pairs by classes, at once


class Grouping(NamedTuple):
    """Classes of pairs and themes of classes, before classes have names."""

    classes: np.ndarray  # int [pairs], from 0; -1 for none
    themes: np.ndarray  # int [classes]


def classes_by_name(
    caption_words: CaptionWords, vocabulary: Vocabulary, theme_of_pair: np.ndarray, min_members: int
) -> tuple[Grouping, list[str]]:
    """Finds classes and their names: the part of a caption that is neither theme nor appearance.

    The words of the theme and the appearance words cut a caption into runs. The run with the word that is rarest in the
    theme names the pair: "a print of greek small letter alpha with tonos, black on white" has the name "alpha with
    tonos" among greek small letters. Up to two cut words between two runs belong to the name, as in "nine of clubs". If
    fewer than `min_members` pairs of a theme have that name, the run alone is the name of these pairs ("nine"). Names
    of fewer pairs form no class.
    """
    themes, lengths = int(theme_of_pair.max()) + 1, np.diff(caption_words.starts)
    counts = group_counts(theme_of_pair, themes, vocabulary.matrix).toarray().astype(np.int32)
    counts = np.pad(counts, ((0, 0), (0, 1)))  # the last column: all words outside the vocabulary
    sizes = np.maximum(np.bincount(theme_of_pair, minlength=themes), 1)
    column = {name: number for number, name in enumerate(vocabulary.names)}
    columns = np.array([column.get(name, len(column)) for name in caption_words.names], np.int64)
    informative = np.append(vocabulary.informative, True)[columns]
    # The words that do not cut, the pair of each, and how often it occurs in the theme.
    theme, word = np.repeat(theme_of_pair, lengths), columns[caption_words.ids]
    common = counts / sizes[:, None] >= _COMMON
    kept = np.flatnonzero(informative[caption_words.ids] & ~common[theme, word])
    pair = np.repeat(np.arange(len(lengths)), lengths)[kept]
    rarity = counts[theme[kept], word[kept]]
    numbers: dict[tuple[int, bytes], int] = {}
    name_of_pair = np.full(len(lengths), -1)

    def is_frequent() -> np.ndarray:
        return np.bincount(name_of_pair[name_of_pair >= 0], minlength=len(numbers)) >= min_members

    for between in (_BETWEEN, 0):
        first, last = _rarest_runs(kept, pair, rarity, between, len(lengths))
        done = np.append(is_frequent(), False)[name_of_pair]  # the last: no name
        renamed = np.flatnonzero(~done & (first >= 0))
        spans = zip(theme_of_pair[renamed].tolist(), first[renamed].tolist(), last[renamed].tolist(), strict=True)
        found = [numbers.setdefault((t, caption_words.ids[a:b].tobytes()), len(numbers)) for t, a, b in spans]
        name_of_pair[renamed] = found
    keys = list(numbers)
    large = np.flatnonzero(is_frequent())
    of_class = np.array([keys[number][0] for number in large], np.int64)
    order = np.argsort(of_class, kind="stable")
    rank = np.full(len(keys) + 1, -1)  # the last: no name
    rank[large[order]] = np.arange(len(large))
    name_ids = [np.frombuffer(keys[number][1], np.int32) for number in large[order]]
    names = [" ".join(caption_words.names[i] for i in ids) for ids in name_ids]
    return Grouping(rank[name_of_pair], of_class[order]), names


def _rarest_runs(
    kept: np.ndarray, pair: np.ndarray, rarity: np.ndarray, between: int, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the begin and the end of each pair's run of kept words with the rarest word; -1 without kept words.

    Runs of a pair with at most `between` other words between them are one. Of equally rare ones, the first counts.
    """
    begins, ends = np.full(pairs, -1), np.full(pairs, -1)
    if len(kept):
        new = np.flatnonzero((np.diff(kept, prepend=-between - 2) > between + 1) | (np.diff(pair, prepend=-1) != 0))
        rarest = np.minimum.reduceat(rarity, new)
        run = least_of_parts(rarest, np.arange(len(new)), np.searchsorted(pair[new], np.arange(pairs + 1)))
        named = np.flatnonzero(run >= 0)
        begins[named] = kept[new][run[named]]
        ends[named] = kept[np.append(new, len(kept))[1:] - 1][run[named]] + 1
    return begins, ends


def keep_agreeing(grouping: Grouping, image: Any, min_members: int, *, report: Report = no_report) -> Grouping:
    """Keeps the pairs whose image agrees with the name: its class is among the nearest three of its theme.

    Nearness is the similarity to the classes' mean image features. The second of two rounds computes the means without
    the pairs that the first round removed. Classes that become too small lose all their pairs.
    """
    labels, count = grouping.classes.copy(), len(grouping.themes)
    themes, done, total = np.unique(grouping.themes), 0, _ROUNDS * int(np.sum(labels >= 0))
    for _ in range(_ROUNDS if count else 0):
        centroids = normalize(group_sums(labels, count, image))
        members = np.flatnonzero(labels >= 0)
        of_member = grouping.themes[labels[members]]
        members = members[np.argsort(of_member, kind="stable")]
        borders = np.searchsorted(np.sort(of_member), themes, side="right")[:-1]
        for theme, pairs in zip(themes, np.split(members, borders), strict=True):
            numbers = np.flatnonzero(grouping.themes == theme)
            size = min(BLOCK, max(1, _ENTRIES // len(numbers)))
            for begin in range(0, len(pairs), size):
                part = pairs[begin : begin + size]
                nearness = np.asarray(image[part], np.float32) @ centroids[numbers].T
                own = nearness[np.arange(len(part)), np.searchsorted(numbers, labels[part])]
                labels[part[np.sum(nearness > own[:, None], axis=1) >= _NEAREST]] = -1
            done += len(pairs)
            report("images that agree", done, total)
        sizes = np.bincount(labels[labels >= 0], minlength=count)
        labels[(labels >= 0) & (sizes[labels] < min_members)] = -1
    return grouping._replace(classes=labels)


def find_classes(
    theme_of_pair: np.ndarray,
    vocabulary: Vocabulary,
    text: Any,
    image: Any,
    classes: int,
    *,
    seed: int,
    sample: int | None = None,
    report: Report = no_report,
) -> Grouping:
    """Finds classes within each theme by k-means on text features, image features and informative words (TF-IDF).

    A theme gets a share of the classes, and of the sample of pairs for k-means, in proportion to its pairs: at least
    two classes, and four pairs per class.
    """
    total = len(theme_of_pair)
    labels, themes, done = np.full(total, -1), np.empty(0, np.int64), 0
    for theme in range(int(theme_of_pair.max()) + 1):
        pairs = np.flatnonzero(theme_of_pair == theme)
        share = np.asarray(vocabulary.matrix[pairs].sum(0)).ravel() / len(pairs)
        columns = np.flatnonzero((share > 0) & vocabulary.informative)
        weighted = vocabulary.matrix[pairs].tocsc()[:, columns] * np.log(1 / share[columns])
        word_features = _reduce(weighted, _WORD_DIMENSIONS, seed)

        def rows(numbers: np.ndarray, pairs: np.ndarray = pairs, words: np.ndarray = word_features) -> np.ndarray:
            return np.concatenate([text[pairs[numbers]], image[pairs[numbers]], words[numbers]], 1, dtype=np.float32)

        features = LazyRows((len(pairs), text.shape[1] + image.shape[1] + word_features.shape[1]), rows)
        count = min(len(pairs), max(2, round(classes * len(pairs) / total)))
        used = None if sample is None else max(_ROWS_PER_CLASS * count, round(sample * len(pairs) / total))
        centroids = kmeans(features, count, seed=seed, sample=used)
        nearest = np.unique(assign(features, centroids), return_inverse=True)[1]
        labels[pairs] = nearest + len(themes)
        themes = np.append(themes, np.full(nearest.max() + 1, theme))
        done += len(pairs)
        report("pairs in classes", done, total)
    return Grouping(labels, themes)


def shuffle(grouping: Grouping, seed: int) -> Grouping:
    """Returns random pairs in classes of the same sizes, and these in themes of the same sizes."""
    rng = np.random.default_rng([seed, len(grouping.themes)])
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=len(grouping.themes))
    labels = np.full(len(grouping.classes), -1)
    labels[rng.permutation(len(labels))[: sizes.sum()]] = np.repeat(np.arange(len(sizes)), sizes)
    return Grouping(labels, rng.permutation(grouping.themes))


def drop_small(grouping: Grouping, min_members: int) -> tuple[Grouping, np.ndarray]:
    """Removes classes with few members, then themes with a single class; returns the numbers of the others."""
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=len(grouping.themes))
    large = sizes >= min_members
    per_theme = np.bincount(grouping.themes[large], minlength=1 + max(grouping.themes, default=0))
    keep = large & (per_theme[grouping.themes] >= 2)
    if not keep.any():
        raise InputError(
            f"min_members={min_members}: no theme has two classes of this size; the largest of {len(sizes)} has "
            f"{max(sizes, default=0)} members; use more pairs, fewer classes, or a smaller min_members"
        )
    number = np.where(keep, np.cumsum(keep) - 1, -1)
    labels = np.where(grouping.classes >= 0, number[grouping.classes], -1)
    return Grouping(labels, grouping.themes[keep]), np.flatnonzero(keep)


def _reduce(matrix: Any, dimensions: int, seed: int) -> np.ndarray:
    """Returns the normalized rows of a sparse matrix, in their leading directions if it has too many columns."""
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    matrix = normalize(matrix) if matrix.shape[1] else matrix
    if min(matrix.shape) <= dimensions:
        return matrix.toarray()
    with one_thread():
        left, values, _ = randomized_svd(matrix, dimensions, n_iter=3, random_state=seed)
    return left * values
