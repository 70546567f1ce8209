"""The image transform of a CLIP, and the safe decoding of images. Importable without JAX, for worker processes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gram_jax.errors import InputError, require_int, require_number

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # Pillow's number, which preprocessor_config.json uses
# The formats of image corpora. Pillow knows more, and starts other programs for some (EPS: Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # Pillow, too, refuses larger images as decompression bombs
EXIF_ORIENTATION = 0x0112
MAX_SIDE = 1 << 14  # of a transformed image
SNIFFED = 64  # bytes at the begin of a file from which its format is known
# Files that show pictures and that the transform does not read, by suffix.
FOREIGN_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), "camera raw"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg"), "video"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".eps", ".ps", ".ai"), "PostScript"),
    ".jxl": "JPEG XL", ".psd": "Photoshop", ".pdf": "PDF", ".ico": "icon", ".exr": "OpenEXR", ".npy": "NumPy",
}  # fmt: skip
_BEGINS = {  # of files, and the names of their formats
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG2000", b"\xff\x4f\xff\x51": "JPEG2000", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"8BPS": "Photoshop", b"%PDF": "PDF", b"%!PS": "PostScript", b"<svg": "SVG",
    b"version https://git-lfs": "Git LFS pointer", b"<!doctype html": "HTML", b"<html": "HTML",
}  # fmt: skip
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"qt  ": "video",
    b"isom": "video",
    b"mp42": "video",
    b"crx ": "camera raw",
}
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # from EXIF's orientation to Pillow's transposition


def format_of(begin: bytes) -> str:
    """Returns the name of the format that a file begins like, or "".

    Example:
      >>> format_of(b"\\xff\\xd8\\xff\\xe0"), format_of(b"\\0\\0\\0\\x18ftypheic"), format_of(b"a text")
      ('JPEG', 'HEIC', '')
    """
    if begin[4:8] == b"ftyp":
        return _BRANDS.get(begin[8:12], "HEIC" if begin[8:11] in (b"hei", b"hev", b"mif") else "video")
    if begin[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "video"}.get(begin[8:12], "")
    if begin[:2] == b"BM" and begin[6:10] == bytes(4):
        return "BMP"
    begin = begin.removeprefix(b"\xef\xbb\xbf").lstrip() if begin[:1] in b"\xef \n<" else begin
    lower = begin.lower()
    return next((name for magic, name in _BEGINS.items() if begin.startswith(magic) or lower.startswith(magic)), "")


class ImageError(InputError):
    """An image that cannot be read or used; the message names the image, the problem and the remedy."""


@dataclass(frozen=True)
class ImageTransform:
    """CLIP's image transform: convert to RGB, resize, center crop, convert to floats, normalize.

    The bytes before normalization equal those of transformers' `CLIPImageProcessorPil` for every image size. The long
    side of a resized image is rounded down; a crop larger than the image is padded with black. Transparent images are
    composited onto white. EXIF orientation is applied. Grayscale images with more than 8 bits are scaled to 0..255,
    where Pillow's own conversion would clip them to white: mode I;16, and I and F with values above 255, from 0..65535,
    and F with values up to 1 from 0..1. The range of a dataset is that of all its images, see `gram_jax.data.gray`.

    Attributes:
      size: the shortest edge after resizing, or (height, width), or None for no resizing; pixels.
      crop: (height, width) of the center crop, or None for no crop; pixels.
      resample: Pillow's number of the resampling filter; 3 is bicubic.
      rescale_factor: factor of the bytes, or None.
      mean, std: subtracted from each channel after rescaling, and its divisor then; None for no normalization.
      max_pixels: images with more pixels are refused before decoding.

    Example:
      >>> ImageTransform(size=32, crop=(32, 32))([np.zeros((40, 51, 3), np.uint8)]).shape
      (1, 32, 32, 3)
    """

    size: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: int = BICUBIC
    rescale_factor: float | None = 1 / 255
    mean: tuple[float, float, float] | None = MEAN
    std: tuple[float, float, float] | None = STD
    max_pixels: int = field(default=MAX_PIXELS, compare=False)

    def __post_init__(self) -> None:
        if not (self.crop is None or isinstance(self.crop, tuple)):
            raise InputError(f"ImageTransform.crop={self.crop!r}: expected (height, width) or None")
        for name in ("size", "crop"):
            value = getattr(self, name)
            for side in () if value is None else value if isinstance(value, tuple) else (value,):
                require_int(f"ImageTransform.{name}", side, most=MAX_SIDE)
        require_int("ImageTransform.resample", self.resample, least=0, most=5)
        if self.rescale_factor is not None:
            require_number("ImageTransform.rescale_factor", self.rescale_factor)
        self._check_normalization()

    def _check_normalization(self) -> None:
        found = f"ImageTransform.rescale_factor={self.rescale_factor!r}, mean={self.mean!r}, std={self.std!r}"
        pair = (self.mean, self.std)
        triples = all(isinstance(each, tuple) and len(each) == 3 and all(map(_is_finite, each)) for each in pair)
        if pair != (None, None) and not triples:
            raise InputError(f"{found}: mean and std must be three finite numbers each, or None")
        with np.errstate(all="ignore"):
            finite = np.isfinite(self._table()).all()
        if not finite or 0 in (self.std or ()):
            raise InputError(f"{found}: the normalized pixels are not finite")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> ImageTransform:
        """Reads the content of a Hugging Face `preprocessor_config.json` of any version.

        Keys that are missing or null take the defaults of transformers' `CLIPImageProcessor`. Files of other model
        families, and sizes or steps that CLIP's transform lacks, raise InputError.
        """
        family = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor"
        if not family.startswith("CLIP"):
            raise InputError(f"image_processor_type={family!r}: only CLIP's image processors are supported")
        if config.get("do_pad"):
            raise InputError("do_pad=true: CLIP's image transform has no padding step")

        def given(key: str, default: Any) -> Any:
            return default if config.get(key) is None else config[key]

        square = bool(config.get("default_to_square") or config.get("use_square_size"))
        crop = _read_size(given("crop_size", 224), True) if given("do_center_crop", True) else None
        normalize = given("do_normalize", True)
        return cls(
            size=_read_size(given("size", 224), square) if given("do_resize", True) else None,
            crop=crop,  # type: ignore[arg-type]  # checked in __post_init__
            resample=int(given("resample", BICUBIC)),
            rescale_factor=given("rescale_factor", 1 / 255) if given("do_rescale", True) else None,
            mean=_read_channels(given("image_mean", MEAN)) if normalize else None,
            std=_read_channels(given("image_std", STD)) if normalize else None,
            max_pixels=max_pixels,
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a `preprocessor_config.json` for transformers' `CLIPImageProcessor`."""

        def sides(value: int | tuple[int, int] | None) -> dict[str, int]:
            value = 224 if value is None else value
            return {"shortest_edge": value} if isinstance(value, int) else {"height": value[0], "width": value[1]}

        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": self.size is not None,
            "size": sides(self.size),
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "crop_size": sides(self.crop or (224, 224)),
            "do_rescale": self.rescale_factor is not None,
            "rescale_factor": 1 / 255 if self.rescale_factor is None else self.rescale_factor,
            "do_normalize": self.mean is not None,
            "image_mean": list(self.mean or MEAN),
            "image_std": list(self.std or STD),
        }

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every result, or None if it depends on the image."""
        return self.crop or (self.size if isinstance(self.size, tuple) else None)

    @property
    def version(self) -> str:
        """Identifier of the transform and its parameters, for the cache keys of image features."""
        steps = (self.size, self.crop, self.resample, self.rescale_factor, self.mean, self.std)
        return "images-1-" + hashlib.sha256(repr(steps).encode()).hexdigest()[:16]

    def __call__(self, images: Iterable[Any]) -> np.ndarray:
        """Returns the input of `encode_image`, float32 `[B, H, W, 3]`.

        `images` are PIL images, paths, encoded images (bytes) or uint8 arrays [H, W, 3]; one alone is a batch of one.
        An image that cannot be read or used, no image, or results of different sizes raise ImageError.
        """
        is_array = isinstance(images, np.ndarray) and images.ndim == 3
        if is_array or isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "getbands"):
            images = [images]
        pixels = [self.pixels(image, f"image {index}") for index, image in enumerate(images)]
        if not pixels:
            raise ImageError("images=[]: there is nothing to transform")
        shapes = sorted({each.shape[:2] for each in pixels})
        if len(shapes) > 1:
            raise ImageError(
                f"the transformed images have different sizes, {shapes[0]} and {shapes[1]}; set ImageTransform.crop"
            )
        return self.normalize(np.stack(pixels))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Returns `(pixels * rescale_factor - mean) / std`, float32 `[..., 3]`, of uint8 `[..., 3]`."""
        table = self._table()
        return np.stack([table[:, channel][pixels[..., channel]] for channel in range(3)], axis=-1)

    def _table(self) -> np.ndarray:
        """Returns the normalized value of each byte and channel, `[256, 3]`, with transformers' rounding."""
        table = np.arange(256, dtype=np.float64)[:, None].repeat(3, axis=1)
        table = (table if self.rescale_factor is None else table * self.rescale_factor).astype(np.float32)
        return (
            table if self.mean is None else (table - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        )

    def pixels(self, image: Any, name: str = "the image") -> np.ndarray:
        """Returns one image, resized and cropped, as uint8 `[H, W, 3]` before normalization.

        `image` is a PIL image, a path, an encoded image (bytes), or a uint8 array [H, W, 3]; errors call it `name`,
        unless it is a path. An image that cannot be read, is too large or has an unknown range raises ImageError.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
                raise ImageError(f"{name} is {image.dtype}{list(image.shape)}; pass uint8[height, width, 3]")
            return self._resize_and_crop(image, name)
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else name
        return self._resize_and_crop(_read_rgb(image, name, self.max_pixels), name)

    def _resize_and_crop(self, image: Any, name: str) -> np.ndarray:
        """Resizes and crops an RGB image, an array or a PIL image; leaves an image of the right size unchanged."""
        from PIL import Image

        height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
        full = self._resized(height, width)
        crop = self.crop or full
        if full[0] * full[1] > self.max_pixels:
            raise ImageError(
                f"{name} has {width} x {height} pixels and would be resized to {full[1]} x {full[0]}, the limit is "
                f"{self.max_pixels} pixels; crop it first, or raise ImageTransform.max_pixels"
            )
        # The window of the resized image that remains after the crop.
        top, left = (max(0, side - cut) // 2 for side, cut in zip(full, crop, strict=True))
        bottom, right = (start + min(side, cut) for start, side, cut in zip((top, left), full, crop, strict=True))
        if full == (height, width):
            window = np.asarray(image)[top:bottom, left:right]
        else:
            # Resizing before the crop decides the order of Pillow's two passes, which affects the last bits.
            image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            window = np.asarray(image.resize(full[::-1], self.resample).crop((left, top, right, bottom)))
        if window.shape[:2] == crop:
            return np.ascontiguousarray(window)
        padded = np.zeros((*crop, 3), np.uint8)
        top, left = ((cut - side + 1) // 2 for side, cut in zip(window.shape, crop, strict=False))
        padded[top : top + window.shape[0], left : left + window.shape[1]] = window
        return padded

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size or (height, width)
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read_size(size: Any, square: bool) -> int | tuple[int, int]:
    if isinstance(size, int):
        return (size, size) if square else size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return tuple(size)
    if isinstance(size, Mapping):
        size = {key: value for key, value in size.items() if value is not None}
        if set(size) == {"shortest_edge"}:
            return size["shortest_edge"]
        if set(size) == {"height", "width"}:
            return size["height"], size["width"]
    raise InputError(f"size={size!r}: expected a number, a shortest_edge, or height and width")


def _read_channels(value: Any) -> Any:
    """Returns one value per channel; `ImageTransform` checks that there are three."""
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),) * 3


def read_rgb(path: str | os.PathLike[str], largest: float | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns an upright image as uint8 `[H, W, 3]`.

    Args:
      path: the image file.
      largest: the value that is white in grayscale with more than 8 bits; None for a guess from this image alone.
      max_pixels: images with more pixels are refused before decoding.
    """
    return np.asarray(_read_rgb(path, os.fspath(path), max_pixels, largest))


def deep_gray_values(path: str | os.PathLike[str]) -> tuple[str, float, float] | None:
    """Returns the mode, the smallest and the largest value of grayscale with more than 8 bits; None for other images.

    Damaged images count as others: reading them raises an error later.
    """
    from PIL import Image

    try:
        if not os.path.isfile(path):
            return None
        Image.init()
        with Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
            if not (image.mode.startswith("I") or image.mode == "F") or image.width * image.height > MAX_PIXELS:
                return None
            values = np.asarray(image)
            return image.mode, float(values.min()), float(values.max())
    except Exception:  # decoders raise errors of every type on broken data
        return None


def _read_rgb(source: Any, name: str, max_pixels: int, largest: float | None = None) -> Any:
    """Returns an upright PIL image in mode RGB from a PIL image, a path or bytes."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return _guarded(lambda image: _to_rgb(image, name, max_pixels, largest), source, name)
    if isinstance(source, (str, os.PathLike)):
        if os.path.exists(source) and not os.path.isfile(source):  # a pipe or a device may never end
            raise ImageError(f"{name} is a folder, a pipe or a device; give an image file")
    elif not isinstance(source, (bytes, bytearray, memoryview)):
        raise ImageError(f"{name} is a {type(source).__name__}; pass a PIL image, a path, bytes or a uint8 array")
    return _guarded(lambda file: _decode(file, name, max_pixels, largest), source, name)


def _decode(file: Any, name: str, max_pixels: int, largest: float | None) -> Any:
    from PIL import Image

    Image.init()
    stream = os.fspath(file) if isinstance(file, (str, os.PathLike)) else io.BytesIO(file)
    with Image.open(stream, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
        return _to_rgb(image, name, max_pixels, largest)


def _guarded(decode: Callable[[Any], Any], source: Any, name: str) -> Any:
    """Calls a decoder of a source; tries PNG again without its metadata. Raises ImageError that names the fault."""
    try:
        return decode(source)
    except ImageError:
        raise
    except Exception as error:  # decoders raise errors of every type on broken data
        content = _content(source)
        if pixels := png_pixels(content or b""):
            with contextlib.suppress(Exception):
                return decode(pixels)
        raise ImageError(f"{name} {_problem(error, content)}") from error


def _content(source: Any) -> bytes | None:
    """Returns the content of a file or of bytes; None for a PIL image and for a file that cannot be opened."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        with contextlib.suppress(OSError), open(source, "rb") as file:
            return file.read()
    return None


def png_pixels(content: bytes) -> bytes | None:
    """Returns a PNG file without its metadata, which may be too long or damaged; None if it is no complete PNG file."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, place = [content[:8]], 8
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        if end > len(content):
            return None
        if content[place + 4 : place + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def _problem(error: Exception, content: bytes | None) -> str:
    """Returns what is wrong with an image, and what to do."""
    from PIL import Image

    if isinstance(error, FileNotFoundError):
        return "does not exist; check the path"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be opened ({error.strerror}); check the file and its permissions"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"may be a decompression bomb ({error}); make it smaller"
    if content == b"":
        return "is no image of a known format: the file is empty; replace or remove it"
    found = format_of((content or b"")[:SNIFFED])
    if found and found not in FORMATS:
        remedy = {"Git LFS pointer": "run git lfs pull", "HTML": "download it again"}.get(
            found, "export it as JPEG or PNG"
        )
        return f"is no image of a known format: its content is {found}; {remedy}"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"is no image of a known format ({', '.join(FORMATS)}); convert or remove it"
    return f"cannot be read, it is truncated or damaged ({error}); replace it"


def _to_rgb(image: Any, name: str, max_pixels: int, largest: float | None = None) -> Any:
    from PIL import Image

    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, the limit is {max_pixels}; make it smaller, or raise "
            "ImageTransform.max_pixels (and Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS)"
        )
    image.load()  # while the file is open
    turn = TURNS.get(_orientation(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_gray_to_rgb(image, name, largest)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Any) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata is common and does not affect the pixels
        return 1


def _deep_gray_to_rgb(image: Any, name: str, largest: float | None) -> Any:
    """Converts grayscale with more than 8 bits; `largest` is the value that is white, None for a guess."""
    from PIL import Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):
        raise ImageError(
            f"{name} has mode {image.mode} and values from {low} to {high}; scale it to 0..255 (8 bits) or 0..65535"
        )
    if largest is None:
        largest = (
            65535 if high > 255 or image.mode.startswith("I;16") else 1 if image.mode == "F" and high <= 1 else 255
        )
    elif high > largest:
        raise ImageError(f"{name} has values up to {high:g}, above the gray range {largest:g}; give a larger one")
    if largest == 65535:
        values = (values + 128.0) // 257
    elif largest != 255:
        values = np.rint(values * (255.0 / largest))
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
