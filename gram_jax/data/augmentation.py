"""Augmented views of images: a random crop, resized, and a random flip."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np

from gram_jax.clip.images import BICUBIC, ImageTransform
from gram_jax.data.streams import stream
from gram_jax.errors import InputError, require_int

SCALE = (0.08, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width over height
VERSION = f"views-1: crop {SCALE[0]:g}..{SCALE[1]:g}, ratio 3/4..4/3, bicubic, flip 1/2"
_TRIES = 10


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(rng: random.Random, height: int, width: int, scale: tuple[float, float] = SCALE) -> Box:
    """Draws the part of an image that a view shows.

    Ten times: area = height * width * U(scale), ratio = exp U(log 3/4, log 4/3), w = round(sqrt(area * ratio)),
    h = round(sqrt(area / ratio)); the first (h, w) that fits the image gets a uniform position. If none fits, the box
    is the largest one in the middle with an allowed ratio.

    Reference:
      torchvision's ``RandomResizedCrop.get_params``; Szegedy et al., Going Deeper with Convolutions, CVPR 2015, sec. 6.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w)
    w, h = width, height
    if width < RATIO[0] * height:
        h = round(width / RATIO[0])
    elif width > RATIO[1] * height:
        w = round(height * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def augmented_view(
    transform: ImageTransform,
    image: Any,
    seed: int,
    item: int,
    number: int,
    name: str = "the image",
    scale: tuple[float, float] = SCALE,
) -> np.ndarray:
    """Returns one augmented view of an image, uint8 `[height, width, 3]` for `transform.normalize`.

    A random box (`random_box`) is resized to the transform's output size, bicubic, and mirrored with probability 1/2,
    before the transform's normalization. The view is a pure function of image, seed, item and number.

    Args:
      transform: the clip's image transform, with an output size.
      image: any image that the transform accepts.
      seed, item: the seed of the views, and the number of the image in its dataset or corpus.
      number, name: the number of the view, from 0, and the name of the image in errors.
      scale: the smallest and the largest share of the image's area.

    Example:
      >>> transform = ImageTransform(size=8, crop=(8, 8))
      >>> augmented_view(transform, np.zeros((30, 20, 3), np.uint8), seed=0, item=5, number=1).shape
      (8, 8, 3)

    Reference:
      Zhou et al., Learning to Prompt for Vision-Language Models (2022); ``random_resized_crop`` and ``random_flip`` of
      their configurations.
    """
    from PIL import Image

    if transform.output_size is None:
        raise InputError("views need an image transform with one output size; set ImageTransform.crop")
    pixels = _decoded(transform, image, name)
    rng = stream(f"view/{number}", seed, item)
    top, left, height, width = random_box(rng, pixels.shape[0], pixels.shape[1], scale)
    mirrored = rng.random() < 0.5
    part = Image.fromarray(pixels[top : top + height, left : left + width])
    resized = np.asarray(part.resize(transform.output_size[::-1], BICUBIC))
    return np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized


def augmented_views(
    transform: ImageTransform, image: Any, seed: int, item: int, count: int, name: str = "the image"
) -> np.ndarray:
    """Returns an image and augmented views of it for test-time tuning, uint8 `[count, height, width, 3]`.

    The image is decoded once.

    Args:
      transform, image, seed, item, name: as in `augmented_view`.
      count: the number of views, at least 1. View 0 is the transformed image; view n is `augmented_view` number n.

    Example:
      >>> transform = ImageTransform(size=8, crop=(8, 8))
      >>> augmented_views(transform, np.zeros((30, 20, 3), np.uint8), seed=0, item=5, count=64).shape
      (64, 8, 8, 3)

    Reference:
      ``AugMixAugmenter`` of the public code of "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language
      Models", without its mixing; its crops are bilinear.
    """
    require_int("count", count)
    pixels = _decoded(transform, image, name)
    views = [augmented_view(transform, pixels, seed, item, number, name) for number in range(1, count)]
    return np.stack([transform.pixels(pixels, name), *views])


def _decoded(transform: ImageTransform, image: Any, name: str) -> np.ndarray:
    whole = ImageTransform(size=None, crop=None, max_pixels=transform.max_pixels, reading=transform.reading)
    return whole.pixels(image, name)
