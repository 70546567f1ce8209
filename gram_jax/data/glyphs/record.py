"""Maintenance script: writes the shipped record of characters, faces and font files."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from gram_jax.data.glyphs import alphabet, faces
from gram_jax.io import file_hash


def make_record() -> dict:
    """Returns a record in the format of `faces.record`: the characters that at least one corpus face draws.

    Names are those of this Python. The record is shipped because versions of Python know different characters.
    """
    names = list(faces.FACES)
    corpus_faces = sum(1 << bit for bit, face in enumerate(faces.FACES.values()) if face.in_corpus)
    fonts: dict[str, str] = {}
    drawn: dict[int, int] = {}
    for bit, face in enumerate(faces.FACES.values()):
        path = faces.font_path(face)
        fonts[face.file] = file_hash(path)
        for code in faces.coverage(path):
            if not face.ascii_only or code < 0x80:
                drawn[code] = drawn.get(code, 0) | 1 << bit
    named = ((code, unicodedata.name(chr(code), "")) for code in sorted(drawn) if drawn[code] & corpus_faces)
    entries = {f"{code:04X}": [name, drawn[code]] for code, name in named if name and alphabet.describe(code, name)}
    return {"unicode": unicodedata.unidata_version, "fonts": fonts, "faces": names, "characters": entries}


def write_record(path: Path = faces.RECORD) -> None:
    """Writes the record as JSON, one character per line."""
    made = make_record()
    body = ",\n".join(f"  {json.dumps(code)}: {json.dumps(entry)}" for code, entry in made["characters"].items())
    head = ",\n".join(f" {json.dumps(key)}: {json.dumps(made[key])}" for key in ("unicode", "fonts", "faces"))
    path.write_text(f'{{\n{head},\n "characters": {{\n{body}\n }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    write_record()
