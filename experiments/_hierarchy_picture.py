"""A picture of a hierarchy: its largest themes, their classes, and images by visual domain."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from PIL import Image

from gram_jax import tasks
from gram_jax.data import Corpus
from gram_jax.io import atomic_path

_THEMES, _CLASSES, _IMAGES = 12, 7, 4
_SIDE, _GAP = 40, 3  # pixels of an image, and between images
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # of domains, safe for the color-blind


def draw(hierarchy: tasks.Hierarchy, corpus: Corpus, path: Any) -> None:
    """Draws the largest themes of a hierarchy, one per row, and writes a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    h = hierarchy
    sizes = np.bincount(h.themes, minlength=len(h.theme_texts))
    themes = np.argsort(-sizes, kind="stable")[:_THEMES]
    domains = min(len(_COLORS), 1 + int(h.domains.max()))
    height = 0.34 + 0.36 * domains
    figure = Figure(figsize=(1.9 + 1.75 * _CLASSES, height * len(themes) + 0.5), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(themes), 1 + _CLASSES, width_ratios=[1.1, *[1] * _CLASSES], hspace=0.42, wspace=0.1,
        left=0.01, right=0.99, bottom=0.01, top=1 - 0.5 / (height * len(themes) + 0.5),
    )  # fmt: skip
    figure.suptitle(
        f"{len(h.theme_texts)} themes, {len(h.texts)} classes, {len(h.members)} pairs of {h.about.get('corpus', '?')}: "
        f"the largest {len(themes)} themes; rows of images are visual domains",
        x=0.01, y=0.995, ha="left", va="top", fontsize=11,
    )  # fmt: skip
    for row, theme in enumerate(themes):
        label = figure.add_subplot(grid[row, 0])
        label.axis("off")
        words = "\n".join(textwrap.wrap(h.theme_texts[theme], 20)[:3])
        label.text(0, 0.62, words, fontsize=10, fontweight="bold", va="center", transform=label.transAxes)
        label.text(0, 0.08, f"{sizes[theme]} classes", fontsize=8, color="#666666", transform=label.transAxes)
        classes = np.flatnonzero(h.themes == theme)
        # Evenly spaced, because the classes of a theme are in alphabetical order.
        shown = classes[np.unique(np.linspace(0, len(classes) - 1, _CLASSES).round().astype(int))]
        for column, number in enumerate(shown, 1):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(_cell(h, corpus, number, domains), interpolation="nearest")
            axes.set_title(textwrap.shorten(h.texts[number], 26, placeholder=" …"), fontsize=8.5, pad=2, loc="left")
            axes.axis("off")
    with atomic_path(path) as part, part.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _cell(h: tasks.Hierarchy, corpus: Corpus, number: int, domains: int) -> np.ndarray:
    """Draws a class: a row of images for each visual domain, after a stripe in the domain's color."""
    from matplotlib.colors import to_rgb

    step = _SIDE + _GAP
    canvas = np.full((domains * step, 2 * _GAP + _IMAGES * step, 3), 255, np.uint8)
    for domain in range(domains):
        members = h.members[(h.classes == number) & (h.domains == domain)][:_IMAGES]
        top = domain * step
        if len(members):
            canvas[top : top + _SIDE, :_GAP] = np.round(255 * np.array(to_rgb(_COLORS[domain])))
        for place, image in enumerate(corpus.images(members.tolist())):
            picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
            left = 2 * _GAP + place * step
            canvas[top : top + _SIDE, left : left + _SIDE] = picture.convert("RGB").resize((_SIDE, _SIDE))
    return canvas
