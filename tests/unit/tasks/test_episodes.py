"""Episodes: the properties of every draw."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import TextPrompt, encode_classes, encode_text
from gram_jax.errors import InputError
from gram_jax.meta import init_meta, meta_objective
from gram_jax.regulators import identity
from gram_jax.tasks import ClusteringConfig, EpisodeConfig, cohesion, from_groups, make_episodes
from gram_jax.tuners import coop
from gram_jax.tuning import classification_loss

WORDS = [
    *("cat", "dog", "bird", "horse", "fish", "frog", "tree", "flower"),
    *("house", "boat", "plane", "train", "truck", "car", "cup", "chair"),
]


@pytest.fixture(scope="module")
def many():
    """Four themes of 7 classes, 12 members each, two clear visual domains; themes share some texts."""
    rng = np.random.default_rng(0)
    themes, classes, features = [], [], []
    for theme in range(4):
        for number in range(7):
            for member in range(12):
                themes.append(f"theme {theme}")
                classes.append(WORDS[(theme * 3 + number) % len(WORDS)])
                appearance = np.eye(16)[15] * (3 if member % 2 else -3)
                features.append(rng.standard_normal(16) * 0.1 + appearance + np.eye(16)[number])
    features = np.array(features, np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return from_groups(themes, classes, features, rng.standard_normal(features.shape))


def check(h, config, episode, shift):
    ways, cross_ways = config.ways, config.other_ways
    for classes, count in ((episode.classes, ways), (episode.cross_classes, cross_ways)):
        assert len({h.texts[number] for number in classes}) == len(classes) == count
    for classes, rows, count in (
        (episode.classes, episode.support, config.shots),
        (episode.classes, episode.same, config.queries),
        (episode.cross_classes, episode.cross, config.cross_queries),
    ):
        np.testing.assert_array_equal(h.classes[rows], np.repeat(classes, count))
    rows = np.concatenate([episode.support, episode.same, episode.cross])
    own = np.concatenate([episode.support, episode.same])
    assert len(set(own)) == len(own)
    assert len(set(episode.cross)) == len(episode.cross)
    first, second = set(h.themes[episode.classes]), set(h.themes[episode.cross_classes])
    if shift == "domain":
        assert len(set(rows)) == len(rows)
        np.testing.assert_array_equal(episode.classes, episode.cross_classes)
        for number in episode.classes:
            inside = set(h.domains[own[h.classes[own] == number]])
            outside = set(h.domains[episode.cross[h.classes[episode.cross] == number]])
            assert len(inside) == 1
            assert not inside & outside
    elif shift == "class":
        assert len(set(rows)) == len(rows)
        texts = {h.texts[number] for number in (*episode.classes, *episode.cross_classes)}
        assert len(texts) == ways + cross_ways
    else:
        assert len(second) == 1
        assert not first & second
    return first, second


@pytest.mark.parametrize("cross", ["class", "domain", "theme", "both"])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_every_episode_is_what_it_must_be(many, small_clip, cross, progress):
    cross_ways = 4 if cross in ("class", "theme") else None
    config = EpisodeConfig(ways=3, cross=cross, cross_ways=cross_ways, curriculum=0.5)
    episodes = make_episodes(many, small_clip, config)
    assert len(episodes.themes) == 4
    spread = []
    for index in range(60):
        episode = episodes.draw(3, index, progress)
        shift = cross if cross != "both" else ("domain", "theme")[index % 2]
        first, second = check(many, episodes.config, episode, shift)
        spread.append(len(first))
        if progress == 1 and shift == "class":
            assert first == second
    # The curriculum begins with as many themes as there is room for, less where texts come again; it ends with one.
    if progress == 0:
        assert set(spread) <= {2, 3}
        assert np.mean(spread) > 2.7
    else:
        assert set(spread) == {1}


def test_curriculum_grows_linearly_and_without_one_there_is_one_theme(many, small_clip):
    settings = {"ways": 3, "shots": 1, "queries": 1}
    grown = make_episodes(many, small_clip, EpisodeConfig(curriculum=0.8, **settings))

    def share(progress):
        return np.mean([len(set(many.themes[grown.draw(0, i, progress).classes])) == 1 for i in range(400)])

    assert share(0.2) == pytest.approx(0.25, abs=0.08)
    assert share(0.6) == pytest.approx(0.75, abs=0.08)
    flat = make_episodes(many, small_clip, EpisodeConfig(**settings))
    assert all(len(set(many.themes[flat.draw(0, i, 0.0).classes])) == 1 for i in range(50))


def test_draws_are_pure_and_all_different(many, small_clip):
    episodes = make_episodes(many, small_clip, EpisodeConfig(ways=3))
    again = make_episodes(many, small_clip, EpisodeConfig(ways=3))
    drawn = [episodes.draw(seed, index, 0.3) for seed in (0, 1) for index in range(20)]
    assert len({tuple(np.concatenate(episode)) for episode in drawn}) == 40
    for part, other in zip(episodes.draw(1, 7, 0.3), again.draw(1, 7, 0.3), strict=True):
        np.testing.assert_array_equal(part, other)


def test_every_class_and_member_is_drawn_and_large_themes_more_often(small_clip):
    names = [("small", WORDS[i]) for i in range(4)] + [("large", WORDS[i]) for i in range(16)]
    themes, classes = zip(*(name for name in names for _ in range(6)), strict=True)
    features = np.eye(len(themes), dtype=np.float32)
    h = from_groups(themes, classes, features, features)
    episodes = make_episodes(h, small_clip, EpisodeConfig(ways=2, shots=2, queries=1))
    drawn = [episodes.draw(0, index) for index in range(600)]
    assert set(np.concatenate([episode.support for episode in drawn])) == set(range(len(h.members)))
    share = np.mean([h.theme_texts[h.themes[episode.classes[0]]] == "large" for episode in drawn])
    assert share == pytest.approx(2 / 3, abs=0.06)  # weights 4 and 2, the roots of 16 and 4


@pytest.mark.parametrize("cross", ["class", "domain"])
def test_tasks_of_several_sizes_repeat_their_members(many, small_clip, cross):
    """Every doubling of the number of shots is equally probable, as far as the members of a class suffice."""
    config = EpisodeConfig(ways=3, shots=8, fewest_shots=2, queries=1, cross=cross)
    episodes = make_episodes(many, small_clip, config)
    counts = []
    for index in range(300):
        episode = episodes.draw(0, index)
        support, same = episode.support.reshape(3, 8), episode.same.reshape(3, 1)
        for own, query, number in zip(support, same, episode.classes, strict=True):
            members, repeats = np.unique(own, return_counts=True)
            assert set(many.classes[own]) == {number}
            assert repeats.max() - repeats.min() <= 1
            assert not set(members) & {*query, *(episode.cross if cross == "domain" else ())}
            counts.append(len(members))
    assert {min(counts), max(counts)} == {2, 8}
    assert np.mean(np.asarray(counts) < 4) == pytest.approx(np.log2(3.5 / 2) / 2, abs=0.06)


def test_classes_without_domains_are_split_all_the_same(many, small_clip):
    plain = dataclasses.replace(many, domains=np.zeros_like(many.domains))
    episodes = make_episodes(plain, small_clip, EpisodeConfig(ways=3, cross="domain"))
    for index in range(20):
        episode = episodes.draw(0, index)
        rows = np.concatenate([episode.support, episode.same, episode.cross])
        assert len(set(rows)) == len(rows) == 3 * 5


def test_batch_stacks_the_episodes_it_should(many, small_clip):
    episodes = make_episodes(many, small_clip, EpisodeConfig(ways=3, cross="both"), context=True)
    texts = np.asarray(encode_text(small_clip, small_clip.tokenize([f"a photo of a {text}." for text in many.texts])))
    tasks = episodes.batch(5, index=2, count=4, progress=1.0, images=lambda rows: many.image_features[rows])
    labels = {"support": [0, 0, 1, 1, 2, 2], "same": [0, 1, 2], "cross": [0, 0, 1, 1, 2, 2]}
    for j in range(4):
        episode = episodes.draw(5, 8 + j, 1.0)
        for name, classes in (
            ("support", episode.classes),
            ("same", episode.classes),
            ("cross", episode.cross_classes),
        ):
            part, rows = getattr(tasks, name), getattr(episode, name)
            np.testing.assert_array_equal(part["images"][j], many.image_features[rows])
            assert part["labels"][j].tolist() == labels[name]
            assert part["labels"].dtype == np.int32
            expected = small_clip.class_tokens([many.texts[number] for number in classes])
            found = jax.tree.map(lambda array, j=j: array[j], part["classes"])
            for name in ("token_ids", "eot", "tail_ids", "name_length", "tail_eot"):
                old, new = np.asarray(getattr(expected, name)), getattr(found, name)
                np.testing.assert_array_equal(new if old.ndim == 1 else new[:, : old.shape[1]], old)
            for packed in (found.tree, found.apart):
                read = packed.ids[np.arange(len(packed.ids))[:, None], packed.ends].ravel()[packed.place]
                assert (read == small_clip.tokenizer.eos_token_id).all()
        context = [many.image_features[episode.support].mean(0), texts[episode.classes].mean(0)]
        np.testing.assert_allclose(tasks.context[j], np.concatenate(context), atol=1e-6)
    assert make_episodes(many, small_clip, EpisodeConfig(ways=3)).batch(0, 0, 1, 1.0, lambda rows: rows).context is None


def test_hosts_draw_their_own_rows_of_a_batch(many, small_clip):
    episodes = make_episodes(many, small_clip, EpisodeConfig(ways=3, cross="both"), context=True)
    whole = episodes.batch(5, 2, 4, 1.0, lambda rows: many.image_features[rows])
    for own in (range(0, 1), range(1, 4)):
        found = episodes.batch(5, 2, 4, 1.0, lambda rows: many.image_features[rows], own)
        expected = jax.tree.map(lambda array, own=own: np.asarray(array)[own.start : own.stop], whole)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_names_of_all_batches_have_the_same_shapes(many, small_clip):
    words = ("small red", "small", "large green", "", "a small red")
    texts = [f"{words[number % 5]} {text}".strip() for number, text in enumerate(many.texts)]
    h = dataclasses.replace(many, texts=tuple(texts))
    episodes = make_episodes(h, small_clip, EpisodeConfig(ways=3, cross="both", curriculum=0.5))
    prompt = TextPrompt(jnp.ones((2, small_clip.config.text.width)))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def features(clip, classes):
        return jax.vmap(lambda own: encode_classes(clip, own, prompt))(classes)

    for index in range(30):
        tasks = episodes.batch(1, index, 2, index / 30, lambda rows: many.image_features[rows])
        assert tasks.support["classes"].tree.ids.size < tasks.support["classes"].tail_ids.size
        if index % 10 == 0:
            found, drawn = features(small_clip, tasks.support["classes"]), episodes.draw(1, 2 * index, index / 30)
            expected = encode_classes(small_clip, small_clip.class_tokens([texts[n] for n in drawn.classes]), prompt)
            np.testing.assert_allclose(found[0], expected, atol=1e-6)
    shape = jax.tree.map(np.shape, tasks)
    episodes.__dict__["_layouts"] = [(8, 1), (8, 1)]  # too few rows: a batch gets more, for all of its tasks
    one, two = (episodes.batch(1, 0, 2, 0.0, lambda rows: rows, own) for own in (range(1), range(1, 2)))
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, two)
    assert one.support["classes"].tree.ids.shape[1] > 1
    assert jax.tree.map(np.shape, episodes.batch(1, 29, 2, 29 / 30, lambda rows: rows)) != shape


def test_a_batch_is_what_the_meta_objective_takes(many, small_clip):
    tuner, regulator = coop(num_tokens=2), identity()
    prompt = tuner.init(jax.random.key(0), small_clip, None)
    meta = init_meta(prompt, regulator.init(jax.random.key(1), prompt), 0.1)
    loss = classification_loss(tuner)
    episodes = make_episodes(many, small_clip, EpisodeConfig(ways=3, cross="both"))
    tasks = episodes.batch(0, 0, 2, 1.0, lambda rows: many.image_features[rows])
    value, metrics = meta_objective(
        lambda p, batch: loss(p, small_clip, batch), meta, tasks, regulator=regulator, steps=1
    )
    assert np.isfinite(value)
    assert metrics["cross"].shape == (2,)


def test_long_texts_are_left_out_and_counted(many, small_clip):
    texts = list(many.texts)
    texts[0] = "a small red frog"
    long = dataclasses.replace(many, texts=tuple(texts))
    episodes = make_episodes(long, small_clip, EpisodeConfig(ways=3, max_tokens=4))
    assert episodes.left_out == {"text too long": 1, "too few members": 0, "not cohesive": 0}
    assert 0 not in np.concatenate(episodes.themes)
    assert episodes.table.tail_ids.shape == (28, 4)
    everything = make_episodes(long, small_clip, EpisodeConfig(ways=3, max_tokens=9))
    assert (everything.table.tail_ids.shape, everything.left_out["text too long"]) == ((28, 9), 0)
    # With 28 classes, all of them are within the 99 % that stay.
    assert make_episodes(long, small_clip, EpisodeConfig(ways=3)).config.max_tokens == 6


def test_too_few_members_are_left_out_and_counted(planted, small_clip):
    keep = [i for i in range(480) if planted.classes[i] != "cat" or sum(c == "cat" for c in planted.classes[:i]) < 3]
    h = from_groups(
        [planted.themes[i] for i in keep], [planted.classes[i] for i in keep], planted.image[keep], planted.text[keep],
        ClusteringConfig(min_members=2),
    )  # fmt: skip
    episodes = make_episodes(h, small_clip, EpisodeConfig(ways=2, cross_ways=2, shots=3, queries=1))
    assert episodes.left_out == {"text too long": 0, "too few members": 1, "not cohesive": 0}
    assert len(episodes.themes) == 1


def test_tasks_come_from_the_classes_whose_images_are_most_alike(many, small_clip):
    rng = np.random.default_rng(0)
    image = many.image_features + 0.05 * (many.classes % 7)[:, None] * rng.standard_normal(many.image_features.shape)
    image = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)
    h = dataclasses.replace(many, image_features=image)
    expected = []
    for number in range(len(h.texts)):
        own = h.image_features[h.classes == number]
        pairs = [own[i] @ own[j] for i in range(len(own)) for j in range(len(own)) if i != j]
        expected.append(np.mean(pairs))
    np.testing.assert_allclose(cohesion(h), expected, atol=1e-5)
    episodes = make_episodes(h, small_clip, EpisodeConfig(ways=2, cross_ways=2, cohesive=0.75))
    assert episodes.left_out["not cohesive"] == 8  # two of the seven classes of each theme
    for theme, kept in enumerate(episodes.themes):
        own = np.flatnonzero(h.themes == theme)
        np.testing.assert_array_equal(kept, np.sort(own[np.argsort(np.array(expected)[own])[2:]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 4}, r"themes=1 .*8 different texts .*3 members.* has 7 .*ways \+ cross_ways of at most 7"),
        ({"ways": 3, "shots": 12}, "13 members.* has 0 .*largest class 12.*classes of 12 members"),
        ({"ways": 8, "cross": "theme"}, "themes=2 .*8 different texts.* has 7 .*ways of at most 7"),
        ({"ways": 1}, "ways=1"),
        ({"ways": 3, "shots": 0}, "shots=0"),
        ({"ways": 3, "shots": 2, "fewest_shots": 3}, "fewest_shots=3.*1 to 2"),
        ({"ways": 3, "queries": 1.5}, r"queries=1\.5"),
        ({"ways": 3, "cross": "planet"}, "cross='planet'"),
        ({"ways": 3, "cross": "both", "cross_ways": 2}, "cross_ways=2"),
        ({"ways": 3, "curriculum": 2.0}, r"curriculum=2\.0"),
        ({"ways": 3, "max_tokens": 2}, "max_tokens=2:.* 3 to 3 "),
        ({"ways": 3, "max_tokens": 24}, "max_tokens=24:.* 24"),
    ],
)
def test_errors_say_what_fits(many, small_clip, settings, message):
    with pytest.raises(InputError, match=message):
        make_episodes(many, small_clip, EpisodeConfig(**settings))


def test_progress_is_a_share(many, small_clip):
    with pytest.raises(ValueError, match=r"progress=1\.5"):
        make_episodes(many, small_clip, EpisodeConfig(ways=3)).draw(0, 0, 1.5)
