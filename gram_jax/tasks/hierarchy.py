"""The hierarchy of a corpus (theme > class > visual domain), its files, and the tokens of its classes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gram_jax.array_file import ArrayFileError, read_arrays, write_arrays
from gram_jax.clip import Clip, TextPrompt, embed_tokens, encode_classes, weights_hash
from gram_jax.clip.classes import NameTokens, pack_classes, tails_of
from gram_jax.clip.tokenizer import name_tokens
from gram_jax.data import Corpus, load_corpus
from gram_jax.errors import InputError
from gram_jax.io import PathLike
from gram_jax.summary import short_repr

KIND = "hierarchy"
TEMPLATE, SUFFIX = "a photo of a {}.", "."


@dataclasses.dataclass(frozen=True, eq=False)
class Hierarchy:
    """The members of each class of a corpus, the theme of each class, and the visual domain of each member.

    Attributes:
      members: int64 `[M]`, the pairs with a class, as positions in the corpus, each once.
      classes, domains: int32 `[M]`, the class of each member, and its visual domain within the class, from 0.
      themes, texts: int32 `[C]`, the theme of each class; C texts, its name, distinct within a theme.
      theme_texts: T texts, the most informative words of each theme, for people.
      image_features: float32 `[M, embed_dim]`, the members' frozen image features, normalized and rounded to float16,
        as in a file.
      centroids: float32 `[C, embed_dim]`, the normalized mean of each class's frozen text features.
      about: the origin, JSON values: the corpus, the clip (its weights hash under "clip"), the settings.
      token_rows: float32 `[C, text width]`, token embeddings that name the classes instead of words, see
        `centroid_clip`; or None.
      text_features: float32 `[C, embed_dim]`, the result of the function `text_features`; or None.
    """

    members: np.ndarray
    classes: np.ndarray
    domains: np.ndarray
    themes: np.ndarray
    texts: tuple[str, ...]
    theme_texts: tuple[str, ...]
    image_features: np.ndarray
    centroids: np.ndarray
    about: Mapping[str, Any]
    token_rows: np.ndarray | None = None
    text_features: np.ndarray | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        per_class = ("themes", "texts", "centroids", *(name for name in _OPTIONAL if getattr(self, name) is not None))
        for owner, names in (("member", _PER_MEMBER), ("class", per_class)):
            lengths = {name: len(getattr(self, name)) for name in names}
            if len(set(lengths.values())) > 1 or 0 in lengths.values():
                raise InputError(f"a hierarchy needs one entry per {owner}, and at least one {owner}; found {lengths}")
        for name, limit in (("classes", len(self.texts)), ("themes", len(self.theme_texts))):
            values = getattr(self, name)
            if values.min() < 0 or values.max() >= limit:
                raise InputError(
                    f"{name} of a hierarchy must be from 0 to {limit - 1}, found {values.min()}..{values.max()}"
                )
        if len(np.unique(self.members)) < len(self.members):
            raise InputError("members of a hierarchy occur twice; a pair has one class at most")

    @functools.cached_property
    def members_of_classes(self) -> tuple[np.ndarray, ...]:
        """The members of each class, as increasing rows of the members' arrays."""
        sizes = np.bincount(self.classes, minlength=len(self.texts))
        return tuple(np.split(np.argsort(self.classes, kind="stable"), np.cumsum(sizes)[:-1]))

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything that tasks are drawn from."""
        digest = hashlib.sha256(json.dumps([self.texts, dict(self.about)], sort_keys=True).encode())
        for array in (self.members, self.classes, self.domains, self.themes, self.image_features):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


_PER_MEMBER = ("members", "classes", "domains", "image_features")
_ARRAYS = (*_PER_MEMBER, "themes", "centroids")
_OPTIONAL = ("token_rows", "text_features")  # arrays, one row per class
_FLOATS = ("image_features", "centroids", *_OPTIONAL)


def save_hierarchy(path: PathLike, hierarchy: Hierarchy) -> None:
    """Saves a hierarchy atomically, image features as float16; the same hierarchy gives the same bytes.

    Args:
      path, hierarchy: the file, usually `hierarchy.safetensors`, local or `gs://`, with its folders; the hierarchy.
    """
    h = hierarchy
    tree = {name: getattr(hierarchy, name) for name in (*_ARRAYS, *_OPTIONAL)}
    tree = {name: array for name, array in tree.items() if array is not None}
    tree["image_features"] = tree["image_features"].astype(np.float16)
    header = {"kind": KIND, "texts": list(h.texts), "theme_texts": list(h.theme_texts), "about": dict(h.about)}
    write_arrays(path, tree, header)


def load_hierarchy(path: PathLike, *, clip: Clip | None = None) -> Hierarchy:
    """Returns a saved hierarchy, bit-identical.

    Args:
      path, clip: the file; the clip, as it was loaded, or None for no check.

    Raises:
      ArrayFileError: the file is damaged, contains no hierarchy, or one of another clip.
    """
    tree, header = read_arrays(path)
    if header.get("kind") != KIND:
        raise ArrayFileError(
            f"{path} contains a {header.get('kind')!r}, not a hierarchy; give a file of experiments.build_tasks"
        )
    about = header.get("about")
    if not isinstance(about, dict):
        raise ArrayFileError(f"{path} has no 'about'; build it again")
    if clip is not None:
        found, expected = str(about.get("clip")), weights_hash(clip.params)
        if found != expected:
            raise ArrayFileError(
                f"{path} was built with another clip: weights hash {found[:12]}..., this clip has {expected[:12]}...; "
                "load that clip, or build the tasks again with this one"
            )
    try:
        for name, array in tree.items():
            kinds, axes = ("f", 2) if name in _FLOATS else ("iu", 1)
            if array.dtype.kind not in kinds or array.ndim != axes:
                raise InputError(f"{name} is {array.dtype} {list(array.shape)}")
        tree["image_features"] = tree["image_features"].astype(np.float32)
        texts, theme_texts = tuple(header["texts"]), tuple(header["theme_texts"])
        if not all(isinstance(text, str) for text in (*texts, *theme_texts)):
            raise InputError("a text is not a string")
        return Hierarchy(**tree, texts=texts, theme_texts=theme_texts, about=about)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArrayFileError(f"{path} contains no complete hierarchy ({error}); build it again") from error


def hierarchy_corpus(hierarchy: Hierarchy, corpus: Corpus | None = None) -> Corpus:
    """Returns the corpus that a hierarchy was built from.

    Args:
      hierarchy: the hierarchy, which names its corpus.
      corpus: that corpus, if it is already loaded.

    Raises:
      InputError: the corpus has changed since.
    """
    about = hierarchy.about
    if corpus is None:
        corpus = load_corpus(about["corpus"], pairs=about["pairs"], seed=about["seed"])
    if corpus.content_hash != about["content_hash"]:
        hashes = f"with the hash {about['content_hash'][:12]}, this corpus has {corpus.content_hash[:12]}"
        raise InputError(f"the hierarchy was built from a corpus {hashes}; run experiments.build_tasks again")
    return corpus


def outline(hierarchy: Hierarchy) -> str:
    """Returns a hierarchy as text: origin, sizes, and themes, largest first, with their classes.

    Args:
      hierarchy: the hierarchy; the numbers after a class are the sizes of its visual domains.
    """
    h = hierarchy
    sizes = np.bincount(h.classes, minlength=len(h.texts))
    lines = [f"{name}: {json.dumps(value)}" for name, value in h.about.items()]
    lines.append(f"{len(h.theme_texts)} themes, {len(h.texts)} classes, {len(h.members)} pairs")
    for theme in np.argsort(-np.bincount(h.themes, minlength=len(h.theme_texts)), kind="stable"):
        classes = np.flatnonzero(h.themes == theme)
        lines.append(f"\ntheme {theme}: {h.theme_texts[theme]} ({len(classes)} classes, {sizes[classes].sum()} pairs)")
        width = max(len(h.texts[i]) for i in classes)
        for i in classes:
            domains = map(str, np.bincount(h.domains[h.members_of_classes[i]]))
            lines.append(f"  {h.texts[i]:<{width}}  {' + '.join(domains)}")
    return "\n".join(lines)


def centroid_clip(clip: Clip, hierarchy: Hierarchy) -> Clip:
    """Returns the clip with an additional token for each class whose name is a token embedding.

        rows of the token embedding:   [ e_1, ..., e_V, z_1, ..., z_C ]

    The encoding of ordinary text does not change. Prompts and regulators learned on this clip, without classes, work
    with the original one.

    Args:
      clip, hierarchy: the clip that the hierarchy was built with; without `token_rows` it is returned unchanged.

    Reference:
      A centroid instead of a class-name token: "Self-supervised Meta-Prompt Learning with Meta-Gradient
      Regularization for Few-shot Generalization" and its public code.
    """
    rows = hierarchy.token_rows
    if rows is None:
        return clip
    if rows.shape[1] != clip.config.text.width:
        raise InputError(
            f"token_rows have width {rows.shape[1]}, the tokens of this clip {clip.config.text.width}; give the clip "
            "that the hierarchy was built with"
        )
    table = clip.params["text"]["token_embedding"]
    table = jnp.concatenate([table, jnp.asarray(rows, table.dtype)])
    text = dataclasses.replace(clip.config.text, vocab_size=len(table))
    params = {**clip.params, "text": {**clip.params["text"], "token_embedding": table}}
    return dataclasses.replace(clip, params=params, config=dataclasses.replace(clip.config, text=text))


def class_table(hierarchy: Hierarchy, clip: Clip) -> NameTokens:
    """Returns the tokens of all C classes of a hierarchy.

    Args:
      hierarchy, clip: the hierarchy, and the clip; for `token_rows`, the result of `centroid_clip`.
    """
    tokenizer = clip.tokenizer
    if tokenizer is None:
        raise InputError("the clip has no tokenizer; add one with clip.replace(tokenizer=...)")
    if hierarchy.token_rows is None:
        return name_tokens(tokenizer, hierarchy.texts, TEMPLATE, SUFFIX, allow_duplicates=True)
    count = len(hierarchy.texts)
    first = clip.config.text.vocab_size - count
    rows = np.asarray(clip.params["text"]["token_embedding"][first:], np.float32)
    if first < tokenizer.vocab_size or not np.allclose(rows, hierarchy.token_rows, atol=1e-2):
        raise InputError("the clip lacks the class tokens of the hierarchy; give centroid_clip(clip, hierarchy)")
    before, after, suffix = tokenizer.pieces([*TEMPLATE.split("{}"), SUFFIX])

    start = [tokenizer.bos_token_id] if clip.config.text.start_token else []

    def around(left: list[int], right: list[int]) -> Any:
        sides = np.array([*left, *right, tokenizer.eos_token_id], np.int32)
        return np.insert(np.tile(sides, (count, 1)), len(left), np.arange(first, first + count), axis=1)

    token_ids, tail_ids = around([*start, *before], after), around([], suffix)
    lengths = (token_ids.shape[1] - 1, 1, tail_ids.shape[1] - 1)
    eot, name_length, tail_eot = (np.full(count, length) for length in lengths)
    return NameTokens(token_ids, eot, tail_ids, name_length, tail_eot)


def text_features(hierarchy: Hierarchy, clip: Clip) -> np.ndarray:
    """Returns the frozen features of all class texts under "a photo of a {}.", float32 `[C, embed_dim]`.

    Where a template begins with the same tokens for all classes, these run once, as a context.

    Args:
      hierarchy, clip: as in `class_table`.
    """
    table = class_table(hierarchy, clip)
    whole, tails = tails_of(table.token_ids, table.eot), tails_of(table.tail_ids, table.tail_eot)
    begin = whole[0][: len(whole[0]) - len(tails[0])]
    joined = all(text == begin + tail for text, tail in zip(whole, tails, strict=True))
    context = jnp.array(begin[int(clip.config.text.start_token) :], jnp.int32)
    prompt = TextPrompt(embed_tokens(clip, context)) if joined else None
    return np.asarray(encode_classes(clip, pack_classes(*table), prompt), np.float32)
