"""Drawing of characters: outlines of a typeface, rasterized by FreeType through Pillow."""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.alphabet import Character
from gram_jax.data.glyphs.appearance import Appearance

IMAGE_SIZE = 32
_REFERENCE = 256  # pixels per em at which outlines are measured
_LINE_EM = 26.0  # pixels per em of letters on a line
_BASELINE = 23.0  # row of the baseline
_FIT = 27.0  # pixels of a picture's longer side
_COVERAGE = np.arange(256, dtype=np.float32)[:, None] * np.float32(1.0 / 255.0)


@functools.lru_cache(maxsize=4096)
def _font(face: str, tenths: int) -> ImageFont.FreeTypeFont:
    path = faces.checked_font_path(faces.FACES.get(face) or faces.face_from_file(face))
    # The basic layout engine is the one that every build of Pillow has; single characters need no other.
    return ImageFont.truetype(path, tenths / 10.0, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=65536)
def _box(face: str, text: str) -> tuple[float, float, float, float]:
    """Returns the ink's bounding box (left, top, right, bottom) relative to the origin on the baseline, in em."""
    left, top, right, bottom = (side / _REFERENCE for side in _font(face, _REFERENCE * 10).getbbox(text, anchor="ls"))
    return left, top, right, bottom


def _mask(character: Character, appearance: Appearance) -> Image.Image:
    """Returns the character's coverage of each pixel as an 8-bit image."""
    left, top, right, bottom = _box(appearance.face, character.text)
    longer = max(right - left, bottom - top, 1e-3)
    fit = character.drawn_to_fit
    em = min(_FIT / longer, 1.6 * _LINE_EM) if fit else min(_LINE_EM, (IMAGE_SIZE - 3.0) / longer)
    em *= appearance.size
    x = IMAGE_SIZE / 2.0 - em * (left + right) / 2.0 + appearance.shift[0]
    if fit:
        y = IMAGE_SIZE / 2.0 - em * (top + bottom) / 2.0
    else:
        y = IMAGE_SIZE / 2.0 + (_BASELINE - IMAGE_SIZE / 2.0) * appearance.size
        # Tall or deep letters move until they are inside the picture.
        y = min(max(y, 1.0 - em * top), IMAGE_SIZE - 1.0 - em * bottom)
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    font = _font(appearance.face, max(30, round(em * 10.0)))
    ImageDraw.Draw(mask).text((x, y + appearance.shift[1]), character.text, fill=255, font=font, anchor="ls")
    if abs(appearance.angle) >= 1.0:
        mask = mask.rotate(appearance.angle, resample=Image.Resampling.BILINEAR)
    return mask


def _shape(mask: Image.Image, appearance: Appearance) -> Image.Image:
    """Applies the renderings that change the mask."""
    if appearance.rendering == "blur":
        return mask.filter(ImageFilter.GaussianBlur(0.8 + 0.8 * appearance.amount))
    if appearance.rendering == "outline":
        pixels = np.asarray(mask, np.int16)
        thick = np.asarray(mask.filter(ImageFilter.MaxFilter(3)), np.int16)
        return Image.fromarray(np.clip(thick - pixels, 0, 255).astype(np.uint8))
    if appearance.rendering == "pixelated":
        cells = 14 + round(4 * appearance.amount)
        return mask.resize((cells, cells), Image.Resampling.BOX).resize(mask.size, Image.Resampling.NEAREST)
    return mask


def render(character: Character, appearance: Appearance) -> np.ndarray:
    """Draws one character; a pure function of the arguments.

    Args:
      character, appearance: what the image shows, and how.

    Returns:
      uint8 `[32, 32, 3]`, red, green and blue.
    """
    mask = np.asarray(_shape(_mask(character, appearance), appearance))
    ink, paper = (np.asarray(color, np.float32) for color in (appearance.ink_rgb, appearance.paper_rgb))
    if appearance.rendering == "faint":
        ink = paper + (0.12 + 0.2 * appearance.amount) * (ink - paper)
    if appearance.rendering not in ("striped", "noise"):
        return _to_bytes(paper + _COVERAGE * (ink - paper))[mask]  # a color for each of the mask's 256 levels
    if appearance.rendering == "striped":  # ruled paper: dark sloping lines
        rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)
        slope = math.tan(2.0 * appearance.amount - 1.0)
        lines = (np.mod(rows + slope * columns, 6.0) < 1.5)[..., None]
        paper = paper - 95.0 * lines.astype(np.float32)
    pixels = paper + _COVERAGE[mask] * (ink - paper)
    if appearance.rendering == "noise":
        noise = np.random.Generator(np.random.PCG64(appearance.noise_seed)).random(pixels.shape[:2], np.float32)
        pixels = pixels + (120.0 + 180.0 * appearance.amount) * (noise[..., None] - 0.5)
    return _to_bytes(pixels)


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """Returns an image as a PNG file with fast compression.

    Args:
      image: uint8 `[H, W, 3]`.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
