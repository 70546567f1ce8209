"""Feature stores: each item encoded once, across runs, kills and parts of a dataset; stale stores refused."""

import dataclasses
import errno
import json

import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from gram_jax.clip.images import ImageTransform
from gram_jax.data import (
    Corpus,
    StoreError,
    base_and_new,
    feature_key,
    feature_store,
    glyphs,
    load_corpus,
    load_dataset,
    open_bank,
    open_store,
    restrict,
)
from gram_jax.errors import InputError
from gram_jax.testing import tiny_clip

BATCH, PAIRS, DIM = 4, 11, 16


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("glyphs:chess").take(range(0, 720, 40))  # 18 images


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("glyphs", pairs=PAIRS)


@pytest.fixture(scope="module")
def pairs():
    """Returns features of the images and the captions of a corpus."""
    return np.random.default_rng(0).standard_normal((PAIRS, 2, DIM)).astype(np.float32)


def write(folder, clip, corpus, pairs, groups=((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10)), **settings):
    bank = open_bank(clip, corpus, folder, **settings)
    for group in groups:
        bank.keep(np.array(group), pairs[list(group)])


def all_features(folder, clip, dataset, encode):
    return open_bank(clip, dataset, folder).rows(np.arange(len(dataset)), encode, BATCH)


def encoder(clip, dataset, log=None):
    """Returns what a bank calls to encode images, and lists their positions in `log`."""

    def encode(positions):
        if log is not None:
            log.extend(positions.tolist())
        return gram.encode_image(clip, clip.preprocess(dataset.images(positions)))

    return encode


def test_features_are_those_of_encoding_anew_and_are_encoded_once(clip, dataset, tmp_path):
    log = []
    features = all_features(tmp_path, clip, dataset, encoder(clip, dataset, log))
    anew = np.concatenate(
        [
            gram.encode_image(clip, clip.preprocess(dataset.images(np.minimum(range(i, i + BATCH), 17))))
            for i in range(0, 18, BATCH)
        ]
    )[:18]
    np.testing.assert_array_equal(features, anew)
    assert sorted(set(log)) == list(range(18))
    refuse = lambda positions: pytest.fail(f"{positions} encoded again")  # noqa: E731
    again = all_features(tmp_path, clip, dataset, refuse)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, features)


@pytest.mark.parametrize("kept", [False, True])
def test_parts_of_a_dataset_share_their_features(clip, dataset, tmp_path, kept):
    log = []
    bank = open_bank(clip, dataset, tmp_path if kept else None)
    _, new = (restrict(dataset, half) for half in base_and_new(12))
    rows = bank.rows(bank.positions(new), encoder(clip, dataset, log), BATCH)
    assert sorted(set(log)) == sorted(bank.positions(new)) == np.flatnonzero(bank._block >= 0).tolist()
    whole = bank.rows(np.arange(18), encoder(clip, dataset, log), BATCH)
    np.testing.assert_array_equal(whole[bank.positions(new)], rows)
    assert len(bank.missing()) == 0
    assert bool(list(tmp_path.iterdir())) == kept
    # Any order, with repetitions.
    np.testing.assert_array_equal(bank.rows([5, 0, 5], None, BATCH), whole[[5, 0, 5]])


def test_a_killed_run_keeps_what_it_wrote(clip, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "_FILE_ROWS", 8)
    encode, log = encoder(clip, dataset), []

    def killed(positions):
        if 12 in positions:
            raise KeyboardInterrupt
        return encode(positions)

    with pytest.raises(KeyboardInterrupt):
        all_features(tmp_path, clip, dataset, killed)
    assert open_bank(clip, dataset, tmp_path).missing().tolist() == list(range(8, 18))
    (tmp_path / "glyphs-chess" / "rows-0.npy.123.part").write_bytes(b"half a file")
    resumed = all_features(tmp_path, clip, dataset, encoder(clip, dataset, log))
    assert sorted(set(log)) == list(range(8, 18))
    np.testing.assert_array_equal(resumed, all_features(tmp_path / "whole", clip, dataset, encode))


def test_views_have_their_own_store(clip, dataset, tmp_path):
    bank = open_bank(clip, dataset, tmp_path, views=2, view_seed=1)
    rows = bank.rows([7], lambda positions: np.full((BATCH, 2, 16), positions[:, None, None]), BATCH)
    assert (rows.shape, rows.max()) == ((1, 2, 16), 7)
    assert len(open_bank(clip, dataset, tmp_path).missing()) == 18
    assert open_bank(clip, dataset, tmp_path, views=2, view_seed=1).missing().tolist() == [*range(7), *range(8, 18)]
    with pytest.raises(StoreError, match=r"chess-views-2 does not fit: views is .*\"seed\": 1"):
        open_bank(clip, dataset, tmp_path, views=2)


