"""Datasets, their base and new classes, and long tails."""

import dataclasses

import numpy as np
import pytest

from gram_jax.data import Dataset, base_and_new, glyphs, long_tail, restrict
from gram_jax.errors import InputError


@pytest.fixture
def toy():
    splits = np.array(["train", "test", "train", "val"])
    return Dataset(
        "toy", ("a.png", "b.png", "c.png", "d.png"), np.array([0, 1, 1, 0]), splits, ("x", "y"), "{}", str.upper
    )


def test_select_and_read(toy):
    assert toy.select("train").tolist() == [0, 2]
    assert toy.images([3, 1]) == ["D.PNG", "B.PNG"]
    assert len(toy) == 4
    with pytest.raises(InputError, match=r"'toy' .*'dev'; .* test, train, val"):
        toy.select("dev")


@pytest.mark.parametrize(
    "change",
    [
        {"references": ("a.png", "b.png", "c.png", "e.png")},
        {"labels": np.array([0, 1, 0, 0])},
        {"splits": np.array(["train", "test", "train", "test"])},
        {"class_names": ("x", "z")},
        {"template": "a {}"},
        {"name": "toys"},
        {"domain": "noise"},
        {"seed": 0},
    ],
)
def test_content_hash_depends_on_all_that_decides_a_result(toy, change):
    assert dataclasses.replace(toy, **change).content_hash != toy.content_hash
    assert dataclasses.replace(toy, read=str.lower).content_hash == toy.content_hash


def test_drawn_datasets_have_a_hash_for_every_domain_and_seed():
    drawn = [glyphs.labeled("chess", domain, seed) for domain in ("", "noise") for seed in (0, 1)]
    assert len({dataset.content_hash for dataset in drawn}) == 4
    assert glyphs.labeled("chess", "noise", 1).content_hash == drawn[3].content_hash


@pytest.mark.parametrize(("classes", "base"), [(2, 1), (5, 3), (37, 19), (100, 50)])
def test_base_is_the_first_ceil_half(classes, base):
    first, rest = base_and_new(classes)
    assert first.tolist() == list(range(base))
    assert rest.tolist() == list(range(base, classes))


def test_long_tail_closed_form():
    counts = long_tail(11, 0.06, 16)
    assert counts[0] == 16
    assert counts[-1] == 1  # 0.96 images
    for label, count in enumerate(counts):
        assert count == max(1, round(16 * 0.06 ** (label / 10)))
    assert (long_tail(7, 1.0, 16) == 16).all()
    assert (np.diff(long_tail(50, 0.25, 16)) <= 0).all()


@pytest.mark.parametrize("settings", [(1, 0.5, 16), (5, 0.0, 16), (5, 1.5, 16), (5, 0.5, 0)])
def test_long_tail_refuses(settings):
    with pytest.raises(InputError, match="|".join(("num_classes=1", "ratio=", "largest=0"))):
        long_tail(*settings)


def test_one_class_cannot_be_halved():
    with pytest.raises(InputError, match="num_classes=1"):
        base_and_new(1)


def test_halves_partition_the_images_and_keep_their_names():
    whole = glyphs.labeled("digits")
    halves = [restrict(whole, labels) for labels in base_and_new(10)]
    assert sum(map(len, halves)) == len(whole)
    for half, names in zip(halves, (whole.class_names[:5], whole.class_names[5:]), strict=True):
        assert half.class_names == names
        for reference, label in zip(half.references, half.labels, strict=True):
            assert whole.class_names[reference[1]] == half.class_names[label]
    assert len({whole.content_hash, *(half.content_hash for half in halves)}) == 3


@pytest.mark.parametrize("labels", [[], [1, 1], [-1], [10]])
def test_restrict_refuses(labels):
    with pytest.raises(InputError, match="labels="):
        restrict(glyphs.labeled("digits"), labels)
