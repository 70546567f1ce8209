"""The typefaces of the glyph benchmark: font files, words that describe them, and which of them a corpus may show."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gram_jax.errors import InputError
from gram_jax.io import file_hash

_OTHERS = 3  # a font in which more letters and digits than these show another character is a symbol font
_SHARED = 8  # a glyph of more characters than this is a placeholder
RECORD = Path(__file__).parent / "record.json"


@dataclasses.dataclass(frozen=True)
class Face:
    """One typeface.

    Attributes:
      name, words: the name of the domain, e.g. "serif-italic"; descriptions in captions, most common first.
      file: the name of a file among the fonts of matplotlib, or the path of any font file.
      in_corpus: False for the unseen faces, which no corpus contains.
      ascii_only: True for fonts whose character map has another meaning outside ASCII (Computer Modern).
    """

    name: str
    file: str
    words: tuple[str, ...] = ()
    in_corpus: bool = True
    ascii_only: bool = False


_SANS = ("sans-serif", "sans serif type", "a plain typeface")
_SERIF = ("serif", "serif type", "a book typeface")
_MONO = ("monospace", "a monospaced typeface", "typewriter type")
_TIMES = ("times", "times type", "a times typeface")


def _styled(words: tuple[str, ...], *styles: str) -> tuple[str, ...]:
    return tuple(" ".join((*styles, word.removeprefix("a "))) for word in words)


FACES: dict[str, Face] = {
    face.name: face
    for face in (
        Face("sans", "DejaVuSans.ttf", _SANS),
        Face("sans-bold", "DejaVuSans-Bold.ttf", _styled(_SANS, "bold")),
        Face("sans-oblique", "DejaVuSans-Oblique.ttf", _styled(_SANS, "italic")),
        Face("sans-bold-oblique", "DejaVuSans-BoldOblique.ttf", _styled(_SANS, "bold", "italic"), in_corpus=False),
        Face("mono", "DejaVuSansMono.ttf", _MONO),
        Face("mono-bold", "DejaVuSansMono-Bold.ttf", _styled(_MONO, "bold"), in_corpus=False),
        Face("mono-oblique", "DejaVuSansMono-Oblique.ttf", _styled(_MONO, "italic")),
        Face("mono-bold-oblique", "DejaVuSansMono-BoldOblique.ttf", _styled(_MONO, "bold", "italic"), in_corpus=False),
        Face("serif", "DejaVuSerif.ttf", _SERIF),
        Face("serif-bold", "DejaVuSerif-Bold.ttf", _styled(_SERIF, "bold")),
        Face("serif-italic", "DejaVuSerif-Italic.ttf", _styled(_SERIF, "italic")),
        Face("serif-bold-italic", "DejaVuSerif-BoldItalic.ttf", _styled(_SERIF, "bold", "italic"), in_corpus=False),
        Face("stix", "STIXGeneral.ttf", _TIMES),
        Face("stix-italic", "STIXGeneralItalic.ttf", _styled(_TIMES, "italic")),
        Face("stix-bold", "STIXGeneralBol.ttf", _styled(_TIMES, "bold")),
        Face("stix-bold-italic", "STIXGeneralBolIta.ttf", _styled(_TIMES, "bold", "italic"), in_corpus=False),
        Face("modern", "cmr10.ttf", ("modern type",), in_corpus=False, ascii_only=True),
        Face("modern-bold", "cmb10.ttf", ("bold modern type",), in_corpus=False, ascii_only=True),
        Face("modern-italic", "cmti10.ttf", ("italic modern type",), in_corpus=False, ascii_only=True),
        Face("modern-sans", "cmss10.ttf", ("plain modern type",), in_corpus=False, ascii_only=True),
        Face("modern-typewriter", "cmtt10.ttf", ("typewriter modern type",), in_corpus=False, ascii_only=True),
    )
}


class FontError(InputError):
    """A font file is missing, is not a font, lacks a character, or differs from the recorded one."""


@functools.cache
def record() -> dict:
    """Returns the record `{"unicode": version, "fonts": {file: sha256}, "faces": [names], "characters": {...}}`.

    A character is `hex code: [name, faces]`; bit i of the integer `faces` represents the i-th name.
    """
    return json.loads(RECORD.read_text(encoding="utf-8"))


def font_path(face: Face) -> str:
    """Returns the path of a face's font file."""
    path = face.file
    if os.path.sep not in path:
        import matplotlib

        path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", path)
    if not os.path.isfile(path):
        raise FontError(
            f"the font file {path!r} of the face {face.name!r} does not exist; reinstall matplotlib or correct the path"
        )
    return path


@functools.cache
def checked_font_path(face: Face) -> str:
    """Returns `font_path(face)` after comparing the file with the record, so that images are the same everywhere."""
    path = font_path(face)
    expected = record()["fonts"].get(face.file)
    if expected is not None and (found := file_hash(path)) != expected:
        raise FontError(
            f"the font {path!r} has sha256 {found[:12]}..., the record has {expected[:12]}...: its glyphs may differ "
            "from those of published results; install the matplotlib version of requirements.txt"
        )
    return path


@functools.cache
def coverage(path: str, codes: frozenset[int] | None = None) -> frozenset[int]:
    """Returns the code points that a TrueType or OpenType file draws.

    Its character map alone says too much: a glyph may be empty, may stand for many characters, or may show another
    character than a letter or digit of ASCII. A font in which several of these show another one is a symbol font,
    which draws nothing that its codes say.

    Args:
      path: the font file.
      codes: the code points that matter; all of the character map by default, whose glyphs are not looked at.
    """
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with open(path, "rb") as file, TTFont(file, lazy=True) as font:
            names = font.getBestCmap() or {}
            return frozenset(names if codes is None else _drawn(font, names, codes))
    except (TTLibError, OSError, AssertionError, KeyError) as error:
        raise FontError(f"{path!r} cannot be read as a TrueType or OpenType font: {error}") from error


def _drawn(font: Any, names: dict[int, str], codes: frozenset[int]) -> Iterator[int]:
    """Yields the code points whose glyph draws something, and draws that character."""
    from fontTools.agl import toUnicode
    from fontTools.pens.boundsPen import BoundsPen

    def shows_another(code: int) -> bool:
        meant = toUnicode(names[code])  # "" for names without a meaning; private use for variants
        return len(meant.strip()) == 1 and meant != chr(code) and not "\ue000" <= meant <= "\uf8ff"

    others = {code for code in range(128) if chr(code).isalnum() and code in names and shows_another(code)}
    if len(others) > _OTHERS:  # a symbol font: none of its codes is to be trusted
        return
    glyphs, shared = font.getGlyphSet(), collections.Counter(names.values())
    for code in codes & names.keys():
        name = names[code]
        if name == ".notdef" or shared[name] > _SHARED or code in others:
            continue
        pen = BoundsPen(glyphs)
        glyphs[name].draw(pen)
        if pen.bounds is not None:
            yield code


def face_from_file(path: str) -> Face:
    """Returns the face of any TrueType or OpenType file: another unseen domain, named by its path.

    Args:
      path: the font file.
    """
    path = os.path.abspath(path)
    face = Face(path, path, in_corpus=False)
    coverage(font_path(face))
    return face