def test_a_stale_store_is_refused_by_name(clip, dataset, tmp_path):
    all_features(tmp_path, clip, dataset, encoder(clip, dataset))
    others = {
        "clip": (tiny_clip(seed=1, text_layers=1, vision_layers=1), dataset),
        "transform": (clip.replace(transform=ImageTransform(size=13, crop=(12, 12))), dataset),
        "compute_dtype": (clip.replace(config=dataclasses.replace(clip.config, compute_dtype="bfloat16")), dataset),
        "source_hash": (clip, dataset.take(range(9))),
        "sample": (clip, dataclasses.replace(dataset, read=lambda reference: 255 - dataset.read(reference))),
    }
    for field, (other, images) in others.items():
        with pytest.raises(StoreError, match=rf"{tmp_path}/glyphs-chess does not fit: (.*; )?{field} is .*; use"):
            open_bank(other, images, tmp_path)


def test_separate_stores_refuse_nothing(clip, dataset, tmp_path):
    other = tiny_clip(seed=1, text_layers=1, vision_layers=1)
    for each in (clip, other, clip):
        bank = open_bank(each, dataset, tmp_path, separate=True)
        bank.rows([0], lambda items: np.ones((BATCH, DIM)), BATCH)
    stores = sorted(path.name for path in tmp_path.iterdir())
    assert len(stores) == 2
    assert all(name.startswith("glyphs-chess-") for name in stores)


def test_a_damaged_store_is_refused_by_file(clip, dataset, tmp_path):
    all_features(tmp_path, clip, dataset, encoder(clip, dataset))
    folder = tmp_path / "glyphs-chess"
    (path,) = folder.glob("rows-*.npy")
    whole, about = path.read_bytes(), (folder / "store.json").read_text()
    items = np.load(path)
    items["item"][0] = 18
    for damaged in (whole[:-5], b"", items, items[:0], np.zeros(3), np.array([{}], object)):
        if isinstance(damaged, bytes):
            path.write_bytes(damaged)
        else:
            np.save(path, damaged)
        with pytest.raises(StoreError, match=path.name):
            open_bank(clip, dataset, tmp_path)
    path.write_bytes(whole)
    for content in ("{", "[]", "{}", json.dumps(json.loads(about) | {"format": 99}), json.dumps({"format": 1})):
        (folder / "store.json").write_text(content)
        with pytest.raises(StoreError, match="glyphs-chess"):
            open_bank(clip, dataset, tmp_path)
    (folder / "store.json").unlink()
    with pytest.raises(StoreError, match=r"glyphs-chess lacks store\.json"):
        open_bank(clip, dataset, tmp_path)


def test_bad_features_are_never_written(clip, dataset, tmp_path):
    bank = open_bank(clip, dataset, tmp_path)
    broken = np.ones((2, 16))
    broken[1, 3] = np.nan
    with pytest.raises(InputError, match=r"'glyphs:chess' .*\('train', 2, 16\)"):
        bank.rows([0, 2], lambda positions: broken, 2)
    assert bank.missing().tolist() == list(range(18))
    assert not list(tmp_path.glob("*/rows-*"))
    for folder, settings, match in (
        ("gs://bucket/stores", {}, "gs://bucket/stores"),
        (tmp_path, {"dtype": "bfloat16"}, "dtype='bfloat16'"),
        (tmp_path, {"views": -1}, "views=-1"),
    ):
        with pytest.raises(InputError, match=match):
            open_bank(clip, dataset, folder, **settings)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_of_a_corpus_is_indexed_like_arrays(clip, corpus, pairs, tmp_path, dtype):
    write(tmp_path, clip, corpus, pairs, dtype=dtype)
    store = open_store(tmp_path, feature_key(clip, corpus))
    for part, rows in enumerate((store.images, store.texts)):
        expected = pairs[:, part].astype(dtype).astype(np.float32)
        assert (rows.shape, len(rows)) == ((PAIRS, DIM), PAIRS)
        keys = [
            0, 10, -1, np.int64(7), slice(None), slice(3, 9), slice(None, None, -3), [5], [10, 0, 4, 4, 3],
            np.array([[0, 8], [9, 3]]), np.arange(PAIRS) % 2 == 0, np.array([], np.int64),
        ]  # fmt: skip
        for key in keys:
            assert rows[key].dtype == np.float32
            np.testing.assert_array_equal(rows[key], expected[key])
        with pytest.raises(IndexError):
            rows[PAIRS]


def test_files_are_mapped_not_read(clip, corpus, pairs, tmp_path):
    write(tmp_path, clip, corpus, pairs)
    assert all(isinstance(block, np.memmap) for block in open_bank(clip, corpus, tmp_path)._blocks)


