"""Users' data, principle 1: what is not used is counted, and the usual spellings are understood."""

import csv
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
from etils import epath
from PIL import Image

from experiments import check_data, predict, zero_shot
from gram_jax.data import Account, load_dataset
from gram_jax.data.account import told
from gram_jax.data.readers.files import why_unread
from gram_jax.data.spellings import role_of
from gram_jax.errors import InputError
from tests.unit.data import layouts
from tests.unit.data.pair_files import everything, pairs, png, skips, unused


def write_table(folder, header, separator=",", rows=16, end=()):
    """A table of cats and dogs with small photos."""
    lines = [separator.join(header)]
    for number in range(rows):
        layouts.write_image(folder / "img" / f"{number}.jpg", number % 2, number)
        fields = {
            "image": f"img/{number}.jpg",
            "label": ("cat", "dog")[number % 2],
            "split": ("train", "val", "test")[number % 3],
        }
        kinds = [KINDS.get(name.strip().lower().replace(" ", "_"), "") for name in header]
        lines.append(separator.join(fields.get(kind, "") for kind in kinds))
    path = folder / "table.csv"
    path.write_text("\n".join([*lines, *end]) + "\n")
    return path


KINDS = {
    **dict.fromkeys(("image", "path", "file_name", "filepath", "filename", "img"), "image"),
    **dict.fromkeys(("label", "class", "category", "class_name"), "label"),
    **dict.fromkeys(("split", "subset", "phase"), "split"),
}


def left_out(dataset):
    return {reason: each["count"] for reason, each in dataset.about["account"]["left_out"].items()}


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        (("file_name", "label"), ","), (("path", "class"), ","), (("Image", "Label"), ","), (("image", "label"), ";"),
        (("FILEPATH", "Category"), "\t"), (("File Name", "Class Name"), ","), (("img", "class"), "|"),
        ((" filename ", " LABEL "), ";"), (("class", "image"), ","), (("\ufeffImage", "label"), ","),
    ],
)  # fmt: skip
def test_columns_in_every_usual_spelling(tmp_path, header, separator):
    path = write_table(tmp_path, [name.replace("\ufeff", "") for name in header], separator)
    if "\ufeff" in header[0]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    dataset = load_dataset(f"csv:{path}")
    assert (len(dataset), dataset.class_names, left_out(dataset)) == (16, ("cat", "dog"), {})


def test_paths_of_windows_are_read(tmp_path):
    path = write_table(tmp_path, ("image", "label"))
    path.write_text(path.read_text().replace("/", "\\"))
    dataset = load_dataset(f"csv:{path}")
    assert all(os.path.isfile(image) for image in dataset.images(range(16)))
    path.write_text(path.read_text().replace("image,label", "image,caption"))
    found = everything(f"csv:{path}")
    assert [pair.caption for pair in pairs(found)] == 8 * ["cat", "dog"]


def test_what_a_spreadsheet_adds_is_passed_over_and_counted(tmp_path):
    path = write_table(tmp_path, ("image", "label", "", ""), end=(",,,", "", " , ,,"))
    dataset = load_dataset(f"csv:{path}")
    assert (len(dataset), left_out(dataset)) == (16, {"rows without a value": 2})
    path = write_table(tmp_path, ("image", "label"))
    path.write_text("sep=,\n" + path.read_text().replace("cat\n", "cat,,\n"))
    assert len(load_dataset(f"csv:{path}")) == 16


def test_columns_that_are_not_read_are_named(tmp_path):
    path = write_table(tmp_path, ("image", "label", "source", "width"))
    dataset = load_dataset(f"csv:{path}")
    assert told(dataset.about) == ["left out: 2 columns that are not read ('source', 'width')"]


@pytest.mark.parametrize(("name", "values"), [("fold", "12"), ("set", "AB"), ("phase", ("early", "late"))])
def test_a_column_of_other_values_is_no_split(tmp_path, name, values):
    path = write_table(tmp_path, ("image", "label"))
    header, *rows = path.read_text().splitlines()
    lines = [f"{header},{name}", *(f"{row},{values[n % 2]}" for n, row in enumerate(rows))]
    path.write_text("\n".join(lines) + "\n")
    dataset = load_dataset(f"csv:{path}")
    assert left_out(dataset) == {"columns that are not read": 1}
    assert dataset.about["split"].startswith("made")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-le"])
def test_tables_as_excel_encodes_them(tmp_path, encoding):
    path = write_table(tmp_path, ("image", "label"), "\t")
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    path.write_bytes(mark + path.read_text().encode(encoding))
    assert len(load_dataset(f"csv:{path}")) == 16


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (b"PK\3\4", "is an Excel file or a zip"),
        (b"PAR1", "is a Parquet file"),
        (b"\xd0\xcf\x11\xe0", "is an old Excel"),
    ],
)
def test_other_files_than_tables_are_named(tmp_path, begin, message):
    (tmp_path / "table.csv").write_bytes(begin + bytes(50))
    with pytest.raises(InputError, match=f"{message}.*; save it as CSV"):
        load_dataset(f"csv:{tmp_path}/table.csv")


