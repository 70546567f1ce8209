"""A corpus: unlabeled image-text pairs, which is all that meta-learning gets to see."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from gram_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Image-text pairs by reference, without any label.

    Attributes:
      name: the name it was asked for by, for example "glyphs".
      captions: one text a pair.
      references: one entry a pair: whatever ``read`` understands, JSON values.
      read: turns a reference into an image that ``Clip.preprocess`` takes.

    Example:
      >>> corpus = Corpus("toy", ("a cat", "a dog"), (3, 5), lambda reference: f"image {reference}")
      >>> len(corpus), corpus.images([1])
      (2, ['image 5'])
    """

    name: str
    captions: tuple[str, ...]
    references: tuple[Any, ...]
    read: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.references):
            raise InputError(
                f"corpus {self.name!r} has {len(self.captions)} captions and {len(self.references)} references; give "
                "one of each for every pair"
            )

    def __len__(self) -> int:
        return len(self.references)

    def images(self, positions: Sequence[int]) -> list[Any]:
        """Reads the images at the given positions."""
        return [self.read(self.references[position]) for position in positions]

    @property
    def content_hash(self) -> str:
        """SHA-256 over name, references and captions: what a result must be traced to."""
        content = [self.name, list(self.references), list(self.captions)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Prepared(Corpus):
    """The first pairs of a prepared corpus, whose content was hashed when it was written."""

    manifest_hash: str = ""

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(json.dumps([self.manifest_hash, len(self)]).encode()).hexdigest()


def load_corpus(spec: str = "glyphs", *, pairs: int = 20000, seed: int = 0) -> Corpus:
    """Opens the corpus that a specification names.

    Args:
      spec: "glyphs", the embedded world; or "array_record:FOLDER", a dataset that experiments.prepare_corpus wrote.
      pairs: how many pairs, at least 1; of a prepared corpus the first ones, 0 for all of them.
      seed: the seed of a corpus that is drawn.

    Returns:
      A ``Corpus``; images are drawn or decoded when they are read. References to a prepared corpus are the numbers of
      its records; where it lies does not change its content hash.

    Raises:
      InputError: for an unknown specification, fewer than one pair, or more pairs than there are.
      FileNotFoundError: where there is no prepared corpus.

    Example:
      >>> corpus = load_corpus("glyphs", pairs=3)
      >>> len(corpus), corpus.images([2])[0].shape
      (3, (32, 32, 3))

    Reference:
      Our own choice.
    """
    from gram_jax.data import glyphs

    kind, separator, folder = spec.partition(":")
    if kind == "array_record" and separator:
        return _load_prepared(folder, pairs)
    if spec != "glyphs":
        raise InputError(
            f"the corpus {spec!r} is not known; the corpora are: glyphs, array_record:FOLDER (make one of your own "
            "pairs with experiments.prepare_corpus)"
        )
    if pairs < 1:
        raise InputError(f"a corpus of {pairs} pairs is empty; ask for at least 1")
    captions = tuple(glyphs.pair(index, seed).caption for index in range(pairs))
    return Corpus("glyphs", captions, tuple(range(pairs)), lambda index: glyphs.pair(index, seed).image)


def _load_prepared(folder: str, pairs: int) -> Corpus:
    from gram_jax.data.pairs import prepared as pair_dataset

    manifest = pair_dataset.read_manifest(folder)
    count = pairs or manifest.pairs
    if not 1 <= count <= manifest.pairs:
        raise InputError(f"the corpus in {folder} has {manifest.pairs} pairs, not {pairs}; 0 stands for all of them")
    captions = pair_dataset.read_captions(folder, count)
    name = f"array_record:{os.path.abspath(os.path.expanduser(folder))}"
    read = pair_dataset.image_reader(folder)
    return _Prepared(name, captions, tuple(range(count)), read, manifest.content_hash)
