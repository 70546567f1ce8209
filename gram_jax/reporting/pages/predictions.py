"""The page of predictions: images with their most probable classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gram_jax.reporting.pages.images import absent, card, picture
from gram_jax.reporting.pages.markup import Markup, Value, element, facts, filter_field, joined, table
from gram_jax.reporting.pages.page import Budget, Section, write_page

_IMAGES = 3_500_000  # bytes of a page
MOST_IMAGES = 1000  # images of a page


class Predicted(NamedTuple):
    """The prediction of one image.

    Attributes:
      name: the name of its file.
      read: returns the image, see `ImageTransform.pixels`.
      best: the most probable classes with their probabilities, the most probable first; empty after an error.
      error: why the image cannot be read.
    """

    name: str
    read: Callable[[], Any]
    best: Sequence[tuple[str, float]]
    error: str = ""


class Predictions(NamedTuple):
    """All predictions: the shown ones, the number of images by predicted class, of broken files, and of all files."""

    shown: Sequence[Predicted]
    counts: dict[str, int]
    broken: int
    files: int


def predictions_page(
    predictions: Predictions, path: str | os.PathLike[str], about: Sequence[tuple[str, Any]] = ()
) -> None:
    """Writes images with their predictions as one self-contained page, in the order of their files.

    Args:
      predictions: the predictions, of which at most 1,000 are shown.
      path: the file.
      about: names with values, such as the clip and the prompt.
    """
    shown, counts, broken, files = predictions
    total = sum(counts.values())
    rows = [(name, count, Value(f"{100 * count / total:.1f}", 100 * count / total)) for name, count in counts.items()]
    rows.sort(key=lambda row: -row[1])
    classes = joined([facts(about), table(("predicted class", "images", "share, %"), rows, caption="Classes")])
    sections = [Section("Images", _images(shown, files)), Section("Classes and settings", classes)]
    told = f"{total:,} images classified" + (f", {broken:,} files not read" if broken else "")
    write_page(path, "Predictions", sections, told)


def _images(shown: Sequence[Predicted], files: int) -> Markup:
    budget = Budget(_IMAGES)
    cards = []
    for each in shown:
        if not each.best:
            lines = [("", each.error, "no")]
            cards.append(card(absent("not read"), lines, name=each.name))
            continue
        (first, probability), *others = each.best
        image = picture(each.read, each.name, budget)
        more = ", ".join(f"{name} {100 * share:.1f}\u00a0%" for name, share in others if share >= 0.0005)
        cards.append(card(image, [("", first, "")], probability, more, each.name))
    rest = files - len(shown)
    note = element("p", f"The first {len(shown):,} of {files:,} files.", class_="muted") if rest else ""
    return element("div", note, filter_field("images"), element("div", cards, class_="gallery"), class_="filterable")
