"""Users' data, principle 4: pixels are looked at once decoded."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from etils import epath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from experiments import check_data, predict
from experiments.evaluate import datasets as evaluate_datasets
from experiments.evaluate import run as evaluate_run
from gram_jax.clip.decoding import ImageError, format_of
from gram_jax.clip.images import ImageTransform
from gram_jax.data import Dataset, load_dataset
from gram_jax.data.gray import find_range
from gram_jax.data.looks import Looked
from gram_jax.errors import InputError
from tests.unit.data import layouts

WHOLE = ImageTransform(size=None, crop=None)
PATTERN = np.add.outer(np.arange(16), np.arange(16)).astype(np.float64) / 30  # 0 to 1


def write_gray(root, scale, dtype, suffix, brightness=(1.0, 0.5, 0.25)):
    """Photos of two classes, of which some are darker than others."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(6):
            values = (PATTERN if label else PATTERN[::-1]) * scale * brightness[number % len(brightness)]
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(dtype)).save(root / name / f"{number}.{suffix}")
    return root


@pytest.mark.parametrize(
    ("scale", "dtype", "suffix", "largest"),
    [
        (1.0, np.float32, "tif", 1), (255.0, np.float32, "tif", 255), (4095.0, np.float32, "tiff", 4095),
        (1023, np.uint16, "png", 1023), (4080, np.uint16, "png", 4095), (16383, np.uint16, "png", 16383),
        (65535, np.uint16, "png", 65535), (255, np.uint16, "png", 255), (4095, np.uint16, "tif", 4095),
        (4095, np.int32, "tif", 4095), (0.6, np.float32, "tif", 1),
    ],
)  # fmt: skip
def test_deep_grayscale_is_scaled_by_one_range(tmp_path, scale, dtype, suffix, largest):
    dataset = load_dataset(f"folder:{write_gray(tmp_path / 'photos', scale, dtype, suffix)}")
    assert f"are read as 0..{largest}" in dataset.about["notes"][-1]
    for position, reference in enumerate(dataset.references):
        values = np.asarray(Image.open(tmp_path / "photos" / reference)).astype(np.float64)
        expected = np.repeat((values * 255 / largest)[..., None], 3, -1)
        found = WHOLE.pixels(dataset.images([position])[0])
        assert np.abs(found - expected).max() <= 1  # rounding
    means = [WHOLE.pixels(dataset.images([each])[0]).mean() for each in range(len(dataset))]
    assert max(means) > 1.9 * min(means)  # darker images remain darker


def test_the_range_can_be_given_and_is_part_of_the_identity(tmp_path):
    root = write_gray(tmp_path / "photos", 4080, np.uint16, "png")
    auto, given = load_dataset(f"folder:{root}"), load_dataset(f"folder:{root}", gray_range=65535)
    assert WHOLE.pixels(given.images([0])[0]).max() <= 16
    assert auto.content_hash != given.content_hash
    small = load_dataset(f"folder:{root}", gray_range=1000)
    with pytest.raises(ImageError, match=r"values up to \d+, above the gray range 1000"):
        small.images(range(len(small)))
    with pytest.raises(InputError, match="gray_range=0"):
        load_dataset(f"folder:{root}", gray_range=0)


def test_other_images_are_not_touched(tmp_path):
    root = layouts.write_folder(tmp_path / "photos")
    assert isinstance(load_dataset(f"folder:{root}").images([0])[0], str)
    assert find_range([str(tmp_path / "photos/dog/000.jpg"), str(tmp_path / "nowhere.png")]) is None
    Image.new("RGB", (4, 4), "red").save(tmp_path / "color.png")
    Image.new("L", (4, 4), 9).save(tmp_path / "gray.png")
    assert find_range([str(tmp_path / "color.png"), str(tmp_path / "gray.png")]) is None


def test_one_float_image_up_to_one_is_not_black():
    values = PATTERN.astype(np.float32)
    found = WHOLE.pixels(Image.fromarray(values))
    np.testing.assert_allclose(found[..., 0], values * 255, atol=0.5)


