"""Readers of image-text pairs, on small files of each layout that the tests write themselves."""

import errno
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gram_jax.data import Pair, Reading, Skipped, glyphs, plan_units, read_unit
from gram_jax.data.glyphs.builders import build_corpus, build_labeled
from tests.unit.data.pair_files import everything, pack, pairs, png, skips, unused

# csv and tsv


@pytest.fixture
def images(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        (tmp_path / f"pictures/{number}.png").write_bytes(png(number))
    return tmp_path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("unit_pairs", [1, 2, 100])
def test_csv_rows_with_quotes_commas_and_newlines(images, newline, unit_pairs):
    captions = ["a cat", 'a "big", red dog', f"two{newline}lines", "été à Nîmes", "  spaces "]
    rows = [
        f'{number},pictures/{number}.png,"{text.replace(chr(34), 2 * chr(34))}"' for number, text in enumerate(captions)
    ]
    rows[1] = rows[1].replace("pictures/", f"{images}/pictures/")  # an absolute path
    table = images / "pairs.csv"
    table.write_bytes(("\ufeff" + newline.join(["id,filepath,caption", *rows, "", ""])).encode())
    found = everything(f"csv:{table}", unit_pairs=unit_pairs)
    assert [(pair.image, pair.caption) for pair in pairs(found)] == [
        (png(n), c.strip()) for n, c in enumerate(captions)
    ]
    assert [pair.name for pair in pairs(found)] == [f"pairs.csv:{number}" for number in range(1, 6)]
    assert unused(found) == [("id", "columns that are not read")]


def test_tsv_has_no_quotes_and_columns_are_chosen_by_name(images):
    table = images / "pairs.tsv"
    table.write_text('words\tpicture\n"a" cat, or\tpictures/0.png\nan unclosed "\tpictures/1.png\n')
    found = everything(f"tsv:{table}", image_column="picture", caption_column="words", unit_pairs=1)
    assert [pair.caption for pair in found] == ['"a" cat, or', 'an unclosed "']
    assert [pair.image for pair in found] == [png(0), png(1)]


def test_rows_that_are_no_pairs_are_named_and_do_not_end_the_reading(images):
    (images / "pictures/empty.png").write_bytes(b"")
    os.mkfifo(images / "pictures/pipe.png")
    rows = [
        b"pictures/0.png,fine",
        b"pictures/missing.png,a",
        b"pictures,a folder",
        b"pictures/pipe.png,a pipe",
        b"pictures/empty.png,a",
        b"pictures/1.png,  ",
        b"pictures/1.png",
        b"pictures/1.png,caf\xe9",
        b",a",
        b"http://example.org/1.png,a",
        b"pictures/2.png,fine too",
    ]
    table = images / "pairs.csv"
    table.write_bytes(b"\n".join([b"path,caption", *rows]))
    found = everything(f"csv:{table}")
    assert [each.caption for each in found if isinstance(each, Pair)] == ["fine", "fine too"]
    image, caption = "no image", "no caption"
    reasons = [image, image, image, image, caption, "malformed row", caption, image, image]
    assert skips(found) == [
        (f"pairs.csv:{number}", reason) for number, reason in zip(range(2, 11), reasons, strict=True)
    ]
    assert "missing.png: No such file" in found[1].detail
    assert "UTF-8" in found[7].detail


def test_an_error_of_the_disk_loses_no_pair(images, monkeypatch):
    table = pack(images / "pairs.tar", [("0.png", png(0)), ("0.txt", b"a")])
    (images / "pairs.csv").write_text("path,caption\npictures/0.png,a\n")
    units = [next(plan_units(spec)) for spec in (f"csv:{images}/pairs.csv", f"webdataset:{table}")]

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("gram_jax.data.pairs.base.os.path.isfile", lambda path: fails() if "pictures" in path else True)
    monkeypatch.setattr("gram_jax.data.pairs.archives.open_archive", fails)
    for unit in units:
        with pytest.raises(OSError, match="Input/output"):
            list(read_unit(unit))


def test_an_image_above_the_limit_is_refused(images):
    table = images / "pairs.csv"
    table.write_text("path,caption\npictures/0.png,a\n")
    (found,) = everything(f"csv:{table}", max_bytes=len(png(0)) - 1)
    assert found.reason == "refused"
    assert f"{len(png(0))} bytes, the limit is" in found.detail


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("path,caption\n", "no rows"),
        ("url,caption\na,b\n", r"has the columns 'url', 'caption', not any of image, path, .*image_column"),
        ("path,words\na,b\n", "not any of caption, .*caption_column"),
        ("path,caption\nhttps://example.org/cat.jpg,a\n", "lists URLs"),
        ('path,caption\na,"b\n', "line 2: unexpected end of data"),
        ('path,caption\na,"b" c\n', "valid csv"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_anything_is_read(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(plan_units(f"csv:{tmp_path / 'pairs.csv'}"))


def test_a_table_that_changed_under_the_plan_is_refused(images):
    table = images / "pairs.csv"
    table.write_text("path,caption\npictures/0.png,a\n")
    (unit,) = plan_units(f"csv:{table}")
    table.write_text("path,caption\npictures/1.png,b c\n")
    with pytest.raises(ValueError, match=r"pairs\.csv"):
        list(read_unit(unit))
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv"):
        list(read_unit(unit))


# folders


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name, content in {
        "b.png": png(1), "b.txt": b"second",
        "a.JPG": png(0), "a.json": b'{"caption": "first"}',
        "sub/c.png": png(2), "sub/c.txt": b"third", "sub/c.json": b'{"caption": "not this"}',
        "sub/.hidden.png": png(9), ".trash/d.png": png(9),
        "alone.png": png(3), "notes.txt": b"no image", "odd.png": png(4), "odd.json": b"[1]",
        "x\udcff.png": png(5), "x\udcff.txt": "née".encode(),  # a name that is no UTF-8
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = everything(f"folder:{tmp_path}", unit_pairs=2)
    assert [(each.name, each.image, each.caption) for each in found if isinstance(each, Pair)] == [
        ("a.JPG", png(0), "first"), ("b.png", png(1), "second"), ("x\udcff.png", png(5), "née"),
        ("sub/c.png", png(2), "third"),
    ]  # fmt: skip
    assert skips(found) == [("alone.png", "no caption"), ("odd.png", "no caption")]
    assert sorted(unused(found)) == [
        (".trash", "hidden files and folders"), ("notes.txt", "files that are no images"),
        ("sub/.hidden.png", "hidden files and folders"),
    ]  # fmt: skip


# counted records


class CocoLike(tfds.core.GeneratorBasedBuilder):
    """Images with several captions each, under the features of coco_captions."""

    name = "coco_like"
    VERSION = tfds.core.Version("1.1.0")

    def _info(self):
        captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
        features = {"image": tfds.features.Image(), "image/id": np.int64, "captions": captions}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "val": self._generate_examples(1)}

    def _generate_examples(self, count):
        for number in range(count):
            captions = [{"id": place, "text": f"image {number} text {place}"} for place in range(number)]
            yield number, {"image": png(number), "image/id": number, "captions": captions}


def test_a_tfds_dataset_with_several_captions_an_image(tmp_path):
    builder = CocoLike(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    for spec in ("tfds:coco_like", "tfds:coco_like:1.1.0:train", f"tfds:{builder.data_dir}"):
        found = everything(spec, data_dir=str(tmp_path), unit_pairs=2)
        assert found == [
            Skipped("image/id", "not used", "features that are not read"),
            Skipped("train/0", "no caption", "there is no caption"),
            Pair("train/1", png(1), "image 1 text 0"),
            Pair("train/2/0", png(2), "image 2 text 0"),
            Pair("train/2/1", png(2), "image 2 text 1"),
        ]
    too_large = everything("tfds:coco_like", data_dir=str(tmp_path), max_bytes=9)
    assert [reason for _, reason in skips(too_large)] == ["refused"] * 3
    with pytest.raises(ValueError, match=r"no split 'test'.*train, val"):
        plan_units("tfds:coco_like:test", Reading(data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match=r"captions.*caption_column"):
        plan_units("tfds:coco_like", Reading(data_dir=str(tmp_path), caption_column="words"))


def test_the_glyph_benchmark_and_its_tfds_dataset_are_the_same_pairs(tmp_path):
    build_corpus(tmp_path, pairs=7, seed=3)
    drawn = everything("glyphs", pairs=7, seed=3, unit_pairs=3)
    stored = everything("tfds:glyph_corpus/pairs_7_seed_3", data_dir=str(tmp_path), unit_pairs=5)
    expected = [(glyphs.encode_png(glyphs.pair(n, 3).image), glyphs.pair(n, 3).caption) for n in range(7)]
    assert [pair[1:] for pair in drawn] == [pair[1:] for pair in pairs(stored)] == expected


def test_a_tfds_dataset_that_is_no_corpus_is_refused(tmp_path):
    build_labeled("chess", tmp_path)
    with pytest.raises(ValueError, match=r"image.*label.*caption_column"):
        plan_units("tfds:glyph_labeled/chess-print-seed_0", Reading(data_dir=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="'nothing'"):
        plan_units("tfds:nothing", Reading(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("laion", ValueError, "give csv:FILE, tsv:FILE, webdataset:FILES"),
        ("csv:", ValueError, "'csv:'"),
        ("glyphs:x", ValueError, "'glyphs:x'"),
        ("csv:/no/such.csv", FileNotFoundError, "no file /no/such.csv"),
        ("folder:/no/such", FileNotFoundError, "no folder /no/such"),
        ("webdataset:/no/{0..4}.tar", FileNotFoundError, r"5 of 5 archives .*/no/0\.tar"),
        ("webdataset:/no/*.tar", FileNotFoundError, "/no/"),
    ],
)
def test_a_source_that_is_not_there(spec, error, message):
    with pytest.raises(error, match=message):
        plan_units(spec)


def test_an_empty_folder_and_a_bad_setting(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        list(plan_units(f"folder:{tmp_path}"))
    with pytest.raises(ValueError, match="unit_pairs=0"):
        Reading(unit_pairs=0)
