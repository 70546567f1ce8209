"""Users' data, principle 3: the identity of a dataset includes the content of its images."""

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from gram_jax.data import content, load_dataset
from tests.unit.data import layouts


def photos(tmp_path, **settings):
    return layouts.write_folder(tmp_path / "photos", **settings)


def change_pixel(path):
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(path)


def same_size_other_end(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def same_size_and_time(path):
    status = path.stat()
    same_size_other_end(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the finest step of the clock


def swap(path):
    other = path.parent / "001.jpg"
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def large(path):
    """Changes the middle of a file that is longer than the three blocks."""
    content = bytearray(path.read_bytes() + bytes(100_000))
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("change", [change_pixel, same_size_other_end, same_size_and_time, swap, large])
def test_replaced_photos_are_another_dataset(tmp_path, change):
    root = photos(tmp_path)
    before = load_dataset(f"folder:{root}")
    first = before.content_hash
    change(root / "dog" / "000.jpg")
    assert load_dataset(f"folder:{root}").content_hash != first
    assert before.content_hash != first  # also of a dataset that is open


def test_photos_of_the_other_class_under_the_same_names(tmp_path):
    root = photos(tmp_path)
    first = load_dataset(f"folder:{root}")
    before = first.content_hash
    (root / "dog").rename(root / "kept")
    (root / "big_cat").rename(root / "dog")
    (root / "kept").rename(root / "big_cat")
    second = load_dataset(f"folder:{root}")
    assert (first.references, first.class_names) == (second.references, second.class_names)
    assert before != second.content_hash


@pytest.mark.parametrize("change", ["copied", "moved", "touched", "read", "linked"])
def test_the_same_photos_are_the_same_dataset(tmp_path, change):
    root = photos(tmp_path)
    first = load_dataset(f"folder:{root}").content_hash
    moved = tmp_path / "elsewhere" / "photos"
    if change == "copied":
        root = shutil.copytree(root, moved, copy_function=shutil.copyfile)
    elif change == "moved":
        moved.parent.mkdir()
        root = root.rename(moved)
    elif change == "touched":
        os.utime(root / "dog" / "000.jpg", (1, time.time()))
    elif change == "read":
        load_dataset(f"folder:{root}").images([0])
    else:
        moved.parent.mkdir()
        moved.symlink_to(root)
        root = moved
    assert load_dataset(f"folder:{root}").content_hash == first


def test_tables_know_the_content_too(tmp_path):
    path = layouts.write_csv(
        tmp_path / "a.csv", [(f"{n}.jpg", ("cat", "dog")[n % 2]) for n in range(16)], ("image", "label")
    )
    first = load_dataset(f"csv:{path}").content_hash
    change_pixel(tmp_path / "3.jpg")
    assert load_dataset(f"csv:{path}").content_hash != first


def test_published_datasets_know_the_content_too(tmp_path):
    copy = layouts.write_coop(tmp_path, "eurosat")
    first = load_dataset(f"coop:{tmp_path}:eurosat").content_hash
    change_pixel(copy.folder / copy.entries["test"][0][0])
    assert load_dataset(f"coop:{tmp_path}:eurosat").content_hash != first


def test_prepared_datasets_know_the_content_of_their_files(tmp_path):
    for place, shift in (("one", 0), ("other", 100)):
        encode = lambda label, number, shift=shift: layouts.jpeg(label, number + shift)  # noqa: E731
        layouts.write_tfds(tmp_path / place, "toy", {"train": [0, 1], "test": [0, 1]}, encode=encode)
    one, other = (load_dataset(f"tfds:{tmp_path}/{place}:toy") for place in ("one", "other"))
    assert one.references == other.references
    assert one.content_hash != other.content_hash
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert load_dataset(f"tfds:{tmp_path}/copy:toy").content_hash == one.content_hash


def test_parts_of_a_dataset_know_their_content(tmp_path):
    root = photos(tmp_path)
    dataset = load_dataset(f"folder:{root}")
    first, second = dataset.take([0, 1]), dataset.take([2, 3])
    hashes = first.content_hash, second.content_hash
    change_pixel(root / dataset.references[0])
    assert first.content_hash != hashes[0]
    assert second.content_hash == hashes[1]


def test_of_very_many_files_size_and_time_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "_HASHED", 10)
    root = photos(tmp_path)
    first = load_dataset(f"folder:{root}").content_hash
    os.utime(root / "dog" / "000.jpg", (1, 1))
    assert load_dataset(f"folder:{root}").content_hash != first


def test_drawn_datasets_keep_their_hash():
    assert load_dataset("glyphs:chess").content is None
