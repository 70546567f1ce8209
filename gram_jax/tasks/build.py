"""The pipeline from embedded image-text pairs to a hierarchy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.clip import Clip
from gram_jax.errors import InputError
from gram_jax.tasks.assemble import Names, assemble
from gram_jax.tasks.classes import Grouping, classes_by_name, drop_small, find_classes, keep_agreeing, shuffle
from gram_jax.tasks.clustering import Report, no_report, sliceable
from gram_jax.tasks.config import SAMPLE, ClusteringConfig
from gram_jax.tasks.hierarchy import Hierarchy
from gram_jax.tasks.naming import name_by_medoid, name_by_phrase, theme_titles, token_means
from gram_jax.tasks.phrases import find_vocabulary, number_words, words
from gram_jax.tasks.themes import find_themes, small_clusters

_PAIRS_PER_CLASS = 12
_MOST_CLUSTERS = 1700


def build_hierarchy(
    captions: Sequence[str],
    image_features: Any,
    text_features: Any,
    config: ClusteringConfig | None = None,
    *,
    clip: Clip | None = None,
    about: Mapping[str, Any] | None = None,
    report: Report = no_report,
) -> Hierarchy:
    """Builds a hierarchy of unlabeled image-text pairs by cross-modal hierarchical clustering.

    1. `appearance_words`: words that occur with any rare word ("a photo", "in bold") describe the appearance, and
       neither themes nor classes.
    2. k-means on [text, image] features finds many small clusters. k-means on the words that many of them share, in a
       pair's caption and in its cluster, and on the cluster's mean text feature finds themes.
    3. Classes within a theme. With class_text "keyword", a class is the part of captions that is neither theme nor
       appearance (`classes_by_name`), and only pairs with agreeing images remain (`keep_agreeing`). Otherwise k-means
       on [text, image, informative words] finds classes, and each class gets a text.
    4. k-means on image features within a class finds visual domains.

    Centroids are searched among a sample of the pairs; then every pair is assigned to the nearest one. Features are
    read block by block and may be larger than memory; the hierarchy stores the members' image features.

    Args:
      captions, image_features, text_features: N texts, and their frozen, normalized features, float `[N, embed_dim]`:
        arrays, memory maps, or `LazyRows`.
      config: the settings; default: `ClusteringConfig()`.
      clip: the clip of the features, with its tokenizer; required for class_text "medoid" and "centroid".
      about: the origin of pairs and features, JSON values; stored with the settings in `Hierarchy.about`.
      report: called with the running part, the finished pairs, and their total (0 if unknown).

    Returns:
      The `Hierarchy`; classes are sorted by theme and text, members by class and domain.

    Example:
      >>> names = ["cat", "dog", "fish", "alpha", "beta", "gamma"]
      >>> number = np.repeat(np.arange(6), 20)
      >>> captions = [f"a {('pet', 'letter')[i // 3]}, the {names[i]}" for i in number]
      >>> features = np.eye(8, dtype=np.float32)[number]
      >>> h = build_hierarchy(captions, features, features, ClusteringConfig(themes=2, classes=40, domains=1))
      >>> sorted(h.texts), len(h.theme_texts)
      (['alpha', 'beta', 'cat', 'dog', 'fish', 'gamma'], 2)

    Reference:
      Cross-modal hierarchical clustering: "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language
      Models", whose public text leaves its steps open.
    """
    config = config or ClusteringConfig()
    image, text = _check(captions, image_features, text_features)
    if config.classes > len(captions):
        raise InputError(f"classes={config.classes} of {len(captions)} pairs; search fewer classes, or use more pairs")
    if config.class_text != "keyword" and (clip is None or clip.tokenizer is None):
        raise InputError(f"class_text={config.class_text!r} needs the clip of the features, with its tokenizer")
    classes = config.classes or max(2, len(captions) // _PAIRS_PER_CLASS)
    search: dict[str, Any] = {"seed": config.seed, "sample": config.sample, "report": report}
    report("words", 0, len(captions))
    caption_words = number_words(map(words, captions))
    report("words", len(captions), len(captions))
    vocabulary = find_vocabulary(caption_words)
    clusters = small_clusters(text, image, min(_MOST_CLUSTERS, max(1, classes // 2), config.sample), **search)
    theme_of_pair = find_themes(clusters, vocabulary, text, config.themes, **search)
    if config.class_text == "keyword":
        grouping, found = classes_by_name(caption_words, vocabulary, theme_of_pair, config.min_members)
        grouping = keep_agreeing(grouping, image, config.min_members, report=report)
    else:
        grouping, found = find_classes(theme_of_pair, vocabulary, text, image, classes, **search), None
    grouping, kept = drop_small(grouping, config.min_members)
    if config.method == "random":
        grouping, found = shuffle(grouping, config.seed), None
    rows = None
    if config.class_text == "medoid":
        assert clip is not None
        texts = name_by_medoid(grouping, captions, text, clip)
    elif config.class_text == "centroid":
        assert clip is not None
        texts = [f"<class {number}>" for number in range(len(grouping.themes))]
        rows = token_means(grouping, vocabulary, clip)
    elif found is None:
        texts = name_by_phrase(grouping, caption_words, vocabulary.appearance)
    else:
        texts = [found[number] for number in kept]
    names = Names(texts, theme_titles(grouping, vocabulary), rows)
    return assemble(grouping, names, image, text, config, {**(about or {}), **config.about(len(captions))}, report)


def from_groups(
    themes: Sequence[str],
    classes: Sequence[str],
    image_features: Any,
    text_features: Any,
    config: ClusteringConfig | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    report: Report = no_report,
) -> Hierarchy:
    """Returns the hierarchy of given groups: an upper bound for clustering, if the true groups are known.

    Args:
      themes, classes: N texts each, the theme of each pair and its class within the theme; the same name in two themes
        means two classes.
      image_features, text_features, about, report: as for `build_hierarchy`.
      config: only the settings `domains`, `min_members` and `seed` matter.
    """
    if len(classes) != len(themes):
        raise InputError(f"{len(themes)} themes and {len(classes)} classes; give one of each for every pair")
    config = dataclasses.replace(config or ClusteringConfig(), sample=SAMPLE)
    image, text = _check(themes, image_features, text_features)
    pairs = list(zip(themes, classes, strict=True))
    names, theme_names = sorted(set(pairs)), sorted(set(themes))
    number = {name: i for i, name in enumerate(names)}
    theme_number = {name: i for i, name in enumerate(theme_names)}
    theme_of_class = np.array([theme_number[theme] for theme, _ in names])
    grouping, kept = drop_small(
        Grouping(np.array([number[pair] for pair in pairs]), theme_of_class), config.min_members
    )
    about = {**(about or {}), **config.about(len(themes), groups=True)}
    texts = [names[i][1] for i in kept]
    return assemble(grouping, Names(texts, theme_names), image, text, config, about, report)


def _check(captions: Sequence[str], image: Any, text: Any) -> tuple[Any, Any]:
    if not len(captions):
        raise InputError("the corpus has 0 pairs; give at least a few hundred")
    image, text = sliceable(image), sliceable(text)
    for name, features in (("image_features", image), ("text_features", text)):
        if len(features.shape) != 2 or features.shape[0] != len(captions):
            raise InputError(
                f"{name} have shape {list(features.shape)}, not [{len(captions)}, embed_dim]; give one row per pair"
            )
    return image, text
