"""Pairs and labeled images of the glyph benchmark: determinism, rates, and separate random streams."""

import collections
import dataclasses
import hashlib
import math
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from gram_jax.data import glyphs, load_dataset
from gram_jax.data.glyphs import captions, drawing, faces
from gram_jax.data.glyphs.appearance import COLORS, RENDERINGS

PAIRS = 4000


@pytest.fixture(scope="module")
def pairs():
    return [glyphs.pair(i) for i in range(PAIRS)]


def test_draws_are_pinned():
    # Captions and appearances use random.Random and string operations only: the same on every Python and platform.
    digest = hashlib.sha256()
    for index in range(200):
        pair = glyphs.pair(index, 11)
        face, ink = pair.appearance.face, pair.appearance.ink_rgb
        digest.update(f"{pair.caption}|{pair.sort}|{pair.character.code}|{face}|{ink}".encode())
    assert digest.hexdigest() == "615d66283b0a06d55844c2a37198263322cb0bec969c7cfd1a0700cf3dd91ec8"


def test_stated_rates(pairs):
    counts = collections.Counter(pair.sort for pair in pairs)

    def within(count, rate):
        return abs(count - PAIRS * rate) < 5.0 * math.sqrt(PAIRS * rate)

    assert within(counts["wrong"], captions.WRONG_RATE * (1.0 - captions.UNNAMED_RATE))
    assert within(counts["unnamed"], captions.UNNAMED_RATE)
    assert within(counts["short"], captions.SHORT_RATE)
    plain = sum(pair.appearance.rendering == "print" for pair in pairs)
    assert within(plain, 0.5)


def test_captions_match_their_sort(pairs):
    for pair in pairs:
        if pair.sort in ("full", "partial", "short"):
            assert pair.character.short in pair.caption or pair.character.name in pair.caption
        if pair.sort == "full":
            assert pair.character.name in pair.caption or pair.character.family in pair.caption
        if pair.appearance.rendering == "color" and f" in {pair.appearance.ink}" in pair.caption:
            assert pair.appearance.ink in COLORS


def test_wrong_captions_name_another_character():
    wrong = [pair for pair in (glyphs.pair(i) for i in range(PAIRS)) if pair.sort == "wrong"]
    assert wrong
    named = sum(pair.character.name in pair.caption for pair in wrong)
    # "alpha" is part of the name of "alpha with tonos": a wrong name may contain the right one, but rarely does.
    assert named < 0.2 * len(wrong)


def test_corpus_shows_no_unseen_face_or_rendering(pairs):
    assert {pair.appearance.rendering for pair in pairs} == set(glyphs.CORPUS_RENDERINGS)
    seen = {pair.appearance.face for pair in pairs}
    assert seen == {face.name for face in glyphs.FACES.values() if face.in_corpus}


def test_every_family_and_all_datasets_are_in_the_corpus():
    families = {glyphs.pair(i).character.family for i in range(8000)}
    assert families == set(glyphs.families())
    codes = {code for group in glyphs.families().values() for code in group}
    for name in glyphs.NAMES:
        assert {code for group in glyphs.catalog(name).codes for code in group} <= codes


def test_no_two_streams_share_an_image(pairs):
    def digests(images):
        return {hashlib.sha256(image.tobytes()).digest() for image in images}

    corpus = digests(pair.image for pair in pairs[:1500])
    drawn = {}
    for name in ("greek_small", "digits"):
        dataset = glyphs.labeled(name)
        for split in ("train", "val", "test"):
            drawn[name, split] = digests(dataset.images(dataset.select(split)[:300]))
    everything = [corpus, *drawn.values()]
    assert len(set().union(*everything)) == sum(map(len, everything))


def test_difficulty_zero_is_plain():
    for index in range(300):
        pair = glyphs.pair(index, difficulty=0.0)
        assert pair.caption == pair.character.name
        drawn = pair.appearance
        assert (drawn.rendering, drawn.ink_rgb, drawn.shift) == ("print", COLORS["black"], (0, 0))


def test_a_page_has_one_family():
    for page in range(20):
        assert len({glyphs.pair(8 * page + i, page=8).character.family for i in range(8)}) == 1


@pytest.mark.parametrize("face", ["serif", "modern-italic", "mono"])
@pytest.mark.parametrize("letter", ["g", "M", "7"])
def test_drawing_equals_a_supersampled_outline(face, letter):
    """Against the same outline drawn eight times as large, and averaged: place, size and coverage."""
    character = glyphs.characters()[ord(letter)]
    image = glyphs.render(character, glyphs.Appearance(face, "print", ink_rgb=(0, 0, 0), paper_rgb=(255, 255, 255)))
    coverage = 1.0 - image[..., 0] / 255.0
    scale, em = 8, drawing._LINE_EM
    font = ImageFont.truetype(faces.font_path(glyphs.FACES[face]), em * scale)
    left, _, right, _ = font.getbbox(letter, anchor="ls")
    size = drawing.IMAGE_SIZE * scale
    mask = Image.new("L", (size, size))
    origin = (size / 2 - (left + right) / 2, drawing._BASELINE * scale)
    ImageDraw.Draw(mask).text(origin, letter, fill=255, font=font, anchor="ls")
    reference = np.asarray(mask, float).reshape(drawing.IMAGE_SIZE, scale, -1, scale).mean((1, 3)) / 255.0
    # Hinting moves edges to whole pixels.
    assert abs(coverage.sum() - reference.sum()) < 0.2 * reference.sum()
    rows, columns = np.mgrid[: drawing.IMAGE_SIZE, : drawing.IMAGE_SIZE]
    for axis in (rows, columns):
        assert abs((axis * coverage).sum() / coverage.sum() - (axis * reference).sum() / reference.sum()) < 1.0


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_every_rendering_shows_something(rendering):
    for name in ("arabic", "dominoes", "latin_accented"):
        dataset = glyphs.labeled(name, rendering)
        images = dataset.images(dataset.select("test")[::97])
        assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
        assert all(np.ptp(image.astype(int)) > 15 for image in images)


