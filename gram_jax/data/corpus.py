"""Corpora: unlabeled image-text pairs, the only data of meta-learning."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from gram_jax.data.dataset import Images
from gram_jax.errors import InputError, require_int
from gram_jax.summary import short_repr


@dataclasses.dataclass(frozen=True)
class Corpus(Images):
    """Image-text pairs by reference, without labels; ``corpus[3]`` reads image 3.

    Attributes:
      name: its specification, for example "glyphs".
      captions: one text for each pair.
      references: one JSON value for each pair.
      read: turns a reference into an image that ``Clip.preprocess`` accepts.

    Example:
      >>> corpus = Corpus("toy", ("a cat", "a dog"), (3, 5), lambda reference: f"image {reference}")
      >>> len(corpus), corpus.images([1])
      (2, ['image 5'])
    """

    name: str
    captions: tuple[str, ...]
    references: tuple[Any, ...]
    read: Callable[[Any], Any]

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.references):
            raise InputError(
                f"corpus {self.name!r} has {len(self.captions)} captions and {len(self.references)} references; give "
                "one of each for every pair"
            )

    @property
    def content_hash(self) -> str:
        """The SHA-256 over name, references and captions; results refer to it."""
        content = [self.name, list(self.references), list(self.captions)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Prepared(Corpus):
    """The first pairs of a prepared corpus, which was hashed when it was written."""

    manifest_hash: str = ""

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(json.dumps([self.manifest_hash, len(self)]).encode()).hexdigest()


def load_corpus(spec: str = "glyphs", *, pairs: int = 20000, seed: int = 0) -> Corpus:
    """Returns the corpus that a specification names; its images are drawn or decoded when they are read.

    References to a prepared corpus are the numbers of its records; its location does not change the content hash.

    Args:
      spec: "glyphs", the corpus of the glyph benchmark; or "array_record:FOLDER", a corpus that
        experiments.prepare_corpus wrote.
      pairs: the number of pairs, at least 1; for a prepared corpus, its first pairs, or 0 for all of them.
      seed: the seed of a drawn corpus.

    Example:
      >>> corpus = load_corpus("glyphs", pairs=3)
      >>> len(corpus), corpus[2].shape
      (3, (32, 32, 3))
    """
    from gram_jax.data import glyphs

    prefix, separator, folder = spec.partition(":")
    if prefix == "array_record" and separator:
        return _load_prepared(folder, pairs)
    if spec != "glyphs":
        raise InputError(
            f"the corpus {spec!r} is unknown; give glyphs or array_record:FOLDER (experiments.prepare_corpus writes "
            "one from your own pairs)"
        )
    require_int("pairs", pairs)
    captions = tuple(glyphs.pair(index, seed).caption for index in range(pairs))
    return Corpus("glyphs", captions, tuple(range(pairs)), lambda index: glyphs.pair(index, seed).image)


def _load_prepared(folder: str, pairs: int) -> Corpus:
    from gram_jax.data.pairs import prepared

    manifest = prepared.read_manifest(folder)
    count = pairs or manifest.pairs
    if not 1 <= count <= manifest.pairs:
        raise InputError(f"pairs={pairs}: the corpus in {folder} has {manifest.pairs}; give up to this, or 0 for all")
    captions = prepared.read_captions(folder, count)
    name = f"array_record:{os.path.abspath(os.path.expanduser(folder))}"
    return _Prepared(name, captions, tuple(range(count)), prepared.image_reader(folder), manifest.content_hash)
