"""The embedded world: typefaces and Unicode as an image-text corpus and labeled datasets that every machine has."""

from gram_jax.data.glyphs.alphabet import Character, characters, kinds
from gram_jax.data.glyphs.appearance import CORPUS_RENDERINGS, RENDERINGS, UNSEEN_RENDERINGS, Look
from gram_jax.data.glyphs.datasets import NAMES, GlyphDataset, catalog
from gram_jax.data.glyphs.drawing import IMAGE_SIZE, encode_png, render
from gram_jax.data.glyphs.faces import FACES, Face, FontError, face_from_file
from gram_jax.data.glyphs.groups import true_groups
from gram_jax.data.glyphs.indices import labeled
from gram_jax.data.glyphs.world import SPLIT_SIZES, Pair, example, pair, unseen_domains

__all__ = [
    "CORPUS_RENDERINGS",
    "FACES",
    "IMAGE_SIZE",
    "NAMES",
    "RENDERINGS",
    "SPLIT_SIZES",
    "UNSEEN_RENDERINGS",
    "Character",
    "Face",
    "FontError",
    "GlyphDataset",
    "Look",
    "Pair",
    "catalog",
    "characters",
    "encode_png",
    "example",
    "face_from_file",
    "kinds",
    "labeled",
    "pair",
    "render",
    "true_groups",
    "unseen_domains",
]
