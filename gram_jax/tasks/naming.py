"""Names of classes and themes: a phrase of the captions, a whole caption, or a token embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_jax.clip import Clip
from gram_jax.tasks.classes import Grouping
from gram_jax.tasks.clustering import BLOCK, group_counts, group_sums, normalize
from gram_jax.tasks.hierarchy import TEMPLATE
from gram_jax.tasks.phrases import CaptionWords, Vocabulary, count_terms, rank_phrases

_THEME_WORDS = 3  # in the title of a theme
_ENTRIES = 1 << 27  # entries of a matrix of words by classes, at once


def name_by_phrase(grouping: Grouping, caption_words: CaptionWords, excluded: frozenset[str]) -> list[str]:
    """Names random classes by their best phrase that no other class of the theme has, however rare it is."""
    kept = np.repeat(grouping.classes >= 0, np.diff(caption_words.starts))
    lengths = np.where(grouping.classes >= 0, np.diff(caption_words.starts), 0)
    members = CaptionWords(caption_words.ids[kept], np.concatenate([[0], np.cumsum(lengths)]), caption_words.names)
    phrases = count_terms(members, longest=3)
    ranked = rank_phrases(phrases, grouping.classes, grouping.themes, excluded, min_count=1, min_share=0.0)
    taken: set[tuple[int, int | None]] = set()
    texts = []
    for number, (theme, columns) in enumerate(zip(grouping.themes, ranked, strict=True)):
        free = next((column for column in columns if (theme, column) not in taken), None)
        taken.add((theme, free))
        texts.append(f"class {number}" if free is None else phrases.names[free])
    return texts


def name_by_medoid(grouping: Grouping, captions: Sequence[str], text: Any, clip: Clip) -> list[str]:
    """Names classes by the caption nearest to their mean text feature, cut to the clip's context length."""
    count = len(grouping.themes)
    centroids = normalize(group_sums(grouping.classes, count, text))
    pairs = np.flatnonzero(grouping.classes >= 0)
    parts = np.split(pairs, range(BLOCK, len(pairs), BLOCK))
    rows = ((np.asarray(text[part], np.float32), centroids[grouping.classes[part]]) for part in parts)
    nearness = np.concatenate([np.sum(own * mean, axis=1) for own, mean in rows])
    order = pairs[np.lexsort((pairs, -nearness, grouping.classes[pairs]))]
    first = order[np.searchsorted(grouping.classes[order], np.arange(count))]
    tokenizer = clip.tokenizer
    assert tokenizer is not None

    def cut(caption: str) -> str:
        kept = caption.rstrip(" .").split()
        room = tokenizer.context_length - 2
        while len(kept) > 1 and len(tokenizer.pieces([TEMPLATE.replace("{}", " ".join(kept))])[0]) > room:
            kept.pop()
        return " ".join(kept)

    return [cut(captions[pair]) for pair in first]


def token_means(grouping: Grouping, vocabulary: Vocabulary, clip: Clip) -> np.ndarray:
    """Returns a token embedding for each class: the class-TF-IDF-weighted mean of its words' embeddings.

        z_c  ~  sum_w n_wc / n_c log( n_t / n_wt ) e_w,   scaled to the mean length of the embeddings e_w

    e_w is the mean over the tokens of word w. Appearance words count only in classes without other words.
    """
    assert clip.tokenizer is not None
    table = np.asarray(clip.params["text"]["token_embedding"], np.float32)
    embedded = np.stack([table[ids].mean(0) for ids in clip.tokenizer.pieces(vocabulary.names)])
    count = len(grouping.themes)
    counts = group_counts(grouping.classes, count, vocabulary.matrix)
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=count)
    of_theme = group_counts(grouping.themes, int(grouping.themes.max()) + 1, counts).toarray()
    theme_sizes = np.bincount(grouping.themes, weights=sizes)
    rows = np.empty((count, table.shape[1]), np.float32)
    size = max(1, _ENTRIES // max(1, len(vocabulary.names)))
    for begin in range(0, count, size):
        part = slice(begin, begin + size)
        own, theme = counts[part].toarray(), grouping.themes[part]
        weights = own / sizes[part, None] * np.log(theme_sizes[theme][:, None] / np.maximum(of_theme[theme], 1))
        weights *= vocabulary.informative.astype(np.float64)
        weights = np.where(weights.sum(1, keepdims=True) > 0, weights, own)
        weights /= np.maximum(weights.sum(1, keepdims=True), 1e-9)
        lengths = weights @ np.linalg.norm(embedded, axis=1)
        rows[part] = normalize(weights @ embedded) * lengths[:, None]
    return rows


def theme_titles(grouping: Grouping, vocabulary: Vocabulary) -> list[str]:
    """Returns the most informative words of each theme, for people."""
    of_pair = np.where(grouping.classes >= 0, grouping.themes[grouping.classes], -1)
    count = int(grouping.themes.max()) + 1
    sizes = np.maximum(np.bincount(of_pair[of_pair >= 0], minlength=count), 1)
    share = group_counts(of_pair, count, vocabulary.matrix).toarray() / sizes[:, None]
    overall = np.asarray(vocabulary.matrix.sum(0)).ravel() / len(of_pair)
    score = share * np.log(1 / np.maximum(overall, 1e-9)) * vocabulary.informative
    best = np.argsort(-score, axis=1, kind="stable")[:, :_THEME_WORDS]
    titles = (
        " ".join(vocabulary.names[i] for i in row if scores[i] > 0) for row, scores in zip(best, score, strict=True)
    )
    return [title or f"theme {theme}" for theme, title in enumerate(titles)]
