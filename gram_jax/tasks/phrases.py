"""Words and phrases of captions: which of them say nothing about a theme, and which name a class."""

from __future__ import annotations

import array
import collections
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_LENGTH_PENALTY = 0.02  # of a score, for each further word: of phrases equally telling, the shortest


class Spoken(NamedTuple):
    """The words of captions as numbers, one caption after the other.

    Attributes:
      ids: int32 `[words of all captions]`, the number of each word.
      starts: int64 `[captions + 1]`, where each caption begins in `ids`, and the end.
      names: the different words, by number.
    """

    ids: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]


class Terms(NamedTuple):
    """Which terms occur in which captions.

    Attributes:
      matrix: sparse float32 `[captions, terms]`, 1 where a caption has the term.
      names: the terms, in alphabetical order; words of a phrase are joined by single spaces.

    Example:
      >>> count_terms(number_words([["a", "cat"], ["a", "dog"]]), longest=2).names
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


def number_words(captions: Iterable[Sequence[str]]) -> Spoken:
    """Numbers the words of captions, in the order in which they come.

    Args:
      captions: the words of each caption; asked for once, so that they need not be in memory.

    Returns:
      The `Spoken` words.

    Example:
      >>> number_words([["a", "cat"], [], ["a", "dog"]])
      Spoken(ids=array([0, 1, 0, 2], dtype=int32), starts=array([0, 2, 2, 4]), names=('a', 'cat', 'dog'))

    Reference:
      Our own choice.
    """
    numbers: collections.defaultdict[str, int] = collections.defaultdict()
    numbers.default_factory = numbers.__len__
    ids, starts = array.array("i"), array.array("q", [0])
    for caption in captions:
        ids.extend([numbers[word] for word in caption])
        starts.append(len(ids))
    return Spoken(np.array(ids, np.int32), np.array(starts, np.int64), tuple(numbers))


def count_terms(spoken: Spoken, *, longest: int = 1, min_count: int = 1) -> Terms:
    """The words and phrases of captions.

    Args:
      spoken: the words of the captions.
      longest: words of the longest phrases.
      min_count: terms that occur in fewer captions are left out.

    Returns:
      The `Terms`.

    Example:
      >>> count_terms(number_words([["a", "cat"], ["a", "dog"]]), min_count=2).matrix.toarray().tolist()
      [[1.0], [1.0]]

    Reference:
      Our own choice.
    """
    from scipy.sparse import csr_array, hstack

    ends = np.repeat(spoken.starts[1:], np.diff(spoken.starts))
    places, phrases, texts = np.arange(len(ends)), spoken.ids, list(spoken.names)  # of phrases of the present length
    parts, names = [], []
    for length in range(1, longest + 1):
        if length > 1:
            fits = places + length <= ends[places]
            places = places[fits]
            pairs = phrases[fits] * np.int64(len(spoken.names)) + spoken.ids[places + length - 1]
            found, phrases = np.unique(pairs, return_inverse=True)
            firsts, lasts = np.divmod(found, max(1, len(spoken.names)))
            texts = [
                f"{texts[first]} {spoken.names[last]}"
                for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
            ]
        pointers = np.searchsorted(places, spoken.starts)
        entries = (np.ones(len(places), np.float32), phrases.astype(np.int32), pointers)
        matrix = csr_array(entries, shape=(len(pointers) - 1, len(texts)))
        matrix.sum_duplicates()
        matrix.data[:] = 1
        kept = np.flatnonzero(np.bincount(matrix.indices, minlength=len(texts)) >= min_count)
        parts.append(matrix[:, kept])
        names += [texts[number] for number in kept.tolist()]
    order = sorted(range(len(names)), key=names.__getitem__)
    matrix = (parts[0] if longest == 1 else hstack(parts, "csr"))[:, np.array(order, np.int64)]
    matrix.sort_indices()
    return Terms(matrix, tuple(names[number] for number in order))


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
      >>> rarest(count_terms(number_words([["a", "cat"], ["a", "dog"], ["a"]]))).tolist()
      [1, 2, 0]

    Reference:
      Our own choice.
    """
    matrix = terms.matrix.tocsr()
    counts = np.bincount(matrix.indices, minlength=len(terms.names))
    return least_of_parts(counts[matrix.indices], matrix.indices, matrix.indptr)


def least_of_parts(keys: np.ndarray, numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The number with the least key in each part of a list, the least such number where there are several.

    Args:
      keys: int `[entries]`, >= 0.
      numbers: int `[entries]`, >= 0.
      starts: int `[parts + 1]`, where each part begins, and the end.

    Returns:
      int64 `[parts]`; -1 for empty parts.

    Example:
      >>> least_of_parts(np.array([3, 1, 1, 5]), np.array([7, 9, 8, 2]), np.array([0, 3, 3, 4])).tolist()
      [8, -1, 2]

    Reference:
      Our own choice.
    """
    found = np.full(len(starts) - 1, -1, np.int64)
    filled = np.flatnonzero(np.diff(starts))
    if len(filled):
        base = int(numbers.max()) + 1
        found[filled] = np.minimum.reduceat(keys * np.int64(base) + numbers, starts[filled]) % base
    return found


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
      >>> terms = count_terms(number_words([["a", "cat"], ["a", "dog"]] * 20))
      >>> look_words(terms, rarest(terms)).tolist()
      [True, False, False]

    Reference:
      Our own choice.
    """
    sizes = np.bincount(groups)
    hit = np.asarray((group_counts(groups, len(sizes), terms.matrix) > 0).sum(0)).ravel()
    share = np.asarray(terms.matrix.sum(0)).ravel() / len(groups)
    found = share >= min_share
    found[found] = [
        count >= threshold * np.sum(1.0 - (1.0 - p) ** sizes) for count, p in zip(hit[found], share[found], strict=True)
    ]
    return found


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
      >>> terms = count_terms(number_words(captions), longest=2)
      >>> ranked = rank_phrases(terms, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0]), {"a"})
      >>> [terms.names[phrases[0]] for phrases in ranked]
      ['king', 'queen']

    Reference:
      Class-based TF-IDF: Grootendorst, "BERTopic: Neural topic modeling with a class-based TF-IDF procedure" (2022);
      our own choice is to compare within a theme.
    """
    sizes = np.bincount(classes[classes >= 0], minlength=len(themes))
    counts = group_counts(classes, len(themes), terms.matrix).tocoo()
    theme_sizes = np.bincount(themes, weights=sizes)
    allowed = np.array([name.rpartition(" ")[2] not in excluded for name in terms.names], bool)
    extra = np.array([name.count(" ") for name in terms.names])
    rows, columns = counts.coords
    _, place = np.unique(themes[rows] * np.int64(len(terms.names)) + columns, return_inverse=True)
    of_theme = np.bincount(place, weights=counts.data)[place]
    share = counts.data / sizes[rows]
    score = share * np.log(theme_sizes[themes[rows]] / of_theme) - _LENGTH_PENALTY * extra[columns]
    keep = allowed[columns] & (counts.data >= min_count) & (share >= min_share)
    rows, columns, score = rows[keep], columns[keep], score[keep]
    order = np.lexsort((columns, -score, rows))
    borders = np.searchsorted(rows[order], np.arange(1, len(themes)))
    return [part.tolist() for part in np.split(columns[order], borders)]
