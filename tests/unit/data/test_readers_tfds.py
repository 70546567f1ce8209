"""Datasets that TFDS has prepared, read without TensorFlow."""

import dataclasses
import json
import pickle
import random
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from gram_jax.clip import ImageError, ImageTransform
from gram_jax.data import load_dataset
from gram_jax.evaluation import Encoder
from gram_jax.testing import tiny_clip
from tests.unit.data import layouts

LABELS = [1, 0, 0, 1, 1]
PILE = [0, 1] * 10


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    layouts.write_tfds(folder, "toy", {"train": LABELS, "validation": [0, 1], "test": [1, 1, 0], "extra": [0]})
    layouts.write_tfds(folder, "no_test", {"train": LABELS, "validation": [0, 1]})
    layouts.write_tfds(folder, "pile", {"train": PILE})
    layouts.write_tfds(folder, "unlabeled", {"train": LABELS, "validation": [0, 1], "test": [-1, -1]})
    return folder


def test_splits_labels_and_names(data_dir):
    dataset = load_dataset(f"tfds:{data_dir}:toy")
    assert dataset.name == "tfds:toy"
    assert dataset.class_names == ("big cat", "dog")
    assert dataset.references == (
        *(("train", i) for i in range(5)), *(("validation", i) for i in range(2)), *(("test", i) for i in range(3)),
    )  # fmt: skip
    assert dataset.labels.tolist() == [*LABELS, 0, 1, 1, 1, 0]
    assert dataset.splits.tolist() == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    assert dataset.about == {
        "source": "toy/1.0.0", "split": "as given", "notes": [],
        "account": {
            "read": {"images": 10},
            "left_out": {"records of splits that are not read": {"count": 1, "examples": ["split extra"]}},
        },
    }  # fmt: skip
    json.dumps(dataset.references)


def test_images_are_those_of_the_bytes(data_dir):
    dataset = load_dataset(f"tfds:{data_dir}:toy")
    transform = ImageTransform(size=8, crop=(8, 8))
    positions = [0, 3, 9]
    written = [layouts.jpeg(1, 0), layouts.jpeg(1, 3), layouts.jpeg(0, 2)]
    np.testing.assert_array_equal(transform(dataset.images(positions)), transform(written))
    np.testing.assert_array_equal(dataset.images([3])[0], pickle.loads(pickle.dumps(dataset)).images([3])[0])


def test_validation_serves_where_there_is_no_test(data_dir):
    dataset = load_dataset(f"tfds:{data_dir}:no_test")
    assert Counter(dataset.splits.tolist()) == {"train": 5, "test": 2}
    assert dataset.about["split"] == "as given; validation serves as test, so there is no val split"


def test_train_alone_is_divided_by_the_published_rule(data_dir):
    dataset = load_dataset(f"tfds:{data_dir}:pile", seed=2)
    random.seed(2)
    expected = {"train": [], "val": [], "test": []}
    for label in (0, 1):
        random.shuffle(images := [("train", i) for i, each in enumerate(PILE) if each == label])
        for split, part in zip(expected, (images[:5], images[5:7], images[7:]), strict=True):
            expected[split] += part
    assert list(dataset.references) == [image for images in expected.values() for image in images]
    assert dataset.about["split"].startswith("made, because none is given: each class divided 50/20/30")
    assert [PILE[index] for _, index in dataset.references] == dataset.labels.tolist()


def test_a_split_without_labels_is_left_out(data_dir):
    dataset = load_dataset(f"tfds:{data_dir}:unlabeled")
    assert Counter(dataset.splits.tolist()) == {"train": 5, "test": 2}
    left_out = dataset.about["account"]["left_out"]
    assert left_out == {"records of splits without labels": {"count": 2, "examples": ["split test"]}}
    with pytest.raises(ValueError, match=r"tfds:unlabeled .* test; .*{"):
        load_dataset(f"tfds:{data_dir}:unlabeled:test")


