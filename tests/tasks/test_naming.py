"""Classes by what captions say beside their theme, and the pairs whose images agree: by hand."""

import numpy as np

from gram_jax.tasks.naming import Grouping, agreeing, classes_by_name
from gram_jax.tasks.phrases import count_terms, words


def named(captions, theme_of_pair, look=("a", "print", "of", "on", "white"), min_members=2):
    spoken = [words(caption) for caption in captions]
    grouping, texts = classes_by_name(
        spoken, count_terms(spoken), np.array(theme_of_pair), frozenset(look), min_members
    )
    groups = {}
    for pair, number in enumerate(grouping.classes.tolist()):
        if number >= 0:
            groups.setdefault((int(grouping.themes[number]), texts[number]), []).append(pair)
    return groups


def test_a_name_is_what_is_said_beside_the_theme_and_the_looks():
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
    # "small" and "letter" are words of the theme; "of" ends a run, and "king" and "hearts" are equally rare.
    assert found == {
        (0, "alpha with tonos"): [0, 1],
        (0, "alpha"): [2, 3],
        (0, "beta"): [4, 5],
        (0, "gamma"): [7, 9, 11],
        (0, "delta"): [8, 10, 12],
        (1, "king"): [13, 14],
    }


def test_the_run_with_the_rarest_word_names_the_pair():
    captions = ["kind delta of omega", "delta kind of omega", "kind of delta", "kind of eta", "kind of eta", "kind eta"]
    found = named(captions, [0] * 6, look=("of",))
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
    grouping = Grouping(labels, np.zeros(5, np.int64), frozenset())
    found = agreeing(grouping, image, min_members=2).classes
    assert found[0] == -1  # three classes of the theme are nearer than its own
    np.testing.assert_array_equal(found[1:], labels[1:])
    # Classes of other themes do not count, and what becomes small is dropped whole.
    apart = Grouping(labels, np.array([0, 1, 1, 1, 1]), frozenset())
    np.testing.assert_array_equal(agreeing(apart, image, min_members=2).classes, labels)
    assert (agreeing(grouping, image, min_members=30).classes[:30] == -1).all()
