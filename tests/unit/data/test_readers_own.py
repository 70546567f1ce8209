"""A user's own images: class folders, CSV tables and other readers, with valid and invalid files."""

import json
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gram_jax.clip import ImageError, ImageTransform
from gram_jax.data import Dataset, load_dataset, register_reader
from gram_jax.data.readers import sources
from gram_jax.errors import InputError
from tests.unit.data import layouts

IMAGES = [f"{name}/{number:03d}.jpg" for name in ("big_cat", "dog") for number in range(8)]


def rows(labels=("dog", "big_cat"), splits=("train", "val", "test"), count=4):
    return [
        (f"pictures/{label}-{split}-{i}.jpg", label, split)
        for label in labels
        for split in splits
        for i in range(count)
    ]


def triples(dataset):
    return [
        (reference, dataset.class_names[label], str(split))
        for reference, label, split in zip(dataset.references, dataset.labels, dataset.splits, strict=True)
    ]


def test_folders_by_split(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", sizes={"train": 3, "valid": 1, "test": 2})
    dataset = load_dataset(f"folder:{root}")
    assert dataset.name == "folder:photos"
    assert dataset.class_names == ("big cat", "dog")
    assert triples(dataset) == [
        (f"{folder}/{name}/{number:03d}.jpg", name.replace("_", " "), split)
        for folder, split, size in (("train", "train", 3), ("valid", "val", 1), ("test", "test", 2))
        for name in ("big_cat", "dog")
        for number in range(size)
    ]
    assert dataset.template == "a photo of a {}."
    account = {"read": {"images": 12}, "left_out": {}}
    assert dataset.about == {
        "source": "the names of the folders", "split": "as given", "notes": [], "account": account
    }  # fmt: skip
    assert ImageTransform()(dataset.images([0, 11])).shape == (2, 224, 224, 3)
    assert pickle.loads(pickle.dumps(dataset)).images([5]) == dataset.images([5])


@pytest.mark.parametrize("seed", [0, 7])
def test_one_folder_of_classes_is_divided_by_the_published_rule(tmp_path, seed):
    root = layouts.write_folder(tmp_path / "photos")
    dataset = load_dataset(f"folder:{root}", seed=seed)
    random.seed(seed)
    expected = {"train": [], "val": [], "test": []}
    for images in (IMAGES[:8], IMAGES[8:]):
        random.shuffle(images := list(images))
        expected["train"] += images[:4]
        expected["val"] += images[4:6]
        expected["test"] += images[6:]
    assert [(path, split) for path, _, split in triples(dataset)] == [
        (path, split) for split, paths in expected.items() for path in paths
    ]
    assert dataset.about["split"] == (
        f"made, because none is given: each class divided 50/20/30 into train, val and test; seed {seed}"
    )


def test_a_made_split_hangs_on_names_and_seed_alone(tmp_path):
    first = layouts.write_folder(tmp_path / "photos")
    second = tmp_path / "again" / "photos"
    for image in random.Random(1).sample(IMAGES, len(IMAGES)):  # the order of the disk is another one
        (second / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first / image, second / image)
    assert load_dataset(f"folder:{first}").content_hash == load_dataset(f"folder:{second}").content_hash
    assert load_dataset(f"folder:{first}").content_hash != load_dataset(f"folder:{first}", seed=1).content_hash


def test_train_alone_is_divided_and_val_serves_as_test(tmp_path):
    alone = load_dataset(f"folder:{layouts.write_folder(tmp_path / 'alone', sizes={'train': 8})}")
    assert Counter(alone.splits.tolist()) == {"train": 8, "val": 4, "test": 4}
    assert all(reference.startswith("train/") for reference in alone.references)
    both = load_dataset(f"folder:{layouts.write_folder(tmp_path / 'both', sizes={'train': 2, 'val': 3})}")
    assert Counter(both.splits.tolist()) == {"train": 4, "test": 6}
    assert both.about["split"] == "as given; val serves as test, so there is no val split"


def test_names_and_template_from_files(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", ["n01", "n02 b"])
    (root / "classes.json").write_text(json.dumps({"n02 b": "great white shark", "n01": "tench", "n03": "unused"}))
    (root / "template.txt").write_text("a scan of a {}.\n")
    by_json = load_dataset(f"folder:{root}")
    assert (by_json.class_names, by_json.template) == (("tench", "great white shark"), "a scan of a {}.")
    assert by_json.about["source"] == "classes.json"
    (root / "classes.json").unlink()
    (root / "classnames.txt").write_text("n02 b\tgreat white shark\nn01\ttench\n", encoding="utf-8-sig")
    assert load_dataset(f"folder:{root}").content_hash == by_json.content_hash
    plain = layouts.write_folder(tmp_path / "plain", ["n01", "n02"])
    (plain / "classnames.txt").write_text("n01 tench\nn02 great white shark\n")
    assert load_dataset(f"folder:{plain}").class_names == ("tench", "great white shark")


def test_classes_of_one_split_only_are_noted(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", sizes={"train": 2, "test": 2})
    layouts.write_image(root / "test" / "cow" / "a.jpg", 1, 1)
    (root / "train" / "dog" / "notes.txt").write_text("")
    (root / "train" / "dog" / ".hidden.jpg").write_text("")
    dataset = load_dataset(f"folder:{root}")
    assert dataset.class_names == ("big cat", "cow", "dog")
    assert dataset.about["notes"] == ["classes without a training image: 'cow'"]
    assert dataset.about["account"]["left_out"] == {
        "hidden files and folders": {"count": 1, "examples": ["train/dog/.hidden.jpg"]},
        "files that are no images": {"count": 1, "examples": ["train/dog/notes.txt"]},
    }


def put(file, text):
    return lambda root: (root / file).write_text(text)


def images_in_the_root(root):
    shutil.rmtree(root)
    layouts.write_image(root / "a.jpg", 0, 0)


def beside_the_splits(root):
    layouts.write_folder(root, sizes={"train": 4, "test": 4})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (shutil.rmtree, r".*photos; .* holds nothing"),
        (images_in_the_root, r"photos holds 1 images"),
        (lambda root: [shutil.rmtree(root), root.mkdir()], r"photos holds no class folders"),
        (lambda root: (root / "cow").mkdir(), r"cow"),
        (
            beside_the_splits,
            r"'big_cat', 'dog'",
        ),
        (lambda root: [p.unlink() for p in sorted((root / "dog").iterdir())[3:]], r"class 'dog' has 3 images"),
        (put("classnames.txt", "big_cat tiger\n"), r"classnames\.txt: 'dog'"),
        (put("classnames.txt", "big_cat tiger\ndog\n"), r"classnames\.txt, line 2 is 'dog'"),
        (put("classes.json", '["tiger", "dog"]'), r"classes\.json"),
        (put("classes.json", '{"big_cat": "tiger", "dog": 3}'), r"classes\.json"),
        (put("classes.json", '{"big_cat": "tiger"'), r"classes\.json is no JSON"),
        (
            lambda root: [put(f, "")(root) for f in ("classes.json", "classnames.txt")],
            r"classes\.json and classnames\.txt",
        ),
        (
            put("template.txt", "a photo"),
            r"template\.txt holds 'a photo'",
        ),
        (put("template.txt", "a {}\nb {}"), r"template\.txt holds 'a {}', 'b {}'"),
    ],
)
def test_mistakes_in_folders_are_named(tmp_path, mistake, message):
    root = layouts.write_folder(tmp_path / "photos")
    mistake(root)
    with pytest.raises(ValueError, match=f"^folder:{root}: .*{message}"):
        load_dataset(f"folder:{root}")


def test_two_folders_for_one_split(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", sizes={"train": 2, "val": 2, "valid": 2})
    with pytest.raises(ValueError, match="train, val, valid"):
        load_dataset(f"folder:{root}")


def test_table_with_splits(tmp_path):
    written = rows()
    path = layouts.write_csv(tmp_path / "birds.csv", written)
    dataset = load_dataset(f"csv:{path}")
    assert dataset.name == "csv:birds"
    assert dataset.class_names == ("big cat", "dog")  # sorted, not as they come
    expected = sorted(written, key=lambda row: ("train", "val", "test").index(row[2]))  # stable: the order of the file
    assert triples(dataset) == [(image, label.replace("_", " "), split) for image, label, split in expected]
    account = {"read": {"images": 24}, "left_out": {}}
    assert dataset.about == {"source": "birds.csv", "split": "as given", "notes": [], "account": account}
    assert Path(dataset.images([0])[0]) == tmp_path / expected[0][0]
    assert pickle.loads(pickle.dumps(dataset)).images([3]) == dataset.images([3])


def test_table_without_splits_is_divided_whatever_the_order_of_its_lines(tmp_path):
    written = [row[:2] for row in rows()]
    path = layouts.write_csv(tmp_path / "birds.csv", written, ("image", "label"))
    dataset = load_dataset(f"csv:{path}", seed=3)
    random.seed(3)
    expected = {"train": [], "val": [], "test": []}
    for label in ("big_cat", "dog"):
        random.shuffle(images := sorted(image for image, each in written if each == label))
        for split, part in zip(expected, (images[:6], images[6:8], images[8:]), strict=True):
            expected[split] += part
    assert [(image, split) for image, _, split in triples(dataset)] == [
        (image, split) for split, images in expected.items() for image in images
    ]
    layouts.write_csv(path, written[::-1], ("image", "label"))
    assert load_dataset(f"csv:{path}", seed=3).content_hash == dataset.content_hash


def test_table_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "birds.csv"
    images = [f"{i}.jpg" for i in range(4)]
    for number, image in enumerate(images):
        layouts.write_image(tmp_path / image, 0, number)
    lines = ["\ufefflabel,note, image", *(f'"crow, hooded",x, {image}' for image in images)]
    path.write_bytes("\r\n".join(lines).encode())
    dataset = load_dataset(f"csv:{path}")
    assert dataset.class_names == ("crow, hooded",)
    assert sorted(dataset.references) == images


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r": the first line is empty; .*image,label"),
        ("image/label\na.jpg/cat\n", r": .* columns 'image/label', not "),
        ("photos,label\na.jpg,cat\n", r": .* columns 'photos', 'label', .*did you mean 'photo'"),
        ("image,label,label\na.jpg,cat,dog\n", r": .* twice: label"),
        ("image,label\n", r" has a header and no images"),
        ("image,label\na.jpg,cat\nb.jpg\n", r", line 3 has fewer fields"),
        ("image,label\na.jpg,cat, small\n", r", line 2 has more fields"),
        ("image,label\na.jpg,\n", r", line 2 has no label"),
        ("image,label\n ,cat\n", r", line 2 has no image"),
        ("image,label,split\na.jpg,cat,train\nb.jpg,cat,spare\n", r", line 3 has the split 'spare'"),
        ("image,label,split\na.jpg,cat,\n", r", line 2 has the split ''"),
        ("image,label,split\na.jpg,cat,train\n./a.jpg,cat,test\n", r", line 3 .* './a.jpg' of line 2"),
        ("image,label\na.jpg,cat\nnowhere/c.jpg,cat\nd.jpg,cat\n",
         r", line 3: .*nowhere/c\.jpg; 2 of 3 .*: 'nowhere/c\.jpg', 'd\.jpg'"),
        ('image,label\na.jpg,"cat\n', r", line 2 is no CSV"),
        ("image,label\na.jpg,cat\nb.jpg,cat\n", r": class 'cat' has 2 images"),
        ("image,label,split\na.jpg,cat,val\nb.jpg,cat,valid\n", r" .* val, valid"),
    ],
)  # fmt: skip
def test_mistakes_in_tables_are_named_by_line(tmp_path, text, message):
    path = tmp_path / "birds.csv"
    path.write_text(text)
    for number, name in enumerate(("a.jpg", "b.jpg")):
        layouts.write_image(tmp_path / name, 0, number)
    with pytest.raises(ValueError, match=f"^csv:{path}{message}"):
        load_dataset(f"csv:{path}")


