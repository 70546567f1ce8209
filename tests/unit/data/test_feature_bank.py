"""The features of labeled datasets: each image encoded once, across runs, kills and parts of a dataset."""

import dataclasses
import json

import numpy as np
import pytest

import gram_jax as gram
from gram_jax.clip.images import ImageTransform
from gram_jax.data import StoreError, base_and_new, dataset_features, feature_bank, load_dataset, open_bank, restrict
from gram_jax.errors import InputError
from gram_jax.testing import tiny_clip

BATCH = 4


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("glyphs:chess").take(range(0, 720, 40))  # 18 images


def encoder(clip, dataset, log=None):
    """Returns what a bank calls to encode images, and lists their positions in `log`."""

    def encode(positions):
        if log is not None:
            log.extend(positions.tolist())
        return gram.encode_image(clip, clip.preprocess(dataset.images(positions)))

    return encode


def test_features_are_those_of_encoding_anew_and_are_encoded_once(clip, dataset, tmp_path):
    log = []
    features = dataset_features(tmp_path, clip, dataset, encoder(clip, dataset, log), BATCH)
    anew = np.concatenate(
        [
            gram.encode_image(clip, clip.preprocess(dataset.images(np.minimum(range(i, i + BATCH), 17))))
            for i in range(0, 18, BATCH)
        ]
    )[:18]
    np.testing.assert_array_equal(features, anew)
    assert sorted(set(log)) == list(range(18))
    refuse = lambda positions: pytest.fail(f"{positions} encoded again")  # noqa: E731
    again = dataset_features(tmp_path, clip, dataset, refuse, BATCH)
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
    monkeypatch.setattr(feature_bank, "_FILE_ROWS", 8)
    encode, log = encoder(clip, dataset), []

    def killed(positions):
        if 12 in positions:
            raise KeyboardInterrupt
        return encode(positions)

    with pytest.raises(KeyboardInterrupt):
        dataset_features(tmp_path, clip, dataset, killed, BATCH)
    assert open_bank(clip, dataset, tmp_path).missing().tolist() == list(range(8, 18))
    (tmp_path / "glyphs-chess" / "rows-0.npy.123.part").write_bytes(b"half a file")
    resumed = dataset_features(tmp_path, clip, dataset, encoder(clip, dataset, log), BATCH)
    assert sorted(set(log)) == list(range(8, 18))
    np.testing.assert_array_equal(resumed, dataset_features(tmp_path / "whole", clip, dataset, encode, BATCH))


def test_views_have_their_own_store(clip, dataset, tmp_path):
    bank = open_bank(clip, dataset, tmp_path, views=2, view_seed=1)
    rows = bank.rows([7], lambda positions: np.full((BATCH, 2, 16), positions[:, None, None]), BATCH)
    assert (rows.shape, rows.max()) == ((1, 2, 16), 7)
    assert len(open_bank(clip, dataset, tmp_path).missing()) == 18
    assert open_bank(clip, dataset, tmp_path, views=2, view_seed=1).missing().tolist() == [*range(7), *range(8, 18)]
    with pytest.raises(StoreError, match=r"chess-views-2 does not fit: views is .*\"seed\": 1"):
        open_bank(clip, dataset, tmp_path, views=2)


def test_a_stale_store_is_refused_by_name(clip, dataset, tmp_path):
    dataset_features(tmp_path, clip, dataset, encoder(clip, dataset), BATCH)
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


def test_a_damaged_store_is_refused_by_file(clip, dataset, tmp_path):
    dataset_features(tmp_path, clip, dataset, encoder(clip, dataset), BATCH)
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
    with pytest.raises(InputError, match="gs://bucket/stores"):
        open_bank(clip, dataset, "gs://bucket/stores")
