"""Themes by words that many clusters share: against the rule written out in dense arrays."""

import numpy as np
import pytest

from gram_jax.tasks import assign, kmeans
from gram_jax.tasks.classes import find_classes
from gram_jax.tasks.phrases import Vocabulary, count_terms, number_words
from gram_jax.tasks.themes import find_themes


@pytest.fixture(scope="module")
def corpus():
    """Three themes of twelve names each, in clusters by name with some errors."""
    rng = np.random.default_rng(0)
    name = rng.integers(0, 36, 1500)
    theme = name // 12
    captions = [
        [f"kind{theme[i]}", f"thing{name[i]}", *(f"noise{n}" for n in rng.integers(0, 30, 2)), *["look"] * (i % 3 > 0)]
        for i in range(1500)
    ]
    terms = count_terms(number_words(captions), min_count=2)
    vocabulary = Vocabulary(*terms, np.array([word != "look" for word in terms.names]))
    clusters = np.where(rng.random(1500) < 0.1, rng.integers(0, 36, 1500), name)
    text = rng.standard_normal((36, 8))[name] + 0.3 * rng.standard_normal((1500, 8))
    text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float16)
    return captions, vocabulary, clusters, text, theme


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)


def test_themes_are_those_of_the_rule(corpus):
    captions, vocabulary, clusters, text, _ = corpus
    words = np.array([[name in caption for name in vocabulary.names] for caption in captions], float)
    share = np.array([words[clusters == cluster].mean(0) for cluster in range(36)])
    spread = np.mean(share > 0.3, axis=0)
    kept = (spread >= 0.003) & vocabulary.informative
    weights = spread[kept] ** 0.25
    common = np.where(share[:, kept] > 0.1, share[:, kept], 0)
    means = np.array([text[clusters == cluster].astype(float).sum(0) for cluster in range(36)])
    word_rows = unit(unit(words[:, kept] * weights) + unit(common * weights)[clusters])
    rows = np.concatenate([word_rows, 0.3 * unit(means)[clusters]], axis=1)
    assert 3 < kept.sum() < len(kept) - 20  # neither noise nor appearance

    found = find_themes(clusters, vocabulary, text, 3, seed=0)
    expected = assign(rows, kmeans(rows, 3, seed=0, iterations=25))
    np.testing.assert_array_equal(found, expected)
    sampled = find_themes(clusters, vocabulary, text, 3, seed=0, sample=400)
    np.testing.assert_array_equal(sampled, assign(rows, kmeans(rows, 3, seed=0, iterations=25, sample=400)))


def test_classes_of_a_sample_are_about_those_of_all(corpus):
    _, vocabulary, _, text, theme = corpus
    found = find_classes(theme, vocabulary, text, text, 36, seed=0, sample=300)
    whole = find_classes(theme, vocabulary, text, text, 36, seed=0, sample=1500)
    np.testing.assert_array_equal(whole.classes, find_classes(theme, vocabulary, text, text, 36, seed=0).classes)
    for grouping in (found, whole):
        assert (grouping.classes >= 0).all()
        np.testing.assert_array_equal(grouping.themes[grouping.classes], theme)
        assert 30 <= len(grouping.themes) <= 38
    assert not np.array_equal(found.classes, whole.classes)
