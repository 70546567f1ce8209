"""Classes by the part of captions beside their theme, and pairs with agreeing images, by hand."""

import numpy as np
import pytest

from gram_jax.tasks import classes, clustering
from gram_jax.tasks.classes import Grouping, classes_by_name, keep_agreeing
from gram_jax.tasks.phrases import Vocabulary, count_terms, number_words, words


def vocabulary_of(caption_words, appearance, min_count=1):
    terms = count_terms(caption_words, min_count=min_count)
    return Vocabulary(*terms, np.array([name not in appearance for name in terms.names], bool))


def named(captions, theme_of_pair, appearance=("a", "print", "of", "on", "white"), min_members=2):
    caption_words = number_words(map(words, captions))
    vocabulary = vocabulary_of(caption_words, appearance)
    grouping, texts = classes_by_name(caption_words, vocabulary, np.array(theme_of_pair), min_members)
    groups = {}
    for pair, number in enumerate(grouping.classes.tolist()):
        if number >= 0:
            groups.setdefault((int(grouping.themes[number]), texts[number]), []).append(pair)
    return groups


def test_a_name_is_the_part_beside_theme_and_appearance():
    greek = [
        "a print of small letter alpha with tonos, on white",
        "small letter alpha with tonos",
        "small letter alpha",
        "letter alpha, small",
        "a small letter beta on white.",
        "beta, a small letter",
        "a small letter",
        *["small letter gamma", "small letter delta"] * 3,
    ]
    cards = ["card: king of hearts", "a print of a card, king of hearts", "card queen", "the card queen", *["card"] * 3]
    found = named([*greek, *cards], [0] * len(greek) + [1] * len(cards))
    # "small" and "letter" are words of the theme, and "of" one of the appearance: it stays between "king" and "hearts".
    assert found == {
        (0, "alpha with tonos"): [0, 1],
        (0, "alpha"): [2, 3],
        (0, "beta"): [4, 5],
        (0, "gamma"): [7, 9, 11],
        (0, "delta"): [8, 10, 12],
        (1, "king of hearts"): [13, 14],
    }


def test_a_rare_name_is_shortened_to_the_run_with_its_rarest_word():
    captions = ["king of hearts", "king of spades", "king of clubs", "two of clubs", "two of clubs", *["card"] * 12]
    found = named(captions, [0] * len(captions))
    # Two pairs are named "two of clubs". Of the kings, each name is alone: what they share are "king", which is as rare
    # as "clubs" and comes first, and "hearts" and "spades", which are rarer.
    assert found == {(0, "two of clubs"): [3, 4]}
    found = named([*captions, "ace of hearts", "seven of spades"], [0] * (len(captions) + 2), min_members=2)
    assert found == {(0, "two of clubs"): [3, 4]}


def test_the_run_with_the_rarest_word_names_the_pair():
    captions = ["kind delta of omega", "delta kind of omega", "kind of delta", "kind of eta", "kind of eta", "kind eta"]
    found = named(captions, [0] * 6, appearance=("of",))
    # Of six captions, five have another word than "omega": the rarest, and so what the first two are about.
    assert found == {(0, "omega"): [0, 1]}


def test_rare_names_are_no_class_and_themes_do_not_mix():
    captions = ["kind alpha", "kind alpha", "kind beta", "sort alpha", "sort gamma", "sort gamma", "sort delta"]
    assert named(captions, [0, 0, 0, 1, 1, 1, 1], min_members=1) == {
        (0, "beta"): [2],
        (1, "alpha"): [3],
        (1, "delta"): [6],
    }
    assert named([*captions, *["kind"] * 4, *["sort"] * 4], [0] * 3 + [1] * 4 + [0] * 4 + [1] * 4) == {
        (0, "alpha"): [0, 1],
        (1, "gamma"): [4, 5],
    }


def test_pairs_whose_images_belong_elsewhere_are_dropped():
    directions = np.eye(5, dtype=np.float32)
    labels = np.repeat(np.arange(5), 30)
    image = directions[labels].copy()
    image[0] = 0.9 * directions[1] + 0.3 * directions[2] + 0.2 * directions[3] + 0.1 * directions[0]
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    grouping = Grouping(labels, np.zeros(5, np.int64))
    found = keep_agreeing(grouping, image, min_members=2).classes
    assert found[0] == -1  # three classes of the theme are nearer than its own
    np.testing.assert_array_equal(found[1:], labels[1:])
    # Classes of other themes do not count, and what becomes small is dropped whole.
    apart = Grouping(labels, np.array([0, 1, 1, 1, 1]))
    np.testing.assert_array_equal(keep_agreeing(apart, image, min_members=2).classes, labels)
    assert (keep_agreeing(grouping, image, min_members=30).classes[:30] == -1).all()


