"""Rows of class names, against a trie built by hand, and the features and gradients that are read from them."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.clip import Classes, TextPrompt, encode_classes
from gram_jax.clip.classes import Layout, fit_rows, pack_classes, shared_rows, tails_of
from gram_jax.testing import tiny_clip
from gram_jax.tuning import pad_classes

END = 9


def class_list(tails):
    """Returns the first five fields of `Classes` for tails that end with their last token."""
    width = max(map(len, tails))
    ids = np.array([[*tail, *[0] * (width - len(tail))] for tail in tails])
    end = np.array([len(tail) - 1 for tail in tails])
    return ids, end, ids, np.maximum(end - 1, 1), end


def random_tails(rng, count, letters):
    """Returns tails like those of names: words from a small alphabet, a full stop, an end; some are equal."""
    return [(*rng.integers(2, 2 + letters, rng.integers(1, 6)).tolist(), 1, END) for _ in range(count)]


def path(packed, number):
    """Returns the places of the tokens that the end of a class attends to, in order of depth."""
    row, slot = divmod(int(packed.place[number]), packed.ends.shape[1])
    seen = np.flatnonzero(packed.mask[row, packed.ends[row, slot]])
    return row, seen[np.argsort(packed.depth[row, seen], kind="stable")]


CASES = {
    "names": (random_tails(np.random.default_rng(0), 60, 3), None),
    "bushy": ([(2, 3, letter, 1, END) for letter in range(4, 90)], Layout(16)),
    "one long name": ([(*range(2, 40), 1, END), (2, 3, 1, END), (7, 1, END)], None),
    "inner ends": ([(2, 3), (2, 3, 4), (2,), (2, 3, 4, 5)], Layout(8)),  # names that were cut, without an end token
    "equal": ([(2, 1, END)] * 5 + [(2, 3, 1, END)], None),
    "one": ([(2, 1, END)], None),
    "empty rows": (random_tails(np.random.default_rng(1), 20, 9), Layout(16, rows=7, beside=3, least=40)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_class_sees_its_own_tokens_and_no_others(case):
    tails, layout = CASES[case]
    classes = pack_classes(*class_list(tails), layout)
    for packed in (classes.tree, classes.apart):
        assert packed.mask.shape == (*packed.ids.shape, packed.ids.shape[1])
        assert packed.mask[:, range(packed.ids.shape[1]), range(packed.ids.shape[1])].all()
        for number, tail in enumerate(tails):
            row, places = path(packed, number)
            assert tuple(packed.ids[row, places].tolist()) == tail
            assert packed.depth[row, places].tolist() == list(range(len(tail)))
            for level, place in enumerate(places):  # each token sees those above it
                assert np.flatnonzero(packed.mask[row, place]).tolist() == sorted(places[: level + 1].tolist())
    if layout is not None:
        assert classes.tree.ids.shape[1] == layout.length
        assert classes.tree.ids.shape[0] % layout.rows == 0
        assert classes.apart.ids.shape[1] >= layout.least
    # In the tree a row has each beginning once; side by side, each class has places of its own.
    for row in range(len(classes.tree.ids)):
        members = [
            tail for number, tail in enumerate(tails) if classes.tree.place[number] // classes.tree.ends.shape[1] == row
        ]
        beginnings = {tail[:length] for tail in members for length in range(1, len(tail) + 1)}
        used = (classes.tree.mask[row].sum(1) > 1) | (classes.tree.ids[row] > 0)
        assert used.sum() == len(beginnings)
    assert len(set(classes.apart.place.tolist())) == len(tails)
    owners = [(row, place) for row, places in (path(classes.apart, n) for n in range(len(tails))) for place in places]
    assert len(set(owners)) == len(owners) == sum(map(len, tails))


def test_equal_lists_have_equal_rows_in_any_order_of_hashing():
    tails = CASES["names"][0]
    one, two = (pack_classes(*class_list(tails)) for _ in range(2))
    chex.assert_trees_all_equal(one, two)
    shuffled = [tails[number] for number in np.random.default_rng(5).permutation(len(tails))]
    np.testing.assert_array_equal(pack_classes(*class_list(shuffled)).tree.ids, one.tree.ids)


def test_rows_are_nearly_full():
    rng = np.random.default_rng(3)
    tails = random_tails(rng, 400, 30)
    nodes = len({tail[:length] for tail in tails for length in range(1, len(tail) + 1)})
    length, rows = fit_rows([tails])
    assert nodes <= length * rows <= 1.1 * nodes
    assert sum(len(group) for group in shared_rows(tails, length)) == len(set(tails))


def test_one_layout_serves_several_lists():
    lists = [random_tails(np.random.default_rng(seed), 12, 3) for seed in range(8)]
    length, rows = fit_rows(lists)
    packed = [pack_classes(*class_list(tails), Layout(length, rows, least=8)) for tails in lists]
    for classes in packed:
        assert classes.tree.ids.shape == (rows, length)
        assert classes.apart.ids.shape == (12, 8)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_length_needs_fewer_tokens(seed):
    rng = np.random.default_rng(seed)
    lists = [random_tails(rng, int(rng.integers(4, 30)), int(rng.integers(2, 12))) for _ in range(6)]
    needed = {length: length * max(len(shared_rows(tails, length)) for tails in lists) for length in range(8, 72, 8)}
    length, rows = fit_rows(lists)
    assert length == min(needed, key=needed.__getitem__)  # the shortest of the best
    assert length * rows == needed[length]


NAMES = [
    *("red", "red fish", "red fish house", "red frog", "small red fish", "small dog", "small dog house"),
    *("a small red fish", "large green frog", "large green tree", "cat"),
]


def some(classes, numbers, layout):
    """Returns some of the classes, in rows of their own."""
    fields = (classes.token_ids, classes.eot, classes.tail_ids, classes.name_length, classes.tail_eot)
    return jax.tree.map(jnp.asarray, pack_classes(*(np.asarray(field)[numbers] for field in fields), layout))


@pytest.mark.parametrize(("images", "class_chunk"), [(0, 3), (2, 0)])
def test_a_list_gives_what_its_classes_give_one_at_a_time(images, class_chunk):
    clip = tiny_clip(seed=1, text_layers=2, class_chunk=class_chunk)
    rng, width = np.random.default_rng(0), clip.config.text.width
    leading = (images, 1) if images else ()
    prompt = TextPrompt(
        jnp.float32(rng.standard_normal((*leading, 3, width))), jnp.float32(rng.standard_normal((1, 2, width)))
    )
    direction = jnp.float32(rng.standard_normal((len(NAMES), clip.config.embed_dim)))
    every = clip.class_tokens(NAMES)

    @jax.jit
    def gradient(prompt, classes, direction):
        def value(prompt):
            features = encode_classes(clip, classes, prompt)
            return jnp.sum(features * direction), features

        return jax.grad(value, has_aux=True)(prompt)

    whole, features = gradient(prompt, some(every, range(len(NAMES)), Layout(16)), direction)
    each = [gradient(prompt, some(every, [n], Layout(8)), direction[n : n + 1]) for n in range(len(NAMES))]
    np.testing.assert_allclose(features, jnp.concatenate([part[1] for part in each], axis=-2), atol=1e-6)
    total = jax.tree.map(lambda *leaves: sum(leaves), *(part[0] for part in each))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(total))
    chex.assert_trees_all_close(whole, total, atol=1e-6 * max(1.0, scale))


def test_padding_adds_rows_that_change_nothing():
    clip = tiny_clip(text_layers=2)
    classes = clip.class_tokens(NAMES)
    assert isinstance(classes, Classes)
    prompt = TextPrompt(jnp.ones((2, clip.config.text.width)))
    for devices in (1, 16):
        padded, valid = pad_classes(clip, classes, prompt, devices)
        assert len(padded.tree.ids) % max(4, devices) == len(padded.apart.ids) % devices == 0
        for position in ("end", "middle"):
            placed = prompt.replace(class_position=position)
            found, expected = encode_classes(clip, padded, placed), encode_classes(clip, classes, placed)
            np.testing.assert_allclose(found[valid], expected, atol=1e-6)
            np.testing.assert_allclose(found[~valid], jnp.broadcast_to(found[10], (5, found.shape[1])), atol=1e-6)
    assert tails_of(padded.tail_ids, padded.tail_eot)[:11] == tails_of(classes.tail_ids, classes.tail_eot)
