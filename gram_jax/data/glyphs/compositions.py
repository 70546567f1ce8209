"""The glyph benchmark as pairs: an attribute is a typeface or a rendering, an object is a character."""

from __future__ import annotations

import random

import numpy as np

from gram_jax.data.compositions import Compositions, PairDataset, require_pairs
from gram_jax.data.dataset import Dataset
from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.appearance import RENDERINGS
from gram_jax.data.glyphs.datasets import GlyphDataset, catalog
from gram_jax.data.glyphs.examples import example
from gram_jax.data.streams import stream
from gram_jax.errors import InputError, require_known

KINDS = ("renderings", "faces")
OBJECTS = 12
SEEN_SHARE, VAL_SHARE = 0.45, 0.2  # of all pairs; test has the rest
TRAIN_SIZES = (4, 8, 16, 32)  # images of a seen pair, one of these
IMAGES = {"val": 6, "test": 12}  # of each pair in the list of the split
TEMPLATE = "a photo of {}"
# Words of captions for the renderings that corpora contain (see `captions`); the others are named by themselves.
_WORDS = {"print": "printed", "noise": "noisy", "blur": "blurred", "faint": "faded"}


def attributes_of(dataset: GlyphDataset, kind: str) -> dict[str, str]:
    """Returns the domain of each attribute by its name, such as {"bold serif": "serif-bold"}.

    Args:
      dataset: the dataset whose classes are the objects.
      kind: "renderings", all of them: six occur in the corpus with their names, five do not, so that the mini CLIP does
        not know what their names look like; "faces", the typefaces of the corpus that draw every class.
    """
    require_known("kind of attributes", kind, KINDS)
    if kind == "renderings":
        return {_WORDS.get(rendering, rendering): rendering for rendering in RENDERINGS}
    own = (faces.FACES[name] for name in dataset.faces)
    return {face.words[0]: face.name for face in own if face.in_corpus}


def split_spec(rest: str) -> tuple[str, str]:
    """Splits "NAME" or "NAME:KIND"; KIND is "renderings" if it is not given."""
    name, _, kind = rest.partition(":")
    return name, kind or "renderings"


def labeled_pairs(name: str, kind: str = "renderings", seed: int = 0) -> PairDataset:
    """Returns pairs of attributes and characters; images are drawn when they are read.

    The objects are the first twelve classes of a dataset. The seed decides which pairs are seen (45 %, every attribute
    and every object among them), which unseen ones are in the list of val (a fifth of all pairs are unseen in val) and
    which in that of test (the rest), and how many training images a seen pair has: 4, 8, 16 or 32, so that attributes
    and objects are entangled. Both lists hold seen pairs, too. The images of a pair are the same for every seed.

    Args:
      name, kind: one of `datasets.NAMES`, and of `KINDS`.
      seed: the seed of the division.

    Example:
      >>> dataset, pairs = labeled_pairs("greek_small", "renderings")
      >>> pairs.attributes[:3], pairs.objects[:2], int(pairs.seen.sum()), len(pairs.pairs)
      (('printed', 'negative', 'color'), ('alpha', 'beta'), 59, 132)
    """
    source = catalog(name)
    domains, objects = attributes_of(source, kind), source.class_names[:OBJECTS]
    if len(domains) < 2 or len(objects) < 2:
        raise InputError(f"glyphs:{name}:{kind} has {len(domains)} attributes; choose renderings")
    compositions = _divide(tuple(domains), objects, stream(f"pairs/{name}/{kind}", seed, 0))
    rng, references = stream(f"pairs/{name}/{kind}/images", seed, 0), []
    for label in np.flatnonzero(compositions.seen).tolist():
        size = TRAIN_SIZES[int(rng.random() * len(TRAIN_SIZES))]
        references += [("train", label, number) for number in range(size)]
    for split, size in IMAGES.items():
        labels = np.flatnonzero(compositions.listed[split]).tolist()
        references += [(split, label, number) for label in labels for number in range(size)]
    drawn = list(domains.values())

    def read(reference: tuple[str, int, int]) -> np.ndarray:
        split, label, number = reference
        attribute, object_ = compositions.pairs[label].tolist()
        return example(source, drawn[attribute], split, object_, number)

    dataset = Dataset(
        name=f"glyphs:{name}:{kind}",
        references=tuple(references),
        labels=np.array([label for _, label, _ in references], np.int32),
        splits=np.array([split for split, _, _ in references]),
        class_names=compositions.names,
        template=TEMPLATE,
        read=read,
        seed=seed,
    )
    found = PairDataset(dataset, compositions)
    require_pairs(found)
    return found


def _divide(attributes: tuple[str, ...], objects: tuple[str, ...], rng: random.Random) -> Compositions:
    """Draws the seen pairs, and the lists of val and test; all numbers depend on the numbers of names alone."""
    every = [(a, o) for a in range(len(attributes)) for o in range(len(objects))]
    count = len(every)
    num_seen, num_val = round(SEEN_SHARE * count), round(VAL_SHARE * count)
    order = _covering(every, rng)
    seen, unseen = order[:num_seen], order[num_seen:]
    rng.shuffle(unseen)
    again = list(seen)
    rng.shuffle(again)  # as many seen as unseen pairs, different ones in val and in test
    num_test = min(count - num_seen - num_val, num_seen - num_val)
    lists = {
        "val": {*unseen[:num_val], *again[:num_val]},
        "test": {*unseen[num_val:], *again[num_val : num_val + num_test]},
    }
    listed = {split: np.array([pair in pairs for pair in every]) for split, pairs in lists.items()}
    held = set(seen)
    return Compositions(
        attributes, objects, np.array(every, np.int32), np.array([pair in held for pair in every]), listed
    )


def _covering(every: list[tuple[int, int]], rng: random.Random) -> list[tuple[int, int]]:
    """Returns all pairs in random order, but first those that name an attribute or an object for the first time."""
    order = list(every)
    rng.shuffle(order)
    used: set[tuple[int, int]] = set()
    first: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    for pair in order:
        names = set(enumerate(pair))
        (rest if names <= used else first).append(pair)
        used |= names
    return first + rest
