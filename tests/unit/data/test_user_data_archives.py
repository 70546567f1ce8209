"""Users' data, principle 6: archives follow webdataset's rule for keys and suffixes; no member replaces another."""

import io
import tarfile

import pytest

from gram_jax.data.pairs.archives import split_name
from tests.unit.data.pair_files import everything, pack, pairs, png, skips, unused


def read(tmp_path, members, **settings):
    pack(tmp_path / "a.tar", members)
    return everything(f"webdataset:{tmp_path}/a.tar", **settings)


def captions(found):
    return {pair.name.removeprefix("a.tar/"): (pair.image, pair.caption) for pair in pairs(found)}


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("0001.jpg", "0001", "jpg"), ("0001.left.JPG", "0001", "left.jpg"), ("v1.0/0001.jpg", "v1.0/0001", "jpg"),
        ("./0001.jpg", "./0001", "jpg"), ("a/b.c/d.e.f", "a/b.c/d", "e.f"), ("README", "README", ""),
    ],
)  # fmt: skip
def test_keys_are_those_of_webdataset(name, key, suffix):
    assert split_name(name) == (key, suffix)


@pytest.mark.parametrize(
    "stem", ["shop.item{}", "22.0{}", "www.site.com_{}", "a.b.c.{}", "photo{}.final", "folder/x.{}", "v1.{}/x.y"]
)
def test_dots_in_names_do_not_mix_samples(tmp_path, stem):
    members = []
    for number in range(10):
        members += [(stem.format(number) + ".png", png(number)), (stem.format(number) + ".txt", b"item %d" % number)]
    found = read(tmp_path, members)
    assert captions(found) == {stem.format(n) + ".png": (png(n), f"item {n}") for n in range(10)}
    assert (skips(found), unused(found)) == ([], [])


@pytest.mark.parametrize("other", ["depth.png", "seg.png", "thumb.jpg", "mask.0.png", "a.webp"])
@pytest.mark.parametrize("first", [True, False])
def test_the_image_of_the_shortest_suffix_is_the_photo(tmp_path, other, first):
    members = []
    for number in range(3):
        sample = [(f"{number}.jpg", png(number)), (f"{number}.txt", b"a red ball")]
        beside = [(f"{number}.{other}", png(99))]
        members += beside + sample if first else sample + beside
    found = read(tmp_path, members)
    assert captions(found) == {f"{n}.jpg": (png(n), "a red ball") for n in range(3)}
    assert unused(found) == [(f"a.tar/{n}.{other}", "members beside a complete sample") for n in range(3)]


def test_several_images_for_one_text_are_ambiguous_unless_one_is_chosen(tmp_path):
    members = [
        ("0.left.jpg", png(1)),
        ("0.right.jpg", png(2)),
        ("0.txt", b"a"),
        ("1.jpg", png(3)),
        ("1.png", png(4)),
        ("1.txt", b"b"),
    ]
    found = read(tmp_path, members)
    assert skips(found) == [("a.tar/0.left.jpg", "several images"), ("a.tar/1.jpg", "several images")]
    assert "left.jpg, right.jpg; choose one with image_column" in found[0].detail
    assert captions(read(tmp_path, members, image_column="right.jpg")) == {"0.right.jpg": (png(2), "a")}
    assert captions(read(tmp_path, members, image_column=".png")) == {"1.png": (png(4), "b")}


def test_one_image_with_a_longer_suffix_belongs_to_the_text(tmp_path):
    assert captions(read(tmp_path, [("0.photo.jpg", png(1)), ("0.txt", b"a")])) == {"0.photo.jpg": (png(1), "a")}


def test_a_name_that_occurs_again_is_counted(tmp_path):
    members = [
        ("0.png", png(1)),
        ("0.txt", b"first"),
        ("0.png", png(2)),
        ("1.png", png(3)),
        ("1.txt", b"b"),
        ("0.txt", b"later"),
    ]
    found = read(tmp_path, members)
    assert captions(found) == {"0.png": (png(1), "first"), "1.png": (png(3), "b")}
    assert skips(found) == [("a.tar/0.png", "repeated"), ("a.tar/0.txt", "repeated")]


def test_samples_whose_members_are_apart_are_no_pairs(tmp_path):
    members = [("0.png", png(0)), ("1.png", png(1)), ("0.txt", b"a"), ("1.txt", b"b")]
    assert [reason for _, reason in skips(read(tmp_path, members))] == [
        "no caption",
        "no caption",
        "no image",
        "no image",
    ]


def test_an_image_and_a_text_of_other_stems_are_no_pair(tmp_path):
    found = read(tmp_path, [("x.a.png", png(0)), ("x.b.txt", b"b")])
    assert (pairs(found), skips(found)) == ([], [("a.tar/x.a.png", "no caption"), ("a.tar/x", "no image")])


def test_what_no_pair_needs_is_counted_by_kind(tmp_path):
    members = [
        ("0.png", png(0)), ("0.txt", b"a"), ("0.json", b"{}"), ("0.cls", b"7"), ("0.npy", b"x"), ("index", b""),
        ("._0.png", b"left by a Mac"), ("d/.DS_Store", b""),
    ]  # fmt: skip
    found = read(tmp_path, members)
    assert len(pairs(found)) == 1
    assert sorted(kind for _, kind in unused(found)) == [
        ".cls members", ".json members beside a .txt", ".npy members", "hidden members", "hidden members",
        "members without a suffix",
    ]  # fmt: skip


def test_captions_under_a_usual_key_in_any_case(tmp_path):
    found = read(
        tmp_path, [("0.png", png(0)), ("0.json", b'{"Caption": "a"}'), ("1.png", png(1)), ("1.json", b'{"TEXT": "b"}')]
    )
    assert [caption for _, caption in captions(found).values()] == ["a", "b"]


def test_memory_does_not_grow_with_the_images_of_a_key(tmp_path):
    members = [(f"www.{number:03d}.png", png(number % 250)) for number in range(200)] + [("www.199.txt", b"last")]
    found = read(tmp_path, members)
    assert captions(found) == {"www.199.png": (png(199), "last")}
    assert [reason for _, reason in skips(found)] == 199 * ["no caption"]


def test_suffixes_in_capitals(tmp_path):
    assert captions(read(tmp_path, [("0.PNG", png(0)), ("0.TXT", b"a")])) == {"0.PNG": (png(0), "a")}


def test_the_pairs_are_those_of_webdataset_itself(tmp_path):
    """The members of one key, as tarfile reads them and webdataset's documented rule groups them."""
    members = [
        (f"s/{n:04d}.{suffix}", content) for n in range(5) for suffix, content in (("jpg", png(n)), ("txt", b"t%d" % n))
    ]
    found = read(tmp_path, members)
    samples = {}
    with tarfile.open(tmp_path / "a.tar") as archive:
        for member in archive:
            base, _, suffix = member.name.rpartition("/")[2].partition(".")
            samples.setdefault(base, {})[suffix] = archive.extractfile(member).read()
    assert [(pair.image, pair.caption.encode()) for pair in pairs(found)] == [
        (s["jpg"], s["txt"]) for s in samples.values()
    ]
    assert io.BytesIO(pairs(found)[0].image).read(4) == b"\x89PNG"
