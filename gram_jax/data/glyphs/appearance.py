"""The appearance of a character: face, size, position, colors and rendering."""

from __future__ import annotations

import dataclasses
import random

from gram_jax.data.streams import pick

# The eleven basic color terms of English (Berlin and Kay, 1969), as red, green, blue in 0..255.
COLORS: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "red": (205, 35, 35),
    "green": (30, 140, 55),
    "blue": (35, 65, 200),
    "yellow": (240, 215, 50),
    "orange": (240, 135, 30),
    "purple": (125, 45, 160),
    "pink": (245, 150, 190),
    "brown": (120, 72, 35),
    "grey": (135, 135, 135),
}
_DARK = ("black", "red", "green", "blue", "purple", "brown")
_LIGHT = ("white", "yellow", "pink", "orange", "grey")

# Renderings that corpora contain, and those that only unseen domains contain.
CORPUS_RENDERINGS = ("print", "negative", "color", "noise", "blur", "faint")
UNSEEN_RENDERINGS = ("rotated", "outline", "small", "striped", "pixelated")
RENDERINGS = CORPUS_RENDERINGS + UNSEEN_RENDERINGS


@dataclasses.dataclass(frozen=True)
class Appearance:
    """All properties of an image except the character.

    Attributes:
      face, rendering: the name of a face, or the path of a font file; one of `RENDERINGS`.
      ink, paper: the names of their colors.
      ink_rgb, paper_rgb: the colors as drawn, near the named ones.
      size, shift, angle: scale, 1 being ordinary; displacement to the right and down, in pixels; rotation in degrees.
      amount, noise_seed: strength of the rendering (noise, blur, faintness, ...), in 0..1; seed of the pixel noise.
    """

    face: str
    rendering: str
    ink: str = "black"
    paper: str = "white"
    ink_rgb: tuple[int, int, int] = COLORS["black"]
    paper_rgb: tuple[int, int, int] = COLORS["white"]
    size: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    amount: float = 0.5
    noise_seed: int = 0


def _near(color: str, rng: random.Random, spread: float) -> tuple[int, int, int]:
    drawn = [round(channel + spread * (2.0 * rng.random() - 1.0)) for channel in COLORS[color]]
    red, green, blue = (min(255, max(0, channel)) for channel in drawn)
    return red, green, blue


def draw_appearance(rng: random.Random, face: str, rendering: str, jitter: float = 1.0) -> Appearance:
    """Draws an appearance with the given face and rendering.

    `jitter`, from 0 to 1, is the variation of size, position and colors; 0: centered, ordinary size, exact colors.
    """
    ink, paper = "black", "white"
    if rendering == "negative":
        ink, paper = "white", "black"
    elif rendering == "color":
        dark, light = pick(rng, _DARK), pick(rng, _LIGHT)
        ink, paper = (light, dark) if rng.random() < 0.3 else (dark, light)
    angle = 6.0 * jitter * (2.0 * rng.random() - 1.0)
    if rendering == "rotated":
        angle = (15.0 + 25.0 * rng.random()) * (1.0 if rng.random() < 0.5 else -1.0)
    size, reach = 1.0 + 0.15 * jitter * (2.0 * rng.random() - 1.0), 2.5 * jitter
    if rendering == "small":
        size, reach = 0.55 + 0.1 * rng.random(), 5.0
    ink_rgb, paper_rgb = (_near(color, rng, 25.0 * jitter) for color in (ink, paper))
    shift = (reach * (2.0 * rng.random() - 1.0), reach * (2.0 * rng.random() - 1.0))
    amount, noise_seed = rng.random(), int(rng.random() * 2**32)
    return Appearance(face, rendering, ink, paper, ink_rgb, paper_rgb, size, shift, angle, amount, noise_seed)
