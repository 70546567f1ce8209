"""What classes and themes are called: a phrase of their captions, a whole caption, or a token of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gram_jax.clip import Clip
from gram_jax.tasks.hierarchy import TEMPLATE
from gram_jax.tasks.phrases import Terms, group_counts, rank_phrases

_TELLING = 3  # words that a theme is shown with
_COMMON = 0.4  # share of a theme's captions from which on a word belongs to the theme
_NEAREST, _ROUNDS = 3, 2


class Grouping(NamedTuple):
    """Pairs in classes, and classes in themes, before anything is named.

    Attributes:
      classes: int `[pairs]`, from 0; -1 for none.
      themes: int `[classes]`.
      look: the words that say nothing about a theme.
    """

    classes: np.ndarray
    themes: np.ndarray
    look: frozenset[str]


def classes_by_name(
    spoken: Sequence[Sequence[str]],
    vocabulary: Terms,
    theme_of_pair: np.ndarray,
    look: frozenset[str],
    min_members: int,
) -> tuple[Grouping, list[str]]:
    """Classes and their names at once: what a caption says beside the words of its theme and the words for looks.

    Those words cut a caption into runs, and the run with the word that is rarest in the theme names the pair: "a print
    of greek small letter alpha with tonos, black on white" is called "alpha with tonos" among greek small letters.

    Args:
      spoken: the words of each caption.
      vocabulary: their words.
      theme_of_pair: int `[pairs]`.
      look: the words that say nothing about a theme.
      min_members: names of fewer pairs of a theme are no class.

    Returns:
      The `Grouping`, and the name of each class.
    """
    column = {name: number for number, name in enumerate(vocabulary.names)}
    labels, themes, texts = np.full(len(spoken), -1), [], []
    for theme in range(int(theme_of_pair.max()) + 1):
        pairs = np.flatnonzero(theme_of_pair == theme)
        share = np.asarray(vocabulary.matrix[pairs].sum(0)).ravel() / len(pairs)
        stop = look | {vocabulary.names[i] for i in np.flatnonzero(share >= _COMMON)}

        def commonness(run: Sequence[str], share: np.ndarray = share) -> float:
            return min(share[column[word]] if word in column else 0.0 for word in run)

        found: dict[str, list[int]] = {}
        for pair in pairs.tolist():
            if runs := _runs(spoken[pair], stop):
                found.setdefault(" ".join(min(runs, key=commonness)), []).append(pair)
        for text, members in found.items():
            if len(members) >= min_members:
                labels[members] = len(texts)
                themes.append(theme)
                texts.append(text)
    return Grouping(labels, np.array(themes, np.int64), look), texts


def agreeing(grouping: Grouping, image: np.ndarray, min_members: int) -> Grouping:
    """Keeps the pairs whose image agrees with the name: of its theme's classes, its own is among the nearest three.

    Nearness is that to the classes' mean image features, of which there are two rounds: the second without the pairs
    that the first left out. Classes that become small lose all their pairs.
    """
    labels, count = grouping.classes.copy(), len(grouping.themes)
    for _ in range(_ROUNDS if count else 0):
        centroids = normalise(group_counts(labels, count, image))
        for theme in np.unique(grouping.themes):
            numbers = np.flatnonzero(grouping.themes == theme)
            pairs = np.flatnonzero(np.isin(labels, numbers))
            nearness = image[pairs] @ centroids[numbers].T
            own = nearness[np.arange(len(pairs)), np.searchsorted(numbers, labels[pairs])]
            labels[pairs[np.sum(nearness > own[:, None], axis=1) >= _NEAREST]] = -1
        sizes = np.bincount(labels[labels >= 0], minlength=count)
        labels[(labels >= 0) & (sizes[labels] < min_members)] = -1
    return grouping._replace(classes=labels)


def name_at_random(grouping: Grouping, phrases: Terms) -> list[str]:
    """Names random classes by their best phrase that no class of the theme has; however few captions carry it."""
    ranked = rank_phrases(phrases, grouping.classes, grouping.themes, grouping.look, min_count=1, min_share=0.0)
    taken: set[tuple[int, int]] = set()
    texts = []
    for number, (theme, columns) in enumerate(zip(grouping.themes, ranked, strict=True)):
        free = next((column for column in columns if (theme, column) not in taken), None)
        taken.add((theme, free))
        texts.append(f"class {number}" if free is None else phrases.names[free])
    return texts


def name_by_medoid(grouping: Grouping, captions: Sequence[str], text: np.ndarray, clip: Clip) -> list[str]:
    """Names classes by the caption nearest to the mean text feature, without the words that do not fit the clip."""
    count = len(grouping.themes)
    centroids = normalise(group_counts(grouping.classes, count, text))
    pairs = np.flatnonzero(grouping.classes >= 0)
    nearness = np.sum(text[pairs] * centroids[grouping.classes[pairs]], axis=1)
    order = pairs[np.lexsort((pairs, -nearness, grouping.classes[pairs]))]
    first = order[np.searchsorted(grouping.classes[order], np.arange(count))]
    room = clip.tokenizer.context_length - 2

    def fit(caption: str) -> str:
        kept = caption.rstrip(" .").split()
        while len(kept) > 1 and len(clip.tokenizer.pieces([TEMPLATE.replace("{}", " ".join(kept))])[0]) > room:
            kept.pop()
        return " ".join(kept)

    return [fit(captions[pair]) for pair in first]


def token_means(grouping: Grouping, vocabulary: Terms, clip: Clip) -> np.ndarray:
    """One token embedding a class: the class-TF-IDF-weighted mean of its words' token embeddings.

        z_c  ~  sum_w n_wc / n_c log( n_t / n_wt ) e_w,   as long as the embeddings e_w are on average

    e_w is the mean over the tokens of word w. Words that say nothing count only where a class has no others.
    """
    table = np.asarray(clip.params["text"]["token_embedding"], np.float32)
    embedded = np.stack([table[ids].mean(0) for ids in clip.tokenizer.pieces(vocabulary.names)])
    count = len(grouping.themes)
    counts = group_counts(grouping.classes, count, vocabulary.matrix).toarray()
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=count)
    of_theme = group_counts(grouping.themes, int(grouping.themes.max()) + 1, counts)[grouping.themes]
    theme_sizes = np.bincount(grouping.themes, weights=sizes)[grouping.themes]
    weights = counts / sizes[:, None] * np.log(theme_sizes[:, None] / np.maximum(of_theme, 1))
    weights *= np.array([0.0 if name in grouping.look else 1.0 for name in vocabulary.names])
    weights = np.where(weights.sum(1, keepdims=True) > 0, weights, counts)
    weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)
    lengths = weights @ np.linalg.norm(embedded, axis=1)
    return (normalise(weights @ embedded) * lengths[:, None]).astype(np.float32)


def telling_words(grouping: Grouping, vocabulary: Terms) -> list[str]:
    """The most telling words of each theme, for people."""
    of_pair = np.where(grouping.classes >= 0, grouping.themes[grouping.classes], -1)
    count = int(grouping.themes.max()) + 1
    sizes = np.maximum(np.bincount(of_pair[of_pair >= 0], minlength=count), 1)
    share = group_counts(of_pair, count, vocabulary.matrix).toarray() / sizes[:, None]
    allowed = np.array([name not in grouping.look for name in vocabulary.names])
    overall = np.asarray(vocabulary.matrix.sum(0)).ravel() / len(of_pair)
    score = share * np.log(1 / np.maximum(overall, 1e-9)) * allowed
    best = np.argsort(-score, axis=1, kind="stable")[:, :_TELLING]
    return [
        " ".join(vocabulary.names[i] for i in row if score[theme, i] > 0) or f"theme {theme}"
        for theme, row in enumerate(best)
    ]


def normalise(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean norms; float32."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _runs(caption: Sequence[str], stop: frozenset[str] | set[str]) -> list[list[str]]:
    """The longest runs of words that are not to stop at."""
    runs: list[list[str]] = [[]]
    for word in caption:
        if word not in stop:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
