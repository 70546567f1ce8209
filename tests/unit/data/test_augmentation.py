"""Augmented views, checked against torchvision's rule in NumPy and on images whose pixels hold their coordinates."""

import io
import math
import random

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp

from gram_jax.clip.images import ImageError, ImageTransform
from gram_jax.data import augmented_view, augmented_views
from gram_jax.data.augmentation import random_box
from gram_jax.errors import InputError


def published(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params(scale=(0.08, 1), ratio=(3/4, 4/3)), from its source."""
    for _ in range(10):
        target = height * width * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    in_ratio = width / height
    if in_ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif in_ratio > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(224, 224), (100, 300), (60, 500), (500, 90)])
def test_boxes_are_distributed_as_published(height, width):
    rng, other = random.Random(1), np.random.default_rng(2)
    ours = np.array([random_box(rng, height, width) for _ in range(3000)])
    theirs = np.array([published(other, height, width) for _ in range(3000)])
    for column in range(4):  # top, left, height, width
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-4
    assert ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 1e-4
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_extreme_aspect_ratios_show_the_middle(height, width, box):
    assert {tuple(random_box(random.Random(seed), height, width)) for seed in range(20)} == {box}


TRANSFORM = ImageTransform(size=64, crop=(64, 64))


def coordinates(height: int, width: int) -> np.ndarray:
    """Returns an image whose red is the column and whose green is the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return image


def test_a_view_is_a_resized_box_mirrored_half_of_the_time():
    image, mirrored, areas = coordinates(200, 250), 0, []
    for item in range(200):
        shown = augmented_view(TRANSFORM, image, 0, item, 0).astype(float)
        assert shown.shape == (64, 64, 3)
        # Away from the borders, a resized ramp is a ramp of the box's width over the 64 pixels.
        across, down = shown[32, 8:56, 0], shown[8:56, 32, 1]
        slopes = [np.polyfit(np.arange(48), ramp, 1)[0] for ramp in (across, down)]
        np.testing.assert_allclose(across, np.polyval(np.polyfit(np.arange(48), across, 1), np.arange(48)), atol=1)
        assert slopes[1] > 0
        mirrored += slopes[0] < 0
        width, height = abs(slopes[0]) * 64, slopes[1] * 64
        areas.append(width * height / (200 * 250))
        assert 0.74 < width / height < 1.35
    assert 75 < mirrored < 125
    assert min(areas) > 0.07
    assert max(areas) < 1.02
    assert 0.4 < np.mean(areas) < 0.6


def test_a_view_is_a_pure_function_of_image_seed_item_and_number():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    first = augmented_view(TRANSFORM, image, 3, 4, 5)
    np.testing.assert_array_equal(first, augmented_view(TRANSFORM, image, 3, 4, 5))
    others = [augmented_view(TRANSFORM, image, *key) for key in ((2, 4, 5), (3, 3, 5), (3, 4, 4), (3, 5, 4))]
    assert all(np.any(first != other) for other in others)


def test_encoded_images_are_decoded_first():
    image, buffer = coordinates(40, 50), io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    np.testing.assert_array_equal(
        augmented_view(TRANSFORM, buffer.getvalue(), 0, 1, 2),
        augmented_view(TRANSFORM, Image.fromarray(image), 0, 1, 2),
    )
    with pytest.raises(ImageError, match="image 7"):
        augmented_view(TRANSFORM, b"text", 0, 7, 0, "image 7")
    with pytest.raises(InputError, match=r"ImageTransform\.crop"):
        augmented_view(ImageTransform(size=64, crop=None), image, 0, 0, 0)


def test_a_stack_holds_the_image_and_its_views():
    rng = np.random.default_rng(3)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(stream, "PNG")
    transform = ImageTransform(size=8, crop=(8, 8))
    views = augmented_views(transform, stream.getvalue(), seed=4, item=9, count=5)
    np.testing.assert_array_equal(views[0], transform.pixels(stream.getvalue()))
    for number in range(1, 5):
        np.testing.assert_array_equal(
            views[number], augmented_view(transform, stream.getvalue(), seed=4, item=9, number=number)
        )
    with pytest.raises(InputError, match="count=0"):
        augmented_views(transform, stream.getvalue(), seed=4, item=9, count=0)
