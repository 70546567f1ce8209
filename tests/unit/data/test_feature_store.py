"""The feature store of a corpus: rows read back as written, and stale or damaged stores refused."""

import dataclasses
import errno
import json

import numpy as np
import pytest
from etils import epath

from gram_jax.clip.images import ImageTransform
from gram_jax.data import Corpus, StoreError, feature_key, glyphs, load_corpus, open_store
from gram_jax.data.feature_store import begin_store, describe_store, shard_range, write_store_shard
from gram_jax.testing import tiny_clip

ITEMS, DIM = 11, 16


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("glyphs", pairs=ITEMS)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"images": (ITEMS, DIM), "texts": (ITEMS, DIM)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, about, arrays, shards=range(3)):
    begin_store(folder, about)
    for number in shards:
        items = shard_range(about, number)
        write_store_shard(
            folder, about, number, {name: array[items.start : items.stop] for name, array in arrays.items()}
        )


@pytest.fixture
def about(clip, corpus):
    return describe_store(clip, corpus, dtype="float32", shard_rows=4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_those_of_one_array(clip, corpus, arrays, tmp_path, dtype):
    about = describe_store(clip, corpus, dtype=dtype, shard_rows=4)
    write(tmp_path, about, arrays)
    store = open_store(tmp_path, feature_key(clip, corpus))
    assert len(store) == ITEMS
    for name, array in arrays.items():
        expected, rows = array.astype(dtype).astype(np.float32), getattr(store, name)
        assert rows.shape == array.shape
        assert np.load(tmp_path / f"{name}-00001-of-00003.npy", mmap_mode="r").dtype == dtype
        keys = [
            0, 10, -1, np.int64(7), slice(None), slice(3, 9), slice(None, None, -3), [5], [10, 0, 4, 4, 3],
            np.array([[0, 8], [9, 3]]), np.arange(ITEMS) % 2 == 0, np.array([], np.int64),
        ]  # fmt: skip
        for key in keys:
            found = rows[key]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected[key])
        with pytest.raises(IndexError):
            rows[ITEMS]


def test_a_stale_store_is_refused_and_the_field_is_named(clip, corpus, about, arrays, tmp_path):
    write(tmp_path, about, arrays)
    others = {
        "clip": (tiny_clip(seed=1, text_layers=1, vision_layers=1), corpus),
        "transform": (clip.replace(transform=ImageTransform(size=13, crop=(12, 12))), corpus),
        "compute_dtype": (clip.replace(config=dataclasses.replace(clip.config, compute_dtype="bfloat16")), corpus),
        "tokenizer": (tiny_clip(text_layers=1, vision_layers=1, text_context_length=20), corpus),
        "source_hash": (clip, load_corpus("glyphs", pairs=ITEMS, seed=1)),
        "items": (clip, load_corpus("glyphs", pairs=ITEMS - 1)),
    }
    for field, (other_clip, source) in others.items():
        expected = feature_key(other_clip, source)
        with pytest.raises(StoreError, match=rf"does not fit: (.*; )?{field} is .*, expected "):
            open_store(tmp_path, expected)
    # One pixel of one image.
    repainted = dataclasses.replace(corpus, read=lambda index: np.maximum(corpus.read(index), index == 10))
    expected = feature_key(clip, repainted)
    with pytest.raises(StoreError, match="sample is"):
        open_store(tmp_path, expected)
    differing = {field for field, value in feature_key(clip, corpus).items() if expected[field] != value}
    assert differing == {"sample"}


def test_the_same_references_to_other_images_are_another_source(clip):
    keys = [feature_key(clip, glyphs.labeled("chess", *where)) for where in ((), ("noise",), ("", 1))]
    assert len({key["source_hash"] for key in keys}) == len({key["sample"] for key in keys}) == 3
    chess = glyphs.labeled("chess")
    repainted = feature_key(clip, dataclasses.replace(chess, read=lambda reference: 255 - chess.read(reference)))
    assert {field for field, value in keys[0].items() if repainted[field] != value} == {"sample"}