@pytest.mark.parametrize(("name", "values"), [("is_test", "01"), ("Train", ("True", "False")), ("test", ("yes", ""))])
def test_a_column_that_marks_a_split_is_refused(tmp_path, name, values):
    path = write_table(tmp_path, ("image", "label"))
    header, *rows = path.read_text().splitlines()
    lines = [f"{header},{name}", *(f"{row},{values[n % 2]}" for n, row in enumerate(rows))]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=f"the column '{name}' holds splits"):
        load_dataset(f"csv:{path}")


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match="is an archive; unpack it"):
        load_dataset(f"folder:{tmp_path}/photos.zip")
    (found,) = everything(f"webdataset:{tmp_path}/photos.zip")
    assert (found.reason, "it is a zip archive: unpack it" in found.detail) == ("damaged archive", True)


@pytest.mark.parametrize("name", ["Split", "SUBSET", "split ", "phase"])
def test_a_split_column_is_found_in_any_case(tmp_path, name):
    dataset = load_dataset(f"csv:{write_table(tmp_path, ('image', 'label', name))}")
    assert Counter(dataset.splits.tolist()) == {"train": 6, "val": 5, "test": 5}


def test_a_column_of_splits_under_another_name_is_refused(tmp_path):
    path = write_table(tmp_path, ("image", "label", "split"))
    path.write_text(path.read_text().replace("split", "usage", 1))
    with pytest.raises(InputError, match=r"'usage' holds splits \('test', 'train', 'val'\); name it split"):
        load_dataset(f"csv:{path}")


def test_splits_in_every_usual_spelling():
    for text in ("train", "Training", "TRAIN", "train_set", "training-data", "trainset", "train2017", "TrainImages"):
        assert role_of(text) == "train"
    for text in ("val", "valid", "Validation", "dev", "DEV", "eval", "validation_set"):
        assert role_of(text) == "val"
    for text in ("test", "Testing", "test_images"):
        assert role_of(text) == "test"
    for text in ("bullet train", "testimony", "developer", "valley", "n01", "", "2017", "set", "images"):
        assert role_of(text) is None


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("Training", "Testing"), {"train": 6, "test": 6}),
        (("TRAIN", "Valid", "TEST"), {"train": 6, "val": 6, "test": 6}),
        (("train", "dev"), {"train": 6, "test": 6}),
        (("train_set", "test_set"), {"train": 6, "test": 6}),
    ],
)
def test_folders_of_splits_in_every_usual_spelling(tmp_path, names, sizes):
    root = layouts.write_folder(tmp_path / "photos", sizes=dict.fromkeys(names, 3))
    (root / "__MACOSX" / "train").mkdir(parents=True)  # left by an archive
    assert Counter(load_dataset(f"folder:{root}").splits.tolist()) == sizes