def test_a_stale_store_of_a_corpus_is_refused(clip, corpus, pairs, tmp_path):
    write(tmp_path, clip, corpus, pairs)
    others = {
        "tokenizer": (tiny_clip(text_layers=1, vision_layers=1, text_context_length=20), corpus),
        "source_hash": (clip, load_corpus("glyphs", pairs=PAIRS, seed=1)),
        "items": (clip, load_corpus("glyphs", pairs=PAIRS - 1)),
        # One pixel of one image.
        "sample": (
            clip,
            dataclasses.replace(corpus, read=lambda index: np.maximum(corpus.read(index), index == 10)),
        ),
    }
    for field, (other, source) in others.items():
        expected = feature_key(other, source)
        with pytest.raises(StoreError, match=rf"does not fit: (.*; )?{field} is .*, expected "):
            open_store(tmp_path, expected)
    with pytest.raises(StoreError, match="dtype is"):
        open_bank(clip, corpus, tmp_path, dtype="float16")


def test_the_same_references_to_other_images_are_another_source(clip):
    keys = [feature_key(clip, glyphs.labeled("chess", *where)) for where in ((), ("noise",), ("", 1))]
    assert len({key["source_hash"] for key in keys}) == len({key["sample"] for key in keys}) == 3
    chess = glyphs.labeled("chess")
    repainted = feature_key(clip, dataclasses.replace(chess, read=lambda reference: 255 - chess.read(reference)))
    assert {field for field, value in keys[0].items() if repainted[field] != value} == {"sample"}


def test_an_incomplete_store_is_refused_and_can_be_resumed(clip, corpus, pairs, tmp_path):
    write(tmp_path, clip, corpus, pairs, groups=[(0, 1, 2, 3), (8, 9, 10)])
    with pytest.raises(StoreError, match="lacks 4 of 11 items"):
        open_store(tmp_path)
    assert open_bank(clip, corpus, tmp_path).missing().tolist() == [4, 5, 6, 7]
    write(tmp_path, clip, corpus, pairs, groups=[(4, 5, 6, 7)])
    np.testing.assert_array_equal(open_store(tmp_path).images[:], pairs[:, 0])
    about = json.loads((tmp_path / "store.json").read_text())
    for changed in ({"items": 10**15}, {"items": "x" * 50_000}, {"shape": [2, 10**12]}, {"shape": [16]}, {"shape": 3}):
        (tmp_path / "store.json").write_text(json.dumps(about | changed))
        with pytest.raises(StoreError, match=str(tmp_path)) as raised:
            open_store(tmp_path)
        assert len(str(raised.value)) < 1000


def test_a_full_disk_is_named_and_leaves_no_half_file(clip, corpus, pairs, tmp_path, monkeypatch):
    open_bank(clip, corpus, tmp_path)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(epath.Path(tmp_path)), "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left.*rows-.*\.npy"):
            write(tmp_path, clip, corpus, pairs)
    assert len(open_bank(clip, corpus, tmp_path).missing()) == PAIRS
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_empty_sources_and_incomplete_clips_are_refused(clip, corpus):
    with pytest.raises(InputError, match="'empty' has no items"):
        feature_key(clip, Corpus("empty", (), (), str))
    with pytest.raises(InputError, match="image transform"):
        feature_key(clip.replace(transform=None), corpus)


def test_reading_ahead_changes_no_feature_and_tells_the_waiting(clip, tmp_path, monkeypatch):
    """Threads read one batch each; the batches arrive in order, the last one is filled up."""
    monkeypatch.setattr(feature_store, "_TOLD_AFTER", 0.0)
    dataset, told, read = load_dataset("glyphs:chess").take(list(range(11))), [], []

    def pixels(items):
        read.append(items.tolist())
        return clip.preprocess(dataset.images(items))

    def encode(images):
        assert len(images) == 4
        return gram.encode_image(clip, images)

    bank = open_bank(clip, dataset, tmp_path)
    given = bank.rows(np.array([3, 1, 10, 3, 0, 7]), encode, 4, read=pixels, log=told.append)
    expected = gram.encode_image(clip, clip.preprocess(dataset.images([3, 1, 10, 3, 0, 7])))
    np.testing.assert_allclose(given, np.asarray(expected).astype(given.dtype), atol=1e-3)
    assert sorted(read) == [[0, 1, 3, 7], [10, 10, 10, 10]]
    (line,) = told
    assert "glyphs:chess: 5 images" in line
    assert "%" in line
    assert bank.rows(np.array([10, 0]), None, 4, read=pixels).shape == (2, given.shape[1])
