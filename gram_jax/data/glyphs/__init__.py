"""The glyph benchmark: typefaces and Unicode names as an image-text corpus and labeled datasets on every machine."""

from gram_jax.data.glyphs.alphabet import Character, characters, families
from gram_jax.data.glyphs.appearance import CORPUS_RENDERINGS, RENDERINGS, UNSEEN_RENDERINGS, Appearance
from gram_jax.data.glyphs.datasets import NAMES, GlyphDataset, catalog
from gram_jax.data.glyphs.drawing import IMAGE_SIZE, encode_png, render
from gram_jax.data.glyphs.examples import SPLIT_SIZES, example, labeled, unseen_domains
from gram_jax.data.glyphs.faces import FACES, Face, FontError, face_from_file
from gram_jax.data.glyphs.pairs import Pair, pair, true_groups

__all__ = [
    "CORPUS_RENDERINGS",
    "FACES",
    "IMAGE_SIZE",
    "NAMES",
    "RENDERINGS",
    "SPLIT_SIZES",
    "UNSEEN_RENDERINGS",
    "Appearance",
    "Character",
    "Face",
    "FontError",
    "GlyphDataset",
    "Pair",
    "catalog",
    "characters",
    "encode_png",
    "example",
    "face_from_file",
    "families",
    "labeled",
    "pair",
    "render",
    "true_groups",
    "unseen_domains",
]
