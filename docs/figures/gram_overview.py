"""Draws docs/figures/gram_overview.png, the overview of GRAM.

python docs/figures/gram_overview.py
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gram_jax.data import glyphs

PANEL, EDGE, TEXT, GRAY = "#f6f7fb", "#c6cbdc", "#20242f", "#8a90a3"
BLUE, ORANGE, GREEN = "#2f5fc4", "#d9701e", "#2b8a57"
THEMES = {"greek_small": ("greek small letter", GREEN), "chess": ("chess piece", BLUE), "digits": ("digit", ORANGE)}


def drawing(dataset: str, label: int, domain: str = "", number: int = 0) -> np.ndarray:
    """Returns one image of the glyph benchmark."""
    return glyphs.example(glyphs.catalog(dataset), domain, "train", label, number)


def place(axes: Axes, image: np.ndarray, x: float, y: float, size: float, color: str = EDGE) -> None:
    """Shows an image with its lower left corner at (x, y)."""
    axes.imshow(image, extent=(x, x + size, y, y + size), zorder=3, interpolation="nearest")
    axes.add_patch(plt.Rectangle((x, y), size, size, fill=False, edgecolor=color, linewidth=1.2, zorder=4))


def panel(axes: Axes, x: float, y: float, width: float, height: float, number: int, title: str) -> None:
    """Draws a titled box."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, "round,pad=0,rounding_size=1.2", facecolor=PANEL, edgecolor=EDGE, zorder=1
        )
    )
    axes.text(x + 1.6, y + height - 2.9, f"{number}", color="white", fontsize=9, fontweight="bold", zorder=5,
              bbox={"boxstyle": "circle,pad=0.25", "facecolor": BLUE, "edgecolor": "none"})  # fmt: skip
    axes.text(x + 4.2, y + height - 2.9, title, color=TEXT, fontsize=10.5, fontweight="bold", zorder=5)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = GRAY, **settings: object
) -> None:
    """Draws an arrow."""
    style = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.8, "color": color, "zorder": 6} | settings
    axes.add_patch(FancyArrowPatch(start, end, **style))


