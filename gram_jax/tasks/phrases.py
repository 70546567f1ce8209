"""Words and phrases of captions: which of them say nothing about a theme, and which name a class."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_LENGTH_PENALTY = 0.02  # of a score, for each further word: of phrases equally telling, the shortest


class Terms(NamedTuple):
    """Which terms occur in which captions.

    Attributes:
      matrix: sparse float32 `[captions, terms]`, 1 where a caption has the term.
      names: the terms, in alphabetical order; words of a phrase are joined by single spaces.

    Example:
      >>> count_terms([["a", "cat"], ["a", "dog"]], longest=2).names
      ('a', 'a cat', 'a dog', 'cat', 'dog')
    """

    matrix: csr_array
    names: tuple[str, ...]


def words(caption: str) -> list[str]:
    """The words of a caption in lower case: letters and digits of any script, with hyphens and apostrophes inside.

    Args:
      caption: a text.

    Returns:
      The words, in order.

    Example:
      >>> words("A poster of Braille pattern dots-12, on the king's pink.")
      ['a', 'poster', 'of', 'braille', 'pattern', 'dots-12', 'on', 'the', "king's", 'pink']

    Reference:
      Our own choice.
    """
    return _WORD.findall(caption.lower())


def count_terms(captions: Iterable[Sequence[str]], *, longest: int = 1, min_count: int = 1) -> Terms:
    """The words and phrases of captions.

    Args:
      captions: the words of each caption.
      longest: words of the longest phrases.
      min_count: terms that occur in fewer captions are left out.

    Returns:
      The `Terms`.

    Example:
      >>> count_terms([["a", "cat"], ["a", "dog"]], min_count=2).matrix.toarray().tolist()
      [[1.0], [1.0]]

    Reference:
      Our own choice.
    """
    from scipy.sparse import csr_array

    found = [_phrases(caption, longest) for caption in captions]
    counts = collections.Counter(term for terms in found for term in terms)
    names = tuple(sorted(term for term, count in counts.items() if count >= min_count))
    column = {term: number for number, term in enumerate(names)}
    kept = [sorted(column[term] for term in terms if term in column) for terms in found]
    indices = np.fromiter((number for terms in kept for number in terms), np.int32)
    pointers = np.concatenate([[0], np.cumsum([len(terms) for terms in kept], dtype=np.int64)])
    matrix = csr_array((np.ones(len(indices), np.float32), indices, pointers), shape=(len(found), len(names)))
    return Terms(matrix, names)


def group_counts(labels: np.ndarray, groups: int, matrix: csr_array | np.ndarray) -> csr_array | np.ndarray:
    """Sums the rows of each group; rows with a negative label belong to none.

    Args:
      labels: int `[rows]`.
      groups: how many groups there are.
      matrix: `[rows, columns]`, sparse or not.

    Returns:
      `[groups, columns]`, of the same sort.

    Example:
      >>> group_counts(np.array([1, -1, 1]), 2, np.array([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]])).tolist()
      [[0.0, 0.0], [4.0, 6.0]]

    Reference:
      Our own choice.
    """
    from scipy.sparse import csr_array

    rows = np.flatnonzero(labels >= 0)
    ones = np.ones(len(rows), matrix.dtype)
    return csr_array((ones, (labels[rows], rows)), shape=(groups, len(labels))) @ matrix


def rarest(terms: Terms) -> np.ndarray:
    """The rarest term of each caption: mostly a word for the very thing that it speaks of.

    Args:
      terms: words.

    Returns:
      int `[captions]`, columns of `terms`; the first of equally rare ones; -1 for captions without any.

    Example:
      >>> rarest(count_terms([["a", "cat"], ["a", "dog"], ["a"]])).tolist()
      [1, 2, 0]

    Reference:
      Our own choice.
    """
    matrix = terms.matrix.tocsr()
    counts = np.asarray(matrix.sum(0)).ravel()
    rows = np.split(matrix.indices, matrix.indptr[1:-1])
    return np.array([row[np.argmin(counts[row])] if len(row) else -1 for row in rows], np.int64)


def look_words(terms: Terms, groups: np.ndarray, *, threshold: float = 0.52, min_share: float = 0.001) -> np.ndarray:
    """The words that do not tell what an image shows: articles, and words for looks ("a photo", "in bold", "on white").

        hit(w) / sum_k [ 1 - (1 - p_w)^{n_k} ] >= threshold

    hit(w) counts the groups, of n_k captions each, in which the word w occurs, and the sum is what would be expected if
    w, which a share p_w of the captions has, were thrown at random: words for things stay together, words that go with
    anything spread out. Of rare words this cannot be said; looks are few, and spoken of often.

    Args:
      terms: words.
      groups: int `[captions]`, a fine grouping of the captions by what they speak of, from 0, such as `rarest` gives.
      threshold: a share, from 0 to 1.
      min_share: share of the captions that a look word occurs in, at least.

    Returns:
      bool `[terms]`.

    Example:
      >>> terms = count_terms([["a", "cat"], ["a", "dog"]] * 20)
      >>> look_words(terms, rarest(terms)).tolist()
      [True, False, False]

    Reference:
      Our own choice.
    """
    sizes = np.bincount(groups)
    hit = np.asarray((group_counts(groups, len(sizes), terms.matrix) > 0).sum(0)).ravel()
    share = np.asarray(terms.matrix.sum(0)).ravel() / len(groups)
    expected = np.array([np.sum(1.0 - (1.0 - p) ** sizes) for p in share])
    return (share >= min_share) & (hit >= threshold * expected)


def rank_phrases(
    terms: Terms,
    classes: np.ndarray,
    themes: np.ndarray,
    excluded: frozenset[str] | set[str] = frozenset(),
    *,
    min_count: int = 3,
    min_share: float = 0.3,
) -> list[list[int]]:
    """Phrases that could name each class, best first, by class-based TF-IDF within its theme.

        score(g, c) = n_gc / n_c * log( n_t / n_gt ) - 0.02 (words of g - 1)

    n_gc of the n_c captions of class c, and n_gt of the n_t captions of its theme's classes, have the phrase g. A
    phrase must not end in an excluded word.

    Args:
      terms: phrases.
      classes: int `[captions]`, the class of each caption; negative: none.
      themes: int `[classes]`, the theme of each class.
      excluded: words that say nothing, as `look_words` finds them.
      min_count: captions of the class that must have the phrase, at least.
      min_share: share of the captions of the class that must have it, at least.

    Returns:
      For each class, columns of `terms`.

    Example:
      >>> captions = [["a", "red", "king"]] * 3 + [["a", "red", "queen"]] * 3
      >>> terms = count_terms(captions, longest=2)
      >>> ranked = rank_phrases(terms, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0]), {"a"})
      >>> [terms.names[phrases[0]] for phrases in ranked]
      ['king', 'queen']

    Reference:
      Class-based TF-IDF: Grootendorst, "BERTopic: Neural topic modeling with a class-based TF-IDF procedure" (2022);
      our own choice is to compare within a theme.
    """
    sizes = np.bincount(classes[classes >= 0], minlength=len(themes))
    counts = group_counts(classes, len(themes), terms.matrix).tocoo()
    of_theme = np.asarray(group_counts(themes, int(themes.max()) + 1, counts.tocsr()).todense())
    theme_sizes = np.bincount(themes, weights=sizes)
    parts = [name.split(" ") for name in terms.names]
    allowed = np.array([words[-1] not in excluded for words in parts], bool)
    extra = np.array([len(words) - 1 for words in parts])
    rows, columns = counts.coords
    share = counts.data / sizes[rows]
    score = (
        share * np.log(theme_sizes[themes[rows]] / of_theme[themes[rows], columns]) - _LENGTH_PENALTY * extra[columns]
    )
    keep = allowed[columns] & (counts.data >= min_count) & (share >= min_share)
    rows, columns, score = rows[keep], columns[keep], score[keep]
    order = np.lexsort((columns, -score, rows))
    borders = np.searchsorted(rows[order], np.arange(1, len(themes)))
    return [part.tolist() for part in np.split(columns[order], borders)]


def _phrases(caption: Sequence[str], longest: int) -> set[str]:
    return {
        " ".join(caption[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(caption) - length + 1)
    }
