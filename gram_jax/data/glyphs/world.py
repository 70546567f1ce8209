"""Draws from the embedded world: image-text pairs of the corpus and labeled images of the datasets.

Every draw is a pure function of (stream, seed, index). What the streams share: the characters, the corpus faces and
the corpus renderings. What they never share: random draws (the stream's name is part of every draw's seed, so no
rendering of one stream comes back in another), and the unseen faces and unseen renderings, which appear in labeled
draws alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools

import numpy as np

from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.alphabet import Character, characters, faces_of, kinds
from gram_jax.data.glyphs.appearance import CORPUS_RENDERINGS, RENDERINGS, Look, draw_look
from gram_jax.data.glyphs.captions import caption
from gram_jax.data.glyphs.datasets import GlyphDataset
from gram_jax.data.glyphs.drawing import render
from gram_jax.data.streams import stream
from gram_jax.errors import InputError

SPLIT_SIZES = {"train": 32, "val": 8, "test": 20}  # images of each class
_PLAIN_FACES = ("sans", "serif")
_KIND_POWER = 0.65  # a kind of n characters is drawn with weight n ** _KIND_POWER


@dataclasses.dataclass(frozen=True)
class Pair:
    """One image-text pair of the corpus, with what made it (which no learner may look at).

    Attributes:
      caption: the text.
      sort: "full", "partial", "short", "unnamed" or "wrong".
      character: what the image shows.
      look: how it shows it.
    """

    caption: str
    sort: str
    character: Character
    look: Look

    @property
    def image(self) -> np.ndarray:
        """The image, uint8 ``[32, 32, 3]``, drawn anew at every access."""
        return render(self.character, self.look)


@functools.cache
def _kind_weights() -> tuple[tuple[str, ...], tuple[float, ...]]:
    names = tuple(kinds())
    weights = [len(codes) ** _KIND_POWER for codes in kinds().values()]
    return names, tuple(itertools.accumulate(weights))


@functools.cache
def _corpus_faces(code: int) -> tuple[str, ...]:
    return tuple(name for name in faces_of(code) if faces.FACES[name].in_corpus)


@functools.cache
def _of_kind(kind: str) -> tuple[Character, ...]:
    return tuple(characters()[code] for code in kinds()[kind])


def pair(index: int, seed: int = 0, difficulty: float = 1.0, page: int = 1) -> Pair:
    """One image-text pair of the endless corpus.

    Kinds are drawn with weight n^0.65 (n characters), characters of a kind evenly, faces evenly among the corpus faces
    that draw the character. Difficulty 0 is black on white, centered, in two plain faces, under the full name; 1 is the
    corpus proper: all corpus faces, half of the images in other renderings than plain print, captions as
    ``captions`` states.

    Args:
      index: the number of the pair, from 0.
      seed: the seed of the corpus.
      difficulty: from 0 to 1.
      page: so many pairs in a row are of one kind, as the pictures of a web page are; 1 for independent pairs.

    Returns:
      A ``Pair``.

    Example:
      >>> pair(7).image.dtype, pair(7).caption == pair(7).caption
      (dtype('uint8'), True)

    Reference:
      Our own choice.
    """
    rng = stream("corpus", seed, index)
    names, cumulative = _kind_weights()
    of_kind = rng if page == 1 else stream("corpus/page", seed, index // page)
    kind = names[bisect.bisect_right(cumulative, of_kind.random() * cumulative[-1])]
    members = _of_kind(kind)
    character = members[int(rng.random() * len(members))]
    drawn_by = _corpus_faces(character.code)
    if rng.random() >= difficulty:
        drawn_by = tuple(name for name in drawn_by if name in _PLAIN_FACES) or drawn_by
    face = drawn_by[int(rng.random() * len(drawn_by))]
    rendering = "print"
    if rng.random() < 0.5 * difficulty:
        rendering = CORPUS_RENDERINGS[1 + int(rng.random() * (len(CORPUS_RENDERINGS) - 1))]
    look = draw_look(rng, face, rendering, jitter=difficulty)
    text, sort = caption(character, members, look, rng, difficulty)
    return Pair(text, sort, character, look)


def split_domain(dataset: GlyphDataset, domain: str) -> tuple[str, str]:
    """The face and the rendering that a domain's name stands for.

    Args:
      dataset: the dataset, whose faces decide which domains it has.
      domain: "" (corpus faces, print), a face ("serif-italic"), a rendering ("noise"), both ("serif-italic+noise"), or
        the path of a font file ("/path/to/any.ttf", "/path/to/any.ttf+noise").

    Returns:
      ``(face, rendering)``; the face is "" where the corpus faces take turns.

    Raises:
      InputError: for a name that is no domain of the dataset; the message lists those it has.
      FontError: for a font file that is missing, broken, or lacks a character of the dataset.

    Example:
      >>> from gram_jax.data.glyphs.datasets import catalog
      >>> split_domain(catalog("chess"), "mono+noise")
      ('mono', 'noise')

    Reference:
      Our own choice.
    """
    face, rendering = "", "print"
    for part in filter(None, domain.split("+")):
        if part in RENDERINGS:
            rendering = part
        elif part in dataset.faces:
            face = part
        elif "/" in part:
            face = part
            drawn = faces.coverage(faces.font_path(faces.face_from_file(part)))
            lacking = [
                name for name, codes in zip(dataset.class_names, dataset.codes, strict=True) if not drawn & set(codes)
            ]
            if lacking:
                raise faces.FontError(
                    f"the font {part!r} lacks {len(lacking)} of the {len(dataset.codes)} classes of {dataset.name!r} "
                    f"({', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}); choose another font or dataset"
                )
        else:
            raise InputError(
                f"{part!r} is no domain of the glyph dataset {dataset.name!r}; its domains are the faces "
                f"{', '.join(dataset.faces)}, the renderings {', '.join(RENDERINGS)}, face+rendering, or a font's path"
            )
    return face, rendering


def domain_name(domain: str) -> str:
    """A domain as results name it and as its draws are seeded: of a font file its name alone, wherever it lies.

    Args:
      domain: see ``split_domain``.

    Returns:
      The name.

    Example:
      >>> domain_name("/usr/share/fonts/any.ttf+noise"), domain_name("serif-italic")
      ('any.ttf+noise', 'serif-italic')

    Reference:
      Our own choice.
    """
    return "+".join(part.rpartition("/")[2] for part in domain.split("+"))


def unseen_domains(dataset: GlyphDataset) -> tuple[str, ...]:
    """The domains of a dataset that no corpus contains: unseen faces first, then unseen renderings.

    Args:
      dataset: the dataset.

    Returns:
      Names of domains.

    Example:
      >>> from gram_jax.data.glyphs.datasets import catalog
      >>> unseen_domains(catalog("chess"))[:2]
      ('sans-bold-oblique', 'mono-bold')

    Reference:
      Our own choice.
    """
    unseen_faces = tuple(name for name in dataset.faces if not faces.FACES[name].in_corpus)
    return unseen_faces + tuple(name for name in RENDERINGS if name not in CORPUS_RENDERINGS)


def example(dataset: GlyphDataset, domain: str, split: str, label: int, number: int, seed: int = 0) -> np.ndarray:
    """One labeled image; a pure function of its arguments.

    Args:
      dataset: the dataset.
      domain: see ``split_domain``.
      split: "train", "val" or "test", each a stream of its own.
      label: the class, from 0.
      number: which image of the class, from 0.
      seed: the seed of the dataset.

    Returns:
      uint8 ``[32, 32, 3]``.

    Example:
      >>> from gram_jax.data.glyphs.datasets import catalog
      >>> example(catalog("greek_small"), "negative", "test", 3, 0).shape
      (32, 32, 3)

    Reference:
      Our own choice.
    """
    face, rendering = split_domain(dataset, domain)
    rng = stream(f"{dataset.name}/{domain_name(domain)}/{split}/{label}", seed, number)
    codes = dataset.codes[label]
    if face in faces.FACES:
        codes = tuple(code for code in codes if face in faces_of(code))
    elif face:
        drawn = faces.coverage(face)
        codes = tuple(code for code in codes if code in drawn)
    character = characters()[codes[int(rng.random() * len(codes))]]
    drawn_by = (face,) if face else _corpus_faces(character.code)
    look = draw_look(rng, drawn_by[int(rng.random() * len(drawn_by))], rendering)
    return render(character, look)
