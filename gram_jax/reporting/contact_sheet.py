"""Contact sheets: many labeled images of a dataset or corpus in one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gram_jax.data.glyphs import faces
from gram_jax.errors import InputError

_LINE_HEIGHT, _LETTER_WIDTH = 11, 5.2  # of the font below, on average


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str], columns: int = 12, scale: int = 3, lines: int = 2
) -> Image.Image:
    """Draws images in a grid, each with its label below.

    Args:
      images, labels: uint8 arrays `[H, W, 3]` of one size; one text per image, wrapped to the image's width.
      columns, scale: images per row, and the factor by which they are enlarged.
      lines: largest number of lines of a label; longer ones are cut.
    """
    if not len(images) or len(images) != len(labels):
        raise InputError(f"{len(images)} images and {len(labels)} labels; give as many labels as images")
    height, width = images[0].shape[:2]
    cell_width, cell_height = width * scale + 8, height * scale + lines * _LINE_HEIGHT + 8
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(faces.font_path(faces.FACES["sans"]), 9)
    letters = max(1, int(width * scale / _LETTER_WIDTH))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = number % columns * cell_width + 4, number // columns * cell_height + 4
        picture = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        for line, text in enumerate(textwrap.wrap(label, letters)[:lines]):
            draw.text((x, y + height * scale + 1 + line * _LINE_HEIGHT), text, fill="black", font=font)
    return sheet
