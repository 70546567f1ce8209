"""The labeled datasets of the embedded world: their classes, names and fitting templates."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.alphabet import Character, characters, faces_of
from gram_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class GlyphDataset:
    """A labeled dataset: classes of characters under short names.

    Attributes:
      name: "greek_small".
      class_names: the short names, in label order; ambiguous without a context, as class names are.
      codes: for each class the code points that belong to it (one, but for ``digits``).
      template: a context that fits, for example "the character greek small letter {}."
      faces: faces that draw every class: its typeface domains.
    """

    name: str
    class_names: tuple[str, ...]
    codes: tuple[tuple[int, ...], ...]
    template: str
    faces: tuple[str, ...]


def _kind(kind: str, short: str = ".+", first: int = 0, last: int = 0x10FFFF, drawn_by: tuple[str, ...] = ()):
    """A selector: characters of one kind whose short name matches, inside a range, that the given faces draw."""
    pattern = re.compile(short)

    def select(character: Character) -> bool:
        return (
            character.kind == kind
            and first <= character.code <= last
            and pattern.fullmatch(character.short) is not None
            and set(drawn_by) <= set(faces_of(character.code))
        )

    return select


_WORD = "[a-z]+( [a-z]+)?"
_DIGIT_KINDS = (
    "digit", "arabic-indic digit", "extended arabic-indic digit", "lao digit", "nko digit", "superscript", "subscript",
    "mathematical bold digit", "mathematical double-struck digit", "mathematical monospace digit",
    "mathematical sans-serif digit", "mathematical sans-serif bold digit",
)  # fmt: skip

# name -> (which characters, fitting template). Of some wordings of the corpus' grammar, templates are those that the
# mini CLIP does best with on the validation split.
_SELECTORS: dict[str, tuple[Callable[[Character], bool], str]] = {
    "latin_small": (_kind("latin small letter", "[a-z]"), "a print of latin small letter {}."),
    "latin_accented": (
        _kind("latin small letter", "[a-z] with [a-z ]+", last=0x1FF, drawn_by=("stix", "mono", "serif")),
        "a photo of a latin small letter {}.",
    ),
    "greek_small": (_kind("greek small letter", _WORD, 0x3B1, 0x3C9), "the character greek small letter {}."),
    "greek_capital": (_kind("greek capital letter", _WORD, 0x391, 0x3A9), "the character greek capital letter {}."),
    "cyrillic_small": (
        _kind("cyrillic small letter", first=0x430, last=0x45F),
        "cyrillic small letter {}, black on white.",
    ),
    "armenian_small": (_kind("armenian small letter", _WORD), "a print of armenian small letter {}."),
    "georgian": (_kind("georgian letter", _WORD, 0x10D0, 0x10F0), "the character georgian letter {}."),
    "hebrew": (_kind("hebrew letter", _WORD, 0x5D0, 0x5EA), "the character hebrew letter {}."),
    "arabic": (_kind("arabic letter", "[a-z]+", 0x621, 0x64A), "{}, a kind of arabic letter, black on white."),
    "syllabics": (_kind("canadian syllabics", "[a-z]{1,2}", 0x1401, 0x14C0), "the character canadian syllabics {}."),
    "digits": (lambda character: character.kind in _DIGIT_KINDS, "a print of digit {}."),
    "arrows": (_kind("arrow", first=0x2190, last=0x21FF, drawn_by=("sans", "serif")), "the character {}."),
    "operators": (
        _kind("mathematical operator", "[a-z-]+( [a-z-]+){0,2}", 0x2200, 0x22FF, ("sans", "stix")),
        "a print of {}.",
    ),
    "shapes": (_kind("geometric shape", first=0x25A0, last=0x25FF), "the character {}, black on white."),
    "box_drawings": (_kind("box drawings"), "a print of {}, a kind of box drawings."),
    "braille": (_kind("braille pattern"), "the character braille pattern {}."),
    "dominoes": (_kind("domino tile", ".*-.*"), "the character domino tile {}."),
    "playing_cards": (_kind("playing card", "(?!knight).* of .*"), "the character playing card {}, black on white."),
    "chess": (_kind("chess piece"), "{}, a kind of chess piece."),
}

NAMES: tuple[str, ...] = tuple(_SELECTORS)


@functools.cache
def catalog(name: str) -> GlyphDataset:
    """One labeled dataset of the embedded world.

    Args:
      name: one of ``NAMES``.

    Returns:
      A ``GlyphDataset``, its classes in the order of their code points.

    Raises:
      InputError: for a name that is not in the catalog.

    Example:
      >>> catalog("chess").class_names[:2]
      ('white king', 'white queen')

    Reference:
      Our own choice of datasets, after the eleven of Zhou et al. (2022): fine-grained, coarse, long and short.
    """
    if name not in _SELECTORS:
        raise InputError(f"there is no glyph dataset {name!r}; the catalog holds {', '.join(NAMES)}")
    select, template = _SELECTORS[name]
    classes: dict[str, list[int]] = {}
    for character in characters().values():
        if select(character):
            classes.setdefault(character.short, []).append(character.code)
    if name == "digits":
        order = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        classes = {digit: classes[digit] for digit in order}
    drawing = [
        face for face in faces.FACES if all(any(face in faces_of(code) for code in codes) for codes in classes.values())
    ]
    return GlyphDataset(
        name, tuple(classes), tuple(tuple(codes) for codes in classes.values()), template, tuple(drawing)
    )
