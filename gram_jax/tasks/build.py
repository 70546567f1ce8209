"""From embedded image-text pairs to a hierarchy: themes, classes with texts, visual domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.clip import Clip
from gram_jax.tasks.clustering import assign, kmeans, one_thread
from gram_jax.tasks.hierarchy import Hierarchy
from gram_jax.tasks.naming import (
    Grouping,
    agreeing,
    classes_by_name,
    name_at_random,
    name_by_medoid,
    normalise,
    telling_words,
    token_means,
)
from gram_jax.tasks.phrases import Terms, count_terms, group_counts, look_words, rarest, words

METHODS = ("clusters", "random")
CLASS_TEXTS = ("keyword", "medoid", "centroid")
_SHARE, _SPREAD = 0.3, 0.003  # a theme's word: in this share of a cluster's captions, in this share of the clusters
_NOISE = 0.1  # share of a cluster's captions below which a word is an accident
_CENTROID_WEIGHT = 0.3  # of text features, where themes are told apart by words
_CLASS_WORDS = 64  # directions that the word vectors of a theme are reduced to
_PAIRS_A_CLASS = 12
_CLUSTERS = 1700  # small clusters, at most
_DOMAIN_MEMBERS = 3  # members for each visual domain that a class is split into


def build_hierarchy(
    captions: Sequence[str],
    image_features: np.ndarray,
    text_features: np.ndarray,
    *,
    themes: int = 120,
    classes: int = 0,
    class_text: str = "keyword",
    domains: int = 2,
    min_members: int = 6,
    method: str = "clusters",
    seed: int = 0,
    clip: Clip | None = None,
    about: Mapping[str, Any] | None = None,
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

    Args:
      captions: N texts.
      image_features: float `[N, embed_dim]`, frozen and normalised.
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
      seed: of k-means and of the random control.
      clip: the clip that the features come from, with its tokenizer; "medoid" and "centroid" need it.
      about: where the pairs and features come from, JSON values; kept, with the settings, in `Hierarchy.about`.

    Returns:
      The `Hierarchy`; classes are sorted by theme and text, members by class and domain.

    Raises:
      ValueError: if a setting is out of range, there are fewer pairs than clusters, the features do not belong to the
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
    _check_settings(themes, classes, class_text, domains, min_members, method, clip)
    spoken = [words(caption) for caption in captions]
    vocabulary = count_terms(spoken, min_count=5)
    if classes > len(captions):
        raise ValueError(f"{classes} classes of {len(captions)} pairs; look for fewer classes, or use more pairs.")
    count = classes or max(2, len(captions) // _PAIRS_A_CLASS)
    small = min(_CLUSTERS, max(1, count // 2))
    telling = ~look_words(vocabulary, np.unique(rarest(vocabulary), return_inverse=True)[1])
    pairs = np.concatenate([text, image], axis=1)
    micro = assign(pairs, kmeans(pairs, small, seed=seed))
    theme_of_pair = find_themes(micro, telling, vocabulary, text, themes, seed=seed)
    if class_text == "keyword":
        look = frozenset(name for name, tells in zip(vocabulary.names, telling, strict=True) if not tells)
        grouping, texts = classes_by_name(spoken, vocabulary, theme_of_pair, look, min_members)
        grouping = agreeing(grouping, image, min_members)
    else:
        grouping, texts = find_classes(theme_of_pair, telling, vocabulary, text, image, count, seed=seed), None
    grouping, texts = _drop_small(grouping, texts, min_members)
    if method == "random":
        grouping = shuffled(grouping, seed)
        texts = name_at_random(grouping, count_terms(spoken, longest=3)) if class_text == "keyword" else None
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
        },
    }
    theme_texts = telling_words(grouping, vocabulary)
    return assemble(
        grouping, texts, theme_texts, image, text, domains, seed, {**(about or {}), **settings}, token_rows=rows
    )


def from_groups(
    themes: Sequence[str],
    classes: Sequence[str],
    image_features: np.ndarray,
    text_features: np.ndarray,
    *,
    domains: int = 2,
    min_members: int = 6,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Hierarchy:
    """A hierarchy of given groups: what clustering could reach at best, where somebody knows the groups.

    Args:
      themes: N texts, the theme of each pair.
      classes: N texts, the class of each pair within its theme; classes of that name in two themes are two.
      image_features: float `[N, embed_dim]`, frozen and normalised.
      text_features: float `[N, embed_dim]`, likewise.
      domains: as for `build_hierarchy`.
      min_members: classes with fewer are left out, and themes with a single class.
      seed: of the visual domains.
      about: as for `build_hierarchy`.

    Returns:
      The `Hierarchy`; a class's text is its name.

    Raises:
      ValueError: as `build_hierarchy`.

    Example:
      >>> features = np.eye(12, dtype=np.float32)
      >>> h = from_groups(["pet"] * 12, ["cat", "dog"] * 6, features, features)
      >>> h.texts, np.bincount(h.classes).tolist()
      (('cat', 'dog'), [6, 6])

    Reference:
      Our own choice.
    """
    if len(classes) != len(themes):
        raise ValueError(f"{len(themes)} themes and {len(classes)} classes: give both for every pair.")
    image, text = _check(themes, image_features, text_features)
    _check_settings(1, 1, "keyword", domains, min_members, "clusters", None)
    names = sorted(set(zip(themes, classes, strict=True)))
    theme_names = sorted(set(themes))
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[pair] for pair in zip(themes, classes, strict=True)])
    grouping = Grouping(labels, np.array([theme_names.index(theme) for theme, _ in names]), frozenset())
    grouping, texts = _drop_small(grouping, [name for _, name in names], min_members)
    settings = {"method": "groups", "settings": {"domains": domains, "min_members": min_members, "seed": seed}}
    return assemble(grouping, texts, theme_names, image, text, domains, seed, {**(about or {}), **settings})


def find_themes(
    micro: np.ndarray, telling: np.ndarray, vocabulary: Terms, text: np.ndarray, themes: int, *, seed: int
) -> np.ndarray:
    """Themes: k-means on the words that many small clusters share, those of a pair's caption and of its cluster.

    A word tells a theme if it is in the captions of more than 30 % of the members of at least 0.3 % of the clusters,
    and counts with the fourth root of their number: what is said of many things says what kind of thing they are.

    Args:
      micro: int `[pairs]`, the cluster of each pair.
      telling: bool `[words]`, False for words for looks.
      vocabulary: words of the captions.
      text: float32 `[pairs, embed_dim]`.
      themes: how many.
      seed: of k-means.

    Returns:
      int `[pairs]`, the theme of each pair.
    """
    clusters = int(micro.max()) + 1
    sizes = np.maximum(np.bincount(micro, minlength=clusters), 1)
    share = (group_counts(micro, clusters, vocabulary.matrix) / sizes[:, None]).toarray()
    spread = np.mean(share > _SHARE, axis=0)
    columns = np.flatnonzero((spread >= _SPREAD) & telling)
    weights = spread[columns] ** 0.25
    own = normalise(vocabulary.matrix.tocsc()[:, columns].toarray() * weights)
    common = share[:, columns]
    common = normalise(np.where(common > _NOISE, common, 0.0) * weights)[micro]
    centroids = normalise(group_counts(micro, clusters, text))[micro]
    rows = np.concatenate([normalise(own + common), _CENTROID_WEIGHT * centroids], axis=1)
    found = kmeans(rows, min(themes, len(rows)), seed=seed, iterations=25)
    return np.unique(assign(rows, found), return_inverse=True)[1]


def find_classes(
    theme_of_pair: np.ndarray,
    telling: np.ndarray,
    vocabulary: Terms,
    text: np.ndarray,
    image: np.ndarray,
    classes: int,
    *,
    seed: int,
) -> Grouping:
    """Classes within each theme: k-means on text and image features and on telling words by TF-IDF.

    Args:
      theme_of_pair: int `[pairs]`.
      telling: bool `[words]`.
      vocabulary: words of the captions.
      text: float32 `[pairs, embed_dim]`.
      image: float32 `[pairs, embed_dim]`.
      classes: how many over all themes; a theme gets them in proportion to its pairs, but at least two.
      seed: of k-means.

    Returns:
      The `Grouping`.
    """
    labels, themes = np.full(len(text), -1), []
    for theme in range(int(theme_of_pair.max()) + 1):
        pairs = np.flatnonzero(theme_of_pair == theme)
        share = np.asarray(vocabulary.matrix[pairs].sum(0)).ravel() / len(pairs)
        columns = np.flatnonzero((share > 0) & telling)
        weighted = vocabulary.matrix[pairs].tocsc()[:, columns] * np.log(1 / share[columns])
        rows = np.concatenate([text[pairs], image[pairs], _reduced(weighted, _CLASS_WORDS, seed)], axis=1)
        count = min(len(pairs), max(2, round(classes * len(pairs) / len(text))))
        found = assign(rows, kmeans(rows, count, seed=seed))
        found = np.unique(found, return_inverse=True)[1]
        labels[pairs] = found + len(themes)
        themes += [theme] * (int(found.max()) + 1)
    look = frozenset(name for name, tells in zip(vocabulary.names, telling, strict=True) if not tells)
    return Grouping(labels, np.array(themes), look)


def shuffled(grouping: Grouping, seed: int) -> Grouping:
    """Random pairs in classes of the same sizes, and these in themes of the same sizes."""
    rng = np.random.default_rng([seed, len(grouping.themes)])
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=len(grouping.themes))
    labels = np.full(len(grouping.classes), -1)
    labels[rng.permutation(len(labels))[: sizes.sum()]] = np.repeat(np.arange(len(sizes)), sizes)
    return Grouping(labels, rng.permutation(grouping.themes), grouping.look)


def assemble(
    grouping: Grouping,
    texts: Sequence[str],
    theme_texts: Sequence[str],
    image: np.ndarray,
    text: np.ndarray,
    domains: int,
    seed: int,
    about: Mapping[str, Any],
    *,
    token_rows: np.ndarray | None = None,
) -> Hierarchy:
    """Numbers themes and classes in order, finds visual domains, and puts the hierarchy together."""
    order = np.array(sorted(range(len(texts)), key=lambda i: (grouping.themes[i], texts[i], i)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    kept, themes = np.unique(grouping.themes[order], return_inverse=True)
    members = np.flatnonzero(grouping.classes >= 0)
    classes = rank[grouping.classes[members]]
    found = np.zeros(len(members), np.int64)
    for number in range(len(order)):
        rows = np.flatnonzero(classes == number)
        if domains > 1 and len(rows) >= _DOMAIN_MEMBERS * domains:
            features = image[members[rows]]
            found[rows] = assign(features, kmeans(features, domains, seed=seed))
    sort = np.lexsort((members, found, classes))
    members, classes, found = members[sort], classes[sort], found[sort]
    return Hierarchy(
        members=members.astype(np.int64),
        classes=classes.astype(np.int32),
        domains=found.astype(np.int32),
        themes=themes.astype(np.int32),
        texts=tuple(texts[i] for i in order),
        theme_texts=tuple(theme_texts[i] for i in kept),
        image_features=image[members].astype(np.float16).astype(np.float32),
        centroids=normalise(group_counts(classes, len(order), text[members])),
        about=about,
        token_rows=None if token_rows is None else token_rows[order],
    )


def _drop_small(grouping: Grouping, texts: Sequence[str] | None, min_members: int) -> tuple[Grouping, list[str] | None]:
    """Leaves out classes with few members, and then themes with a single class."""
    sizes = np.bincount(grouping.classes[grouping.classes >= 0], minlength=len(grouping.themes))
    large = sizes >= min_members
    per_theme = np.bincount(grouping.themes[large], minlength=1 + max(grouping.themes, default=0))
    keep = large & (per_theme[grouping.themes] >= 2)
    if not keep.any():
        raise ValueError(
            f"no theme is left with two classes of at least {min_members} members: the largest of {len(sizes)} classes "
            f"has {max(sizes, default=0)}; use more pairs, fewer classes, or a smaller min_members."
        )
    number = np.where(keep, np.cumsum(keep) - 1, -1)
    labels = np.where(grouping.classes >= 0, number[grouping.classes], -1)
    kept = None if texts is None else [text for text, good in zip(texts, keep, strict=True) if good]
    return Grouping(labels, grouping.themes[keep], grouping.look), kept


def _numbers(grouping: Grouping) -> list[str]:
    return [f"<class {number}>" for number in range(len(grouping.themes))]


def _reduced(matrix: Any, most: int, seed: int) -> np.ndarray:
    """Normalised rows of a sparse matrix; in their leading directions, where it has more columns than `most`."""
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    if not matrix.shape[1]:
        return matrix.toarray()
    matrix = normalize(matrix)
    if min(matrix.shape) <= most:
        return matrix.toarray()
    with one_thread():
        left, values, _ = randomized_svd(matrix, most, n_iter=3, random_state=seed)
    return left * values


def _check(captions: Sequence[str], image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(captions):
        raise ValueError("The corpus is empty: there are no pairs to cluster; give at least a few hundred.")
    for kind, features in (("image", image), ("text", text)):
        if np.ndim(features) != 2 or len(features) != len(captions):
            raise ValueError(
                f"{kind} features have shape {list(np.shape(features))} for {len(captions)} captions; give one row for "
                "each, in the same order."
            )
    return np.asarray(image, np.float32), np.asarray(text, np.float32)


def _check_settings(
    themes: int, classes: int, class_text: str, domains: int, min_members: int, method: str, clip: Clip | None
) -> None:
    counts = {"themes": themes, "classes": classes, "domains": domains, "min_members": min_members}
    for name, value in counts.items():
        least = 0 if name == "classes" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; give a number of at least {least}.")
    for name, value, choices in (("class_text", class_text, CLASS_TEXTS), ("method", method, METHODS)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}.")
    if class_text != "keyword" and (clip is None or clip.tokenizer is None):
        raise ValueError(f"class_text={class_text!r} needs the clip that the features come from, with its tokenizer.")
