"""Classes that are pairs of an attribute and an object: which pairs there are, which are seen, how they entangle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gram_jax.data.dataset import Dataset
from gram_jax.errors import InputError, examples, require_known, require_number

WORLDS = ("closed", "open")
_MOST_WEIGHT = 5.0  # of an image in `balance`, and the inverse of the least


@dataclasses.dataclass(frozen=True)
class Compositions:
    """A class list of pairs.

    Attributes:
      attributes, objects: names, the A attributes and the O objects.
      pairs: int32 `[P, 2]`, the attribute and the object of each pair.
      seen: bool `[P]`, whether a pair is trained on.
      listed: for the splits "val" and "test", bool `[P]`, whether a pair is in the list of the split. Such a list holds
        seen and unseen pairs.
    """

    attributes: tuple[str, ...]
    objects: tuple[str, ...]
    pairs: np.ndarray
    seen: np.ndarray
    listed: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        sizes = len(self.attributes), len(self.objects)
        pairs, count = np.asarray(self.pairs), len(self.pairs)
        if pairs.shape != (count, 2) or not count or np.any(pairs < 0) or np.any(pairs >= sizes):
            raise InputError(
                f"pairs are {list(pairs.shape)} from {pairs.min(initial=0)} to {pairs.max(initial=0)}; expected [pairs,"
                f" 2], an attribute below {sizes[0]} and an object below {sizes[1]}"
            )
        if len(np.unique(pairs, axis=0)) < count:
            raise InputError(f"{count - len(np.unique(pairs, axis=0))} pairs are given twice; give each pair once")
        for name, mask in {"seen": self.seen, **self.listed}.items():
            if np.shape(mask) != (count,) or np.asarray(mask).dtype != bool:
                raise InputError(f"{name} is {np.asarray(mask).dtype}{list(np.shape(mask))}; expected bool[{count}]")
        if not np.any(self.seen):
            raise InputError("no pair is seen; training needs at least one")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the pairs, "ATTRIBUTE OBJECT"."""
        return tuple(f"{self.attributes[a]} {self.objects[o]}" for a, o in self.pairs)

    def candidates(self, split: str, world: str = "closed") -> np.ndarray:
        """Returns the pairs that a classifier may answer, bool `[P]`.

        In the closed world these are the seen pairs and those that the list of the split names; in the open world all.

        Args:
          split, world: "val" or "test"; one of `WORLDS`.
        """
        require_known("split", split, self.listed)
        require_known("world", world, WORLDS)
        return self.seen | self.listed[split] if world == "closed" else np.ones(len(self.pairs), bool)

    def only(self, kept: np.ndarray) -> tuple[Compositions, np.ndarray]:
        """Returns the list of some pairs, and the place in it of each pair of this list, int64 `[P]`; -1 if left out.

        Args:
          kept: bool `[P]`.
        """
        listed = {split: mask[kept] for split, mask in self.listed.items()}
        some = dataclasses.replace(self, pairs=self.pairs[kept], seen=self.seen[kept], listed=listed)
        return some, np.where(kept, np.cumsum(kept) - 1, -1)

    def open_world(self) -> tuple[Compositions, np.ndarray]:
        """Returns the list of all A x O pairs, and the place in it of each pair of this list, int64 `[P]`.

        Example:
          >>> seen = np.array([True, True])
          >>> some = Compositions(("wet", "dry"), ("dog", "cat"), np.array([[0, 0], [1, 1]]), seen, {"test": ~seen})
          >>> every, places = some.open_world()
          >>> every.names, places.tolist(), every.seen.tolist()
          (('wet dog', 'wet cat', 'dry dog', 'dry cat'), [0, 3], [True, False, False, True])
        """
        count, places = len(self.attributes) * len(self.objects), self.pairs @ np.array([len(self.objects), 1])

        def spread(mask: np.ndarray) -> np.ndarray:
            wide = np.zeros(count, bool)
            wide[places] = mask
            return wide

        every = np.stack(np.divmod(np.arange(count), len(self.objects)), axis=1).astype(np.int32)
        listed = {split: spread(mask) for split, mask in self.listed.items()}
        return dataclasses.replace(self, pairs=every, seen=spread(self.seen), listed=listed), places


class PairDataset(NamedTuple):
    """Images that are labeled with pairs; the labels of the dataset index the pairs of the compositions."""

    dataset: Dataset
    compositions: Compositions


def require_pairs(data: PairDataset) -> None:
    """Raises InputError unless every split has images, and training images show seen pairs only."""
    dataset, compositions = data
    for split in ("train", "val", "test"):
        labels = dataset.labels[dataset.select(split)]
        allowed = compositions.seen if split == "train" else compositions.candidates(split)
        if wrong := sorted({compositions.names[label] for label in labels[~allowed[labels]]}):
            raise InputError(f"{dataset.name}: images of {split} show pairs outside its list: {examples(wrong)}")


