"""The typefaces of the embedded world: which files, which words describe them, which are kept out of every corpus."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path

from gram_jax.errors import InputError

RECORD = Path(__file__).parent / "record.json"


@dataclasses.dataclass(frozen=True)
class Face:
    """One typeface: a font file, the words that describe it, and whether a corpus may show it.

    Attributes:
      name: the name of the domain, for example ``"serif-italic"``.
      file: a file name among matplotlib's own fonts, or the path of any font file on disk.
      words: how captions describe it, most common first.
      in_corpus: False for the unseen faces, which no corpus and no pre-training ever shows.
      ascii_only: True for fonts whose character map means something else outside of ASCII (Computer Modern).
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
    bare = tuple(word.removeprefix("a ") for word in words)
    return tuple(" ".join((*styles, word)) for word in bare)


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
    """A font file that is missing, is not a font, lacks a character, or is not the one on record."""


@functools.cache
def record() -> dict:
    """The shipped record: SHA-256 of every font file and, for every character used, its name and its faces.

    Returns:
      ``{"unicode": version, "fonts": {file: sha256}, "faces": [names], "characters": {hex code: [name, faces]}}``, the
      faces of a character being an integer whose bit i stands for the i-th name.

    Example:
      >>> record()["characters"]["03B1"][0]
      'GREEK SMALL LETTER ALPHA'

    Reference:
      Our own record.
    """
    return json.loads(RECORD.read_text(encoding="utf-8"))


def font_path(face: Face) -> str:
    """The path of a face's font file; files of the record are looked for among matplotlib's own fonts.

    Args:
      face: a face of ``FACES``, or one made by ``face_from_file``.

    Returns:
      The path of the file.

    Raises:
      FontError: where the file does not exist.

    Example:
      >>> font_path(FACES["serif"]).endswith("DejaVuSerif.ttf")
      True

    Reference:
      matplotlib ships these fonts.
    """
    if os.path.sep in face.file:
        path = face.file
    else:
        import matplotlib

        path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", face.file)
    if not os.path.isfile(path):
        raise FontError(
            f"the font file {path!r} of the face {face.name!r} does not exist; reinstall matplotlib, or mend the path"
        )
    return path


@functools.cache
def checked_font_path(face: Face) -> str:
    """``font_path``, with the file's content compared with the record, so that images mean the same everywhere.

    Args:
      face: a face of ``FACES``, or one made by ``face_from_file`` (for which there is nothing to compare).

    Returns:
      The path of the file.

    Raises:
      FontError: where the file differs from the one on record.
    """
    path = font_path(face)
    expected = record()["fonts"].get(face.file)
    if expected is not None:
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if found != expected:
            raise FontError(
                f"the font {path!r} has sha256 {found[:12]}..., not {expected[:12]}... as on record: its glyphs may "
                "differ from those of published results; install the matplotlib version of requirements.txt"
            )
    return path


@functools.cache
def coverage(path: str) -> frozenset[int]:
    """The code points that a font file draws, read from its character map.

    Args:
      path: the path of a TrueType or OpenType file.

    Returns:
      A frozenset of code points.

    Raises:
      FontError: where the file cannot be read as a font.
    """
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with open(path, "rb") as file, TTFont(file, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError, AssertionError, KeyError) as error:
        raise FontError(f"{path!r} cannot be read as a TrueType or OpenType font: {error}") from error


def face_from_file(path: str) -> Face:
    """A face made of any font file on disk: one more unseen domain.

    Args:
      path: the path of a TrueType or OpenType file.

    Returns:
      A ``Face`` named by its path, outside of every corpus.

    Raises:
      FontError: where the file does not exist or is not a font.

    Example:
      >>> face_from_file(font_path(FACES["sans"])).in_corpus
      False

    Reference:
      Our own choice.
    """
    path = os.path.abspath(path)
    face = Face(path, path, in_corpus=False)
    coverage(font_path(face))
    return face
