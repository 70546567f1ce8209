"""The safe decoding of images. Importable without JAX, for worker processes."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gram_jax.errors import InputError

# The formats of image corpora. Pillow knows more, and starts other programs for some (EPS: Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # Pillow, too, refuses larger images as decompression bombs
EXIF_ORIENTATION = 0x0112
BEYOND = 0.05  # the share of their range by which floats may leave it, as after resampling; they are clipped
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


def read_rgb(
    source: str | os.PathLike[str] | bytes,
    largest: float | None = None,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> np.ndarray:
    """Returns an upright image as uint8 `[H, W, 3]`.

    Args:
      source: the image file, or its content.
      largest: the value that is white in grayscale with more than 8 bits; None for a guess from this image alone.
      max_pixels: images with more pixels are refused before decoding.
      name: the name of the image in errors; None for the path.
    """
    name = name or ("the image" if isinstance(source, bytes) else os.fspath(source))
    return np.asarray(open_rgb(source, name, max_pixels, largest))


def deep_gray_values(source: str | os.PathLike[str] | bytes) -> tuple[str, float, float] | None:
    """Returns the mode, the smallest and the largest value of grayscale with more than 8 bits; None for other images.

    Damaged images count as others: reading them raises an error later.
    """
    from PIL import Image

    try:
        if not isinstance(source, bytes) and not os.path.isfile(source):
            return None
        Image.init()
        stream: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
            if not (image.mode.startswith("I") or image.mode == "F") or image.width * image.height > MAX_PIXELS:
                return None
            values = np.asarray(image)
            return image.mode, float(values.min()), float(values.max())
    except Exception:  # decoders raise errors of every type on broken data
        return None


def frame_count(path: str | os.PathLike[str]) -> int:
    """Returns the number of frames or pages of an image file, of which the first is read; 1 if it cannot be read."""
    from PIL import Image

    if os.path.splitext(path)[1].lower() not in (".gif", ".tif", ".tiff", ".webp", ".apng", ".png", ".avif"):
        return 1
    with contextlib.suppress(Exception):  # decoders raise errors of every type on broken data
        Image.init()
        with Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
            return getattr(image, "n_frames", 1)
    return 1


def open_rgb(source: Any, name: str, max_pixels: int, largest: float | None = None, plain: bool = False) -> Any:
    """Returns a PIL image in mode RGB from a PIL image, a path or bytes: upright, or by Pillow's `plain` conversion."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return _guarded(lambda image: _to_rgb(image, name, max_pixels, largest, plain), source, name)
    if isinstance(source, (str, os.PathLike)):
        if os.path.exists(source) and not os.path.isfile(source):  # a pipe or a device may never end
            raise ImageError(f"{name} is a folder, a pipe or a device; give an image file")
    elif not isinstance(source, (bytes, bytearray, memoryview)):
        raise ImageError(f"{name} is a {type(source).__name__}; pass a PIL image, a path, bytes or a uint8 array")
    return _guarded(lambda file: _decode(file, name, max_pixels, largest, plain), source, name)


def _decode(file: Any, name: str, max_pixels: int, largest: float | None, plain: bool) -> Any:
    from PIL import Image

    Image.init()
    stream = os.fspath(file) if isinstance(file, (str, os.PathLike)) else io.BytesIO(file)
    with Image.open(stream, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
        return _to_rgb(image, name, max_pixels, largest, plain)


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


def _to_rgb(image: Any, name: str, max_pixels: int, largest: float | None, plain: bool) -> Any:
    from PIL import Image

    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, the limit is {max_pixels}; make it smaller, or raise "
            "ImageTransform.max_pixels (and Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS)"
        )
    image.load()  # while the file is open
    if plain:
        return image.convert("RGB")
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
    if not np.isfinite(high - low):
        raise ImageError(f"{name} has mode {image.mode} and values that are no finite numbers; replace them")
    beyond = BEYOND if image.mode == "F" else 0.0
    if not (low >= -beyond * max(high, 1.0) and high <= max(65535, largest or 0) * (1 + beyond)):
        raise ImageError(
            f"{name} has mode {image.mode} and values from {low} to {high}; scale it to 0..255 (8 bits) or 0..65535"
        )
    if largest is None:
        small = 1 if image.mode == "F" and high <= 1 + beyond else 255
        largest = 65535 if high > 255 * (1 + beyond) or image.mode.startswith("I;16") else small
    elif high > largest * (1 + beyond):
        raise ImageError(f"{name} has values up to {high:g}, above the gray range {largest:g}; give a larger one")
    values = np.clip(values, 0, largest)
    if largest == 65535:
        values = (values + 128.0) // 257
    elif largest != 255:
        values = np.rint(values * (255.0 / largest))
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
