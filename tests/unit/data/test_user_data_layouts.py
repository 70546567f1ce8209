"""Users' data, once more by principle: layouts, tables, captions and lists that people hand over as they are."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gram_jax.data import load_dataset, plan_units
from gram_jax.data.account import told
from gram_jax.data.readers.csv import _found_instead
from gram_jax.data.spellings import odd_names
from gram_jax.errors import InputError
from tests.unit.data.pair_files import everything, pack, pairs, png, skips, unused


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path)


def photos(root, pattern, classes=("cat", "dog"), count=4):
    """Images at `pattern`, in which {c} and {i} are the class and the number."""
    for place, name in enumerate(classes):
        for number in range(count):
            photo(root / pattern.format(c=name, i=number), 10 * place + number)
    return root


def sizes(dataset):
    return {split: int((dataset.splits == split).sum()) for split in dict.fromkeys(dataset.splits.tolist())}


# 1. What is not used is counted aloud, or refused with the right remedy.


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("{c}/train/{i}.jpg", "{c}/test/{i}.jpg"), {"train": 8, "test": 8}),
        (("{c}/Training/{i}.jpg", "{c}/valid/{i}.jpg", "{c}/Testing/{i}.jpg"), {"train": 8, "val": 8, "test": 8}),
        (("{c}/train/a/{i}.jpg", "{c}/train/{i}.jpg", "{c}/val/{i}.jpg"), {"train": 16, "test": 8}),
        (("{c}/images/{i}.jpg",), {"train": 4, "val": 2, "test": 2}),
        (("{c}/JPEG/{i}.jpg",), {"train": 4, "val": 2, "test": 2}),
        (("train/{c}/images/{i}.jpg", "test/{c}/images/{i}.jpg"), {"train": 8, "test": 8}),
    ],
)
def test_1_splits_inside_classes_and_a_folder_in_between(tmp_path, patterns, expected):
    for pattern in patterns:
        photos(tmp_path, pattern)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert (sizes(dataset), dataset.class_names) == (expected, ("cat", "dog"))
    for reference, label in zip(dataset.references, dataset.labels, strict=True):
        assert dataset.class_names[label] in Path(reference).parts
        assert Path(dataset.read(reference)).is_file()


def test_1_a_split_of_one_spelling_in_each_class(tmp_path):
    photos(tmp_path, "{c}/train/{i}.jpg", ("cat",)), photos(tmp_path, "{c}/Train/{i}.jpg", ("dog",))
    photos(tmp_path, "{c}/test/{i}.jpg"), (tmp_path / "cat" / "notes.txt").write_text("x")
    dataset = load_dataset(f"folder:{tmp_path}")
    assert sizes(dataset) == {"train": 8, "test": 8}
    assert any("cat/notes.txt" in line for line in told(dataset.about))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("cat/{i}.jpg", "dog/train/{i}.jpg", "dog/test/{i}.jpg"), r"dog holds the splits 'test', 'train'"),
        (("images/train/{c}/{i}.jpg", "images/test/{c}/{i}.jpg", "labels/a/{i}.jpg"), "give folder:.*/images"),
        (("data/{c}/{i}.jpg",), "give folder:.*/data"),
        (("my_train/cat/{i}.jpg", "my_test/cat/{i}.jpg"), "'my_test', 'my_train' look like splits"),
        (("fold0/cat/{i}.jpg", "fold1/cat/{i}.jpg"), "if these are the classes, give folder:.*/fold0"),
        (("train/{c}/{i}.jpg", "test/{i}.jpg"), "test holds 4 images and no class folders"),
        (("train/{c}/{i}.jpg", "unlabeled/{i}.jpg"), "also 'unlabeled'"),
    ],
)
def test_1_layouts_that_mean_something_else(tmp_path, patterns, message):
    for pattern in patterns:
        photos(tmp_path, pattern)
    with pytest.raises(InputError, match=message):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat/0.jpg,cat\n", r"names no columns, but the file 'cat/0.jpg'; put image,label before it"),
        ("cat/0.jpg cat\ndog/0.jpg dog\n", "names no columns, but the file 'cat/0.jpg'"),
        ('{"file_name": "cat/0.jpg", "label": "cat"}\n', "is JSON, not a table"),
        ('[{"file_name": "cat/0.jpg", "label": "cat"}]', "is JSON, not a table"),
        ("", "the first line is empty"), (" \n", "the first line is empty"),
        ("image,label\ncat/0.jpg,cat\n".encode("utf-16-le"), "null characters"),
        ("image,label\ncat/0.jpg,cat\0\n", "null characters"),
        ("image,label\n0,cat\n", r"did you mean '0\.jpg'"),
        ("image,label\ncat/0.JPG,cat\n", r"did you mean 'cat/0\.jpg'"),
        ("image,label\n/cat/0.jpg,cat\n", r"did you mean 'cat/0\.jpg'"),
        ("image,label\nhttps://x.org/0.jpg,cat\n", "URLs are not read"),
        ("version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ],
)  # fmt: skip
def test_1_tables_that_are_none(tmp_path, content, message):
    photos(tmp_path, "{c}/{i}.jpg"), photo(tmp_path / "0.jpg")
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_dataset(f"csv:{path}")


@pytest.mark.parametrize(
    ("image", "hint"),
    [("big%20cat/a.png", "; did you mean 'big cat/a.png'?"), ("C:/photos/a.png", "; paths of another machine"),
     ("big cat/A", "; did you mean 'big cat/a.png'?"), ("nothing/at all.png", ""), ("x" * 400 + "/a.png", "")],
)  # fmt: skip
def test_1_the_file_that_is_meant_is_named(tmp_path, image, hint):
    photo(tmp_path / "big cat" / "a.png")
    assert _found_instead(tmp_path, image).startswith(hint)
    local = f"file://{tmp_path}/big cat/a.png"
    assert _found_instead(tmp_path, local) == "; did you mean 'big cat/a.png'?"


@pytest.mark.parametrize(
    ("spec", "message"),
    [("{d}", "did you mean 'folder:{d}'"), ("{d}/list.csv", "did you mean 'csv:{d}/list.csv'"),
     ("Folder:{d}", "did you mean 'folder'"), ("{d}/nowhere", "has no known prefix; give")],
)  # fmt: skip
def test_1_a_dataset_without_a_prefix(tmp_path, spec, message):
    (tmp_path / "list.csv").write_text("image,label\n")
    with pytest.raises(InputError, match=message.format(d=tmp_path)):
        load_dataset(spec.format(d=tmp_path))


def test_1_spaces_around_a_specification_are_none_of_its_path(tmp_path):
    photos(tmp_path, "{c}/{i}.jpg")
    assert load_dataset(f" folder : {tmp_path} ").content_hash == load_dataset(f"folder:{tmp_path}").content_hash


@pytest.mark.parametrize("name", ["0.TXT", "0.JSON"])
def test_1_captions_in_capitals_are_read_and_part_of_the_content(tmp_path, name):
    def states():
        return [unit["content"] for unit in plan_units(f"folder:{tmp_path}")]

    (tmp_path / "0.png").write_bytes(png(0))
    before = states()
    (tmp_path / name).write_text("a" if name.endswith("TXT") else json.dumps({"caption": "a"}))
    found = everything(f"folder:{tmp_path}")
    assert [(pair.name, pair.caption) for pair in pairs(found)] == [("0.png", "a")]
    assert not unused(found)
    assert states() != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\n0.png,a\n".encode("utf-16"), "is UTF-16; save it as UTF-8"), (b"PAR1....", "a Parquet file"),
        (b"\x1f\x8b\x08", "compressed"), (b"PK\3\4", "an Excel file"), (b'{"image": "0.png"}', "is JSON"),
        (b"0.png,a cat\n", "the file '0.png'; put image,caption before it"),
        (b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
    ],
)  # fmt: skip
def test_1_tables_of_captions_that_are_none(tmp_path, content, message):
    (tmp_path / "captions.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        everything(f"csv:{tmp_path}/captions.csv")


@pytest.mark.parametrize("spec", ["https://x.org/{0..1}.tar", "pipe:cat a.tar", "s3://bucket/a.tar"])
def test_6_archives_that_are_elsewhere(spec):
    with pytest.raises(FileNotFoundError, match="URLs and pipes are not read"):
        everything(f"webdataset:{spec}")


@pytest.mark.parametrize(
    ("members", "found", "left"),
    [
        ({"0.cls": b"3"}, [], [("a.tar/0.cls", ".cls members")]),
        ({"0.json": b'{"caption": "a", "width": NaN}'}, ["a"], []),
        ({"0.json": b'{"captions": ["a", "b"]}'}, [], []), ({"0.json": b'{"TEXT": "a"}'}, ["a"], []),
        ({"0.json": b'\xef\xbb\xbf{"caption": "a"}'}, ["a"], []), ({"0.txt": b"caf\xe9"}, [], []),
        ({"0.txt": b"a", "0.cls": b"3", "0.json": b"{}"}, ["a"], [".cls", ".json"]),
        ({"__key__": b"0", "0.txt": b"a"}, ["a"], [("a.tar/__key__", "members without a suffix")]),
    ],
)  # fmt: skip
def test_6_shards_with_labels_and_other_members(tmp_path, members, found, left):
    everything_in = [(name, content) for name, content in members.items() if name.startswith("_")]
    everything_in += [("0.jpg", png(0)), *((n, c) for n, c in members.items() if not n.startswith("_"))]
    pack(tmp_path / "a.tar", everything_in)
    read = everything(f"webdataset:{tmp_path}/a.tar")
    assert [pair.caption for pair in pairs(read)] == found
    assert bool(skips(read)) == (not found)
    told_of = unused(read)
    assert len(told_of) == len(left)
    for (name, detail), expected in zip(sorted(told_of), sorted(left, key=str), strict=True):
        assert (name, detail) == expected if isinstance(expected, tuple) else expected in detail


# 2. Names are compared as the clip reads them; what no prompt should say is noted.


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["cat", "dog", "cat;dog"], "'cat;dog'"), (["cat", "dog", "dog|cat"], "'dog|cat'"),
        (['["cat"]', '["dog"]'], '\'["cat"]\''), (["{'a': 1}", "cat"], "join others"),
        (["Cat", "dog", "cat, DOG"], "join"),
    ],
)  # fmt: skip
def test_2_labels_of_several_classes_are_noted(names, note):
    (line,) = odd_names(names)
    assert "several labels of one image" in line
    assert note in line


@pytest.mark.parametrize("names", [["salt", "salt & pepper"], ["red", "panda", "red panda"], ["AC/DC", "ABBA"]])
def test_2_names_that_only_look_so_are_not(names):
    assert odd_names(names) == []


def test_2_the_remedy_for_numbers_names_both_places():
    (line,) = odd_names(["0.0", "1.0"])
    assert "classnames.txt" in line
    assert "class_name" in line


# 3. The identity of data includes its content.


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda r: shutil.move(r / "cat" / "train" / "0.jpg", r / "cat" / "test" / "9.jpg"), False),
        (lambda r: photo(r / "dog" / "test" / "0.jpg", 77), False),
        (lambda r: (r / "cat").rename(r / "lion"), False),
        (lambda r: (r / "cat" / ".DS_Store").write_bytes(b"x"), True),
        (lambda r: os.utime(r / "cat" / "train" / "0.jpg", (10**9 * 3, 10**9 * 3)), True),  # a clock in the future
        (lambda r: (r / "empty.txt").write_text(""), True),
    ],
)
def test_3_splits_inside_classes_have_an_identity(tmp_path, change, same):
    photos(tmp_path, "{c}/train/{i}.jpg"), photos(tmp_path, "{c}/test/{i}.jpg")
    before = load_dataset(f"folder:{tmp_path}").content_hash
    change(tmp_path)
    assert (load_dataset(f"folder:{tmp_path}").content_hash == before) is same


@pytest.mark.parametrize("spec", ["glyphs:chess", "glyphs:greek_small/serif-italic+noise", "folder", "csv"])
def test_10_datasets_can_be_sent_to_other_processes(tmp_path, spec):
    photos(tmp_path, "{c}/{i}.jpg")
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(tmp_path.rglob("*.jpg"))]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *lines]))
    spec = {"folder": f"folder:{tmp_path}", "csv": f"csv:{tmp_path}/list.csv"}.get(spec, spec)
    dataset = load_dataset(spec)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.content_hash == dataset.content_hash
    np.testing.assert_array_equal(again[3], dataset[3])