def test_folders_that_look_like_splits_are_no_classes(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", sizes={"seg_test": 3, "seg_train": 3})
    with pytest.raises(InputError, match="'seg_test', 'seg_train' look like splits; call them train, val and test"):
        load_dataset(f"folder:{root}")
    layouts.write_folder(root, sizes={"Testing": 3, "Training": 3})
    with pytest.raises(InputError, match="'Testing', 'Training' and also 'seg_test', 'seg_train'"):
        load_dataset(f"folder:{root}")


def test_two_classes_with_words_of_splits_remain_classes(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", ["bullet train", "steam train", "test tube"])
    assert load_dataset(f"folder:{root}").class_names == ("bullet train", "steam train", "test tube")


def test_subfolders_belong_to_the_class_and_the_rest_is_counted(tmp_path):
    root = layouts.write_folder(tmp_path / "photos", ["cat", "dog"], 6)
    for number in range(10):
        layouts.write_image(root / "cat" / "holiday 2023" / "day 1" / f"{number}.jpg", 0, number)
    (root / "cat" / "notes.md").write_text("x")
    (root / "cat" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "cat" / "clip.mp4").write_bytes(b"")
    (root / "dog" / ".DS_Store").write_bytes(b"")
    (root / "dog" / "download").write_bytes(layouts.jpeg(1, 1))
    (root / "dog" / "other").symlink_to(root / "cat")
    os.mkfifo(root / "dog" / "pipe.jpg")
    (root / "labels.csv").write_text("image,label\n")
    shutil.copy(root / "cat" / "000.jpg", root / "loose.jpg")
    dataset = load_dataset(f"folder:{root}")
    assert Counter(dataset.class_names[label] for label in dataset.labels) == {"cat": 16, "dog": 6}
    assert left_out(dataset) == {
        "HEIC files, which cannot be read; export them as JPEG or PNG": 1,
        "video files, which cannot be read; export them as JPEG or PNG": 1,
        "files that are no images": 1,
        "hidden files and folders": 1,
        "JPEG images without the suffix of their format; rename them": 1,
        "links to folders": 1,
        "pipes, devices and broken links": 1,
        "images outside class folders": 1,
        "files beside the class folders that are not read": 1,
    }


@pytest.mark.parametrize(
    ("name", "begin", "reason"),
    [
        ("a.jfif", b"", ""), ("a.JPE", b"", ""), ("a.pjpeg", b"", ""), ("a.jxl", b"", "JPEG XL files"),
        ("a.svg", b"", "SVG files"), ("a.heif", b"", "HEIC files"), ("a.CR2", b"", "camera raw files"),
        ("a", b"\x89PNG\r\n\x1a\n", "PNG images without"), ("a.tmp", b"RIFF\0\0\0\0WEBP", "WEBP images without"),
        ("a.dat", b"\0\0\0\x18ftypheix", "HEIC files"), ("a.bin", b"<svg xmlns", "SVG files"),
        ("a.txt", b"x", "files that are no images"), ("b", b"\xff\x0a1", "JPEG XL files"),
    ],
)  # fmt: skip
def test_a_file_is_an_image_or_has_a_reason(tmp_path, name, begin, reason):
    (tmp_path / name).write_bytes(begin)
    found = why_unread(tmp_path / name)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def run_predict(tmp_path, images, **settings):
    predict.run(predict.Config(images=str(images), classes=("cat", "dog"), **settings), epath.Path(tmp_path))
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_predict_writes_a_row_for_every_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "make_classifier", lambda *_: lambda pixels: np.full((len(pixels), 2), 0.5))
    photos = tmp_path / "photos"
    for name in ("0.jpg", "saved.jfif", "old.jpe", "download"):
        layouts.write_image(photos / name, 0, 1)
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "empty.png").write_bytes(b"")
    os.mkfifo(photos / "pipe.png")
    rows = run_predict(tmp_path, photos)
    assert {row[0]: row[-1].partition(":")[0].partition(" is ")[2] for row in rows} == {
        "0.jpg": "", "saved.jfif": "", "old.jpe": "", "download": "not read", "IMG_1.HEIC": "not read",
        "empty.png": "no image of a known format", "pipe.png": "not read",
    }  # fmt: skip
    assert (
        "left out: 1 HEIC files, which cannot be read; export them as JPEG or PNG ('IMG_1.HEIC')"
        in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "account.json").read_text())["read"] == {"images": 4, "files": 7}


def test_predict_takes_a_photo_or_several(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "make_classifier", lambda *_: lambda pixels: np.full((len(pixels), 2), 0.5))
    for name in ("one.jpg", "two.jpg", "a,b.jpg"):
        layouts.write_image(tmp_path / name, 0, 1)
    assert [row[0] for row in run_predict(tmp_path, tmp_path / "one.jpg")] == ["one.jpg"]
    both = f"{tmp_path}/one.jpg,{tmp_path}/two.jpg"
    assert [row[0] for row in run_predict(tmp_path, both)] == both.split(",")
    assert len(run_predict(tmp_path, tmp_path / "a,b.jpg")) == 1  # a comma in a name
    assert [os.path.basename(row[0]) for row in run_predict(tmp_path, tmp_path / "t*.jpg")] == ["two.jpg"]
    with pytest.raises(FileNotFoundError, match=r"three\.jpg"):
        run_predict(tmp_path, tmp_path / "three.jpg")


@pytest.mark.parametrize("spec", ["csv:FOLDER", "folder:FILE"])
def test_a_file_is_not_called_absent_where_a_folder_is_wanted(tmp_path, spec):
    layouts.write_image(tmp_path / "photo.jpg", 0, 0)
    with pytest.raises(
        InputError, match=r"is a (folder; give the file in it, one of 'photo.jpg'|file; give the folder)"
    ):
        load_dataset(spec.replace("FOLDER", str(tmp_path)).replace("FILE", str(tmp_path / "photo.jpg")))