def test_a_table_that_cannot_be_read(tmp_path):
    path = tmp_path / "birds.csv"
    with pytest.raises(ValueError, match=r"birds\.csv; .* holds nothing"):
        load_dataset(f"csv:{path}")
    path.write_bytes("image,label\na.jpg,Bär\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"birds\.csv is no UTF-8"):
        load_dataset(f"csv:{path}")
    with pytest.raises(ValueError, match="'gs://bucket'"):
        load_dataset("csv:gs://bucket/birds.csv")


def test_relative_and_home_paths(tmp_path, monkeypatch):
    layouts.write_folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in ("folder:photos", "folder:./photos", "folder:~/photos"):
        dataset = load_dataset(spec)
        assert dataset.name == "folder:photos"
        assert Path(dataset.images([0])[0]).is_file()
    # An image is found from anywhere.
    monkeypatch.chdir("/")
    assert Path(dataset.images([0])[0]).is_file()


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    root = layouts.write_folder(tmp_path / "photos")
    (root / "dog" / "003.jpg").write_bytes(b"no image at all")
    dataset = load_dataset(f"folder:{root}")
    with pytest.raises(ImageError, match=rf"{root}/dog/003\.jpg"):
        ImageTransform()(dataset.images(range(len(dataset))))


def test_a_reader_of_ones_own(monkeypatch):
    monkeypatch.setattr(sources, "READERS", dict(sources.READERS))

    def read(rest, seed):
        return Dataset(f"mine:{rest}", (seed,), np.array([0]), np.array(["test"]), ("cat",), "a {}.", str)

    register_reader("mine", "mine:NAME", read)
    assert load_dataset("mine:pets", seed=3).images([0]) == ["3"]
    assert "mine:NAME" in sources.forms()
    with pytest.raises(InputError, match=r"'mien:pets'.*'mine'.*mine:NAME"):
        load_dataset("mien:pets")
    for prefix in ("mine", "coop", "", "a:b"):
        with pytest.raises(InputError, match=repr(prefix)):
            register_reader(prefix, "x:NAME", read)
