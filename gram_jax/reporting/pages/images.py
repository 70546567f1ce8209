"""Small copies of images inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_jax.clip import ImageError, ImageTransform
from gram_jax.reporting.pages.markup import Markup, element, path_text
from gram_jax.reporting.pages.page import Budget

SIDE = 132  # pixels of the longer side of a copy, of the width that a gallery shows
_WHOLE = ImageTransform(size=None, crop=None)
_TINY = 64  # images of fewer pixels a side are enlarged without smoothing


def thumbnail(image: Any, name: str, budget: Budget, side: int = SIDE) -> Markup | None:
    """Returns an image as markup, never larger than the original; None if the budget does not allow it.

    Args:
      image: what `ImageTransform.pixels` accepts.
      name: the text for those who cannot see the image.
      budget: the bytes that the images of a page may use.
      side: pixels of the longer side.

    Raises:
      ImageError: the image cannot be read.
    """
    from PIL import Image

    if budget.left < 1000:  # do not read it in vain
        return None
    picture = Image.fromarray(_WHOLE.pixels(image, name))
    tiny = max(picture.size) < _TINY
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    if tiny and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) <= 256:
        picture.quantize(64).save(stream, "PNG", optimize=True)
    else:
        picture.save(stream, "JPEG", quality=72, optimize=True)
    data = stream.getvalue()
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    shown = element("img", src=source, alt=name, loading="lazy", class_="tiny" if tiny else None)
    return shown if budget.takes(len(shown)) else None


def picture(read: Any, name: str, budget: Budget, side: int = SIDE) -> Markup:
    """Returns the thumbnail of `read()`, or a box that says why there is none."""
    try:
        shown = thumbnail(read(), name, budget, side)
    except (ImageError, OSError, ValueError, KeyError, IndexError) as error:
        return absent(f"cannot be read: {str(error)[:80]}")
    return absent("not shown, the page is full") if shown is None else shown


def text_bytes(content: str) -> int:
    """Returns the length of markup without the images in it."""
    return len(content) - sum(len(each.partition('"')[0]) for each in content.split('src="data:')[1:])


def absent(reason: str) -> Markup:
    """Returns a box in the place of an image."""
    return element("span", reason, class_="absent")


def card(
    image: Any,
    lines: Sequence[tuple[str, str, str]],
    probability: float | None = None,
    others: str = "",
    name: str = "",
) -> Markup:
    """Returns an image with lines (what, class, style), a probability, other classes, and the name of its file."""
    told = [
        element("div", f"{what} " if what else "", element("b", text, class_=style or None))
        for what, text, style in lines
    ]
    if probability is not None:
        percent = f"{100 * probability:.1f}\u00a0%"
        told.append(element("span", element("i", style=f"width: {100 * probability:.0f}%"), class_="meter"))
        told.append(element("div", ", ".join(filter(None, [percent, others])), class_="muted"))
    file = element("div", path_text(name), class_="muted") if name else ""
    return element("figure", image, told, file, class_="card")
