"""The characters of the embedded world: code points, official names, and what the names say."""

from __future__ import annotations

import dataclasses
import functools
import re

from gram_jax.data.glyphs import faces


@dataclasses.dataclass(frozen=True)
class Character:
    """One character and what its official Unicode name says of it.

    Attributes:
      code: the code point.
      name: the official name in lower case, "greek small letter alpha with tonos".
      kind: what it is, "greek small letter"; the theme of the true hierarchy.
      short: the rest of the name, "alpha with tonos"; ambiguous across kinds, as short names are.
      noun: a plain noun phrase for the kind, "greek letter".
      drawn_to_fit: True for pictures and symbols, drawn as large as fits; letters keep their sizes on the line.
    """

    code: int
    name: str
    kind: str
    short: str
    noun: str
    drawn_to_fit: bool

    @property
    def text(self) -> str:
        return chr(self.code)


_DIGITS = "zero|one|two|three|four|five|six|seven|eight|nine"

# (pattern of the whole name, kind, short name, noun, drawn to fit); groups are filled in; the first match counts.
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

# Blocks of symbols that carry no prefix in their names: (first, last, kind).
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
_COMPILED = tuple((re.compile(rule[0]), *rule[1:]) for rule in _RULES)


def describe(code: int, name: str) -> Character | None:
    """What a character's official name says: its kind, its short name, a noun.

    Args:
      code: the code point.
      name: the official Unicode name, in any case.

    Returns:
      A ``Character``, or None for characters that the world leaves out (marks, spaces, forms of letters, rare signs).

    Example:
      >>> alpha = describe(0x3AC, "GREEK SMALL LETTER ALPHA WITH TONOS")
      >>> alpha.kind, alpha.short, alpha.noun
      ('greek small letter', 'alpha with tonos', 'greek letter')
      >>> describe(0x20, "SPACE") is None
      True

    Reference:
      Names: the Unicode Standard, chapter 4.8. Kinds, short names and nouns are our own choice.
    """
    name = name.lower()
    if re.search(r"\b(form|combining|ligature .* with|mark|tone)\b", name):
        return None
    for pattern, kind, short, noun, fit in _COMPILED:
        match = pattern.fullmatch(name)
        if match:
            groups = ["", *(group or "" for group in match.groups())]
            return Character(code, name, kind.format(*groups), short.format(*groups), noun.format(*groups), fit)
    for first, last, kind in _BLOCKS:
        if first <= code <= last:
            return Character(code, name, kind, name, kind, True)
    return None


@functools.cache
def characters() -> dict[int, Character]:
    """Every character of the world, by code point, read from the shipped record.

    Names come from the record, not from the running Python, whose set of assigned characters grows with its version.

    Returns:
      A dict from code point to ``Character``, in order of code points.

    Example:
      >>> characters()[0x265B].name
      'black chess queen'

    Reference:
      The Unicode Standard, chapter 4.8; the choice of characters is ours.
    """
    entries = faces.record()["characters"].items()
    found = (describe(int(code, 16), name) for code, (name, _) in entries)
    return {character.code: character for character in found if character is not None}


@functools.cache
def faces_of(code: int) -> tuple[str, ...]:
    """The names of the faces that draw a character, corpus faces and unseen ones.

    Args:
      code: a code point of the world.

    Returns:
      Names of ``faces.FACES``, in their order.

    Example:
      >>> "serif-italic" in faces_of(0x3B1), "modern" in faces_of(0x3B1)
      (True, False)

    Reference:
      Our own record.
    """
    names, mask = faces.record()["faces"], faces.record()["characters"][f"{code:04X}"][1]
    return tuple(name for bit, name in enumerate(names) if mask >> bit & 1)


@functools.cache
def kinds() -> dict[str, tuple[int, ...]]:
    """The kinds of characters, each with its code points: the themes of the true hierarchy.

    Returns:
      A dict from kind to code points, largest kind first; kinds of fewer than four characters are left out.

    Example:
      >>> len(kinds()["chess piece"])
      12

    Reference:
      Our own choice.
    """
    groups: dict[str, list[int]] = {}
    for character in characters().values():
        groups.setdefault(character.kind, []).append(character.code)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {kind: tuple(codes) for kind, codes in ordered if len(codes) >= 4}
