"""The image transform against transformers' PIL processor, and images that it refuses."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from gram_jax.clip import ImageError, ImageTransform
from gram_jax.errors import InputError

SIZES = [
    (1, 1),
    (1, 7),
    (3, 90),
    (90, 3),
    (17, 31),
    (223, 224),
    (224, 223),
    (224, 224),
    (225, 224),
    (333, 777),
    (640, 480),
]
MODES = ["L", "LA", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "1", "YCbCr", "HSV", "LAB", "I", "F"]
CONFIGS = [
    {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 33,
        "crop_size": 33,
        "resample": 3,
        "do_normalize": True,
    },
    {
        "size": {"shortest_edge": 30},
        "crop_size": {"height": 33, "width": 28},
        "image_processor_type": "CLIPImageProcessor",
    },
    {
        "size": {"height": 30, "width": 21},
        "crop_size": 18,
        "resample": 2,
        "image_mean": 0.5,
        "image_std": [0.1, 0.2, 0.3],
    },
    {
        "size": [20, 31],
        "do_center_crop": False,
        "do_normalize": False,
        "image_processor_type": "CLIPImageProcessorFast",
    },
    {
        "size": 24,
        "default_to_square": True,
        "crop_size": 32,
        "resample": 0,
        "rescale_factor": 1 / 127.5,
    },
    {"do_resize": False, "crop_size": 40, "do_rescale": False, "image_mean": [1.0, 2.0, 3.0], "do_convert_rgb": True},
    {"size": 10, "crop_size": 64, "resample": 1},
]


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(mode, width=50, height=37):
    """Returns noise in a mode; if the mode has transparency, it differs between pixels."""
    image = Image.fromarray(noise(width, height, 4))
    return image.convert(mode) if mode in ("LA", "PA", "RGBA", "RGBa") else image.convert("RGB").convert(mode)


def theirs(processor, image, **settings):
    return processor(image, return_tensors="np", **settings)["pixel_values"].transpose(0, 2, 3, 1)


def assert_equal_to_transformers(transform, processor, image):
    pixels = theirs(processor, image, do_rescale=False, do_normalize=False)[0]
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(transform.pixels(image), pixels)
    floats = transform([image])
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, theirs(processor, image).astype(np.float32))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size(size):
    assert_equal_to_transformers(ImageTransform(), CLIPImageProcessorPil(), Image.fromarray(noise(*size)))


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1)], ids=str)
def test_slivers(size):
    image = Image.fromarray(noise(*size))
    expected = theirs(CLIPImageProcessorPil(), image, do_rescale=False, do_normalize=False)[0]
    np.testing.assert_array_equal(ImageTransform().pixels(image), expected)


@pytest.mark.parametrize(
    "config", [{}, {"size": {"height": 40, "width": 40}, "resample": 3, "image_std": [0.5, 0.4, 0.3]}]
)
def test_siglip_changes_the_aspect_ratio(config):
    config = {"image_processor_type": "SiglipImageProcessor"} | config
    transform, processor = ImageTransform.from_hf(config), SiglipImageProcessorPil(**config)
    assert transform.output_size == 2 * (config.get("size", {"height": 224})["height"],)
    for width, height in [(1, 7), (90, 33), (40, 40), (225, 224)]:
        assert_equal_to_transformers(transform, processor, Image.fromarray(noise(width, height)))
    assert ImageTransform.from_hf(transform.to_hf()) == ImageTransform.from_hf(processor.to_dict()) == transform


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_every_shape_of_the_file(config):
    transform, processor = ImageTransform.from_hf(config), CLIPImageProcessorPil(**config)
    rng = np.random.default_rng(1)
    for width, height in rng.integers(1, 90, (15, 2)):
        assert_equal_to_transformers(transform, processor, Image.fromarray(noise(width, height)))
    # Both libraries read the files of both.
    assert ImageTransform.from_hf(processor.to_dict()) == transform
    again = CLIPImageProcessorPil(**transform.to_hf())
    assert_equal_to_transformers(ImageTransform.from_hf(transform.to_hf()), again, Image.fromarray(noise(50, 41)))
    assert ImageTransform.from_hf(transform.to_hf()) == transform


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode):
    assert_equal_to_transformers(
        ImageTransform(32, (32, 32)), CLIPImageProcessorPil(size=32, crop_size=32), picture(mode)
    )


@pytest.mark.parametrize(("mode", "transparency"), [("P", 3), ("P", bytes(range(256))), ("L", 7), ("RGB", (1, 2, 3))])
def test_transparency_of_a_color(mode, transparency):
    image = picture(mode)
    image.info["transparency"] = transparency
    assert_equal_to_transformers(ImageTransform(32, (32, 32)), CLIPImageProcessorPil(size=32, crop_size=32), image)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_deep_gray_is_scaled_not_clipped(mode):
    values = np.array([[0, 127, 128, 257, 384, 385, 40_000, 65_535]], np.uint16)
    if mode == "I;16B":
        image = Image.frombytes("I;16B", (8, 1), values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    assert image.mode == mode
    pixels = ImageTransform(size=None, crop=None).pixels(image)
    expected = [round(value / 65_535 * 255) for value in values[0].tolist()]
    np.testing.assert_array_equal(pixels, np.repeat(np.array(expected, np.uint8)[None, :, None], 3, axis=2))


def test_a_16_bit_png():
    values = np.linspace(0, 65_535, 20 * 30).reshape(20, 30).astype(np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    pixels = ImageTransform(size=None, crop=None).pixels(data)[..., 0]
    np.testing.assert_array_equal(pixels, np.round(values / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2), -1, np.int32), "mode I and values from -1 to -1; scale it to 0..255"),
        (np.full((2, 2), 70_000, np.int32), "values from 70000 to 70000"),
        (np.full((2, 2), np.nan, np.float32), "mode F and values that are no finite numbers"),
    ],
)
def test_gray_with_an_unknown_range(values, message):
    with pytest.raises(ImageError, match=message):
        ImageTransform().pixels(Image.fromarray(values))


def encoded(image, kind, **settings):
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(30, 20)), "JPEG", exif=exif)
    path = tmp_path / "turned.jpg"
    path.write_bytes(data)
    upright = ImageOps.exif_transpose(Image.open(path))
    transform, processor = ImageTransform(16, (16, 16)), CLIPImageProcessorPil(size=16, crop_size=16)
    expected = theirs(processor, upright, do_rescale=False, do_normalize=False)[0]
    for source in (data, path, str(path), Image.open(path), bytearray(data)):
        np.testing.assert_array_equal(transform.pixels(source), expected)
    turned = Image.open(path)
    transform.pixels(turned)
    assert turned.size == (30, 20)  # the caller's image is unchanged


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"no such thing", b"II*\0", b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0a\0\0\0\0\0\0\0"]
)
def test_damaged_metadata_does_not_damage_the_image(kind, exif):
    """Checks EXIF data that is invalid, that is truncated, and whose orientation is a letter."""
    image = Image.fromarray(noise(30, 20))
    transform = ImageTransform(16, (16, 16))
    expected = transform.pixels(encoded(image, kind))
    np.testing.assert_array_equal(transform.pixels(encoded(image, kind, exif=b"Exif\0\0" + exif)), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(kind):
    data = encoded(Image.fromarray(noise(30, 20)), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(ImageTransform(size=None, crop=None).pixels(data), expected)


def test_batches():
    transform = ImageTransform(16, (16, 16))
    array = noise(20, 30)
    one = transform([array])
    assert one.shape == (1, 16, 16, 3)
    for batch in (array, Image.fromarray(array), encoded(Image.fromarray(array), "PNG"), (each for each in [array])):
        np.testing.assert_array_equal(transform(batch), one)
    np.testing.assert_array_equal(transform(np.stack([array, array])), np.concatenate([one, one]))


def test_an_image_of_the_right_size_is_unchanged():
    array = noise(224, 224)
    np.testing.assert_array_equal(ImageTransform().pixels(array), array)


def test_version_identifies_the_steps():
    versions = {ImageTransform.from_hf(config).version for config in CONFIGS}
    assert len(versions) == len(CONFIGS)
    assert ImageTransform(32, (32, 32)).version == ImageTransform(32, (32, 32), max_pixels=9).version
    assert (
        ImageTransform.from_hf({"size": 224, "resample": Image.Resampling.BICUBIC}).version == ImageTransform().version
    )
    assert hash(ImageTransform.from_hf({})) == hash(ImageTransform())


def bomb(width, height):
    """Returns the header of a PNG of a given size, without pixels."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.fromarray(noise(64, 64)), "JPEG")[:700], "truncated or damaged"),
        (encoded(Image.fromarray(noise(64, 64)), "PNG")[:700], "truncated or damaged"),
        (encoded(Image.fromarray(noise(64, 64)), "GIF")[:1200], "truncated or damaged"),
        (b"", "no image of a known format"),
        (b"not an image", r"no image of a known format \(AVIF, .*WEBP"),
        (b"<html>not found</html>", "content is HTML; download it again"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (bomb(60_000, 60_000), "decompression bomb"),
        (bomb(300, 400), "300 x 400 pixels.* 100000.*ImageTransform.max_pixels"),
    ],
)
def test_broken_images(data, message, as_path, tmp_path):
    name = "image 1"
    if as_path:
        path = tmp_path / "broken.jpg"
        path.write_bytes(data)
        data, name = path, str(path)
    with pytest.raises(ImageError, match=message) as caught:
        ImageTransform(max_pixels=100_000)([noise(9, 9), data])
    assert str(caught.value).startswith(name)
    assert isinstance(caught.value, ValueError)


