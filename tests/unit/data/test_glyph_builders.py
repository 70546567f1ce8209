"""The glyph benchmark as TFDS datasets, without TensorFlow."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gram_jax.data import glyphs
from gram_jax.data.glyphs.builders import build_corpus, build_labeled
from gram_jax.reporting.contact_sheet import contact_sheet


def test_corpus_holds_the_draws(tmp_path):
    source = build_corpus(tmp_path, pairs=40, seed=2)
    assert len(source) == 40
    for index in (0, 17, 39):
        pair, item = glyphs.pair(index, 2), source[index]
        assert np.array_equal(item["image"], pair.image)
        assert item["caption"].decode() == pair.caption
        assert item["truth"]["code"] == pair.character.code
        assert item["truth"]["caption_sort"].decode() == pair.sort


def test_corpus_is_read_by_name_alone_and_records_its_fonts(tmp_path):
    build_corpus(tmp_path, pairs=5)
    folder = tmp_path / "glyph_corpus" / "pairs_5_seed_0" / "1.0.0"
    builder = tfds.builder_from_directory(folder)
    assert len(builder.as_data_source(split="train")) == 5
    assert builder.info.metadata["fonts"]["DejaVuSans.ttf"] == glyphs.faces.record()["fonts"]["DejaVuSans.ttf"]


def test_corpus_is_built_once(tmp_path, monkeypatch):
    build_corpus(tmp_path, pairs=5)
    monkeypatch.setattr("gram_jax.data.glyphs.builders.pair", lambda *_: pytest.fail("drawn again"))
    assert len(build_corpus(tmp_path, pairs=5)) == 5


def test_labeled_holds_the_draws(tmp_path):
    sources = build_labeled("chess", tmp_path, "sans-bold+negative", seed=1)
    dataset = glyphs.labeled("chess", "sans-bold+negative", seed=1)
    for split, size in glyphs.SPLIT_SIZES.items():
        assert len(sources[split]) == 12 * size
    position = dataset.select("test")[25]
    item = sources["test"][25]
    assert np.array_equal(item["image"], dataset.images([position])[0])
    assert item["label"] == dataset.labels[position]


def test_bad_sizes(tmp_path):
    with pytest.raises(ValueError, match="pairs=0"):
        build_corpus(tmp_path, pairs=0)


def test_contact_sheet_shows_the_pixels():
    images = [np.full((32, 32, 3), value, np.uint8) for value in (10, 120, 200)]
    sheet = np.asarray(contact_sheet(images, ["x", "y", "z"], columns=3, scale=2))
    for number, value in enumerate((10, 120, 200)):
        cell = sheet[4 : 4 + 64, number * 72 + 4 : number * 72 + 68]
        assert (cell == value).all()
    below = sheet[69:]
    assert (below < 128).any()
    with pytest.raises(ValueError, match="3 images and 1 labels"):
        contact_sheet(images, ["x"])
