"""Building hierarchies: planted groups are recovered, and controls have the same sizes."""

import collections
import dataclasses

import numpy as np
import pytest

from gram_jax.errors import InputError
from gram_jax.tasks import ClusteringConfig, assemble, build_hierarchy, classes, clustering, from_groups, naming

CONFIG = ClusteringConfig(themes=2, classes=24)


def configured(**settings):
    return dataclasses.replace(CONFIG, **settings)


@pytest.fixture(scope="module")
def built(planted):
    return build_hierarchy(planted.captions, planted.image, planted.text, CONFIG, about={"corpus": "planted"})


def groups(hierarchy):
    return {text: sorted(hierarchy.members[hierarchy.classes == i]) for i, text in enumerate(hierarchy.texts)}


def test_planted_groups_are_recovered_exactly(built, planted):
    names = np.array(planted.classes)
    assert groups(built) == {name: np.flatnonzero(names == name).tolist() for name in set(names)}
    by_theme = collections.defaultdict(set)
    for theme, text in zip(built.themes, built.texts, strict=True):
        by_theme[built.theme_texts[theme]].add(text)
    assert {frozenset(texts) for texts in by_theme.values()} == {
        frozenset(("alpha", "beta", "gamma", "delta")),
        frozenset(("cat", "dog", "bird", "fish")),
    }
    for words, texts in by_theme.items():
        assert words.split()[0] == ("letter" if "alpha" in texts else "pet")


def test_visual_domains_are_the_planted_appearances(built, planted):
    for number in range(8):
        rows = built.classes == number
        appearances = planted.appearances[built.members[rows]]
        assert len(set(zip(appearances, built.domains[rows], strict=True))) == 2


def test_order_features_and_about(built, planted):
    assert (np.diff(built.classes) >= 0).all()
    assert (np.diff(built.themes) >= 0).all()
    np.testing.assert_allclose(built.image_features, planted.image[built.members], atol=1e-3)
    mean = planted.text[built.members[built.classes == 2]].mean(0)
    np.testing.assert_allclose(built.centroids[2], mean / np.linalg.norm(mean), atol=1e-5)
    assert built.about["corpus"] == "planted"
    assert (built.about["method"], built.about["settings"]["classes"]) == ("clusters", 24)


def test_deterministic(built, planted):
    again = build_hierarchy(planted.captions, planted.image, planted.text, CONFIG)
    assert again.texts == built.texts
    np.testing.assert_array_equal(again.members, built.members)
    np.testing.assert_array_equal(again.domains, built.domains)


