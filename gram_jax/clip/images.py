"""The image transform of a CLIP. Importable without JAX, for worker processes."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gram_jax.clip.decoding import MAX_PIXELS, ImageError, open_rgb
from gram_jax.errors import InputError, require_int, require_known, require_number

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
BICUBIC = 3  # Pillow's number, which preprocessor_config.json uses
CROP_ROUNDINGS, READINGS = ("down", "half_even"), ("upright", "plain")
MAX_SIDE = 1 << 14  # of a transformed image


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
      crop_rounding: the offset of the crop if it is not whole: "down" as transformers rounds it, or "half_even" as
        torchvision does, which is one pixel more if (side - crop) mod 4 is 3.
      reading: "upright" as above, or "plain" as Dassl reads images: Pillow's own conversion to RGB, which ignores EXIF
        orientation, drops transparency and does not scale grayscale with more than 8 bits.

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
    crop_rounding: str = "down"
    reading: str = "upright"

    def __post_init__(self) -> None:
        if not (self.crop is None or isinstance(self.crop, tuple)):
            raise InputError(f"ImageTransform.crop={self.crop!r}: expected (height, width) or None")
        for name in ("size", "crop"):
            value = getattr(self, name)
            for side in () if value is None else value if isinstance(value, tuple) else (value,):
                require_int(f"ImageTransform.{name}", side, most=MAX_SIDE)
        require_known("ImageTransform.crop_rounding", self.crop_rounding, CROP_ROUNDINGS)
        require_known("ImageTransform.reading", self.reading, READINGS)
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

        Keys that are missing or null take the defaults of transformers' `CLIPImageProcessor`, or of its
        `SiglipImageProcessor`, which changes the aspect ratio instead of cropping. Files of other model families, and
        sizes or steps that CLIP's transform lacks, raise InputError.
        """
        family = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor"
        siglip = re.match("Siglip(?!2)", family) is not None
        if not siglip and not family.startswith("CLIP"):
            raise InputError(f"image_processor_type={family!r}: only CLIP's and SigLIP's are supported")
        if config.get("do_pad"):
            raise InputError("do_pad=true: CLIP's image transform has no padding step")

        def given(key: str, default: Any) -> Any:
            return default if config.get(key) is None else config[key]

        square = bool(config.get("default_to_square") or config.get("use_square_size"))
        crop = _read_size(given("crop_size", 224), True) if given("do_center_crop", not siglip) else None
        normalize = given("do_normalize", True)
        return cls(
            size=_read_size(given("size", [224, 224] if siglip else 224), square) if given("do_resize", True) else None,
            crop=crop,  # type: ignore[arg-type]  # checked in __post_init__
            resample=int(given("resample", BICUBIC)),
            rescale_factor=given("rescale_factor", 1 / 255) if given("do_rescale", True) else None,
            mean=_read_channels(given("image_mean", HALF if siglip else MEAN)) if normalize else None,
            std=_read_channels(given("image_std", HALF if siglip else STD)) if normalize else None,
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
        steps: tuple[Any, ...] = (self.size, self.crop, self.resample, self.rescale_factor, self.mean, self.std)
        if (self.crop_rounding, self.reading) != ("down", "upright"):
            steps += (self.crop_rounding, self.reading)
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
        return self._resize_and_crop(open_rgb(image, name, self.max_pixels, plain=self.reading == "plain"), name)

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
        rounded = round if self.crop_rounding == "half_even" else math.floor
        top, left = (rounded(max(0, side - cut) / 2) for side, cut in zip(full, crop, strict=True))
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
