"""The labeled datasets of the glyph benchmark: classes, class names and templates."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.alphabet import DIGITS, Character, characters, faces_of
from gram_jax.errors import require_known


@dataclasses.dataclass(frozen=True)
class GlyphDataset:
    """A labeled dataset, e.g. "greek_small": classes of characters under short names.

    Attributes:
      class_names: the short names, in label order; ambiguous without a context, as class names often are.
      codes: the code points of each class; one, except in "digits".
      template: a suitable context, for example "the character greek small letter {}."
      faces: the faces that draw every class: the typeface domains.
    """

    name: str
    class_names: tuple[str, ...]
    codes: tuple[tuple[int, ...], ...]
    template: str
    faces: tuple[str, ...]


def _family(
    family: str, short: str = ".+", first: int = 0, last: int = 0x10FFFF, drawn_by: tuple[str, ...] = ()
) -> Callable[[Character], bool]:
    """Returns a predicate: the family and the short name match, the code is in range, and the given faces draw it."""
    return lambda character: (
        character.family == family
        and first <= character.code <= last
        and re.fullmatch(short, character.short) is not None
        and set(drawn_by) <= set(faces_of(character.code))
    )


_WORD = "[a-z]+( [a-z]+)?"
_DIGIT_FAMILIES = (
    "digit", "arabic-indic digit", "extended arabic-indic digit", "lao digit", "nko digit", "superscript", "subscript",
    "mathematical bold digit", "mathematical double-struck digit", "mathematical monospace digit",
    "mathematical sans-serif digit", "mathematical sans-serif bold digit",
)  # fmt: skip

# (predicate of the characters, template); templates were selected on the validation split with the mini CLIP.
_SELECTORS: dict[str, tuple[Callable[[Character], bool], str]] = {
    "latin_small": (_family("latin small letter", "[a-z]"), "a print of latin small letter {}."),
    "latin_accented": (
        _family("latin small letter", "[a-z] with [a-z ]+", last=0x1FF, drawn_by=("stix", "mono", "serif")),
        "a photo of a latin small letter {}.",
    ),
    "greek_small": (_family("greek small letter", _WORD, 0x3B1, 0x3C9), "the character greek small letter {}."),
    "greek_capital": (_family("greek capital letter", _WORD, 0x391, 0x3A9), "the character greek capital letter {}."),
    "cyrillic_small": (
        _family("cyrillic small letter", ".+", 0x430, 0x45F),
        "cyrillic small letter {}, black on white.",
    ),
    "armenian_small": (_family("armenian small letter", _WORD), "a print of armenian small letter {}."),
    "georgian": (_family("georgian letter", _WORD, 0x10D0, 0x10F0), "the character georgian letter {}."),
    "hebrew": (_family("hebrew letter", _WORD, 0x5D0, 0x5EA), "the character hebrew letter {}."),
    "arabic": (_family("arabic letter", "[a-z]+", 0x621, 0x64A), "{}, a kind of arabic letter, black on white."),
    "syllabics": (_family("canadian syllabics", "[a-z]{1,2}", 0x1401, 0x14C0), "the character canadian syllabics {}."),
    "digits": (lambda character: character.family in _DIGIT_FAMILIES, "a print of digit {}."),
    "arrows": (_family("arrow", first=0x2190, last=0x21FF, drawn_by=("sans", "serif")), "the character {}."),
    "operators": (
        _family("mathematical operator", "[a-z-]+( [a-z-]+){0,2}", 0x2200, 0x22FF, ("sans", "stix")),
        "a print of {}.",
    ),
    "shapes": (_family("geometric shape", first=0x25A0, last=0x25FF), "the character {}, black on white."),
    "box_drawings": (_family("box drawings"), "a print of {}, a kind of box drawings."),
    "braille": (_family("braille pattern"), "the character braille pattern {}."),
    "dominoes": (_family("domino tile", ".*-.*"), "the character domino tile {}."),
    "playing_cards": (_family("playing card", "(?!knight).* of .*"), "the character playing card {}, black on white."),
    "chess": (_family("chess piece"), "{}, a kind of chess piece."),
}

NAMES: tuple[str, ...] = tuple(_SELECTORS)


@functools.cache
def catalog(name: str) -> GlyphDataset:
    """Returns a labeled dataset; its classes are in the order of their code points.

    Args:
      name: one of `NAMES`.
    """
    require_known("glyph dataset", name, NAMES)
    select, template = _SELECTORS[name]
    classes: dict[str, list[int]] = {}
    for character in characters().values():
        if select(character):
            classes.setdefault(character.short, []).append(character.code)
    if name == "digits":
        classes = {digit: classes[digit] for digit in DIGITS}
    codes = tuple(map(tuple, classes.values()))
    drawn_by = [{face for code in own for face in faces_of(code)} for own in codes]
    common = tuple(face for face in faces.FACES if all(face in drawing for drawing in drawn_by))
    return GlyphDataset(name, tuple(classes), codes, template, common)