def test_rows_with_more_fields_than_the_header_are_no_pairs(tmp_path):
    (tmp_path / "0.png").write_bytes(png(1))
    rows = [
        "image,caption",
        "0.png,a red square, on white",
        '0.png,"a red square, on white"',
        "0.png,a square,,",
        ",",
        "0.png",
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    found = everything(f"csv:{tmp_path}/pairs.csv")
    assert [pair.caption for pair in pairs(found)] == ["a red square, on white", "a square"]
    assert skips(found) == [("pairs.csv:1", "malformed row"), ("pairs.csv:5", "malformed row")]
    assert unused(found) == [("pairs.csv:4", "rows without a value")]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_both_readers_of_tables_know_the_same_separators(tmp_path, separator):
    (tmp_path / "0.png").write_bytes(png(1))
    rows = (("File Name", "Text", "id"), ("0.png", "a cat, small", "7"))
    (tmp_path / "pairs.csv").write_text("".join(separator.join(row) + "\n" for row in rows))
    found = everything(f"csv:{tmp_path}/pairs.csv")
    assert [pair.caption for pair in pairs(found)] == ["a cat, small"]
    assert unused(found) == [("id", "columns that are not read")]


def test_a_folder_of_pairs_tells_what_is_no_pair(tmp_path):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
        (tmp_path / name).with_suffix(".txt").write_text("a cat")
    (tmp_path / "c.heic").write_bytes(b"")
    (tmp_path / "c.txt").write_text("a caption without an image")
    found = everything(f"folder:{tmp_path}")
    assert len(pairs(found)) == 2
    assert sorted(unused(found)) == [
        ("c.heic", "HEIC files, which cannot be read; export them as JPEG or PNG"),
        ("c.txt", "files that are no images"),
    ]  # fmt: skip


def test_every_program_prints_the_account_and_stores_it(tmp_path, capsys):
    root = layouts.write_folder(tmp_path / "photos")
    (root / "dog" / "notes.txt").write_text("x")
    line = "left out: 1 files that are no images ('dog/notes.txt')"
    spec = f"folder:{root}"
    check_data.run(check_data.Config(dataset=(spec,), images=0), epath.Path(tmp_path))
    assert f"  {line}\n" in capsys.readouterr().out
    stored = json.loads((tmp_path / "account.json").read_text())["datasets"][spec]["account"]
    results = zero_shot.run(zero_shot.Config(dataset=(spec,)), epath.Path(tmp_path / "run"))
    assert f"folder:photos: {line}\n" in capsys.readouterr().out
    assert results.config["datasets"]["folder:photos"]["account"] == stored
    assert Account.from_json(stored).lines() == [line]


def test_accounts_add_up():
    first, second = Account({"images": 2}), Account({"images": 3, "files": 1})
    first.leave_out("rows", [f"line {number}" for number in range(5)])
    second.leave_out("rows", ["line 9"])
    first.add(second)
    assert first.read == {"images": 5, "files": 1}
    assert first.lines() == ["left out: 6 rows ('line 0', 'line 1', 'line 2' and 3 more)"]
    assert json.loads(json.dumps(first.to_json())) == first.to_json()


def test_two_datasets_of_one_name_are_told_apart(tmp_path):
    for place in ("office", "home"):
        for number, name in enumerate(("cat", "dog")):
            for each in range(8):
                layouts.write_image(tmp_path / place / "photos" / name / f"{each}.jpg", number, each)
    specs = [f"folder:{tmp_path}/{place}/photos" for place in ("office", "home")]
    results = zero_shot.run(zero_shot.Config(dataset=tuple(specs)), epath.Path(tmp_path / "run"))
    assert {row.dataset for row in results.rows} == {"folder:office-photos", "folder:home-photos"}
    with pytest.raises(InputError, match="both called 'folder:photos'"):
        zero_shot.run(zero_shot.Config(dataset=(specs[0], specs[0] + "/")), None)


def test_blank_and_symbol_fonts_lack_their_characters(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    from fontTools.ttLib import TTFont

    from gram_jax.data.glyphs import faces

    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    digits = frozenset(range(48, 58))
    font = TTFont(os.path.join(folder, "DejaVuSans.ttf"))
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap |= dict.fromkeys(list(digits)[:5], "space")
    font.save(tmp_path / "blank.ttf")
    assert faces.coverage(str(tmp_path / "blank.ttf"), digits) == frozenset(list(digits)[5:])
    for name, drawn in (
        ("DejaVuSans", digits),
        ("cmr10", digits),
        ("cmsy10", frozenset()),
        ("LastResortHE-Regular", frozenset()),
    ):
        assert faces.coverage(os.path.join(folder, f"{name}.ttf"), digits) == drawn


def test_a_photo_of_every_read_type_decodes(tmp_path):
    for suffix in ("jfif", "jpe", "apng", "pnm"):
        kind = {"apng": "PNG", "pnm": "PPM"}.get(suffix, "JPEG")
        Image.new("RGB", (9, 7), "red").save(tmp_path / f"a.{suffix}", kind)
        assert why_unread(tmp_path / f"a.{suffix}") == ""
