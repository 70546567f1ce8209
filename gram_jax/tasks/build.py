"""From embedded image-text pairs to a hierarchy: themes, classes with texts, visual domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.clip import Clip
from gram_jax.errors import InputError
from gram_jax.tasks.assembling import assemble
from gram_jax.tasks.clustering import SAMPLE, Computed, Watch, assign, ignore, kmeans, sliceable
from gram_jax.tasks.hierarchy import Hierarchy
from gram_jax.tasks.naming import (
    Grouping,
    agreeing,
    classes_by_name,
    name_at_random,
    name_by_medoid,
    telling_words,
    token_means,
)
from gram_jax.tasks.phrases import Spoken, count_terms, look_words, number_words, rarest, words
from gram_jax.tasks.themes import find_classes, find_themes

METHODS = ("clusters", "random")
CLASS_TEXTS = ("keyword", "medoid", "centroid")
_PAIRS_A_CLASS = 12
_CLUSTERS = 1700  # small clusters, at most


def build_hierarchy(
    captions: Sequence[str],
    image_features: Any,
    text_features: Any,
    *,
    themes: int = 120,
    classes: int = 0,
    class_text: str = "keyword",
    domains: int = 2,
    min_members: int = 6,
    method: str = "clusters",
    sample: int = SAMPLE,
    seed: int = 0,
    clip: Clip | None = None,
    about: Mapping[str, Any] | None = None,
    watch: Watch = ignore,
) -> Hierarchy:
    """Builds a hierarchy of unlabeled image-text pairs by cross-modal hierarchical clustering.

    1. `look_words`: words that go with any rare word ("a photo", "in bold") are about looks, and tell neither themes
       nor classes.
    2. k-means on [text, image] features: many small clusters. k-means on the words that many of them share, those of a
       pair's caption and of its cluster, beside the cluster's mean text feature: themes.
    3. Within a theme, classes. With class_text "keyword" a class is what captions say beside the words of the theme
       and the words for looks (`classes_by_name`), and only pairs whose image agrees stay (`agreeing`). Otherwise
       k-means on [text, image, telling words], and each class gets a text.
    4. Within a class, k-means on image features: visual domains.

    Centroids are looked for among a sample of the pairs; then every pair is given to its nearest one. Features are
    read block by block, so that they may be larger than memory; what is kept of them are the members' image features.

    Args:
      captions: N texts.
      image_features: float `[N, embed_dim]`, frozen and normalized: an array, a memory map, or a part of a feature
        store.
      text_features: float `[N, embed_dim]`, likewise.
      themes: how many themes are looked for.
      classes: how many classes k-means looks for over all themes, and half as many small clusters, but at most 1,700;
        0 for one to 12 pairs.
      class_text: "keyword", the phrase that its captions share; "medoid", the caption nearest to the class's mean text
        feature, cut to fit the clip; or "centroid", a token of its own, the TF-IDF-weighted mean of the token
        embeddings of its captions' words, for `centroid_clip`.
      domains: visual domains of a class, where it has three members for each; otherwise one.
      min_members: classes with fewer are left out, and themes with a single class.
      method: "clusters"; or "random", the control: random pairs in classes of the same sizes, in themes of the same
        sizes, named by the same rule.
      sample: pairs that centroids are looked for among, at most, and the most small clusters; up to so many pairs, all
        are looked at. Where there are more, `about` names it among the settings.
      seed: of k-means, of the sample, and of the random control.
      clip: the clip that the features come from, with its tokenizer; "medoid" and "centroid" need it.
      about: where the pairs and features come from, JSON values; kept, with the settings, in `Hierarchy.about`.
      watch: called with what runs, how many pairs are done, and of how many (0: nobody knows).

    Returns:
      The `Hierarchy`; classes are sorted by theme and text, members by class and domain.

    Raises:
      InputError: if a setting is out of range, there are fewer pairs than clusters, the features do not belong to the
        captions, or no theme has two classes.

    Example:
      >>> names = ["cat", "dog", "fish", "alpha", "beta", "gamma"]
      >>> number = np.repeat(np.arange(6), 20)
      >>> captions = [f"a {('pet', 'letter')[i // 3]}, the {names[i]}" for i in number]
      >>> features = np.eye(8, dtype=np.float32)[number]
      >>> h = build_hierarchy(captions, features, features, themes=2, classes=40, domains=1)
      >>> sorted(h.texts), len(h.theme_texts)
      (['alpha', 'beta', 'cat', 'dog', 'fish', 'gamma'], 2)

    Reference:
      Cross-modal hierarchical clustering: "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language
      Models", whose public text leaves its steps open; these are our own choice.
    """
    image, text = _check(captions, image_features, text_features)
    _check_settings(themes, classes, class_text, domains, min_members, sample, method, clip)
    if classes > len(captions):
        raise InputError(f"{classes} classes of {len(captions)} pairs; look for fewer classes, or use more pairs.")
    count = classes or max(2, len(captions) // _PAIRS_A_CLASS)
    small = min(_CLUSTERS, max(1, count // 2), sample)
    watch("words", 0, len(captions))
    spoken = number_words(map(words, captions))
    watch("words", len(captions), len(captions))
    vocabulary = count_terms(spoken, min_count=5)
    telling = ~look_words(vocabulary, np.unique(rarest(vocabulary), return_inverse=True)[1])
    look = frozenset(name for name, tells in zip(vocabulary.names, telling, strict=True) if not tells)
    micro = _small_clusters(text, image, small, sample, seed, watch)
    theme_of_pair = find_themes(micro, telling, vocabulary, text, themes, seed=seed, sample=sample, watch=watch)
    if class_text == "keyword":
        grouping, texts = classes_by_name(spoken, vocabulary, theme_of_pair, look, min_members)
        grouping = agreeing(grouping, image, min_members, watch=watch)
    else:
        settings = {"seed": seed, "sample": sample, "watch": watch}
        grouping, texts = find_classes(theme_of_pair, telling, vocabulary, text, image, count, **settings), None
    grouping, texts = _drop_small(grouping, texts, min_members)
    if method == "random":
        grouping = shuffled(grouping, seed)
        texts = _random_names(grouping, spoken) if class_text == "keyword" else None
    if texts is None:
        texts = name_by_medoid(grouping, captions, text, clip) if class_text == "medoid" else _numbers(grouping)
    rows = token_means(grouping, vocabulary, clip) if class_text == "centroid" else None
    settings = {
        "method": method,
        "settings": {
            "themes": themes,
            "classes": classes,
            "class_text": class_text,
            "domains": domains,
            "min_members": min_members,
            "seed": seed,
        }
        | about_sample(sample, len(captions)),
    }
    theme_texts = telling_words(grouping, vocabulary)
    about = {**(about or {}), **settings}
    return assemble(
        grouping, texts, theme_texts, image, text, domains, seed, about, token_rows=rows, sample=sample, watch=watch
    )


def about_sample(sample: int, pairs: int) -> dict[str, int]:
    """What the settings of a hierarchy say of the sample: nothing, where it was all pairs.

    Args:
      sample: as for `build_hierarchy`.
      pairs: how many pairs there are.

    Returns:
      A part of the settings.

    Example:
      >>> about_sample(1000, 1000), about_sample(1000, 1001)
      ({}, {'sample': 1000})

    Reference:
      Our own choice.
    """
    return {"sample": sample} if sample < pairs else {}


def from_groups(
    themes: Sequence[str],
    classes: Sequence[str],
    image_features: Any,
    text_features: Any,
    *,
    domains: int = 2,
    min_members: int = 6,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    watch: Watch = ignore,
) -> Hierarchy:
    """A hierarchy of given groups: what clustering could reach at best, where somebody knows the groups.

    Args:
      themes: N texts, the theme of each pair.
      classes: N texts, the class of each pair within its theme; classes of that name in two themes are two.
      image_features: float `[N, embed_dim]`, as for `build_hierarchy`.
      text_features: float `[N, embed_dim]`, likewise.
      domains: as for `build_hierarchy`.
      min_members: classes with fewer are left out, and themes with a single class.
      seed: of the visual domains.
      about: as for `build_hierarchy`.
      watch: as for `build_hierarchy`.

    Returns:
      The `Hierarchy`; a class's text is its name.

    Raises:
      InputError: as `build_hierarchy`.

    Example:
      >>> features = np.eye(12, dtype=np.float32)
      >>> h = from_groups(["pet"] * 12, ["cat", "dog"] * 6, features, features)
      >>> h.texts, np.bincount(h.classes).tolist()
      (('cat', 'dog'), [6, 6])

    Reference:
      Our own choice.
    """
    if len(classes) != len(themes):
        raise InputError(f"{len(themes)} themes and {len(classes)} classes: give both for every pair.")
    image, text = _check(themes, image_features, text_features)
    _check_settings(1, 1, "keyword", domains, min_members, SAMPLE, "clusters", None)
    names = sorted(set(zip(themes, classes, strict=True)))
    theme_names = sorted(set(themes))
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[pair] for pair in zip(themes, classes, strict=True)])
    theme_number = {name: i for i, name in enumerate(theme_names)}
    grouping = Grouping(labels, np.array([theme_number[theme] for theme, _ in names]), frozenset())
    grouping, texts = _drop_small(grouping, [name for _, name in names], min_members)
    settings = {"method": "groups", "settings": {"domains": domains, "min_members": min_members, "seed": seed}}
    about = {**(about or {}), **settings}
    return assemble(grouping, texts, theme_names, image, text, domains, seed, about, watch=watch)


def shuffled(grouping: Grouping, seed: int) -> Grouping:
    """Random pairs in classes of the same sizes, and these in themes of the same sizes."""
    rng = np.random.default_rng([seed, len(grouping.themes)])
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=len(grouping.themes))
    labels = np.full(len(grouping.classes), -1)
    labels[rng.permutation(len(labels))[: sizes.sum()]] = np.repeat(np.arange(len(sizes)), sizes)
    return Grouping(labels, rng.permutation(grouping.themes), grouping.look)


def _small_clusters(text: Any, image: Any, clusters: int, sample: int, seed: int, watch: Watch) -> np.ndarray:
    """The small cluster of each pair, by k-means on [text, image] features."""

    def rows(key: Any) -> np.ndarray:
        return np.concatenate([text[key], image[key]], axis=1, dtype=np.float32)

    watch("centroids of small clusters", 0, 0)
    pairs = Computed((len(text), text.shape[1] + image.shape[1]), rows)
    centroids = kmeans(pairs, clusters, seed=seed, sample=sample)
    return assign(pairs, centroids, watch=lambda done: watch("pairs in small clusters", done, len(text)))


def _drop_small(grouping: Grouping, texts: Sequence[str] | None, min_members: int) -> tuple[Grouping, list[str] | None]:
    """Leaves out classes with few members, and then themes with a single class."""
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=len(grouping.themes))
    large = sizes >= min_members
    per_theme = np.bincount(grouping.themes[large], minlength=1 + max(grouping.themes, default=0))
    keep = large & (per_theme[grouping.themes] >= 2)
    if not keep.any():
        raise InputError(
            f"no theme is left with two classes of at least {min_members} members: the largest of {len(sizes)} classes "
            f"has {max(sizes, default=0)}; use more pairs, fewer classes, or a smaller min_members."
        )
    number = np.where(keep, np.cumsum(keep) - 1, -1)
    labels = np.where(grouping.classes >= 0, number[grouping.classes], -1)
    kept = None if texts is None else [text for text, good in zip(texts, keep, strict=True) if good]
    return Grouping(labels, grouping.themes[keep], grouping.look), kept


def _numbers(grouping: Grouping) -> list[str]:
    return [f"<class {number}>" for number in range(len(grouping.themes))]


def _random_names(grouping: Grouping, spoken: Spoken) -> list[str]:
    """Names of random classes, by the phrases that their members' captions have."""
    kept = np.repeat(grouping.classes >= 0, np.diff(spoken.starts))
    lengths = np.where(grouping.classes >= 0, np.diff(spoken.starts), 0)
    said = Spoken(spoken.ids[kept], np.concatenate([[0], np.cumsum(lengths)]), spoken.names)
    return name_at_random(grouping, count_terms(said, longest=3))


def _check(captions: Sequence[str], image: Any, text: Any) -> tuple[Any, Any]:
    if not len(captions):
        raise InputError("The corpus is empty: there are no pairs to cluster; give at least a few hundred.")
    image, text = sliceable(image), sliceable(text)
    for kind, features in (("image", image), ("text", text)):
        if len(features.shape) != 2 or features.shape[0] != len(captions):
            raise InputError(
                f"{kind} features have shape {list(features.shape)} for {len(captions)} captions; give one row for "
                "each, in the same order."
            )
    return image, text


def _check_settings(
    themes: int,
    classes: int,
    class_text: str,
    domains: int,
    min_members: int,
    sample: int,
    method: str,
    clip: Clip | None,
) -> None:
    counts = {"themes": themes, "classes": classes, "domains": domains, "min_members": min_members, "sample": sample}
    for name, value in counts.items():
        least = 0 if name == "classes" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; give a number of at least {least}.")
    for name, value, choices in (("class_text", class_text, CLASS_TEXTS), ("method", method, METHODS)):
        if value not in choices:
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}.")
    if class_text != "keyword" and (clip is None or clip.tokenizer is None):
        raise InputError(f"class_text={class_text!r} needs the clip that the features come from, with its tokenizer.")