@pytest.mark.parametrize(
    ("spec", "role"),
    [("toy:train", "train"), ("toy:validation", "val"), ("toy:extra", "test"), ("no_test:validation", "test"),
        ("unlabeled:validation", "test"),
     ("pile:train", "train")],
)  # fmt: skip
def test_one_split(data_dir, spec, role):
    dataset = load_dataset(f"tfds:{data_dir}:{spec}")
    split = spec.partition(":")[2]
    assert set(dataset.splits.tolist()) == {role}
    assert {each for each, _ in dataset.references} == {split}
    assert dataset.about["split"] == f"split {split} alone"


def test_the_newest_version_is_read_unless_one_is_named(tmp_path, monkeypatch):
    for version, labels in (("1.9.0", [0]), ("1.10.0", [0, 1])):
        layouts.write_tfds(tmp_path, "toy", {"train": labels, "test": labels}, version=version)
    (tmp_path / "toy" / "incomplete.ABC_2.0.0").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(load_dataset("tfds:toy")) == 4
    assert len(load_dataset("tfds:toy/1.9.0")) == 2
    assert load_dataset("tfds:toy/1.9.0").name == "tfds:toy-1.9.0"


def test_configurations_must_be_named(tmp_path):
    folder = layouts.write_tfds(tmp_path, "toy", {"train": [0], "test": [1]})
    for config in ("rgb", "all"):
        shutil.copytree(folder, tmp_path / "sat" / config / "1.0.0")
    with pytest.raises(ValueError, match=r"tfds:sat: .*sat, .* 'all', 'rgb'"):
        load_dataset(f"tfds:{tmp_path}:sat")
    shutil.rmtree(tmp_path / "sat" / "all")
    alone, named = (load_dataset(f"tfds:{tmp_path}:{name}") for name in ("sat", "sat/rgb"))
    assert dataclasses.replace(alone, name=named.name).content_hash == named.content_hash


def test_what_only_tensorflow_reads_is_refused(tmp_path):
    folder = layouts.write_tfds(tmp_path, "toy", {"train": [0], "test": [1]})
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"tfrecord, .*file_format='array_record'"):
        load_dataset(f"tfds:{tmp_path}:toy")


def test_other_features_are_refused(tmp_path):
    layouts.write_tfds(tmp_path, "toy", {"train": [0], "test": [1]}, label_key="kind")
    with pytest.raises(ValueError, match=r"tfds:toy .* image, kind"):
        load_dataset(f"tfds:{tmp_path}:toy")


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    layouts.write_tfds(
        tmp_path, "toy", {"train": [0, 1], "test": [1]}, encode=lambda label, number: layouts.jpeg(label, number)[:300]
    )
    dataset = load_dataset(f"tfds:{tmp_path}:toy")
    with pytest.raises(ImageError, match=r"tfds:toy, \('train', 1\)"):
        Encoder(tiny_clip()).features(dataset.take([1]))


def test_a_label_without_a_name(tmp_path):
    folder = layouts.write_tfds(tmp_path, "toy", {"train": [0, 1, 2, 2], "test": [1]}, ("a", "b", "c"))
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "2"
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "label.labels.txt").write_text("a\nb")
    with pytest.raises(ValueError, match=r"tfds:toy: record 2 of split train has the label 2, one of 2"):
        load_dataset(f"tfds:{tmp_path}:toy")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:{dir}:dtd", r"tfds:dtd: .*tfds\.builder\('dtd'"),
        ("tfds:{dir}:toy:dev", r"tfds:toy .* split 'dev'; .*train"),
        ("tfds:{dir}/nowhere:toy", r"tfds:toy: .*nowhere; .*TFDS_DATA_DIR"),
        ("tfds:", r"'tfds:'"),
        ("tfds:{dir}:", r"tfds:NAME, tfds:NAME:SPLIT"),
        ("tfds:a:b:c", r"tfds:NAME, tfds:NAME:SPLIT"),
    ],
)
def test_specifications_that_name_nothing(data_dir, spec, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(spec.format(dir=data_dir))


def test_neither_tensorflow_nor_tfds_where_it_is_not_needed(data_dir):
    code = f"""
import sys
from gram_jax.data import load_dataset
assert "tensorflow_datasets" not in sys.modules
load_dataset("tfds:{data_dir}:toy").images([0])
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
