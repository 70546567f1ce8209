"""Characters, names, faces and the catalog of datasets, against the fonts and Unicode themselves."""

import hashlib
import unicodedata
from pathlib import Path

import pytest

from gram_jax.data import glyphs
from gram_jax.data.glyphs import faces, record
from gram_jax.data.glyphs.alphabet import describe, faces_of


def test_record_agrees_with_unicode_and_with_the_font_files():
    from fontTools.ttLib import TTFont

    recorded = faces.record()
    drawn = {}
    for face in glyphs.FACES.values():
        path = Path(faces.font_path(face))
        assert recorded["fonts"][face.file] == hashlib.sha256(path.read_bytes()).hexdigest()
        with TTFont(path) as font:
            drawn[face.name] = set(font.getBestCmap())
    for code in glyphs.characters():
        assert recorded["characters"][f"{code:04X}"][0] == unicodedata.name(chr(code))
        assert all(code in drawn[name] for name in faces_of(code))
        assert any(glyphs.FACES[name].in_corpus for name in faces_of(code))


def test_record_is_what_the_program_makes(tmp_path):
    record.write_record(tmp_path / "record.json")
    made, shipped = (tmp_path / "record.json").read_text(), faces.RECORD.read_text()
    # The version of Unicode is that of the Python that made it.
    assert made.replace(unicodedata.unidata_version, "") == shipped.replace(faces.record()["unicode"], "")


@pytest.mark.parametrize(
    ("character", "family", "short", "noun"),
    [
        ("a", "latin small letter", "a", "latin letter"),
        ("Ω", "greek capital letter", "omega", "greek letter"),
        ("ж", "cyrillic small letter", "zhe", "cyrillic letter"),
        ("7", "digit", "seven", "digit"),
        ("٣", "arabic-indic digit", "three", "digit"),
        ("²", "superscript", "two", "digit"),
        ("①", "circled digit", "one", "digit"),
        ("𝐀", "mathematical bold capital", "a", "mathematical letter"),
        ("ⅳ", "small roman numeral", "four", "roman numeral"),
        ("½", "vulgar fraction", "one half", "fraction"),
        ("♞", "chess piece", "black knight", "chess piece"),
        ("🂡", "playing card", "ace of spades", "playing card"),
        ("→", "arrow", "rightwards arrow", "arrow"),
        ("∑", "mathematical operator", "n-ary summation", "mathematical operator"),
        ("⠓", "braille pattern", "dots-125", "braille pattern"),
    ],
)
def test_what_names_say(character, family, short, noun):
    described = describe(ord(character), unicodedata.name(character))
    assert (described.family, described.short, described.noun) == (family, short, noun)


@pytest.mark.parametrize("character", [" ", "́", "ﺑ", "가", "。"])
def test_left_out(character):
    assert describe(ord(character), unicodedata.name(character)) is None


def test_catalog_is_rich_enough_for_the_protocols():
    assert len(glyphs.NAMES) >= 11
    sizes = {}
    for name in glyphs.NAMES:
        dataset = glyphs.catalog(name)
        sizes[name] = len(dataset.class_names)
        assert len(set(dataset.class_names)) == len(dataset.class_names) == len(dataset.codes) >= 10
        codes = [code for codes in dataset.codes for code in codes]
        assert len(set(codes)) == len(codes)
        assert dataset.template.count("{}") == 1
        unseen = glyphs.unseen_domains(dataset)
        assert any(domain in glyphs.FACES for domain in unseen), f"{name} has no unseen face"
        assert set(glyphs.UNSEEN_RENDERINGS) < set(unseen)
    assert sizes["digits"] == 10
    assert sizes["playing_cards"] == 52
    assert sizes["chess"] == 12
    assert sizes["latin_small"] == 26


def test_datasets_do_not_share_characters():
    codes = [code for name in glyphs.NAMES for group in glyphs.catalog(name).codes for code in group]
    assert len(codes) == len(set(codes))


def test_class_names_are_ambiguous_between_datasets():
    shared = set(glyphs.catalog("greek_small").class_names) & set(glyphs.catalog("greek_capital").class_names)
    assert len(shared) == 24
    assert "a" in glyphs.catalog("latin_small").class_names
    assert "a" in glyphs.catalog("cyrillic_small").class_names


def test_unknown_dataset_is_named():
    with pytest.raises(ValueError, match=r"glyph dataset='klingon'.*latin_small"):
        glyphs.catalog("klingon")


def test_families_partition_the_characters():
    codes = [code for group in glyphs.families().values() for code in group]
    assert len(codes) == len(set(codes))
    assert set(codes) <= set(glyphs.characters())
    assert len(codes) > 5000
