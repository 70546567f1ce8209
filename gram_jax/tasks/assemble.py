"""Visual domains within classes, and the complete hierarchy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gram_jax.data.lazy import LazyRows
from gram_jax.tasks.classes import Grouping
from gram_jax.tasks.clustering import BLOCK, Report, assign, group_sums, kmeans, no_report, normalize, one_thread
from gram_jax.tasks.config import ClusteringConfig
from gram_jax.tasks.hierarchy import Hierarchy

_DOMAIN_MEMBERS = 3  # members for each visual domain that a class is split into


class Names(NamedTuple):
    """The texts of classes and themes; `token_rows` as in `Hierarchy`."""

    texts: Sequence[str]
    theme_texts: Sequence[str]
    token_rows: np.ndarray | None = None


def assemble(
    grouping: Grouping,
    names: Names,
    image: Any,
    text: Any,
    config: ClusteringConfig,
    about: Mapping[str, Any],
    report: Report = no_report,
) -> Hierarchy:
    """Finds visual domains and returns the hierarchy: classes sorted by theme and text, members by class and domain.

    Names are in the order of the grouping; features `[pairs, embed_dim]` are read block by block.
    """
    texts = names.texts
    order = np.array(sorted(range(len(texts)), key=lambda i: (grouping.themes[i], texts[i], i)))
    rank = np.argsort(order)
    kept, themes = np.unique(grouping.themes[order], return_inverse=True)
    members = np.flatnonzero(grouping.classes >= 0)
    classes = rank[grouping.classes[members]]
    sort = np.argsort(classes, kind="stable")
    members, classes = members[sort], classes[sort]
    domains = find_domains(members, classes, image, config, report)
    sort = np.lexsort((members, domains, classes))
    members, domains = members[sort], domains[sort]
    features = np.empty((len(members), image.shape[1]), np.float32)
    for begin in range(0, len(members), BLOCK):
        part = slice(begin, begin + BLOCK)
        features[part] = np.asarray(image[members[part]], np.float32).astype(np.float16)
    return Hierarchy(
        members=members.astype(np.int64),
        classes=classes.astype(np.int32),
        domains=domains.astype(np.int32),
        themes=themes.astype(np.int32),
        texts=tuple(texts[i] for i in order),
        theme_texts=tuple(names.theme_texts[i] for i in kept),
        image_features=features,
        centroids=normalize(group_sums(classes, len(order), _rows(text, members))),
        about=about,
        token_rows=None if names.token_rows is None else names.token_rows[order],
    )


def find_domains(
    members: np.ndarray, classes: np.ndarray, image: Any, config: ClusteringConfig, report: Report = no_report
) -> np.ndarray:
    """Returns the visual domain of each member, sorted by class: from 0 within each class, by k-means on images."""
    domains = np.zeros(len(members), np.int64)
    if config.domains == 1:
        return domains
    report("visual domains", 0, len(members))
    borders, least = np.searchsorted(classes, np.arange(classes.max() + 2)), _DOMAIN_MEMBERS * config.domains
    with one_thread():
        for first, last in _spans(borders):
            begin, chosen = borders[first], members[borders[first] : borders[last]]
            # Many small classes are read at once.
            features = np.asarray(image[chosen], np.float32) if len(chosen) <= BLOCK else _rows(image, chosen)
            for number in range(first, last):
                own_rows = slice(borders[number], borders[number + 1])
                if own_rows.stop - own_rows.start >= least:
                    own = features if last - first == 1 else features[own_rows.start - begin : own_rows.stop - begin]
                    centroids = kmeans(own, config.domains, seed=config.seed, sample=max(config.sample, least))
                    domains[own_rows] = assign(own, centroids)
                report("visual domains", int(own_rows.stop), len(members))
    return domains


def _rows(features: Any, pairs: np.ndarray) -> LazyRows:
    return LazyRows((len(pairs), features.shape[1]), lambda rows: features[pairs[rows]])


def _spans(borders: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields ranges of classes with few members together, or of a single class."""
    first = 0
    while first < len(borders) - 1:
        last = max(first + 1, int(np.searchsorted(borders, borders[first] + BLOCK, side="right")) - 1)
        yield first, last
        first = last
