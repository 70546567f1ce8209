"""Corpora: pairs without labels, and the true groups of the glyph corpus."""

import dataclasses

import numpy as np
import pytest

from gram_jax.data import Corpus, glyphs, load_corpus
from gram_jax.errors import InputError


def test_pairs_are_those_of_the_world():
    corpus = load_corpus("glyphs", pairs=30, seed=5)
    assert (len(corpus), corpus.name) == (30, "glyphs")
    for position in (0, 17, 29):
        drawn = glyphs.pair(position, 5)
        assert corpus.captions[position] == drawn.caption
        np.testing.assert_array_equal(corpus.images([position])[0], drawn.image)
    assert [image.shape for image in corpus.images([3, 3])] == [(32, 32, 3)] * 2


def test_no_truth_is_exposed():
    corpus = load_corpus(pairs=2)
    assert {field.name for field in dataclasses.fields(corpus)} == {"name", "captions", "references", "read"}
    assert corpus.references == (0, 1)
    assert isinstance(corpus.images([0])[0], np.ndarray)


def test_content_hash_sees_every_part():
    toy = Corpus("toy", ("a", "b"), (0, 1), str)
    assert toy.content_hash == dataclasses.replace(toy, read=repr).content_hash
    changed = [
        dataclasses.replace(toy, name="other"),
        dataclasses.replace(toy, captions=("a", "c")),
        dataclasses.replace(toy, references=(0, 2)),
    ]
    assert len({toy.content_hash, *(corpus.content_hash for corpus in changed)}) == 4
    assert load_corpus(pairs=3).content_hash != load_corpus(pairs=3, seed=1).content_hash


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_corpus("laion"), "'laion'"),
        (lambda: load_corpus(pairs=0), "pairs=0"),
        (lambda: Corpus("toy", ("a",), (0, 1), str), "1 captions and 2 references"),
    ],
)
def test_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_true_groups_go_by_the_image_not_by_the_caption():
    wrong = [i for i in range(400) if glyphs.pair(i).sort == "wrong"]
    assert wrong
    themes, classes = glyphs.true_groups(wrong)
    for index, theme, name in zip(wrong, themes, classes, strict=True):
        character = glyphs.pair(index).character
        assert (theme, name) == (character.family, character.short)