def test_broken_pil_image(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(Image.fromarray(noise(64, 64)), "PNG")[:700])
    with Image.open(path) as image, pytest.raises(ImageError, match="image 0 cannot be read"):
        ImageTransform()([image])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/file.png", "/no/such/file.png does not exist"),
        (3, "image 0 is a int"),
        (noise(9, 9, 1), r"image 0 is uint8\[9, 9, 1\]"),
        (noise(9, 9) / 255, r"image 0 is float64\[9, 9, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (Image.fromarray(noise(1, 4000)), "image 0 has 1 x 4000 pixels.* 224 x 896000"),
    ],
)
def test_unusable_sources(source, message):
    with pytest.raises(ImageError, match=message):
        ImageTransform()([source])


def test_batches_that_cannot_be_stacked():
    with pytest.raises(ImageError, match=r"\(16, 16\) and \(16, 32\).*ImageTransform.crop"):
        ImageTransform(16, None)([noise(20, 20), noise(40, 20)])
    with pytest.raises(ImageError, match=r"images=\[\]"):
        ImageTransform()([])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type='Siglip2ImageProcessor'"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 224}}, "size={'longest_edge': 224}"),
        ({"size": "224"}, "size='224'"),
        ({"size": 0}, "ImageTransform.size=0"),
        ({"crop_size": {"height": 8, "width": 1.5}}, "ImageTransform.crop=1.5"),
        ({"resample": 9}, "ImageTransform.resample=9"),
        ({"image_mean": [0.5]}, r"mean=\(0.5,\)"),
        ({"image_mean": [3e38, 0.5, 0.5]}, r"mean=\(3e\+38, 0.5, 0.5\).*not finite"),
    ],
)
def test_configurations_that_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform.from_hf(config)