class Entanglement(NamedTuple):
    """The information that the attribute of an image has about its object, in nats; 0 if they are independent.

    Attributes:
      attributes: `[A]`, KL( p(object | attribute) || p(object) ); NaN for an attribute without images.
      objects: `[O]`, KL( p(attribute | object) || p(attribute) ).
      shared: I(A; O) / min(H(A), H(O)), in [0, 1]: 1 if one of them determines the other.
    """

    attributes: np.ndarray
    objects: np.ndarray
    shared: float


def entanglement(counts: np.ndarray) -> Entanglement:
    """Returns the entanglement of attributes and objects in training images.

    Args:
      counts: the number of images of every pair, `[A, O]`, see `count_images`.

    Example:
      >>> entanglement(np.array([[4, 0], [0, 4]])).shared, entanglement(np.array([[2, 2], [2, 2]])).shared
      (1.0, 0.0)

    Reference:
      "DRPT: Disentangled and Recurrent Prompt Tuning for Compositional Zero-Shot Learning" names such a measure; its
      formula is not public, so this one is a reconstruction.
    """
    joint = np.asarray(counts, np.float64)
    if joint.ndim != 2 or not joint.sum() > 0 or np.any(joint < 0):
        raise InputError(f"counts of shape {list(joint.shape)} hold no images; give [attributes, objects]")
    joint = joint / joint.sum()
    by_attribute, by_object = joint.sum(1), joint.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint > 0, joint * np.log(joint / np.outer(by_attribute, by_object)), 0.0)
        entropies = [-np.sum(p[p > 0] * np.log(p[p > 0])) for p in (by_attribute, by_object)]
        shared = terms.sum() / min(entropies) if min(entropies) > 0 else 0.0
        return Entanglement(terms.sum(1) / by_attribute, terms.sum(0) / by_object, float(np.clip(shared, 0.0, 1.0)))


def count_images(compositions: Compositions, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the number of images of every pair, int64 `[A, O]`.

    Args:
      compositions, labels: the class list, and the pair of each image.
    """
    counts = np.zeros((len(compositions.attributes), len(compositions.objects)), np.int64)
    np.add.at(counts, tuple(compositions.pairs[np.asarray(labels)].T), 1)
    return counts


def balance(counts: np.ndarray, strength: float) -> np.ndarray:
    """Returns weights of images by their pair that undo entanglement, `[A, O]`, with mean 1 over the images.

        w(a, o) = clip( [p(a) p(o) / p(a, o)]^strength, 1/5, 5 ),    and 0 for a pair without images.

    At strength 1 and without the clip, attributes and objects of the seen pairs are weighted as if independent.

    Args:
      counts: the number of images of every pair, `[A, O]`.
      strength: 0 for equal weights, 1 for full balance.

    Example:
      >>> balance(np.array([[3, 1], [1, 3]]), 1.0).round(2).tolist()
      [[0.67, 2.0], [2.0, 0.67]]

    Reference:
      As for `entanglement`: a reconstruction.
    """
    require_number("strength", strength, least=0)
    joint = np.asarray(counts, np.float64) / np.sum(counts)
    ratio = np.divide(np.outer(joint.sum(1), joint.sum(0)), joint, out=np.ones_like(joint), where=joint > 0)
    weights = np.where(joint > 0, np.clip(ratio**strength, 1 / _MOST_WEIGHT, _MOST_WEIGHT), 0.0)
    return weights / np.sum(weights * joint)


def feasibility(attributes: np.ndarray, objects: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns how plausible each pair is, by what its parts resemble among the seen pairs; float64 `[A, O]`.

        f(a, o) = 1/2 [ max over o' with (a, o') seen of cos(o, o') + max over a' with (a', o) seen of cos(a, a') ]

    A part without a seen partner counts -1. Seen pairs have f = 1.

    Args:
      attributes, objects: a vector of each name, `[A, D]` and `[O, D]`, such as word vectors or text features.
      seen: bool `[A, O]`.

    Example:
      >>> seen = np.array([[True, False], [True, True]])
      >>> feasibility(np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]]), seen).round(2).tolist()
      [[1.0, 0.3], [1.0, 1.0]]

    Reference:
      "Open World Compositional Zero-Shot Learning", section 3.3. Public code gives seen pairs 0 and lets them pass by
      another mask.
    """

    def cosines(vectors: np.ndarray) -> np.ndarray:
        unit = np.asarray(vectors, np.float64)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        return unit @ unit.T

    seen = np.asarray(seen, bool)
    by_object, by_attribute = cosines(objects), cosines(attributes)
    of_objects = np.stack([by_object[:, row].max(1, initial=-1.0) for row in seen])  # [A, O]
    of_attributes = np.stack([by_attribute[:, column].max(1, initial=-1.0) for column in seen.T], axis=1)
    return np.where(seen, 1.0, (of_objects + of_attributes) / 2)