def assert_same(a, b):
    assert (a.texts, a.theme_texts) == (b.texts, b.theme_texts)
    for name in ("members", "classes", "domains", "themes", "image_features", "centroids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_features_may_lie_on_disk_as_halves(planted, tmp_path):
    halves = [rows.astype(np.float16) for rows in (planted.image, planted.text)]
    kept = []
    for name, rows in zip(("image", "text"), halves, strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
        kept.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    expected = build_hierarchy(planted.captions, *(rows.astype(np.float32) for rows in halves), CONFIG)
    assert_same(build_hierarchy(planted.captions, *kept, CONFIG), expected)


@pytest.mark.parametrize("block", [50, 130])  # less than a class, and two classes
def test_blocks_change_nothing(built, planted, monkeypatch, block):
    for module in (assemble, classes, clustering, naming):
        monkeypatch.setattr(module, "BLOCK", block)
    found = build_hierarchy(planted.captions, planted.image, planted.text, CONFIG)
    assert found.texts == built.texts
    for name in ("members", "domains", "image_features"):
        np.testing.assert_array_equal(getattr(found, name), getattr(built, name))
    np.testing.assert_allclose(found.centroids, built.centroids, atol=1e-6)


def test_a_sample_of_all_pairs_is_no_sample(built, planted):
    for sample in (480, 481):
        config, about = configured(sample=sample), {"corpus": "planted"}
        again = build_hierarchy(planted.captions, planted.image, planted.text, config, about=about)
        assert_same(again, built)
        assert again.about == built.about


@pytest.mark.parametrize("sample", [100, 400])
def test_centroids_of_a_sample_find_the_planted_groups(planted, sample):
    seen = []
    found = build_hierarchy(
        planted.captions,
        planted.image,
        planted.text,
        configured(sample=sample),
        report=lambda *progress: seen.append(progress),
    )
    names = np.array(planted.classes)
    assert groups(found) == {name: np.flatnonzero(names == name).tolist() for name in set(names)}
    assert found.about["settings"]["sample"] == sample
    for number in range(8):
        rows = found.classes == number
        assert len(set(zip(planted.appearances[found.members[rows]], found.domains[rows], strict=True))) == 2
    ends = {part: (done, total) for part, done, total in seen}
    assert {"words", "pairs in small clusters", "pairs in themes", "images that agree", "visual domains"} <= set(ends)
    assert all(done == total for done, total in ends.values())


def test_the_least_sample_makes_one_theme(planted):
    found = build_hierarchy(planted.captions, planted.image, planted.text, configured(sample=1))
    assert len(found.theme_texts) == 1


def test_only_pairs_that_carry_the_phrase_stay(planted):
    captions = list(planted.captions)
    for i in np.flatnonzero(np.array(planted.classes) == "cat")[:7]:
        captions[i] = "a photo of a pet, on white."
    found = groups(build_hierarchy(captions, planted.image, planted.text, CONFIG))
    assert len(found["cat"]) == 53
    assert all("cat" in captions[i] for i in found["cat"])


def test_random_control_has_the_same_sizes_and_no_order(built, planted):
    control = build_hierarchy(planted.captions, planted.image, planted.text, configured(method="random"))
    assert sorted(np.bincount(control.classes)) == sorted(np.bincount(built.classes))
    assert sorted(np.bincount(control.themes)) == sorted(np.bincount(built.themes))
    names = np.array(planted.classes)
    for number in range(8):
        share = collections.Counter(names[control.members[control.classes == number]]).most_common(1)[0][1] / 60
        assert share < 0.4  # 1/8 by chance
    for theme in (0, 1):
        assert len({control.texts[i] for i in np.flatnonzero(control.themes == theme)}) == 4


def test_medoid_is_the_nearest_caption_cut_to_fit(planted, small_clip):
    long = " and so on" * 30
    captions = [caption.rstrip(".") + long for caption in planted.captions]
    h = build_hierarchy(captions, planted.image, planted.text, configured(class_text="medoid"), clip=small_clip)
    for number in (0, len(h.texts) - 1):
        members = h.members[h.classes == number]
        nearest = captions[members[np.argmax(planted.text[members] @ h.centroids[number])]]
        assert nearest.startswith(h.texts[number])
        assert 3 < len(h.texts[number]) < len(nearest)
    small_clip.class_tokens(list(h.texts), allow_duplicates=True)  # they fit


def test_centroid_tokens_are_weighted_means_of_word_embeddings(planted, small_clip):
    h = build_hierarchy(
        planted.captions, planted.image, planted.text, configured(class_text="centroid", classes=8), clip=small_clip
    )
    assert h.token_rows.shape == (len(h.texts), small_clip.config.text.width)
    table = np.asarray(small_clip.params["text"]["token_embedding"])
    for row, number in zip(h.token_rows, range(len(h.texts)), strict=True):
        (name,) = {planted.classes[i] for i in h.members[h.classes == number]}
        # Of its own words the whole theme has all but one: TF-IDF leaves the name alone.
        embedded = np.mean([table[i] for i in small_clip.tokenizer.pieces([name])[0]], axis=0)
        np.testing.assert_allclose(row, embedded, atol=1e-5)


def test_from_groups(planted, hierarchy):
    names = np.array(planted.classes)
    assert hierarchy.texts == ("alpha", "beta", "delta", "gamma", "bird", "cat", "dog", "fish")
    assert hierarchy.theme_texts == ("letter", "pet")
    assert hierarchy.themes.tolist() == [0] * 4 + [1] * 4
    assert groups(hierarchy) == {name: np.flatnonzero(names == name).tolist() for name in set(names)}


def test_from_groups_leaves_out_what_is_small():
    themes = ["one"] * 7 + ["two"] * 8 + ["two"] * 3 + ["three"] * 9
    classes = ["a"] * 7 + ["a"] * 4 + ["b"] * 4 + ["c"] * 3 + ["d"] * 9
    features = np.eye(27, 30, dtype=np.float32)
    h = from_groups(themes, classes, features, features, ClusteringConfig(min_members=4))
    assert (h.texts, h.theme_texts, h.members.tolist()) == (("a", "b"), ("two",), list(range(7, 15)))
    assert set(h.domains) == {0}  # four members are too few for two domains


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": []}, "0 pairs"),
        ({"image": np.zeros((3, 4))}, r"image_features .*\[3, 4\].*480"),
        ({"text": np.zeros(480)}, r"text_features .*\[480\].*480"),
        ({"classes": 481}, "classes=481 of 480 pairs"),
        ({"min_members": 61}, "min_members=61"),
        ({"class_text": "medoid"}, "class_text='medoid'"),
    ],
)
def test_errors(planted, change, message):
    data = [change.get(name, getattr(planted, name)) for name in ("captions", "image", "text")]
    settings = {name: value for name, value in change.items() if not hasattr(planted, name) or name == "classes"}
    with pytest.raises(InputError, match=message):
        build_hierarchy(*data, configured(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"themes": 0}, "themes=0"),
        ({"sample": 0}, "sample=0"),
        ({"domains": 1.5}, r"domains=1\.5"),
        ({"method": "magic"}, "method='magic'"),
        ({"class_text": "poem"}, "class_text='poem'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        ClusteringConfig(**settings)


def test_groups_of_other_lengths():
    with pytest.raises(InputError, match="3 themes and 2 classes"):
        from_groups(["a"] * 3, ["b"] * 2, np.eye(3), np.eye(3))
