"""Captions of the corpus: what people might write under a picture of a character."""

from __future__ import annotations

import random

from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.alphabet import Character
from gram_jax.data.glyphs.appearance import Appearance
from gram_jax.data.streams import pick

# Rates of imperfect captions at full difficulty.
WRONG_RATE = 0.02  # names another character of the same family
UNNAMED_RATE = 0.06  # family, typeface or color alone: incomplete
SHORT_RATE = 0.13  # the short name alone, ambiguous between families

_ARTICLES = ("", "the character ", "a picture of ", "an image of ", "the sign ", "one ")
_PREFIXES = {
    "print": ("", "a print of ", "the character ", "printed "),
    "negative": ("", "a negative of ", "the character "),
    "color": ("", "a poster of ", "a photo of a "),
    "noise": ("a photo of a ", "a grainy photo of ", "a noisy scan of ", "a noisy ", ""),
    "blur": ("a photo of a ", "a blurred photo of ", "an unsharp ", "out of focus: ", ""),
    "faint": ("a faded print of ", "a faint ", "a pale ", ""),
}
_SUFFIXES = {
    "print": (", black on white", " in black ink", ""),
    "negative": (", white on black", " on a dark background", " in reverse"),
    "noise": (", noisy", " with grain", ""),
    "blur": (", blurred", ", out of focus", ""),
    "faint": (", faded", ", hardly visible", ""),
}


def _naming(character: Character, rng: random.Random, difficulty: float) -> tuple[str, str]:
    """Returns the words that name the character, and the sort of naming."""
    draw = rng.random() / max(difficulty, 1e-6)
    if draw < UNNAMED_RATE / 2:
        return pick(rng, (character.family, f"a {character.noun}")), "unnamed"
    draw -= UNNAMED_RATE / 2
    case = next((word for word in ("small", "capital") if word in character.family.split()), "")
    for rate, text, sort in (
        (SHORT_RATE, character.short, "short"),
        (0.10, f"{character.noun} {character.short}", "partial"),
        (0.06, case and f"{case} {character.short}", "partial"),
        (0.10, f"{character.short}, a kind of {character.family}", "full"),
    ):
        if draw < rate and text:
            return text, sort
        draw -= rate
    return character.name, "full"


def caption(
    character: Character,
    others: tuple[Character, ...],
    appearance: Appearance,
    rng: random.Random,
    difficulty: float = 1.0,
) -> tuple[str, str]:
    """Returns a caption for a picture of a character, and its sort: "full", "partial", "short", "unnamed" or "wrong".

    At difficulty 0 the caption is the full name; at 1 it follows the rates of this module. A wrong caption names one of
    the other characters.
    """
    shown = character
    if rng.random() < WRONG_RATE * difficulty:
        character = pick(rng, others)
    face = faces.FACES.get(appearance.face)
    face_words = pick(rng, face.words) if face is not None and face.words else ""
    ink, paper = appearance.ink, appearance.paper
    color_suffixes = (f" in {ink}", f", {ink} on {paper}", f" on {paper}")
    suffix = pick(rng, color_suffixes if appearance.rendering == "color" else _SUFFIXES[appearance.rendering])
    if rng.random() < UNNAMED_RATE / 2 * difficulty and face_words:
        text = pick(rng, (face_words, f"a character in {face_words}", f"a character{suffix}"))
        return text + pick(rng, ("", ".")), "unnamed"
    text, sort = _naming(character, rng, difficulty)
    plain = rng.random()
    if plain < 0.45 * difficulty:
        text = pick(rng, _PREFIXES[appearance.rendering]) + text
    elif plain < 0.6 * difficulty:
        text = pick(rng, _ARTICLES) + text
    if rng.random() < 0.3 * difficulty and face_words:
        text = f"{text} in {face_words}"
    if rng.random() < 0.35 * difficulty:
        text += suffix
    if rng.random() < 0.5 * difficulty:
        text += "."
    return text, "wrong" if sort != "unnamed" and character.code != shown.code else sort