@pytest.mark.parametrize("side", range(224, 236))
def test_the_crop_of_torchvision_rounds_half_to_even(side):
    """torchvision's CenterCrop: crop_left = int(round((width - 224) / 2.0)); transformers divides with //."""
    array = np.arange(224 * side, dtype=np.uint32).reshape(224, side, 1).repeat(3, -1).astype(np.uint8)
    offsets = {}
    for rounding, expected in (("down", (side - 224) // 2), ("half_even", round((side - 224) / 2.0))):
        transform = ImageTransform(crop_rounding=rounding)
        np.testing.assert_array_equal(transform.pixels(array), array[:, expected : expected + 224])
        offsets[rounding] = expected
    assert (offsets["down"] != offsets["half_even"]) == ((side - 224) % 4 == 3)


def test_plain_reading_is_pillows_own_conversion(tmp_path):
    whole, plain = (ImageTransform(size=None, crop=None, reading=each) for each in ("upright", "plain"))
    turned = Image.fromarray(noise(7, 5))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert plain.pixels(tmp_path / "turned.png").shape == (5, 7, 3)
    assert whole.pixels(tmp_path / "turned.png").shape == (7, 5, 3)
    clear = Image.fromarray(np.dstack([noise(7, 5), np.zeros((5, 7), np.uint8)]))
    np.testing.assert_array_equal(plain.pixels(clear), np.asarray(clear)[..., :3])
    assert (whole.pixels(clear) == 255).all()


def test_settings_of_reading_are_part_of_the_version_and_checked():
    versions = {
        ImageTransform().version,
        ImageTransform(crop_rounding="half_even").version,
        ImageTransform(reading="plain").version,
    }
    assert len(versions) == 3
    assert ImageTransform().version == ImageTransform(crop_rounding="down", reading="upright").version
    for settings, message in (
        ({"reading": "dassl"}, "reading='dassl'"),
        ({"crop_rounding": "up"}, "crop_rounding='up'"),
    ):
        with pytest.raises(InputError, match=message):
            ImageTransform(**settings)
