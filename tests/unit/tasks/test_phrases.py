"""Words, appearance words and phrases, by hand."""

import collections

import numpy as np
import pytest

from gram_jax.tasks.clustering import group_counts
from gram_jax.tasks.phrases import (
    appearance_words,
    count_terms,
    find_vocabulary,
    number_words,
    rank_phrases,
    rarest,
    words,
)


def test_words():
    assert words("A Photo: of the digit-2, (zero)! Ünï_code x'y 'q'") == [
        "a", "photo", "of", "the", "digit-2", "zero", "ünï", "code", "x'y", "q",
    ]  # fmt: skip
    assert words("...") == []


def test_terms_by_hand():
    captions = [["a", "b", "a", "b"], ["b", "c"], []]
    terms = count_terms(number_words(captions), longest=3)
    assert terms.names == ("a", "a b", "a b a", "b", "b a", "b a b", "b c", "c")
    assert terms.matrix.toarray().tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0, 1, 1], [0] * 8]
    assert count_terms(number_words(captions), longest=3, min_count=2).names == ("b",)


def random_captions(count, seed):
    rng = np.random.default_rng(seed)
    names = ["a", "b", "b-c", "b'c", "bc", "c", "ä", *(f"w{i}" for i in range(20))]
    return [[names[i] for i in rng.integers(0, len(names), rng.integers(0, 9))] for _ in range(count)]


@pytest.mark.parametrize(("longest", "min_count"), [(1, 1), (1, 4), (2, 1), (3, 2)])
def test_terms_of_many_captions(longest, min_count):
    captions = random_captions(300, longest)
    phrases = [
        {" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)}
        for words in captions
    ]
    counts = collections.Counter(phrase for found in phrases for phrase in found)
    names = sorted(phrase for phrase, count in counts.items() if count >= min_count)
    numbered = number_words(iter(captions))
    terms = count_terms(numbered, longest=longest, min_count=min_count)
    assert list(terms.names) == names
    expected = np.array([[name in found for name in names] for found in phrases], np.float32)
    np.testing.assert_array_equal(terms.matrix.toarray(), expected)
    assert terms.matrix.dtype == np.float32
    spans = zip(numbered.starts, numbered.starts[1:], strict=False)
    assert [
        [numbered.names[i] for i in numbered.ids[a:b]] for a, b in spans
    ] == captions  # counting leaves the words as they were


def test_rarest_of_many_captions():
    captions = random_captions(300, 7)
    counts = collections.Counter(word for caption in captions for word in set(caption))
    terms = count_terms(number_words(captions), min_count=40)
    expected = [
        min((word for word in caption if counts[word] >= 40), key=lambda word: (counts[word], word), default=None)
        for caption in captions
    ]
    assert [terms.names[column] if column >= 0 else None for column in rarest(terms)] == expected
    assert None in expected


def test_group_counts_sparse_and_dense():
    terms = count_terms(number_words([["a"], ["a", "b"], ["b"], ["a"]]))
    labels = np.array([1, 1, -1, 0])
    expected = [[1, 0], [2, 1]]
    assert group_counts(labels, 2, terms.matrix).toarray().tolist() == expected
    assert group_counts(labels, 2, terms.matrix.toarray()).tolist() == expected


def test_rarest_by_hand():
    captions = [["b", "c"], ["b", "a"], ["c", "b", "d"], ["e"], ["b"], []]
    terms = count_terms(number_words(captions), min_count=1)
    names = [terms.names[column] if column >= 0 else None for column in rarest(terms)]
    assert names == ["c", "a", "d", "e", "b", None]


def test_planted_appearance_words_are_found(planted):
    terms = count_terms(number_words(map(words, planted.captions)))
    assert [terms.names[column] for column in rarest(terms)] == planted.classes
    vocabulary = find_vocabulary(number_words(map(words, planted.captions)))
    assert vocabulary.appearance == {"a", "photo", "of", "on", "in", "white", "black", "red"}


def test_spread_is_measured_against_chance():
    # Ten clusters of four captions. "x" is in six captions, which are in two clusters; "y" in four, in four clusters.
    clusters = np.repeat(np.arange(10), 4)
    holders = {"x": [0, 1, 2, 3, 4, 5], "y": [8, 12, 16, 20]}
    captions = [[name for name, who in holders.items() if i in who] for i in range(40)]
    terms = count_terms(number_words(captions))
    expected = [10 * (1 - (1 - len(who) / 40) ** 4) for who in holders.values()]
    shares = np.array([2, 4]) / expected
    for column, share in enumerate(shares):
        assert appearance_words(terms, clusters, threshold=share - 1e-6)[column]
        assert not appearance_words(terms, clusters, threshold=share + 1e-6)[column]


def test_rare_words_are_never_appearance_words():
    captions = [["a", "rare"], *[["a"]] * 1999]
    terms = count_terms(number_words(captions))
    clusters = np.arange(2000) % 10
    assert appearance_words(terms, clusters).tolist() == [True, False]
    assert appearance_words(terms, clusters, min_share=0.0005).tolist() == [True, True]


def test_ranks_are_those_of_the_formula():
    captions = [["small", "alpha"]] * 4 + [["small", "alpha", "tonos"]] * 4 + [["capital", "alpha"]] * 8
    classes = np.array([0] * 4 + [1] * 4 + [2] * 8)
    terms = count_terms(number_words(captions), longest=2)
    ranked = rank_phrases(terms, classes, np.array([0, 0, 0]))
    scores = {
        "tonos": np.log(16 / 4),
        "alpha tonos": np.log(16 / 4) - 0.02,
        "small": np.log(16 / 8),
        "small alpha": np.log(16 / 8) - 0.02,
        "alpha": np.log(16 / 16),
    }
    assert [terms.names[column] for column in ranked[1]] == sorted(scores, key=lambda name: -scores[name])
    assert [terms.names[column] for column in ranked[2]][:2] == ["capital", "capital alpha"]


def test_themes_are_apart_and_thresholds_hold():
    captions = [["red", "king"]] * 3 + [["red", "queen"]] * 2 + [["blue", "king"]] * 3
    classes, themes = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 0, 1])
    terms = count_terms(number_words(captions))

    def names(**settings):
        ranked = rank_phrases(terms, classes, themes, {"red"}, **settings)
        return [[terms.names[column] for column in columns] for columns in ranked]

    assert names() == [["king"], [], ["blue", "king"]]  # two captions are too few, and red is excluded
    assert names(min_count=1) == [["king"], ["queen"], ["blue", "king"]]
    without = rank_phrases(terms, np.array([0, 0, 0, 1, -1, 2, 2, -1]), themes, min_count=1, min_share=0.9)
    assert [len(columns) for columns in without] == [2, 2, 2]


@pytest.mark.parametrize("excluded", [set(), {"alpha"}])
def test_a_phrase_does_not_end_in_an_excluded_word(excluded):
    captions = [["small", "alpha"]] * 3 + [["capital", "beta"]] * 3
    terms = count_terms(number_words(captions), longest=2)
    first = rank_phrases(terms, np.repeat([0, 1], 3), np.array([0, 0]), excluded)[0]
    assert ("alpha" in [terms.names[i] for i in first]) == (not excluded)
    assert ("small alpha" in [terms.names[i] for i in first]) == (not excluded)
