"""Words, look words and phrases, by hand."""

import numpy as np
import pytest

from gram_jax.tasks.phrases import carries, count_terms, group_counts, look_words, rank_phrases, words


def test_words():
    assert words("A Photo: of the digit-2, (zero)! Ünï_code x'y 'q'") == [
        "a", "photo", "of", "the", "digit-2", "zero", "ünï", "code", "x'y", "q",
    ]  # fmt: skip
    assert words("...") == []


def test_terms_by_hand():
    captions = [["a", "b", "a", "b"], ["b", "c"], []]
    terms = count_terms(captions, longest=3)
    assert terms.names == ("a", "a b", "a b a", "b", "b a", "b a b", "b c", "c")
    assert terms.matrix.toarray().tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0, 1, 1], [0] * 8]
    assert count_terms(captions, longest=3, min_count=2).names == ("b",)
    rows, columns = np.array([0, 1, 1, 2]), np.array([1, 1, 7, 0])
    assert carries(terms, rows, columns).tolist() == [True, False, True, False]


def test_group_counts_sparse_and_dense():
    terms = count_terms([["a"], ["a", "b"], ["b"], ["a"]])
    labels = np.array([1, 1, -1, 0])
    expected = [[1, 0], [2, 1]]
    assert group_counts(labels, 2, terms.matrix).toarray().tolist() == expected
    assert group_counts(labels, 2, terms.matrix.toarray()).tolist() == expected


def test_planted_look_words_are_found(planted):
    terms = count_terms([words(caption) for caption in planted.captions])
    themes = np.array([sorted(set(planted.themes)).index(theme) for theme in planted.themes])
    look = look_words(terms, themes)
    found = {name for name, says_nothing in zip(terms.names, look, strict=True) if says_nothing}
    assert found == {"a", "photo", "of", "on", "in", "white", "black", "red"}


def test_divergence_is_the_formula():
    rng = np.random.default_rng(0)
    themes = rng.integers(0, 3, 500)
    captions = [["x"] * int(rng.random() < (0.9, 0.3, 0.2)[theme]) + ["y"] for theme in themes]
    terms = count_terms(captions)
    holders = themes[[("x" in caption) for caption in captions]]
    divergence = 0.0
    for theme in range(3):
        share = np.mean(holders == theme)
        divergence += share * np.log(share / np.mean(themes == theme))
    divergence -= 2 / (2 * len(holders))
    assert look_words(terms, themes, threshold=divergence + 1e-6).tolist() == [True, True]
    assert look_words(terms, themes, threshold=divergence - 1e-6).tolist() == [False, True]


def test_rare_words_are_never_look_words():
    captions = [["a", "rare"], *[["a"]] * 999]
    terms = count_terms(captions)
    themes = np.arange(1000) % 10
    assert look_words(terms, themes).tolist() == [True, False]
    assert look_words(terms, themes, min_share=0.001).tolist() == [True, True]  # 1 of 1000 is too few for a bias of 4.5


def test_ranks_are_those_of_the_formula():
    captions = [["small", "alpha"]] * 4 + [["small", "alpha", "tonos"]] * 4 + [["capital", "alpha"]] * 8
    classes = np.array([0] * 4 + [1] * 4 + [2] * 8)
    terms = count_terms(captions, longest=2)
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
    terms = count_terms(captions)

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
    terms = count_terms(captions, longest=2)
    first = rank_phrases(terms, np.repeat([0, 1], 3), np.array([0, 0]), excluded)[0]
    assert ("alpha" in [terms.names[i] for i in first]) == (not excluded)
    assert ("small alpha" in [terms.names[i] for i in first]) == (not excluded)
