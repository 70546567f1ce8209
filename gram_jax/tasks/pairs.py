"""Pairs of an attribute and an object from a hierarchy: the attributes are the appearance words that images confirm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gram_jax.errors import InputError, require_number
from gram_jax.tasks.clustering import group_sums, normalize
from gram_jax.tasks.hierarchy import Hierarchy
from gram_jax.tasks.phrases import Terms, find_vocabulary, number_words, rarest, words


class Attributes(NamedTuple):
    """The attributes of a corpus.

    Attributes:
      names: the word of each attribute, the most frequent one of its group.
      words: the appearance words of each attribute, which images do not tell apart.
      of_member: int64 `[members]`, the attribute of each member; -1 without one.
    """

    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    of_member: np.ndarray


def find_attributes(
    hierarchy: Hierarchy, captions: Sequence[str], *, least: float = 0.05, alike: float = 0.8
) -> Attributes:
    """Returns the attributes: appearance words of captions that images confirm; words that look alike are one.

    With d_i = f_i - mean of f over the class of member i, an appearance word w of n captions is confirmed if the mean
    cosine of two of its members, relative to all members, is large:

        ( |sum_i d_i|^2 / mean |d|^2 - n ) / (n (n - 1))  >=  least

    Words such as "picture" say nothing about an image: there it is about 0. From the most frequent word on, a word
    joins the attribute whose first word has a mean deviation with a cosine of at least `alike`; otherwise it begins
    one. A member has the rarest attribute that its caption names.

    Args:
      hierarchy: the classes, and the image features f of their members.
      captions: the caption of each member, in the order of `hierarchy.members`.
      least, alike: as described.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> rng, shown = np.random.default_rng(0), np.repeat([0, 1], 120)
      >>> names = np.tile(["alpha", "beta", "gamma"], 80)
      >>> features = np.eye(8)[6 + shown] + 0.1 * rng.standard_normal((240, 8))
      >>> h = from_groups(["letter"] * 240, names, features, features)
      >>> find_attributes(h, [f"a {('red', 'noisy')[shown[i]]} {names[i]}" for i in h.members]).names
      ('noisy', 'red')
    """
    from scipy.sparse import csr_array

    require_number("least", least, above=0)
    require_number("alike", alike, above=0)
    if len(captions) != len(hierarchy.members):
        raise InputError(f"{len(captions)} captions of {len(hierarchy.members)} members; give one of each member")
    vocabulary = find_vocabulary(number_words(map(words, captions)))
    columns = np.flatnonzero(~vocabulary.informative)
    matrix = vocabulary.matrix[:, columns].tocsr()
    sizes = np.bincount(hierarchy.classes)[:, None]
    means = group_sums(hierarchy.classes, len(sizes), hierarchy.image_features) / sizes
    deviations = hierarchy.image_features - means[hierarchy.classes]
    sums, counts = matrix.T @ deviations, np.asarray(matrix.sum(0)).ravel()
    scale = np.mean(np.sum(deviations**2, axis=1))
    confirmed = (np.sum(sums**2, axis=1) / scale - counts) / np.maximum(counts * (counts - 1), 1) >= least
    groups: list[list[int]] = []
    for column in sorted(np.flatnonzero(confirmed).tolist(), key=lambda column: -counts[column]):
        fits = (group for group in groups if _cosine(sums[group[0]], sums[column]) >= alike)
        found = next(fits, None)
        if found is None:
            groups.append([column])
        else:
            found.append(column)
    names = [[vocabulary.names[columns[column]] for column in group] for group in groups]
    if not groups:
        return Attributes((), (), np.full(len(captions), -1))
    member = np.stack([matrix[:, group].max(axis=1).toarray().ravel() for group in groups], axis=1)
    own = rarest(Terms(csr_array(member), tuple(group[0] for group in names)))
    return Attributes(tuple(group[0] for group in names), tuple(map(tuple, names)), own)


def pair_hierarchy(hierarchy: Hierarchy, captions: Sequence[str]) -> Hierarchy:
    """Returns the hierarchy whose classes are the pairs of an attribute and a class, "ATTRIBUTE NAME".

    A class is divided by the attributes of its members (`find_attributes`); members without one are left out. Themes,
    visual domains and images remain; the centroid of a pair is that of its class. `about` names the attributes with
    their words, and the number of members that are left out.

    Args:
      hierarchy, captions: as in `find_attributes`.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> rng, looks = np.random.default_rng(0), np.eye(8)[[6, 7]]
      >>> names, shown = np.tile(["alpha", "beta", "gamma"], 80), np.repeat([0, 1], 120)
      >>> captions = [f"a {('red', 'noisy')[look]} {name}" for name, look in zip(names, shown)]
      >>> features = looks[shown] + 0.1 * rng.standard_normal((240, 8))
      >>> h = from_groups(["letter"] * 240, names, features, features)
      >>> pairs = pair_hierarchy(h, [captions[member] for member in h.members])
      >>> pairs.texts[:3], len(pairs.members)
      (('noisy alpha', 'noisy beta', 'noisy gamma'), 240)
    """
    if hierarchy.token_rows is not None:
        raise InputError("classes named by token embeddings have no words; build the tasks with --class_text=keyword")
    attributes = find_attributes(hierarchy, captions)
    kept = np.flatnonzero(attributes.of_member >= 0)
    if not len(kept):
        raise InputError("no caption has an appearance word that images confirm; tasks of pairs need such words")
    h, pairs = hierarchy, np.stack([hierarchy.classes[kept], attributes.of_member[kept]], axis=1)
    made, own = np.unique(pairs, axis=0, return_inverse=True)
    texts = [f"{attributes.names[attribute]} {h.texts[number]}" for number, attribute in made.tolist()]
    order = np.array(sorted(range(len(made)), key=lambda pair: (h.themes[made[pair, 0]], texts[pair], pair)))
    classes = np.argsort(order)[own.reshape(-1)]
    sort = np.lexsort((h.members[kept], h.domains[kept], classes))
    rows, named = kept[sort], made[order, 0]
    told = {name: list(each) for name, each in zip(attributes.names, attributes.words, strict=True)}
    return Hierarchy(
        members=h.members[rows],
        classes=classes[sort].astype(np.int32),
        domains=h.domains[rows],
        themes=h.themes[named],
        texts=tuple(texts[pair] for pair in order),
        theme_texts=h.theme_texts,
        image_features=h.image_features[rows],
        centroids=h.centroids[named],
        about={**h.about, "attributes": told, "without attribute": len(h.members) - len(kept)},
    )


def split_names(texts: Sequence[str]) -> np.ndarray:
    """Returns the attribute and the object of each text "ATTRIBUTE OBJECT" as numbers, int64 `[texts, 2]`."""
    parts = [text.partition(" ")[::2] for text in texts]
    return np.stack([np.unique(side, return_inverse=True)[1] for side in zip(*parts, strict=True)], axis=1)


def draw_pairs(
    rng: np.random.Generator, pool: np.ndarray, pairs: np.ndarray, ways: int, held: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draws classes to adapt to, and other pairs of the same attributes and objects; None if it does not find them.

    From a random order of the pool, a pair is held out if its attribute and its object occur in two other pairs that
    are not held out; these two are adapted to. Random pairs of the pool fill up the classes.

    Args:
      rng: the source of the draw.
      pool: int `[n]`, the classes of a theme.
      pairs: int `[classes, 2]`, the attribute and the object of each class.
      ways, held: the number of classes to adapt to, and of those that are held out.

    Returns:
      int `[ways]` and `[held]`, or None.
    """
    order = rng.permutation(pool).tolist()
    support: dict[int, None] = {}
    out: dict[int, None] = {}
    for candidate in order:
        if len(out) == held or candidate in support:
            continue
        chosen = []
        for side in (0, 1):
            same = [each for each in order if pairs[each, side] == pairs[candidate, side] and each != candidate]
            free = [each for each in same if each in support] or [each for each in same if each not in out]
            chosen += free[:1]
        added = {each for each in chosen if each not in support}
        if len(chosen) == 2 and len(support) + len(added) <= ways:
            support.update(dict.fromkeys(chosen))
            out[candidate] = None
    rest = [each for each in order if each not in support and each not in out]
    support.update(dict.fromkeys(rest[: ways - len(support)]))
    if len(out) < held or len(support) < ways:
        return None
    return rng.permutation(np.array([*support])), np.array([*out])


def _cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(normalize(one[None])[0] @ normalize(two[None])[0])