def test_predict_scales_its_folder(tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(
        predict,
        "make_classifier",
        lambda *_: lambda pixels: shown.append(np.array(pixels)) or np.full((len(pixels), 2), 0.5),
    )
    root = write_gray(tmp_path / "photos", 4080, np.uint16, "png")
    config = predict.Config(images=str(root), classes=("cat", "dog"))
    predict.run(config, epath.Path(tmp_path))
    assert "are read as 0..4095" in capsys.readouterr().out
    predict.run(predict.Config(**{**vars(config), "gray_range": 65535.0}), epath.Path(tmp_path))
    assert shown[0].max() > shown[-1].max() + 1


def deep_record(label, number):
    """A 16-bit PNG whose brightness depends on its number; 12 of the bits are used."""
    buffer = io.BytesIO()
    Image.fromarray((PATTERN * 4000 / (1 + number)).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def test_records_share_one_range_as_files_do(tmp_path):
    layouts.write_tfds(tmp_path, "toy", {"train": [0, 1] * 4, "test": [0, 1]}, encode=deep_record)
    dataset = load_dataset(f"tfds:{tmp_path}:toy")
    assert "are read as 0..4095" in dataset.about["notes"][-1]
    brightest = [int(WHOLE.pixels(each).max()) for each in dataset.images(range(8))]
    assert brightest == pytest.approx([4000 * 255 / 4095 / (1 + number) for number in range(8)], abs=1)
    given = load_dataset(f"tfds:{tmp_path}:toy", gray_range=8000)
    assert WHOLE.pixels(given.images([0])[0]).max() == pytest.approx(4000 * 255 / 8000, abs=1)
    assert given.content_hash != dataset.content_hash


def test_the_plain_reading_of_published_recipes_scales_nothing(tmp_path):
    root = write_gray(tmp_path / "photos", 4080, np.uint16, "png")
    settings = evaluate_run.Config(preset="coop_fs_vitb16", dataset=(f"folder:{root}",)).settings
    opened = evaluate_datasets.open_datasets(settings)["folder:photos"].dataset
    plain = ImageTransform(size=None, crop=None, reading="plain")
    for image, reference in zip(opened.images([0, 7]), [opened.references[each] for each in (0, 7)], strict=True):
        expected = np.asarray(Image.open(root / reference).convert("RGB"))  # as Dassl's read_image
        np.testing.assert_array_equal(plain.pixels(image), expected)
    assert not any("are read as" in note for note in opened.about["notes"])


def looked(images, labels=None, splits=None):
    """The notes on photos that are all different, but for what a test makes equal."""
    count = len(images)
    labels = np.arange(count) % 2 if labels is None else np.array(labels)
    splits = np.array(["train"] * count) if splits is None else np.array(splits)
    dataset = Dataset("toy", tuple(f"{n}.png" for n in range(count)), labels, splits, ("cat", "dog"), "{}", str)
    found = Looked(dataset)
    for position, image in enumerate(images):
        found.add(position, image)
    return found.notes()


def noise(seed, high=256):
    return np.random.default_rng(seed).integers(0, high, (8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "splits", "message"),
    [
        ([noise(0), noise(0)], [0, 0], ["train", "test"], r"1 image is in several splits.*train\) = 1\.png \(test"),
        ([noise(0), noise(0)], [0, 0], ["val", "test"], "several splits"),
        ([noise(0), noise(0)], [0, 1], None, r"1 image is in several classes.*\(cat\) = 1\.png \(dog\)"),
        ([noise(0), noise(0), noise(0)], [0, 0, 0], ["train"] * 3, "1 images occur again"),
        ([np.full((8, 8, 3), 7, np.uint8), noise(1)], None, None, r"1 image is of one color: '0\.png'"),
        ([np.uint8(200) + noise(3, 2), noise(1)], None, None, "1 image is of one color"),
        ([np.zeros((8, 8, 3), np.uint8)] * 3, None, None, "3 images are of one color"),
        ([noise(n, 17) for n in range(4)], None, None, "4 of 4 images are dark, the largest value is 16"),
        ([noise(n, 30) for n in range(19)] + [noise(99)], None, None, "19 of 20 images are dark"),
        ([noise(0).transpose(1, 0, 2)] * 2, [0, 1], None, "several classes"),
    ],
)  # fmt: skip
def test_what_images_look_like_is_noted(images, labels, splits, message):
    assert any(re.search(message, note) for note in looked(images, labels, splits))


def test_ordinary_images_have_no_note():
    assert looked([noise(n) for n in range(5)]) == []
    assert looked([noise(0), noise(0).reshape(9, 8, 3)]) == []  # another shape
    assert looked([noise(0, 20), *(noise(n) for n in range(1, 5))]) == []  # one dark photo


def test_check_data_notes_equal_and_dark_photos(tmp_path, capsys):
    root = tmp_path / "photos"
    for split, numbers in (("train", range(4)), ("test", range(3, 7))):
        for label, name in enumerate(("cat", "dog")):
            for number in numbers:
                layouts.write_image(root / split / name / f"{split}{number}.jpg", label, number)
    layouts.write_image(root / "train" / "dog" / "wrong.jpg", 0, 0)
    check_data.run(check_data.Config(dataset=(f"folder:{root}",), images=0), epath.Path(tmp_path))
    said = capsys.readouterr().out
    assert "note: 2 images are in several splits, test accuracy is too high" in said
    assert "note: 1 image is in several classes, only one of which is right" in said
    assert "no problems found" in said


@pytest.mark.parametrize(("suffix", "kind"), [("gif", "GIF"), ("tif", "TIFF"), ("webp", "WEBP"), ("png", "PNG")])
def test_further_frames_are_counted(tmp_path, capsys, suffix, kind):
    root = layouts.write_folder(tmp_path / "photos")
    frames = [Image.fromarray(noise(seed)) for seed in range(3)]
    frames[0].save(root / "dog" / f"a.{suffix}", kind, save_all=True, append_images=frames[1:])
    frames[0].save(root / "dog" / f"b.{suffix}", kind)
    check_data.run(check_data.Config(dataset=(f"folder:{root}",), images=0), epath.Path(tmp_path))
    assert f"note: 1 images have several frames, the first is read: 'dog/a.{suffix}'" in capsys.readouterr().out


def long_text():
    info = PngInfo()
    info.add_text("workflow", "x" * (2 << 20), zip=True)
    return info


def international_text():
    info = PngInfo()
    info.add_itxt("workflow", "x" * (2 << 20), zip=True)
    return info


def png_of(pixels, info=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def chunk(kind, content, check=None):
    value = zlib.crc32(kind + content) if check is None else check
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", value)


def with_chunk(data, added):
    """Puts a chunk behind the header of a PNG file."""
    return data[:33] + added + data[33:]


@pytest.mark.parametrize(
    "encoded",
    [
        png_of(noise(1), long_text()),
        png_of(noise(1), international_text()),
        with_chunk(png_of(noise(1)), chunk(b"tEXt", b"a\0b", check=0)),
        with_chunk(png_of(noise(1)), chunk(b"zTXt", b"a\0\0" + b"no zlib")),
        with_chunk(png_of(noise(1)), chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20)))),
        with_chunk(png_of(noise(1)), chunk(b"iTXt", b"")),
        with_chunk(png_of(noise(1)), chunk(b"eXIf", b"no exif")),
        with_chunk(png_of(noise(1)), chunk(b"pHYs", b"\0")),
        with_chunk(png_of(noise(1)), chunk(b"gAMA", b"")),
        with_chunk(png_of(noise(1)), chunk(b"iTXt", b"a\0\1\1" + b"x")),
        png_of(noise(1)) + b"what follows the end",
    ],
)
@pytest.mark.parametrize("as_path", [False, True])
def test_metadata_is_no_damage(tmp_path, encoded, as_path):
    (tmp_path / "a.png").write_bytes(encoded)
    np.testing.assert_array_equal(WHOLE.pixels(tmp_path / "a.png" if as_path else encoded), noise(1))


