"""Image-text pairs of the glyph corpus; each is a pure function of its number and the seed.

Pairs and labeled examples share characters, corpus faces and corpus renderings, but no random draw, because the name of
the stream is part of every seed. Unseen faces and unseen renderings occur in labeled examples only.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable

import numpy as np

from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.alphabet import Character, characters, faces_of, families
from gram_jax.data.glyphs.appearance import CORPUS_RENDERINGS, Appearance, draw_appearance
from gram_jax.data.glyphs.captions import caption
from gram_jax.data.glyphs.drawing import render
from gram_jax.data.streams import pick, stream

_PLAIN_FACES = ("sans", "serif")
_FAMILY_POWER = 0.65  # a family of n characters is drawn with weight n ** _FAMILY_POWER


@dataclasses.dataclass(frozen=True)
class Pair:
    """One image-text pair of the corpus, with the facts behind it, which no learner may read."""

    caption: str
    sort: str  # "full", "partial", "short", "unnamed" or "wrong"
    character: Character
    appearance: Appearance

    @property
    def image(self) -> np.ndarray:
        """The image, uint8 `[32, 32, 3]`, drawn at each access."""
        return render(self.character, self.appearance)


@functools.cache
def _family_weights() -> tuple[tuple[str, ...], tuple[float, ...]]:
    weights = [len(codes) ** _FAMILY_POWER for codes in families().values()]
    return tuple(families()), tuple(itertools.accumulate(weights))


@functools.cache
def _members(family: str) -> tuple[Character, ...]:
    return tuple(characters()[code] for code in families()[family])


@functools.cache
def corpus_faces(code: int) -> tuple[str, ...]:
    """Returns the names of the corpus faces that draw a character."""
    return tuple(name for name in faces_of(code) if faces.FACES[name].in_corpus)


def pair(index: int, seed: int = 0, difficulty: float = 1.0, page: int = 1) -> Pair:
    """Returns one image-text pair of the endless corpus.

    A family of n characters is drawn with weight n^0.65, its characters evenly, the face evenly among the corpus faces
    that draw the character. At difficulty 0 all images are black on white, centered, in two plain faces, under the
    full name. At 1 all corpus faces occur, half of the images have a rendering other than print, and captions vary.

    Args:
      index, seed, difficulty: the number of the pair, from 0; the seed of the corpus; from 0 to 1.
      page: number of consecutive pairs that share a family, as the pictures of a web page do; 1: independent pairs.
    """
    rng = stream("corpus", seed, index)
    names, cumulative = _family_weights()
    family_rng = rng if page == 1 else stream("corpus/page", seed, index // page)
    family = names[bisect.bisect_right(cumulative, family_rng.random() * cumulative[-1])]
    members = _members(family)
    character = pick(rng, members)
    drawn_by = corpus_faces(character.code)
    if rng.random() >= difficulty:
        drawn_by = tuple(name for name in drawn_by if name in _PLAIN_FACES) or drawn_by
    face = pick(rng, drawn_by)
    rendering = pick(rng, CORPUS_RENDERINGS[1:]) if rng.random() < 0.5 * difficulty else "print"
    appearance = draw_appearance(rng, face, rendering, jitter=difficulty)
    text, sort = caption(character, members, appearance, rng, difficulty)
    return Pair(text, sort, character, appearance)


def true_groups(indices: Iterable[int], seed: int = 0) -> tuple[list[str], list[str]]:
    """Returns the true themes and classes of pairs: an upper bound for clustering, never a method.

    Args:
      indices, seed: numbers of pairs, and the seed of the corpus.

    Returns:
      For each pair its character's family ("greek small letter", a theme) and short name ("alpha", a class).
    """
    drawn = [pair(index, seed).character for index in indices]
    return [character.family for character in drawn], [character.short for character in drawn]