def test_renderings_do_what_they_are_called():
    dataset = glyphs.catalog("latin_small")

    def mean(rendering):
        return np.mean([glyphs.example(dataset, rendering, "test", i, 0) for i in range(26)], axis=0)

    def contrast(rendering):
        return np.mean([np.ptp(glyphs.example(dataset, rendering, "test", i, 0).astype(int)) for i in range(26)])

    assert mean("negative").mean() < 100 < 200 < mean("print").mean()
    assert contrast("faint") < 0.5 * contrast("print")
    assert contrast("blur") < contrast("print")

    def saturation(rendering):
        return np.mean(
            [np.ptp(glyphs.example(dataset, rendering, "test", i, 0).astype(int), axis=-1) for i in range(26)]
        )

    assert saturation("color") > 2.0 * saturation("print")


def test_domains_decide_face_and_rendering(monkeypatch):
    asked = []
    monkeypatch.setattr("gram_jax.data.glyphs.examples.render", lambda _, appearance: asked.append(appearance))
    dataset = glyphs.catalog("greek_small")
    for number in range(30):
        glyphs.example(dataset, "serif-bold-italic+noise", "test", 1, number)
    assert {(each.face, each.rendering) for each in asked} == {("serif-bold-italic", "noise")}
    asked.clear()
    for number in range(60):
        glyphs.example(dataset, "", "test", 1, number)
    assert all(glyphs.FACES[each.face].in_corpus and each.rendering == "print" for each in asked)


def test_labeled_draws_are_pinned(monkeypatch):
    # The stream of "color" has kept the name that results were measured with.
    asked = []
    monkeypatch.setattr("gram_jax.data.glyphs.examples.render", lambda _, appearance: asked.append(appearance))
    for domain in ("color", "mono+color", "noise"):
        glyphs.example(glyphs.catalog("chess"), domain, "test", 3, 1, seed=5)
    expected = [("mono", "brown", 1282897767), ("mono", "white", 3238741773), ("sans", "black", 604036270)]
    assert [(each.face, each.ink, each.noise_seed) for each in asked] == expected


def test_any_font_file_is_a_domain(tmp_path):
    path = faces.font_path(glyphs.FACES["serif-italic"])
    by_path = load_dataset(f"glyphs:greek_small/{path}")
    name = path.rpartition("/")[2]
    assert (by_path.domain, by_path.name) == (name, f"glyphs:greek_small/{name}")
    image = by_path.images([0])[0]
    shutil.copy(path, tmp_path / name)  # where a font lies changes nothing
    moved = load_dataset(f"glyphs:greek_small/{tmp_path / name}")
    np.testing.assert_array_equal(moved.images([0])[0], image)
    assert moved.content_hash == by_path.content_hash
    assert np.ptp(image.astype(int)) > 100
    with pytest.raises(faces.FontError, match=r"27 of the 27 classes of 'hebrew' \(alef, bet"):
        load_dataset(f"glyphs:hebrew/{path}")


def test_broken_fonts_are_named(tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font at all")
    with pytest.raises(faces.FontError, match=r"broken\.ttf"):
        load_dataset(f"glyphs:chess/{broken}")
    with pytest.raises(faces.FontError, match=r"nowhere\.ttf"):
        load_dataset(f"glyphs:chess/{tmp_path}/nowhere.ttf")


def test_another_font_of_the_same_name_is_refused(monkeypatch):
    changed = faces.record() | {"fonts": faces.record()["fonts"] | {"DejaVuSans.ttf": "0" * 64}}
    monkeypatch.setattr(faces, "record", lambda: changed)
    with pytest.raises(faces.FontError, match=r"DejaVuSans.ttf' has sha256 .*000000000000"):
        faces.checked_font_path.__wrapped__(glyphs.FACES["sans"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("glyphs:chess/gothic", r"'chess' .*'gothic'.*sans, .*print, negative"),
        ("glyphs:hebrew/serif", "'hebrew' .*'serif'"),
        ("glyphs:dwarvish", "glyph dataset='dwarvish'"),
        ("imagenet", "'imagenet'"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(spec)


def test_labeled_index():
    dataset = glyphs.labeled("digits", "noise", seed=5)
    assert len(dataset) == 10 * sum(glyphs.SPLIT_SIZES.values())
    for split, size in glyphs.SPLIT_SIZES.items():
        labels = dataset.labels[dataset.select(split)]
        assert np.bincount(labels).tolist() == [size] * 10
    same, other = glyphs.labeled("digits", "noise", seed=5), glyphs.labeled("digits", "noise", seed=6)
    assert np.array_equal(dataset.images([7])[0], same.images([7])[0])
    assert not np.array_equal(dataset.images([7])[0], other.images([7])[0])


def test_several_characters_stand_for_a_digit():
    dataset = glyphs.catalog("digits")
    assert all(len(codes) >= 8 for codes in dataset.codes)
    assert {unicode_digit(code) for code in dataset.codes[3]} == {3}


def unicode_digit(code):
    import unicodedata

    return unicodedata.digit(chr(code))


def test_appearance_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        glyphs.Appearance("sans", "print").face = "serif"