def test_damaged_pixels_are_damage():
    data = bytearray(png_of(noise(1), long_text()))
    data[data.index(b"IDAT") + 9] ^= 255
    with pytest.raises(ImageError, match="truncated or damaged"):
        WHOLE.pixels(bytes(data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "content is HEIC; export it as JPEG or PNG"),
        (b"<!DOCTYPE html><html>", "content is HTML; download it again"), (b"\xff\x0a\0\0", "content is JPEG XL"),
        (b"version https://git-lfs.github.com/spec/v1\n", "content is Git LFS pointer; run git lfs pull"),
        (b"%PDF-1.7", "content is PDF"), (b"<svg xmlns='x'/>", "content is SVG"), (b"8BPS\0\1", "content is Photoshop"),
        (b"\0\0\0\x18ftypisom", "content is video"), (b"nonsense", "no image of a known format"),
    ],
)  # fmt: skip
def test_what_a_file_holds_is_named(tmp_path, content, message):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        WHOLE.pixels(tmp_path / "a.jpg")


def test_pipes_devices_and_folders_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "pipe.jpg", tmp_path / "folder.jpg", "/dev/zero"):
        with pytest.raises(ImageError, match="is a folder, a pipe or a device"):
            WHOLE.pixels(path)
    root = layouts.write_folder(tmp_path / "photos")
    os.mkfifo(root / "dog" / "a.png")
    dataset = load_dataset(f"folder:{root}")
    assert len(dataset) == 16
    assert dataset.about["account"]["left_out"]["pipes, devices and broken links"]["examples"] == ["dog/a.png"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000"])
def test_the_formats_of_pillows_writers_are_known_by_their_begin(kind):
    buffer = io.BytesIO()
    Image.fromarray(noise(1)).save(buffer, kind)
    assert format_of(buffer.getvalue()[:64]) == kind
