"""The characters of the glyph benchmark: code points, official names, and the facts that the names contain."""

from __future__ import annotations

import dataclasses
import functools
import re

from gram_jax.data.glyphs import faces


@dataclasses.dataclass(frozen=True)
class Character:
    """One character (code point) and the parts of its official Unicode name, in lower case.

    Attributes:
      name: "greek small letter alpha with tonos".
      family: the first part, "greek small letter"; a theme of the true hierarchy.
      short: the rest, "alpha with tonos"; several families may share it.
      noun: a plain noun phrase for the family, "greek letter".
      drawn_to_fit: True for pictures and symbols, which fill the image; letters keep their sizes on the line.
    """

    code: int
    name: str
    family: str
    short: str
    noun: str
    drawn_to_fit: bool

    @property
    def text(self) -> str:
        """The character itself."""
        return chr(self.code)


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = "|".join(DIGITS)

# (pattern of the whole name, family, short name, noun, drawn to fit); groups are filled in; the first match counts.
_RULES: tuple[tuple[str, str, str, str, bool], ...] = (
    (rf"digit ({_DIGITS})", "digit", "{1}", "digit", False),
    (rf"((?:superscript|subscript|circled|dingbat)[a-z -]*) ({_DIGITS})", "{1}", "{2}", "digit", True),
    (rf"(.+) digit ({_DIGITS})", "{1} digit", "{2}", "digit", False),
    (r"mathematical ([a-z -]+) (small|capital) (.+)", "mathematical {1} {2}", "{3}", "mathematical letter", False),
    (r"(small )?roman numeral (.+)", "{1}roman numeral", "{2}", "roman numeral", False),
    (r"vulgar fraction (.+)", "vulgar fraction", "{1}", "fraction", True),
    (r"(latin|greek|cyrillic|armenian|georgian|coptic) (small|capital) letter (.+)", "{1} {2} letter", "{3}",
     "{1} letter", False),
    (r"(hebrew|arabic|nko|tifinagh|ogham|lisu|lao|georgian) letter (.+)", "{1} letter", "{2}", "{1} letter", False),
    (r"latin letter (.+)", "latin letter", "{1}", "latin letter", False),
    (r"greek (.+) symbol", "greek symbol", "{1}", "greek symbol", False),
    (r"canadian syllabics (.+)", "canadian syllabics", "{1}", "syllabics character", False),
    (r"playing card (.+)", "playing card", "{1}", "playing card", True),
    (r"domino tile (.+)", "domino tile", "{1}", "domino tile", True),
    (r"(white|black) chess (.+)", "chess piece", "{1} {2}", "chess piece", True),
    (r"box drawings (.+)", "box drawings", "{1}", "box drawing", True),
    (r"braille pattern (dots-[1-6]+)", "braille pattern", "{1}", "braille pattern", True),
    (r"hexagram for (.+)", "hexagram", "{1}", "hexagram", True),
    (r"(tetragram|digram|trigram) for (.+)", "{1}", "{2}", "{1}", True),
    (r"die face-(\d)", "die face", "{1}", "die", True),
)  # fmt: skip

# Blocks of symbols whose names have no prefix: (first, last, family).
_BLOCKS: tuple[tuple[int, int, str], ...] = (
    (0x20A0, 0x20CF, "currency symbol"),
    (0x2190, 0x21FF, "arrow"),
    (0x2200, 0x22FF, "mathematical operator"),
    (0x2300, 0x23FF, "technical symbol"),
    (0x2580, 0x259F, "block element"),
    (0x25A0, 0x25FF, "geometric shape"),
    (0x2600, 0x26FF, "symbol"),
    (0x2701, 0x27BF, "dingbat"),
    (0x27F0, 0x27FF, "arrow"),
    (0x2900, 0x297F, "arrow"),
    (0x2A00, 0x2AFF, "mathematical operator"),
    (0x2B00, 0x2BFF, "geometric shape"),
)


def describe(code: int, name: str) -> Character | None:
    """Splits a character's official name, in any case, into its family, its short name and a noun.

    Marks, spaces, forms of letters and rare signs, which the benchmark omits, give None.

    Example:
      >>> alpha = describe(0x3AC, "GREEK SMALL LETTER ALPHA WITH TONOS")
      >>> alpha.family, alpha.short, alpha.noun
      ('greek small letter', 'alpha with tonos', 'greek letter')

    Reference:
      Official names: the Unicode Standard, chapter 4.8.
    """
    name = name.lower()
    if re.search(r"\b(form|combining|ligature .* with|mark|tone)\b", name):
        return None
    for pattern, family, short, noun, fit in _RULES:
        if match := re.fullmatch(pattern, name):
            groups = ["", *match.groups("")]
            return Character(code, name, family.format(*groups), short.format(*groups), noun.format(*groups), fit)
    for first, last, family in _BLOCKS:
        if first <= code <= last:
            return Character(code, name, family, name, family, True)
    return None


@functools.cache
def characters() -> dict[int, Character]:
    """Returns all characters of the shipped record by code point, in order."""
    entries = faces.record()["characters"].items()
    described = (describe(int(code, 16), name) for code, (name, _) in entries)
    return {character.code: character for character in described if character is not None}


@functools.cache
def faces_of(code: int) -> tuple[str, ...]:
    """Returns the names of the faces that draw a character, corpus faces and unseen ones, in the order of `FACES`."""
    names, mask = faces.record()["faces"], faces.record()["characters"][f"{code:04X}"][1]
    return tuple(name for bit, name in enumerate(names) if mask >> bit & 1)


@functools.cache
def families() -> dict[str, tuple[int, ...]]:
    """Returns the code points of each family of at least four characters, the largest family first."""
    groups: dict[str, list[int]] = {}
    for character in characters().values():
        groups.setdefault(character.family, []).append(character.code)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {family: tuple(codes) for family, codes in ordered if len(codes) >= 4}
