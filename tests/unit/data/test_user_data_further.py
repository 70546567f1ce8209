"""Users' data: ten further inputs for each of the principles 1 to 6, found by thinking about the kind."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

import gram_jax as gram
from experiments import check_data, classify, predict
from gram_jax.clip.decoding import ImageError
from gram_jax.clip.images import ImageTransform
from gram_jax.data import load_dataset
from gram_jax.data.account import told
from gram_jax.data.objects import class_folders, class_words
from gram_jax.data.readers.files import read_name_list
from gram_jax.data.spellings import odd_names, without_ids
from gram_jax.errors import InputError
from gram_jax.evaluation import checks
from tests.unit.data import layouts
from tests.unit.data.pair_files import everything, pairs, png, skips

WHOLE = ImageTransform(size=None, crop=None)
ROWS = [
    (f"{name}/00{n}.jpg", name, split)
    for name in ("cat", "dog")
    for n, split in enumerate(("train", "train", "val", "test"))
]


@pytest.fixture
def photos(tmp_path):
    return layouts.write_folder(tmp_path / "photos", ["cat", "dog"], sizes=5)


def table(rows=ROWS, separator=",", end="\n", head=("image", "label", "split")):
    return end.join(separator.join(row) for row in [head, *rows]) + end


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path)


# 1. What is not used is counted aloud.


@pytest.mark.parametrize(
    ("add", "line"),
    [
        (lambda r: (r / ".DS_Store").write_bytes(b"x"), "1 hidden files and folders ('.DS_Store')"),
        (lambda r: photo(r / "__MACOSX" / "cat" / "._a.jpg"), "1 hidden files and folders ('__MACOSX')"),
        (lambda r: photo(r / ".ipynb_checkpoints" / "a.jpg"), "1 hidden files and folders ('.ipynb_checkpoints')"),
        (lambda r: photo(r / "cat" / "._a.jpg"), "1 hidden files and folders ('cat/._a.jpg')"),
        (lambda r: (r / "dog" / "a.zip").write_bytes(b"PK\3\4"), "1 files that are no images ('dog/a.zip')"),
        (lambda r: shutil.copy(r / "dog/000.jpg", r / "dog/a.jpg.crdownload"), "1 JPEG images without the suffix"),
        (lambda r: os.symlink(r, r / "dog" / "loop"), "1 links to folders ('dog/loop')"),
        (lambda r: os.symlink(r / "nowhere", r / "dog" / "b.jpg"), "1 pipes, devices and broken links ('dog/b.jpg')"),
        (lambda r: (r / "labels.xlsx").write_bytes(b"PK\3\4"), "1 files beside the class folders that are not read"),
        (lambda r: photo(r / "cover.PNG"), "1 images outside class folders ('cover.PNG')"),
    ],
)
def test_1_what_lies_in_a_folder_of_photos_is_counted(photos, add, line):
    add(photos)
    assert any(f"left out: {line}" in each for each in told(load_dataset(f"folder:{photos}").about))
    assert any(f"left out: {line}" in each for each in class_folders(photos)[2])


@pytest.mark.parametrize(
    ("content", "images"),
    [
        (table(end="\r"), 8), (table(separator="\t").replace("cat\t", '"cat"\t'), 8),
        (table(separator=";").encode("utf-16"), 8),
        ("sep=|\n" + table(separator="|"), 8), (table(separator=", "), 8), (table(end="\n\n"), 8),
        (table([(a, b, f" {c.upper()} ") for a, b, c in ROWS]), 8), (table([(f"./{a}", b, c) for a, b, c in ROWS]), 8),
        (table([(a.replace("/", "\\"), b, c) for a, b, c in ROWS]), 8), (b"\xef\xbb\xbf" + table().encode(), 8),
    ],
)  # fmt: skip
def test_1_tables_as_people_save_them(photos, content, images):
    (photos / "list.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    dataset = load_dataset(f"csv:{photos}/list.csv")
    assert (len(dataset), dataset.class_names) == (images, ("cat", "dog"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(table().encode()), r"is compressed \(gzip\)"),
        (table([*ROWS, ("cat", "cat", "train")]), "there is no image .*/cat; 1 of 9"),
        (table([*ROWS, ("cat/004.jpg", "cat", "holdout")]), "line 10 has the split 'holdout'"),
        (table([*ROWS, ("cat/000.jpg", "dog", "test")]), "line 10 repeats the image"),
    ],
)
def test_1_tables_that_cannot_be_meant(photos, content, message):
    (photos / "list.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_dataset(f"csv:{photos}/list.csv")


@pytest.mark.parametrize("name", ["predictions.csv", "sub/table.tsv", "a[1].csv"])
def test_1_the_table_of_predict_is_no_file_to_predict(photos, monkeypatch, name):
    monkeypatch.setattr(predict, "make_classifier", lambda *_: lambda pixels: np.full((len(pixels), 2), 0.5))
    config = predict.Config(images=str(photos), classes=("cat", "dog"), output=str(photos / name))
    for _ in range(2):
        predict.run(config, epath.Path(photos))
        (photos / "account.json").unlink(missing_ok=True)
        (photos / "sub" / "account.json").unlink(missing_ok=True)
    assert len((photos / name).read_text().splitlines()) == 1 + 10


def test_1_urls_are_named_as_such():
    with pytest.raises(InputError, match=r"'https://x\.org/a\.jpg' is a URL"):
        list(predict.given_files("https://x.org/a.jpg"))


# 2. Names are compared as the clip reads them; ids are no part of a prompt.


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat_0", "dog_1", "fox_2"], ["cat", "dog", "fox"]), (["[1] cat", "[2] dog"], ["cat", "dog"]),
        (["(0) cat", "(1) dog"], ["cat", "dog"]), (["class_01_cat", "class_02_dog"], ["cat", "dog"]),
        (["c0 cat", "c1 dog"], ["cat", "dog"]), (["cat (1)", "dog (2)"], ["cat", "dog"]),
        (["dog-01", "cat-02"], ["dog", "cat"]), (["Class 1: cat", "Class 2: dog"], ["cat", "dog"]),
        (["label0_cat", "label1_dog"], ["cat", "dog"]), (["cat #1", "dog #2"], ["cat", "dog"]),
    ],
)  # fmt: skip
def test_2_ids_beside_names_are_removed(names, expected):
    assert without_ids(names) == (expected, True)
    assert list(class_words(np.array(names), None)) == [name.replace("_", " ") for name in expected]


@pytest.mark.parametrize(
    "names",
    [
        ["Boeing 737", "Boeing 747"], ["1 euro", "2 euro", "5 euro"], ["model 3", "model S"], ["3 series", "5 series"],
        ["apollo 11", "gemini 4"], ["formula 1", "moto 3"], ["C4 Picasso", "C5 Aircross"], ["7up", "cola"],
        ["route 66", "area 51"], ["f16", "f18"],
    ],
)  # fmt: skip
def test_2_numbers_that_are_names_remain(names):
    assert without_ids(names) == (names, False)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["cat", "nan"], "missing values: 'nan'"), (["cat", "None"], "missing values"), (["0.0", "1.0"], "are numbers"),
        (["class01", "class02"], "are numbers"), (["big cat", "big\u200bcat"], "invisible characters"),
        (["cat\u200e", "dog"], "invisible"), (["big\u00adcat", "dog"], "invisible"),
        (["01 cat", "02 cat", "03 dog"], "'01 cat', '02 cat' would be one class"), (["N/A", "x"], "missing"),
        (["digit 1", "digit 2"], "would be one class"),
    ],
)  # fmt: skip
def test_2_names_that_a_prompt_should_not_say_are_noted(names, note):
    assert any(note in each for each in odd_names(names))


def test_2_a_classifier_reads_a_folder_as_the_programs_do(tmp_path):
    for name in ("001.Black_cat", "002.Red_dog", "003.Fox "):
        photo(tmp_path / "photos" / name / "a.jpg")
    dataset_names = load_names(tmp_path / "photos")
    paths, labels, lines = class_folders(tmp_path / "photos")
    assert (sorted(set(labels)), len(paths)) == (sorted(dataset_names), 3)
    assert any("numbers or WordNet ids" in line for line in lines)


def load_names(root):
    for folder in root.iterdir():
        for number in range(1, 5):
            shutil.copy(folder / "a.jpg", folder / f"{number}.jpg")
    names = load_dataset(f"folder:{root}").class_names
    for path in root.rglob("[1-4].jpg"):
        path.unlink()
    return names


@pytest.mark.parametrize(
    "content",
    ['{"id2label": {"1": "dog", "0": "cat"}}', '{"label2id": {"dog": 1, "cat": 0}}', '{"dog": 1, "cat": 0}',
     '{"0": "cat", "1": "dog"}', '["cat", "dog"]'],
)  # fmt: skip
def test_2_lists_of_names_as_models_carry_them(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert read_name_list(tmp_path / "config.json", "names") == ["cat", "dog"]


# 3. The identity of data includes its content.


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda r: photo(r / "cat" / "000.jpg", 99), False),
        (lambda r: (r / "cat" / "000.jpg").rename(r / "cat" / "zzz.jpg"), False),
        (lambda r: shutil.move(r / "cat" / "004.jpg", r / "dog" / "cat.jpg"), False),
        (lambda r: (r / "classnames.txt").write_text("cat kitten\ndog puppy\n"), False),
        (lambda r: (r / "template.txt").write_text("a drawing of a {}."), False),
        (lambda r: (r / "cat" / "000.jpg").write_bytes((r / "cat" / "000.jpg").read_bytes() + b"x"), False),
        (lambda r: (r / "cat" / "000.jpg").unlink(), False),
        (lambda r: os.utime(r / "cat" / "000.jpg", (1, 1)), True),
        (lambda r: (r / ".DS_Store").write_bytes(b"x"), True),
        (lambda r: (r / "notes.txt").write_text("x"), True),
        (lambda r: os.chmod(r / "cat" / "000.jpg", 0o400), True),
    ],
)
def test_3_what_changes_photos_changes_the_identity(photos, change, same):
    before = load_dataset(f"folder:{photos}").content_hash
    change(photos)
    assert (load_dataset(f"folder:{photos}").content_hash == before) is same


# 4. Pixels are looked at once decoded.


def gray(tmp_path, *values, suffix="tif"):
    for name in ("cat", "dog"):
        for number in range(6):
            path = tmp_path / "photos" / name / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[number % len(values)]).save(path)
    return load_dataset(f"folder:{tmp_path}/photos")


PATTERN = np.linspace(0, 1, 80).reshape(8, 10)


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.float32(PATTERN * 1.0001), 1), (np.float32(PATTERN * 1.04), 1), (np.float32(PATTERN * 255.4), 255),
        (np.float32(PATTERN * 1.02 - 0.01), 1), (np.uint16(PATTERN * 256), 1023), (np.uint16(PATTERN * 4000), 4095),
        (np.int32(PATTERN * 65535), 65535), (np.float32(PATTERN * 65535.3), 65535), (np.float32(PATTERN * 0.2), 1),
        (np.uint16(PATTERN * 1023), 1023),
    ],
)  # fmt: skip
def test_4_one_white_for_all_and_rounding_does_not_move_it(tmp_path, values, white):
    dataset = gray(tmp_path, values)
    assert dataset.about["gray_range"] == white
    found = WHOLE.pixels(dataset.images([0])[0])[..., 0]
    np.testing.assert_allclose(found, np.clip(np.float64(values) * 255 / white, 0, 255), atol=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32(np.where(PATTERN > 0.9, np.nan, PATTERN)), "no finite numbers"),
        (np.float32(np.where(PATTERN > 0.9, np.inf, PATTERN)), "no finite numbers"),
        (np.float32(PATTERN - 0.5), "values from -0.5"), (np.float32(PATTERN * 1e6), "1000000"),
        (np.int32(PATTERN * 2000 - 1000), "values from -1000"),
    ],
)  # fmt: skip
def test_4_values_that_are_no_brightness_are_named(tmp_path, values, message):
    dataset = gray(tmp_path, values)
    with pytest.raises(ImageError, match=message):
        WHOLE.pixels(dataset.images([0])[0])


def test_4_a_classifier_scales_by_one_range_as_well(tmp_path, clip, monkeypatch):
    dark, bright = np.uint16(PATTERN * 500), np.uint16(PATTERN * 4000)
    gray(tmp_path, dark, bright, suffix="png")
    seen = []
    model = gram.PromptClassifier(clip, steps=1, learning_rate=0.1, verbose=False).fit(tmp_path / "photos")
    assert model.report_["gray_range"] == 4095
    blank = np.zeros((12, 12, 3), np.uint8)
    monkeypatch.setattr(ImageTransform, "pixels", lambda self, image, name="": seen.append(image) or blank)
    model.predict_proba([str(tmp_path / "photos" / "cat" / "0.png")])
    assert seen[0].max() == pytest.approx(500 * 255 / 4095, abs=1)


# 5. One check, shared.


@pytest.mark.parametrize(
    ("change", "shots", "message"),
    [
        (lambda r: shutil.rmtree(r / "dog"), (), "one class"),
        (lambda r: (r / "dog" / "000.jpg").write_bytes(b"junk"), (), "no image of a known format"),
        (lambda r: (r / "dog" / "000.jpg").write_bytes(b""), (), "the file is empty"),
        (lambda r: None, (4,), "4 training images|4 shots|shots=4"),
        (lambda r: [os.remove(r / "cat" / f"00{n}.jpg") for n in range(3)], (), "too few to divide"),
        (lambda r: (r / "fox").mkdir(), (), "holds no images"),
        (lambda r: (r / "classnames.txt").write_text("cat CAT\ndog cat\n"), (), "same tokens: 'CAT = cat'"),
        (lambda r: (r / "template.txt").write_text("no place"), (), "one line with one {}"),
        (lambda r: [(r / n).rename(r / f"n0144076{i}") for i, n in enumerate(("cat", "dog"))], (), "WordNet ids"),
        (lambda r: Image.new("F", (4, 4), -3).save(r / "dog" / "000.tif"), (), "values from -3"),
    ],
)  # fmt: skip
def test_5_check_data_and_classify_refuse_alike(photos, tmp_path, monkeypatch, change, shots, message):
    change(photos)
    config = check_data.Config(dataset=(f"folder:{photos}",), images=0, shots=shots)
    with pytest.raises(InputError, match=f"(?s)problems: 1\n.*({message})"):
        check_data.run(config, epath.Path(tmp_path))
    if not shots:
        with pytest.raises(InputError, match=f"(?s)problems: 1\n.*({message})"):
            classify.checked(classify.Config(images=str(photos)), epath.Path(tmp_path))
    else:
        assert checks.problems(load_dataset(f"folder:{photos}"), shots=shots)


# 6. Archives.


def packed(path, members, mode="w", **settings):
    with tarfile.open(path, mode, **settings) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


TWO = [("0.png", png(0)), ("0.txt", b"a"), ("1.png", png(1)), ("1.txt", b"b")]


@pytest.mark.parametrize(
    ("mode", "name", "change"),
    [
        ("w:gz", "a.tar", None), ("w:bz2", "a.tar", None), ("w:xz", "a.tar", None), ("w", "a.TAR", None),
        ("w", "a.tar", lambda m: [("./" + n, c) for n, c in m]),
        ("w", "a.tar", lambda m: [("x" * 150 + "/" + n, c) for n, c in m]),
        ("w", "a.tar", lambda m: [(n.upper(), c) for n, c in m]),
        ("w", "a.tar", lambda m: [(n, b"\xef\xbb\xbf" + c + b"\r\n" if n.endswith("txt") else c) for n, c in m]),
        ("w", "a.tar", lambda m: m[::-1]), ("w", "a.tar", lambda m: [("d.1/" + n, c) for n, c in m]),
    ],
)  # fmt: skip
def test_6_archives_as_tools_write_them(tmp_path, mode, name, change):
    packed(tmp_path / name, change(TWO) if change else TWO, mode)
    found = everything(f"webdataset:{tmp_path / name}")
    assert {(pair.image, pair.caption) for pair in pairs(found)} == {(png(0), "a"), (png(1), "b")}
    assert not skips(found)


@pytest.mark.parametrize(
    ("change", "count", "reason"),
    [
        (lambda content: content + content, 2, "more behind their end"),
        (lambda content: content + b"x" * 512, 2, "more behind their end"),
        (lambda content: content + bytes(5000), 2, ""),
        (lambda content: content[:700], 0, "damaged"), (lambda content: b"", 0, "damaged"),
    ],
)  # fmt: skip
def test_6_joined_and_cut_archives_are_told(tmp_path, change, count, reason):
    path = tmp_path / "a.tar"
    path.write_bytes(change(packed(path, TWO)))
    found = everything(f"webdataset:{path}")
    assert len(pairs(found)) == count
    told_of = [f"{each.reason} {each.detail}" for each in found if not hasattr(each, "caption")]
    assert [each for each in told_of if reason in each] if reason else not told_of