def corpus(axes: Axes, x: float, y: float) -> None:
    """Panel 1: pairs and their captions."""
    panel(axes, x, y, 35, 38, 1, "Unlabeled image-text pairs")
    for row, index in enumerate((22, 27, 12, 15, 32)):
        pair = glyphs.pair(index)
        place(axes, pair.image, x + 2, y + 27.2 - 6.3 * row, 5.2)
        words = pair.caption.split()
        lines = [" ".join(words[: (len(words) + 1) // 2]), " ".join(words[(len(words) + 1) // 2 :])]
        axes.text(x + 8.6, y + 29.8 - 6.3 * row, "\n".join(line for line in lines if line), fontsize=8, color=TEXT,
                  va="center", zorder=5)  # fmt: skip


def hierarchy(axes: Axes, x: float, y: float) -> None:
    """Panel 2: themes, classes and visual domains."""
    panel(axes, x, y, 45, 38, 2, "Cluster: theme > class > visual domain")
    for row, (dataset, (theme, color)) in enumerate(THEMES.items()):
        base = y + 23.2 - 10.6 * row
        axes.text(x + 2, base + 7.3, theme, color=color, fontsize=9.5, fontweight="bold", zorder=5)
        for column, label in enumerate((0, 3, 4)):
            left = x + 2 + 14.2 * column
            for position, domain in enumerate(("", "negative")):
                place(axes, drawing(dataset, label, domain), left + 6.1 * position, base + 0.9, 5.6, color)
            axes.text(left + 5.9, base - 0.7, glyphs.catalog(dataset).class_names[label], fontsize=7.5, color=TEXT,
                      ha="center", va="center", zorder=5)  # fmt: skip


def tasks(axes: Axes, x: float, y: float) -> None:
    """Panel 3: one task."""
    panel(axes, x, y, 36, 38, 3, "Draw tasks")
    parts = (
        ("support", "alpha, beta, gamma", (0, 1, 2), "", GREEN),
        ("query", "the same classes", (0, 1, 2), "serif", GREEN),
        ("cross query", "other classes, domains or theme", (8, 12, 23), "negative", ORANGE),
    )
    for row, (name, remark, labels, domain, color) in enumerate(parts):
        base = y + 24 - 10.6 * row
        axes.text(x + 2, base + 6.9, name, color=color, fontsize=9.5, fontweight="bold", zorder=5)
        axes.text(x + 14, base + 6.9, remark, color=GRAY, fontsize=8, zorder=5)
        for column, label in enumerate(labels):
            place(axes, drawing("greek_small", label, domain, row), x + 2 + 8.2 * column, base - 0.2, 6.4, color)


def inner_loop(axes: Axes, x: float, y: float) -> None:
    """Panel 4: adaptation with a regulated gradient, and the outer step."""
    panel(axes, x, y, 45, 38, 4, "Meta-learn: adapt, then test on the queries")
    grid = np.mgrid[0:1:80j, 0:1:80j]
    valley = (grid[1] - 0.75) ** 2 + 2.2 * (grid[0] - 0.30 - 0.35 * (grid[1] - 0.6)) ** 2
    axes.contour(x + 2 + 41 * grid[1], y + 10.5 + 23 * grid[0], valley, 9, colors=[EDGE], linewidths=0.9, zorder=2)
    path = [(x + 5.5, y + 29.0), (x + 13, y + 24.0), (x + 21, y + 19.8), (x + 30.5, y + 19.2)]
    for step, (start, end) in enumerate(itertools.pairwise(path)):
        raw = (start[0] + 4.0, start[1] - 8.6 + 1.4 * step)
        arrow(axes, start, raw, ORANGE, linestyle=(0, (2, 1.2)), linewidth=1.4, mutation_scale=10, shrinkA=3)
        arrow(axes, start, end, BLUE, linewidth=2.4, shrinkA=3, shrinkB=3)
    for point, name in zip(path, (r"$\theta_0$", r"$\theta_1$", r"$\theta_2$", r"$\theta_K$"), strict=True):
        axes.plot(*point, "o", color=TEXT, markersize=5, zorder=7)
        axes.text(point[0] + 0.5, point[1] + 1.3, name, fontsize=11, color=TEXT, zorder=7)
    axes.text(x + 26, y + 30.2, r"regulated  $R_\phi(\nabla L)$", color=BLUE, fontsize=9, zorder=7)
    axes.text(x + 26, y + 27.2, r"raw  $\nabla L$(support)", color=ORANGE, fontsize=9, zorder=7)
    arrow(axes, (path[-1][0], path[-1][1] - 0.6), (path[0][0], path[0][1] - 1.2), GRAY,
          connectionstyle="arc3,rad=-0.62", linestyle=(0, (4, 2)), linewidth=1.3, shrinkA=4, shrinkB=5)  # fmt: skip
    axes.text(x + 2, y + 5.6, r"loss of $\theta_K$ on query and cross query", color=TEXT, fontsize=9, zorder=7)
    axes.text(x + 2, y + 2.4, r"$\rightarrow$ meta-gradient of $\theta$, $\Delta$ and $\phi$, over many tasks",
              color=TEXT, fontsize=9, zorder=7)  # fmt: skip


def learned(axes: Axes, x: float, y: float) -> None:
    """Panel 5: the initialization and the regulator."""
    panel(axes, x, y, 36, 38, 5, "What is learned")
    axes.text(
        x + 2, y + 30.4, "initialization, an offset per theme", color=TEXT, fontsize=9.5, fontweight="bold", zorder=5
    )
    center = (x + 13, y + 20)
    for (theme, color), (dx, dy) in zip(THEMES.values(), ((-4.5, 6.6), (11.5, 3.6), (1, -6.8)), strict=True):
        arrow(axes, center, (center[0] + dx, center[1] + dy), color, shrinkA=3, shrinkB=2)
        axes.text(center[0] + dx, center[1] + dy + (0.8 if dy > 0 else -2.2), theme, color=color, fontsize=8, zorder=5,
                  ha="center")  # fmt: skip
    axes.plot(*center, "o", color=TEXT, markersize=6, zorder=7)
    axes.text(center[0] - 3.0, center[1] - 2.3, r"$\theta$", fontsize=12, color=TEXT, zorder=7)
    axes.text(x + 20.5, y + 18.2, r"$\theta_0 = \theta + \sum_p w_p \Delta_p$", fontsize=9.5, color=TEXT, zorder=5)
    axes.text(x + 2, y + 6.6, r"regulator $R_\phi$: gradient $\rightarrow$ gradient", color=TEXT, fontsize=9.5,
              fontweight="bold", zorder=5)  # fmt: skip
    axes.text(x + 2, y + 3.2, "the identity before training; frozen afterwards", color=GRAY, fontsize=8.5, zorder=5)


def downstream(axes: Axes, x: float, y: float) -> None:
    """Panel 6: few-shot use."""
    panel(axes, x, y, 35, 38, 6, "Use: a new task, few labels")
    dataset = glyphs.catalog("georgian")
    for row, label in enumerate((0, 1)):
        for column in range(4):
            place(axes, drawing("georgian", label, number=column), x + 2 + 5.6 * column, y + 25.2 - 6.4 * row, 5)
        axes.text(
            x + 25.4, y + 27.7 - 6.4 * row, dataset.class_names[label], fontsize=8.5, color=TEXT, va="center", zorder=5
        )
    arrow(axes, (x + 13, y + 17.9), (x + 13, y + 13.6), BLUE)
    axes.text(x + 15, y + 15.7, r"tune from $\theta_0$ with $R_\phi$", fontsize=9, color=BLUE, va="center", zorder=5)
    axes.text(
        x + 2, y + 11.2, "frozen CLIP + tuned prompt classifies", fontsize=9.5, color=TEXT, fontweight="bold", zorder=5
    )
    cases = (("base\nclasses", 1, ""), ("new\nclasses", 20, ""), ("new\ndomains", 0, "rotated"))
    for column, (name, label, domain) in enumerate(cases):
        place(axes, drawing("georgian", label, domain, 9), x + 2 + 10.8 * column, y + 3.4, 5.4, GREEN)
        axes.text(x + 7.8 + 10.8 * column, y + 6.1, name, fontsize=8, color=TEXT, va="center", zorder=5)


def main() -> None:
    """Writes the figure."""
    figure, axes = plt.subplots(figsize=(12.4, 8.2), dpi=110)
    upper, lower = 41.5, 0
    corpus(axes, 0, upper)
    hierarchy(axes, 38.5, upper)
    tasks(axes, 87, upper)
    downstream(axes, 0, lower)
    learned(axes, 38.5, lower)
    inner_loop(axes, 78, lower)
    arrow(axes, (35.2, upper + 19), (38.3, upper + 19))
    arrow(axes, (83.7, upper + 19), (86.8, upper + 19))
    arrow(axes, (105, upper - 0.2), (105, lower + 38.2))
    arrow(axes, (77.8, lower + 19), (74.7, lower + 19))
    arrow(axes, (38.3, lower + 19), (35.2, lower + 19))
    axes.set(xlim=(-0.5, 123.5), ylim=(-0.5, 80))
    axes.set_aspect("equal")
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    figure.savefig(Path(__file__).with_suffix(".png"), facecolor="white")


if __name__ == "__main__":
    main()
