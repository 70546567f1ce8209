"""What classes and themes are called: a phrase of their captions, a whole caption, or a token of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gram_jax.clip import Clip
from gram_jax.tasks.clustering import BLOCK, Watch, group_sums, ignore
from gram_jax.tasks.hierarchy import TEMPLATE
from gram_jax.tasks.phrases import Spoken, Terms, group_counts, least_of_parts, rank_phrases

_TELLING = 3  # words that a theme is shown with
_COMMON = 0.4  # share of a theme's captions from which on a word belongs to the theme
_NEAREST, _ROUNDS = 3, 2
_ENTRIES = 1 << 27  # of a matrix of pairs or words by classes, at once


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
    spoken: Spoken,
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
      vocabulary: those that are not too rare.
      theme_of_pair: int `[pairs]`.
      look: the words that say nothing about a theme.
      min_members: names of fewer pairs of a theme are no class.

    Returns:
      The `Grouping`, and the name of each class.
    """
    themes, lengths = int(theme_of_pair.max()) + 1, np.diff(spoken.starts)
    counts = group_counts(theme_of_pair, themes, vocabulary.matrix).toarray().astype(np.int32)
    counts = np.pad(counts, ((0, 0), (0, 1)))  # the last column: of all words that are not in the vocabulary
    sizes = np.maximum(np.bincount(theme_of_pair, minlength=themes), 1)
    column = {name: number for number, name in enumerate(vocabulary.names)}
    columns = np.array([column.get(name, len(column)) for name in spoken.names], np.int64)
    looks = np.array([name in look for name in spoken.names], bool)

    # The words that are not to stop at, and their runs: where each begins and ends, and the count of its rarest word.
    theme, word = np.repeat(theme_of_pair, lengths), columns[spoken.ids]
    common = counts / sizes[:, None] >= _COMMON
    kept = np.flatnonzero(~(common[theme, word] | looks[spoken.ids]))
    pair = np.repeat(np.arange(len(lengths)), lengths)[kept]
    new = np.flatnonzero(np.diff(kept, prepend=-2) + np.diff(pair, prepend=-1) != 1)
    ends = np.append(new, len(kept))[1:]
    rarity = counts[theme[kept], word[kept]]
    rarity = np.minimum.reduceat(rarity, new) if len(new) else rarity
    run = least_of_parts(rarity, np.arange(len(new)), np.searchsorted(pair[new], np.arange(len(lengths) + 1)))
    first, last = kept[new], kept[ends - 1] + 1

    named = np.flatnonzero(run >= 0)
    numbers: dict[tuple[int, bytes], int] = {}
    spans = zip(theme_of_pair[named].tolist(), first[run[named]].tolist(), last[run[named]].tolist(), strict=True)
    found = [numbers.setdefault((t, spoken.ids[a:b].tobytes()), len(numbers)) for t, a, b in spans]
    found, keys = np.array(found, np.int64), list(numbers)
    large = np.flatnonzero(np.bincount(found, minlength=len(keys)) >= min_members)
    of_class = np.array([keys[number][0] for number in large], np.int64)
    order = np.argsort(of_class, kind="stable")
    rank = np.full(len(keys), -1)
    rank[large[order]] = np.arange(len(large))
    labels = np.full(len(lengths), -1)
    labels[named] = rank[found]
    said = [np.frombuffer(keys[number][1], np.int32) for number in large[order]]
    return Grouping(labels, of_class[order], look), [" ".join(spoken.names[i] for i in ids) for ids in said]


def agreeing(grouping: Grouping, image: Any, min_members: int, *, watch: Watch = ignore) -> Grouping:
    """Keeps the pairs whose image agrees with the name: of its theme's classes, its own is among the nearest three.

    Nearness is that to the classes' mean image features, of which there are two rounds: the second without the pairs
    that the first left out. Classes that become small lose all their pairs.
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
            for start in range(0, len(pairs), size):
                part = pairs[start : start + size]
                nearness = np.asarray(image[part], np.float32) @ centroids[numbers].T
                own = nearness[np.arange(len(part)), np.searchsorted(numbers, labels[part])]
                labels[part[np.sum(nearness > own[:, None], axis=1) >= _NEAREST]] = -1
            done += len(pairs)
            watch("images that agree", done, total)
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


def name_by_medoid(grouping: Grouping, captions: Sequence[str], text: Any, clip: Clip) -> list[str]:
    """Names classes by the caption nearest to the mean text feature, without the words that do not fit the clip."""
    count = len(grouping.themes)
    centroids = normalize(group_sums(grouping.classes, count, text))
    pairs = np.flatnonzero(grouping.classes >= 0)
    nearness = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), BLOCK):
        part = pairs[start : start + BLOCK]
        rows = np.asarray(text[part], np.float32)
        nearness[start : start + BLOCK] = np.sum(rows * centroids[grouping.classes[part]], axis=1)
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
    counts = group_counts(grouping.classes, count, vocabulary.matrix)
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=count)
    of_theme = group_counts(grouping.themes, int(grouping.themes.max()) + 1, counts).toarray()
    theme_sizes = np.bincount(grouping.themes, weights=sizes)
    tells = np.array([0.0 if name in grouping.look else 1.0 for name in vocabulary.names])
    rows = np.empty((count, table.shape[1]), np.float32)
    size = max(1, _ENTRIES // max(1, len(vocabulary.names)))
    for start in range(0, count, size):
        part = slice(start, start + size)
        own, theme = counts[part].toarray(), grouping.themes[part]
        weights = own / sizes[part, None] * np.log(theme_sizes[theme][:, None] / np.maximum(of_theme[theme], 1))
        weights *= tells
        weights = np.where(weights.sum(1, keepdims=True) > 0, weights, own)
        weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)
        lengths = weights @ np.linalg.norm(embedded, axis=1)
        rows[part] = normalize(weights @ embedded) * lengths[:, None]
    return rows


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


def normalize(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean norms; float32."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
