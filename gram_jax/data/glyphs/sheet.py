"""Contact sheets: pictures of datasets and corpora for people, who look before they believe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gram_jax.data.glyphs import faces

_LABEL_HEIGHT = 13


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str], columns: int = 12, scale: int = 3, label_width: int = 16
) -> Image.Image:
    """Lays images out in a grid, each with a line of text under it.

    Args:
      images: uint8 arrays ``[H, W, 3]`` of one size.
      labels: one text an image; cut to ``label_width`` characters.
      columns: images a row.
      scale: how many times each pixel is repeated.
      label_width: most characters of a label.

    Returns:
      A picture.

    Raises:
      ValueError: for no images, or another number of labels than of images.

    Example:
      >>> contact_sheet([np.zeros((32, 32, 3), np.uint8)] * 3, ["a", "b", "c"], columns=2).size
      (208, 234)

    Reference:
      Our own choice.
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: a sheet needs images, and a label for each")
    height, width = images[0].shape[:2]
    cell_width, cell_height = width * scale + 8, height * scale + _LABEL_HEIGHT + 8
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    # The narrowest text that a cell of 96 pixels holds 16 characters of.
    font = ImageFont.truetype(faces.font_path(faces.FACES["sans"]), 9)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = number % columns * cell_width + 4, number // columns * cell_height + 4
        picture = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        draw.text((x, y + height * scale + 1), label[:label_width], fill="black", font=font)
    return sheet
