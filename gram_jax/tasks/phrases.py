"""Words and phrases of captions: which words describe only the appearance, and which phrases can name a class."""

from __future__ import annotations

import array
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gram_jax.tasks.clustering import group_counts

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_LENGTH_PENALTY = 0.02  # per additional word: of equally good phrases, the shortest wins
_LEAST_COUNT = 5  # captions that contain a word of the vocabulary


class CaptionWords(NamedTuple):
    """The words of captions as numbers, one caption after the other."""

    ids: np.ndarray  # int32 [words of all captions], the number of each word
    starts: np.ndarray  # int64 [captions + 1], the begin of each caption in ids, and the end
    names: tuple[str, ...]  # the distinct words, by number


class Terms(NamedTuple):
    """Words or phrases, and the captions that contain them."""

    matrix: csr_array  # sparse float32 [captions, terms], 1 if a caption contains the term
    names: tuple[str, ...]  # in alphabetical order; the words of a phrase are joined by single spaces


class Vocabulary(NamedTuple):
    """The frequent words of a corpus: `Terms`, and `informative`, bool `[terms]`, False for appearance words."""

    matrix: csr_array
    names: tuple[str, ...]
    informative: np.ndarray

    @property
    def appearance(self) -> frozenset[str]:
        """The appearance words."""
        return frozenset(name for name, good in zip(self.names, self.informative, strict=True) if not good)


def words(caption: str) -> list[str]:
    """Returns the words of a caption in lower case: letters and digits, with inner hyphens and apostrophes.

    Example:
      >>> words("A poster of Braille pattern dots-12, on the king's pink.")
      ['a', 'poster', 'of', 'braille', 'pattern', 'dots-12', 'on', 'the', "king's", 'pink']
    """
    return _WORD.findall(caption.lower())


def number_words(captions: Iterable[Sequence[str]]) -> CaptionWords:
    """Numbers the words of captions, which are iterated once, in order of their first occurrence."""
    numbers: dict[str, int] = {}
    ids, starts = array.array("i"), array.array("q", [0])
    for caption in captions:
        ids.extend([numbers.setdefault(word, len(numbers)) for word in caption])
        starts.append(len(ids))
    return CaptionWords(np.array(ids, np.int32), np.array(starts, np.int64), tuple(numbers))


def find_vocabulary(caption_words: CaptionWords) -> Vocabulary:
    """Returns the words of at least five captions, and which of them are appearance words."""
    terms = count_terms(caption_words, min_count=_LEAST_COUNT)
    groups = np.unique(rarest(terms), return_inverse=True)[1]
    return Vocabulary(*terms, ~appearance_words(terms, groups))


def count_terms(caption_words: CaptionWords, *, longest: int = 1, min_count: int = 1) -> Terms:
    """Returns the phrases of up to `longest` words that at least `min_count` captions contain."""
    from scipy.sparse import csr_array, hstack

    ids, starts, words = caption_words
    ends = np.repeat(starts[1:], np.diff(starts))
    places, phrases, texts = np.arange(len(ends)), ids, list(words)  # all phrases of the present length
    parts, names = [], []
    for length in range(1, longest + 1):
        if length > 1:
            fits = places + length <= ends[places]
            places = places[fits]
            longer = phrases[fits] * np.int64(len(words)) + ids[places + length - 1]
            distinct, phrases = np.unique(longer, return_inverse=True)
            firsts, lasts = (numbers.tolist() for numbers in np.divmod(distinct, max(1, len(words))))
            texts = [f"{texts[first]} {words[last]}" for first, last in zip(firsts, lasts, strict=True)]
        entries = (np.ones(len(places), np.float32), phrases.astype(np.int32), np.searchsorted(places, starts))
        matrix = csr_array(entries, shape=(len(starts) - 1, len(texts)))
        matrix.sum_duplicates()
        matrix.data[:] = 1
        kept = np.flatnonzero(np.bincount(matrix.indices, minlength=len(texts)) >= min_count)
        parts.append(matrix[:, kept])
        names += [texts[number] for number in kept.tolist()]
    order = sorted(range(len(names)), key=names.__getitem__)
    matrix = (parts[0] if longest == 1 else hstack(parts, "csr"))[:, np.array(order, np.int64)]
    matrix.sort_indices()
    return Terms(matrix, tuple(names[number] for number in order))


def rarest(terms: Terms) -> np.ndarray:
    """Returns the rarest term of each caption, which usually names its subject: columns of `terms`, int `[captions]`.

    Of equally rare ones the first counts; captions without terms give -1.
    """
    matrix = terms.matrix.tocsr()
    counts = np.bincount(matrix.indices, minlength=len(terms.names))
    return least_of_parts(counts[matrix.indices], matrix.indices, matrix.indptr)


def least_of_parts(keys: np.ndarray, numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the number with the least key in each part of a list; of several, the least number.

    Keys and numbers are integers >= 0; part i goes from `starts[i]` to `starts[i + 1]`. Empty parts give -1.
    """
    least = np.full(len(starts) - 1, -1, np.int64)
    filled = np.flatnonzero(np.diff(starts))
    if len(filled):
        base = int(numbers.max()) + 1
        least[filled] = np.minimum.reduceat(keys * np.int64(base) + numbers, starts[filled]) % base
    return least


def appearance_words(
    terms: Terms, groups: np.ndarray, *, threshold: float = 0.52, min_share: float = 0.001
) -> np.ndarray:
    """Finds words that describe only the appearance ("a photo", "in bold", "on white"), and articles; bool `[terms]`.

        hit(w) / sum_k [ 1 - (1 - p_w)^{n_k} ] >= threshold

    hit(w) is the number of groups, of n_k captions each, in which the word w occurs. The sum is its expectation if w,
    which a share p_w of the captions contains, occurred at random. Names of things concentrate in few groups;
    appearance words spread over all of them. Words in less than a share `min_share` of the captions never count.
    `groups`, int `[captions]` from 0, is a fine grouping of the captions by subject, e.g. by `rarest`.

    Example:
      >>> terms = count_terms(number_words([["a", "cat"], ["a", "dog"]] * 20))
      >>> appearance_words(terms, rarest(terms)).tolist()
      [True, False, False]
    """
    sizes = np.bincount(groups)
    hit = np.asarray((group_counts(groups, len(sizes), terms.matrix) > 0).sum(0)).ravel()
    share = np.asarray(terms.matrix.sum(0)).ravel() / len(groups)
    spread = share >= min_share
    spread[spread] = [
        count >= threshold * np.sum(1.0 - (1.0 - p) ** sizes)
        for count, p in zip(hit[spread], share[spread], strict=True)
    ]
    return spread


def rank_phrases(
    terms: Terms,
    classes: np.ndarray,
    themes: np.ndarray,
    excluded: frozenset[str] | set[str] = frozenset(),
    *,
    min_count: int = 3,
    min_share: float = 0.3,
) -> list[list[int]]:
    """Ranks possible names of each class, columns of `terms`, by class-based TF-IDF within its theme, best first.

        score(g, c) = n_gc / n_c * log( n_t / n_gt ) - 0.02 (words of g - 1)

    n_gc of the n_c captions of class c, and n_gt of the n_t captions of its theme's classes, contain the phrase g. A
    phrase must not end in an excluded word, and at least `min_count` captions and a share `min_share` of the class must
    contain it. Arrays are the class of each caption (negative: none) and the theme of each class.

    Reference:
      Class-based TF-IDF: Grootendorst, "BERTopic: Neural topic modeling with a class-based TF-IDF procedure" (2022).
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
