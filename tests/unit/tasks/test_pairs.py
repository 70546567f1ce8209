"""Pairs from a hierarchy: attributes against a loop over captions and images, and what episodes of pairs hold."""

import dataclasses

import numpy as np
import pytest

from gram_jax.errors import InputError
from gram_jax.tasks import EpisodeConfig, find_attributes, from_groups, make_episodes, pair_hierarchy
from gram_jax.testing import tiny_clip

LOOKS = {"noisy": 7, "grainy": 7, "red": 8, "blurred": 9}  # the direction of each word
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


@pytest.fixture(scope="module")
def toy():
    """Two themes of six classes; a caption has one of four words that show or none, and one word that does not show."""
    rng = np.random.default_rng(0)
    themes, classes, captions, features = [], [], [], []
    for number in range(1200):
        word = ("", *LOOKS)[int(rng.integers(5))]
        name = int(rng.integers(6))
        themes.append(("greek", "other")[number % 2])
        classes.append(NAMES[name])
        captions.append(f"a {('picture', 'sign')[int(rng.integers(2))]}: {word} {NAMES[name]}")
        feature = np.eye(16)[name] + 0.2 * rng.standard_normal(16)
        if word in LOOKS:
            feature += np.eye(16)[LOOKS[word]]
        features.append(feature / np.linalg.norm(feature))
    features = np.array(features, np.float32)
    hierarchy = from_groups(themes, classes, features, features)
    return hierarchy, [captions[member] for member in hierarchy.members]


def word_of(caption):
    return next((word for word in LOOKS if word in caption.split()), "")


def test_attributes_are_words_that_images_confirm(toy):
    hierarchy, captions = toy
    found = find_attributes(hierarchy, captions)
    assert {frozenset(words) for words in found.words} == {
        frozenset({"noisy", "grainy"}), frozenset({"red"}), frozenset({"blurred"})
    }  # fmt: skip
    counts = {word: sum(word_of(caption) == word for caption in captions) for word in LOOKS}
    assert {*found.names} == {max(("noisy", "grainy"), key=counts.__getitem__), "red", "blurred"}
    for caption, own in zip(captions, found.of_member, strict=True):
        word = word_of(caption)
        assert own == -1 if not word else word in found.words[own]
    # The threshold against a loop over all pairs of members.
    features = hierarchy.image_features
    means = np.stack([features[hierarchy.classes == number].mean(0) for number in range(12)])
    own = features - means[hierarchy.classes]
    rows = own[[i for i, caption in enumerate(captions) if word_of(caption) == "blurred"]]
    count, scale = len(rows), np.mean([own_row @ own_row for own_row in own])
    cosine = (sum(one @ two for one in rows for two in rows) / scale - count) / (count * (count - 1))
    for least, kept in ((cosine - 1e-4, True), (cosine + 1e-4, False)):
        assert ("blurred" in find_attributes(hierarchy, captions, least=float(least)).names) == kept
    with pytest.raises(InputError, match="2 captions"):
        find_attributes(hierarchy, captions[:2])


def test_classes_are_divided_by_attributes(toy):
    hierarchy, captions = toy
    pairs = pair_hierarchy(hierarchy, captions)
    caption_of = dict(zip(hierarchy.members.tolist(), captions, strict=True))
    place = {member: row for row, member in enumerate(hierarchy.members.tolist())}
    assert len(pairs.members) == sum(word_of(caption) != "" for caption in captions)
    assert pairs.about["without attribute"] == sum(word_of(caption) == "" for caption in captions)
    for row, member in enumerate(pairs.members.tolist()):
        attribute, _, name = pairs.texts[pairs.classes[row]].partition(" ")
        assert caption_of[member].endswith(f" {name}")
        assert word_of(caption_of[member]) in pairs.about["attributes"][attribute]
        before = place[member]
        assert pairs.themes[pairs.classes[row]] == hierarchy.themes[hierarchy.classes[before]]
        np.testing.assert_array_equal(pairs.image_features[row], hierarchy.image_features[before])
    with pytest.raises(InputError, match="no caption"):
        pair_hierarchy(hierarchy, ["a sign"] * len(captions))


def test_the_cross_query_shows_other_pairs_of_the_same_words(toy):
    pairs = pair_hierarchy(*toy)
    config = EpisodeConfig(ways=8, shots=2, queries=1, cross="pairs", cross_queries=2, cross_ways=3)
    episodes = make_episodes(pairs, tiny_clip(), config)
    drawn = set()
    for number in range(40):
        episode = episodes.draw(0, number)
        own, cross = ({pairs.texts[each] for each in part} for part in (episode.classes, episode.cross_classes))
        assert (len(own), len(cross), len(own & cross)) == (8, 3, 0)
        assert len({pairs.themes[each] for each in (*episode.classes, *episode.cross_classes)}) == 1
        for side in (0, 2):
            assert {text.partition(" ")[side] for text in cross} <= {text.partition(" ")[side] for text in own}
        rows = np.concatenate([episode.support, episode.same, episode.cross])
        assert len(set(rows)) == len(rows)
        np.testing.assert_array_equal(pairs.classes[episode.support], np.repeat(episode.classes, 2))
        np.testing.assert_array_equal(pairs.classes[episode.cross], np.repeat(episode.cross_classes, 2))
        drawn |= cross
    assert drawn == set(pairs.texts)  # every pair is held out at some time
    again = episodes.draw(0, 7)
    other = make_episodes(pairs, tiny_clip(), config).draw(0, 7)
    assert all(np.array_equal(a, b) for a, b in zip(again, other, strict=True))
    with pytest.raises(InputError, match="pairs"):  # 4 pairs do not have the words of 7 others in every draw
        make_episodes(pairs, tiny_clip(), dataclasses.replace(config, ways=4, cross_ways=7))
    with pytest.raises(InputError, match=r"curriculum=0\.5"):
        dataclasses.replace(config, curriculum=0.5)
