"""From named classes to a hierarchy: an order, visual domains, and the members' features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.tasks.clustering import BLOCK, SAMPLE, Computed, Watch, assign, group_sums, ignore, kmeans, one_thread
from gram_jax.tasks.hierarchy import Hierarchy
from gram_jax.tasks.naming import Grouping, normalize

_DOMAIN_MEMBERS = 3  # members for each visual domain that a class is split into


def assemble(
    grouping: Grouping,
    texts: Sequence[str],
    theme_texts: Sequence[str],
    image: Any,
    text: Any,
    domains: int,
    seed: int,
    about: Mapping[str, Any],
    *,
    token_rows: np.ndarray | None = None,
    sample: int = SAMPLE,
    watch: Watch = ignore,
) -> Hierarchy:
    """Numbers themes and classes in order, finds visual domains, and puts the hierarchy together.

    Args:
      grouping: pairs in classes, classes in themes.
      texts: of each class.
      theme_texts: of each theme.
      image: float `[pairs, embed_dim]`, read block by block.
      text: float `[pairs, embed_dim]`, likewise.
      domains: visual domains of a class, where it has three members for each; otherwise one.
      seed: of k-means.
      about: as for `Hierarchy`.
      token_rows: as for `Hierarchy`, in the order of `texts`.
      sample: most members of a class that k-means looks at.
      watch: told how many members have a domain.

    Returns:
      The `Hierarchy`; classes are sorted by theme and text, members by class and domain.
    """
    order = np.array(sorted(range(len(texts)), key=lambda i: (grouping.themes[i], texts[i], i)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    kept, themes = np.unique(grouping.themes[order], return_inverse=True)
    members = np.flatnonzero(grouping.classes >= 0)
    classes = rank[grouping.classes[members]]
    sort = np.argsort(classes, kind="stable")
    members, classes = members[sort], classes[sort]
    found = _domains(members, classes, len(order), image, domains, sample, seed, watch)
    sort = np.lexsort((members, found, classes))
    members, found = members[sort], found[sort]
    features = np.empty((len(members), image.shape[1]), np.float32)
    for start in range(0, len(members), BLOCK):
        features[start : start + BLOCK] = np.asarray(image[members[start : start + BLOCK]], np.float32).astype(
            np.float16
        )
    said = Computed((len(members), text.shape[1]), lambda key: text[members[key]])
    return Hierarchy(
        members=members.astype(np.int64),
        classes=classes.astype(np.int32),
        domains=found.astype(np.int32),
        themes=themes.astype(np.int32),
        texts=tuple(texts[i] for i in order),
        theme_texts=tuple(theme_texts[i] for i in kept),
        image_features=features,
        centroids=normalize(group_sums(classes, len(order), said)),
        about=about,
        token_rows=None if token_rows is None else token_rows[order],
    )


def _domains(
    members: np.ndarray,
    classes: np.ndarray,
    count: int,
    image: Any,
    domains: int,
    sample: int,
    seed: int,
    watch: Watch,
) -> np.ndarray:
    """The visual domain of each member; members are sorted by class."""
    found = np.zeros(len(members), np.int64)
    if domains == 1:
        return found
    watch("visual domains", 0, len(members))
    borders, least = np.searchsorted(classes, np.arange(count + 1)), _DOMAIN_MEMBERS * domains
    with one_thread():
        for first, last in _spans(borders):
            start, chosen = borders[first], members[borders[first] : borders[last]]
            features = Computed((len(chosen), image.shape[1]), lambda key, chosen=chosen: image[chosen[key]])
            if len(chosen) <= BLOCK:  # of many small classes at once
                features = np.asarray(features[:], np.float32)
            for number in range(first, last):
                here = slice(borders[number], borders[number + 1])
                if here.stop - here.start >= least:
                    own = features if last - first == 1 else features[here.start - start : here.stop - start]
                    found[here] = assign(own, kmeans(own, domains, seed=seed, sample=max(sample, least)))
                watch("visual domains", int(here.stop), len(members))
    return found


def _spans(borders: np.ndarray) -> Iterator[tuple[int, int]]:
    """Parts of a list of classes, first and behind the last: of few members, or a single class."""
    first = 0
    while first < len(borders) - 1:
        last = max(first + 1, int(np.searchsorted(borders, borders[first] + BLOCK, side="right")) - 1)
        yield first, last
        first = last