def slow_names(captions, vocabulary, theme_of_pair, appearance, min_members):
    """The rule of `classes_by_name`, pair by pair: the members of each theme's names, in order of their first pairs."""

    def name(words, share, stop, between):
        runs, gap = [], between + 1
        for place, word in enumerate(words):
            if word in stop:
                gap += 1
                continue
            if gap > between:
                runs.append([place, place, 1.0])
            runs[-1][1:] = place + 1, min(runs[-1][2], share.get(word, 0.0))
            gap = 0
        begin, end, _ = min(runs, key=lambda run: run[2], default=(0, 0, 0))
        return " ".join(words[begin:end])

    found = {}
    for theme in range(max(theme_of_pair) + 1):
        pairs = [pair for pair, number in enumerate(theme_of_pair) if number == theme]
        share = {word: sum(word in captions[pair] for pair in pairs) / len(pairs) for word in vocabulary}
        stop = appearance | {word for word in vocabulary if share[word] >= 0.4}
        whole = {pair: name(captions[pair], share, stop, 2) for pair in pairs}
        frequent = {text for text in whole.values() if sum(text == other for other in whole.values()) >= min_members}
        for pair in pairs:
            text = whole[pair] if whole[pair] in frequent else name(captions[pair], share, stop, 0)
            if text:
                found.setdefault((theme, text), []).append(pair)
    return {name: members for name, members in found.items() if len(members) >= min_members}


@pytest.mark.parametrize("seed", range(4))
def test_names_of_many_captions(seed):
    rng = np.random.default_rng(seed)
    names = [f"w{i}" for i in range(12)]
    weights = 1 / np.arange(1, 13) ** (seed / 2)
    captions = [[names[i] for i in rng.choice(12, rng.integers(0, 7), p=weights / weights.sum())] for _ in range(400)]
    theme_of_pair = rng.integers(0, 3, 400)
    caption_words = number_words(captions)
    appearance = frozenset(count_terms(caption_words, min_count=30).names[:2])
    vocabulary = vocabulary_of(caption_words, appearance, min_count=30)
    grouping, texts = classes_by_name(caption_words, vocabulary, theme_of_pair, 3)
    found = {
        (int(grouping.themes[i]), text): np.flatnonzero(grouping.classes == i).tolist() for i, text in enumerate(texts)
    }
    expected = slow_names(captions, set(vocabulary.names), theme_of_pair.tolist(), appearance, 3)
    assert found == expected
    assert [theme for theme, _ in found] == sorted(theme for theme, _ in found)
    assert len(texts) == len(found) > 5


def test_captions_without_a_name():
    caption_words = number_words([["a"], []])
    grouping, texts = classes_by_name(caption_words, vocabulary_of(caption_words, "a"), np.zeros(2, np.int64), 1)
    assert (texts, grouping.classes.tolist(), len(grouping.themes)) == ([], [-1, -1], 0)


@pytest.mark.parametrize("entries", [1 << 27, 40])
def test_agreement_is_that_of_the_rule_in_blocks_of_any_size(monkeypatch, entries):
    monkeypatch.setattr(classes, "_ENTRIES", entries)
    monkeypatch.setattr(clustering, "BLOCK", 1 << 17 if entries > 40 else 7)
    rng = np.random.default_rng(0)
    themes = np.array([0, 0, 1, 0, 0, 1, 0, 0])
    labels = rng.integers(-1, 8, 300)
    image = rng.standard_normal((8, 6))[labels] * 0.7 + rng.standard_normal((300, 6))
    image = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float16)
    expected = labels.copy()
    for _ in range(2):
        rows = image.astype(float)
        means = np.array([rows[expected == number].mean(0) for number in range(8)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        before = expected.copy()
        for pair in np.flatnonzero(before >= 0):
            others = np.flatnonzero(themes == themes[before[pair]])
            nearer = np.sum(means[others] @ rows[pair] > means[before[pair]] @ rows[pair] + 1e-9)
            expected[pair] = -1 if nearer >= 3 else before[pair]
        for number in range(8):
            if np.sum(expected == number) < 5:
                expected[expected == number] = -1
    seen = []
    found = keep_agreeing(Grouping(labels, themes), image, 5, report=lambda *progress: seen.append(progress))
    np.testing.assert_array_equal(found.classes, expected)
    assert (expected != labels).any()
    assert (expected >= 0).sum() > 100
    assert [done for _, done, _ in seen] == sorted(done for _, done, total in seen if done <= total)