def test_another_store_in_the_same_folder_is_refused(clip, corpus, about, arrays, tmp_path):
    write(tmp_path, about, arrays, shards=[0])
    for field, change in {
        "dtype": {"dtype": "float16"},
        "shard_rows": {"shard_rows": 5},
    }.items():
        settings = {"dtype": "float32", "shard_rows": 4} | change
        with pytest.raises(StoreError, match=f"{field} is"):
            begin_store(tmp_path, describe_store(clip, corpus, **settings))
    assert begin_store(tmp_path, about | {"source": "the same under another name"}) == [1, 2]


def test_an_incomplete_store_is_refused_and_can_be_continued(clip, corpus, about, arrays, tmp_path):
    write(tmp_path, about, arrays, shards=[0, 2])
    with pytest.raises(StoreError, match="lacks 1 of 3 shards"):
        open_store(tmp_path)
    assert begin_store(tmp_path, about) == [1]
    write(tmp_path, about, arrays, shards=[1])
    assert begin_store(tmp_path, about) == []
    (tmp_path / "images-00002-of-00003.npy").unlink()
    assert begin_store(tmp_path, about) == [2]


def test_a_damaged_store_is_refused_and_the_file_is_named(about, arrays, tmp_path):
    write(tmp_path, about, arrays)
    path = tmp_path / "texts-00001-of-00003.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:50], b""):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"texts-00001-of-00003\.npy cannot be read"):
            open_store(tmp_path)
    np.save(path, np.zeros((3, DIM), np.float32))
    with pytest.raises(StoreError, match=r"holds float32 \[3, 16\] instead of float32 \[4, 16\]"):
        open_store(tmp_path)
    np.save(path, np.array([{}] * 4, object))
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(tmp_path)
    for content in ("{", "[]", "{}", json.dumps(about | {"format": 99}), json.dumps(about | {"shard_rows": 0})):
        (tmp_path / "store.json").write_text(content)
        with pytest.raises(StoreError, match=r"store\.json"):
            open_store(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps(about | {"items": "x" * 50_000}))
    with pytest.raises(StoreError, match=r"store\.json") as raised:
        open_store(tmp_path)
    assert len(str(raised.value)) < 1000


def test_bad_features_are_never_written(about, arrays, tmp_path):
    begin_store(tmp_path, about)
    good = {name: array[4:8] for name, array in arrays.items()}
    broken = good["images"].copy()
    broken[2, 3] = np.inf
    for change, message in (
        ({"images": broken}, "item 6"),
        ({"texts": good["texts"][:3]}, r"texts of shard 1 must have shape \[4, 16\], found \[3, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            write_store_shard(tmp_path, about, 1, good | change)
    with pytest.raises(ValueError, match="found images"):
        write_store_shard(tmp_path, about, 1, {"images": good["images"]})
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_a_full_disk_is_named_and_leaves_no_half_shard(about, arrays, tmp_path, monkeypatch):
    begin_store(tmp_path, about)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(epath.Path(tmp_path)), "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left.*images-00000-of-00003\.npy"):
            write(tmp_path, about, arrays)
    assert begin_store(tmp_path, about) == [0, 1, 2]
    write(tmp_path, about, arrays)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "settings", [{"dtype": "bfloat16"}, {"shard_rows": 0}], ids=lambda settings: next(iter(settings))
)
def test_impossible_settings(clip, corpus, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        describe_store(clip, corpus, **settings)


def test_empty_sources_and_incomplete_clips_are_refused(clip, corpus):
    with pytest.raises(ValueError, match="'empty' has no items"):
        describe_store(clip, Corpus("empty", (), (), str))
    with pytest.raises(ValueError, match="lacks its image transform"):
        feature_key(clip.replace(transform=None), corpus)
