"""The hierarchy of a corpus, theme > class > visual domain: what it holds, and in and out of files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gram_jax.array_file import ArrayFileError, read_arrays, write_arrays
from gram_jax.clip import Classes, Clip, weights_hash
from gram_jax.clip.tokenizer import class_tokens
from gram_jax.errors import InputError

KIND = "hierarchy"
TEMPLATE, SUFFIX = "a photo of a {}.", "."


@dataclasses.dataclass(frozen=True, eq=False)
class Hierarchy:
    """Which pairs of a corpus make a class, which classes a theme, and which images of a class look alike.

    Attributes:
      members: int64 `[M]`, the pairs that belong to a class, as positions in the corpus, each once.
      classes: int32 `[M]`, the class of each member.
      domains: int32 `[M]`, the visual domain of each member within its class, from 0.
      themes: int32 `[C]`, the theme of each class.
      texts: C texts, what each class is called; no two classes of a theme have the same.
      theme_texts: T texts, the most telling words of each theme, for people.
      image_features: float32 `[M, embed_dim]`, the members' frozen image features, normalized and rounded to float16,
        as a file holds them.
      centroids: float32 `[C, embed_dim]`, the normalized mean of each class's frozen text features.
      about: where it comes from, JSON values: the corpus, the clip (its weights hash under "clip"), the settings.
      token_rows: float32 `[C, text width]`, the token embeddings that stand for the classes where these are not called
        by words; see `centroid_clip`. None otherwise.

    Raises:
      InputError: if the parts do not fit together.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> features = np.eye(4, 8, dtype=np.float32)
      >>> h = from_groups(["letter"] * 4, ["a", "a", "b", "b"], features, features, domains=1, min_members=2)
      >>> h.texts, h.classes.tolist(), h.theme_texts
      (('a', 'b'), [0, 0, 1, 1], ('letter',))
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

    def __post_init__(self) -> None:
        count, lengths = len(self.members), {name: len(getattr(self, name)) for name in _PER_MEMBER}
        if set(lengths.values()) != {count} or not count:
            raise InputError(f"A hierarchy needs members, and one entry of each for every member; found {lengths}.")
        lengths = {name: len(getattr(self, name)) for name in ("themes", "texts", "centroids")}
        if self.token_rows is not None:
            lengths["token_rows"] = len(self.token_rows)
        if len(set(lengths.values())) > 1:
            raise InputError(f"A hierarchy needs one entry of each for every class; found {lengths}.")
        for name, values, limit in (
            ("classes", self.classes, len(self.texts)),
            ("themes", self.themes, len(self.theme_texts)),
        ):
            if values.min() < 0 or values.max() >= limit:
                raise InputError(
                    f"{name} of a hierarchy go from 0 to {limit - 1}, found {values.min()}..{values.max()}."
                )
        if len(np.unique(self.members)) < count:
            raise InputError("A pair belongs to two classes of a hierarchy; give each pair to one class at most.")


_PER_MEMBER = ("members", "classes", "domains", "image_features")
_ARRAYS = (*_PER_MEMBER, "themes", "centroids")
_FLOATS = ("image_features", "centroids", "token_rows")


def save_hierarchy(path: str | os.PathLike[str], hierarchy: Hierarchy) -> None:
    """Saves a hierarchy; the file appears whole or not at all, and the same hierarchy makes the same bytes.

    Image features are stored as float16.

    Args:
      path: the file, usually `hierarchy.safetensors`; missing folders are made, `gs://` paths work.
      hierarchy: the hierarchy.

    Raises:
      InputError: if `about` is no JSON.

    Example:
      >>> import tempfile
      >>> from gram_jax.tasks import from_groups
      >>> features = np.eye(4, 8, dtype=np.float32)
      >>> h = from_groups(["letter"] * 4, ["a", "a", "b", "b"], features, features, domains=1, min_members=2)
      >>> path = f"{tempfile.mkdtemp()}/hierarchy.safetensors"
      >>> save_hierarchy(path, h)
      >>> load_hierarchy(path).texts
      ('a', 'b')

    Reference:
      Our own choice.
    """
    tree = {name: getattr(hierarchy, name) for name in _ARRAYS}
    tree["image_features"] = tree["image_features"].astype(np.float16)
    if hierarchy.token_rows is not None:
        tree["token_rows"] = hierarchy.token_rows
    header = {
        "kind": KIND,
        "texts": list(hierarchy.texts),
        "theme_texts": list(hierarchy.theme_texts),
        "about": dict(hierarchy.about),
    }
    write_arrays(path, tree, header)


def load_hierarchy(path: str | os.PathLike[str], *, clip: Clip | None = None) -> Hierarchy:
    """Loads a hierarchy.

    Args:
      path: the file.
      clip: the clip that it will be used with, as it was loaded; a hierarchy that was built with another one is
        refused. None: any.

    Returns:
      The hierarchy, to the last bit as it was saved.

    Raises:
      FileNotFoundError: if there is no such file.
      ArrayFileError: if the file is damaged, holds no hierarchy, or one of another clip.

    Example:
      >>> load_hierarchy("/nowhere/hierarchy.safetensors")
      Traceback (most recent call last):
        ...
      FileNotFoundError: /nowhere/hierarchy.safetensors does not exist; give the file that was saved.

    Reference:
      Our own choice.
    """
    tree, header = read_arrays(path)
    if header.get("kind") != KIND:
        raise ArrayFileError(
            f"{path} holds {header.get('kind')!r}, not a hierarchy; give a file that experiments.build_tasks wrote."
        )
    about = header.get("about")
    if not isinstance(about, dict):
        raise ArrayFileError(f"{path} does not say what it was built from; build it again.")
    if clip is not None:
        found, expected = str(about.get("clip")), weights_hash(clip.params)
        if found != expected:
            raise ArrayFileError(
                f"{path} was built with the features of another clip: weights hash {found[:12]}..., this clip's is "
                f"{expected[:12]}... Load that clip, or build the tasks again with this one."
            )
    try:
        for name, array in tree.items():
            kinds, axes = ("f", 2) if name in _FLOATS else ("iu", 1)
            if array.dtype.kind not in kinds or array.ndim != axes:
                raise InputError(f"{name} is {array.dtype} {list(array.shape)}")
        tree["image_features"] = tree["image_features"].astype(np.float32)
        texts, theme_texts = tuple(header["texts"]), tuple(header["theme_texts"])
        if not all(isinstance(text, str) for text in (*texts, *theme_texts)):
            raise InputError("a text of it is none")
        return Hierarchy(**tree, texts=texts, theme_texts=theme_texts, about=about)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArrayFileError(f"{path} holds no whole hierarchy ({error}); build it again.") from error


def outline(hierarchy: Hierarchy) -> str:
    """A hierarchy as text: what it comes from, its sizes, and its themes, largest first, with their classes.

    Args:
      hierarchy: the hierarchy.

    Returns:
      Lines of text; a class is followed by the numbers of members of its visual domains.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> features = np.eye(4, 8, dtype=np.float32)
      >>> h = from_groups(["letter"] * 4, ["a", "a", "b", "b"], features, features, domains=1, min_members=2)
      >>> print(outline(h).partition("\\n\\n")[2])
      theme 0: letter (2 classes, 4 pairs)
        a  2
        b  2

    Reference:
      Our own choice.
    """
    h = hierarchy
    sizes = np.bincount(h.classes, minlength=len(h.texts))
    lines = [f"{name}: {json.dumps(value)}" for name, value in h.about.items()]
    lines.append(f"{len(h.theme_texts)} themes, {len(h.texts)} classes, {len(h.members)} pairs")
    by_size = sorted(range(len(h.theme_texts)), key=lambda theme: (-np.sum(h.themes == theme), theme))
    for theme in by_size:
        classes = np.flatnonzero(h.themes == theme)
        pairs = sizes[classes].sum()
        lines.append(f"\ntheme {theme}: {h.theme_texts[theme]} ({len(classes)} classes, {pairs} pairs)")
        width = max(len(h.texts[i]) for i in classes)
        for i in classes:
            domains = np.bincount(h.domains[h.classes == i])
            lines.append(f"  {h.texts[i]:<{width}}  {' + '.join(map(str, domains))}")
    return "\n".join(lines)


def centroid_clip(clip: Clip, hierarchy: Hierarchy) -> Clip:
    """The clip with one more token for each class of a hierarchy whose classes are not called by words.

        rows of the token embedding:   [ e_1, ..., e_V, z_1, ..., z_C ]

    Text that the tokenizer makes is encoded as before. Anything that is learned on such a clip and holds no class (a
    prompt, a regulator) belongs to the original clip.

    Args:
      clip: the clip that the hierarchy was built with.
      hierarchy: with `token_rows`; one without them leaves the clip as it is.

    Returns:
      The clip, with a table of V + C rows.

    Raises:
      InputError: if the rows do not have the text transformer's width.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> from gram_jax.testing import tiny_clip
      >>> features, clip = np.eye(4, 16, dtype=np.float32), tiny_clip()
      >>> h = from_groups(["letter"] * 4, ["a", "a", "b", "b"], features, features, domains=1, min_members=2)
      >>> h = dataclasses.replace(h, token_rows=np.zeros((2, clip.config.text.width), np.float32))
      >>> centroid_clip(clip, h).config.text.vocab_size - clip.config.text.vocab_size
      2

    Reference:
      The centroid in place of a class-name token: "Self-supervised Meta-Prompt Learning with Meta-Gradient
      Regularization for Few-shot Generalization" and its public code; a row made of word embeddings is our own choice.
    """
    rows = hierarchy.token_rows
    if rows is None:
        return clip
    if rows.shape[1] != clip.config.text.width:
        raise InputError(
            f"The classes' tokens have width {rows.shape[1]}, this clip's have {clip.config.text.width}; give the clip "
            "that the hierarchy was built with."
        )
    table = clip.params["text"]["token_embedding"]
    table = jnp.concatenate([table, jnp.asarray(rows, table.dtype)])
    text = dataclasses.replace(clip.config.text, vocab_size=len(table))
    params = {**clip.params, "text": {**clip.params["text"], "token_embedding": table}}
    return clip.replace(params=params, config=dataclasses.replace(clip.config, text=text))


def class_table(hierarchy: Hierarchy, clip: Clip) -> Classes:
    """The tokens of all classes of a hierarchy.

    Args:
      hierarchy: C classes.
      clip: the clip; for a hierarchy with `token_rows`, the one that `centroid_clip` returns.

    Returns:
      `Classes` of NumPy arrays with C rows.

    Raises:
      InputError: if a text does not fit the clip, or the clip lacks the classes' tokens.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> from gram_jax.testing import tiny_clip
      >>> features = np.eye(4, 16, dtype=np.float32)
      >>> h = from_groups(["pet"] * 4, ["cat", "cat", "dog", "dog"], features, features, domains=1, min_members=2)
      >>> class_table(h, tiny_clip()).tail_ids.shape
      (2, 3)

    Reference:
      As `gram_jax.clip.class_tokens`.
    """
    if clip.tokenizer is None:
        raise InputError("This clip has no tokenizer: give it one with clip.replace(tokenizer=...).")
    if hierarchy.token_rows is None:
        classes = class_tokens(clip.tokenizer, hierarchy.texts, TEMPLATE, SUFFIX, allow_duplicates=True)
        return Classes(
            **{field.name: np.asarray(getattr(classes, field.name)) for field in dataclasses.fields(Classes)}
        )
    count = len(hierarchy.texts)
    first = clip.config.text.vocab_size - count
    rows = np.asarray(clip.params["text"]["token_embedding"][first:], np.float32)
    if first < clip.tokenizer.vocab_size or not np.allclose(rows, hierarchy.token_rows, atol=1e-2):
        raise InputError("The classes of this hierarchy are tokens that the clip lacks; give centroid_clip(clip, ...).")
    tokens = np.arange(first, first + count, dtype=np.int32)[:, None]
    before, behind = (clip.tokenizer.pieces([part])[0] for part in TEMPLATE.split("{}"))
    tail = [*clip.tokenizer.pieces([SUFFIX])[0], clip.tokenizer.eos_token_id]

    def around(start: list[int], end: list[int]) -> np.ndarray:
        sides = [np.tile(np.array(side, np.int32), (count, 1)) for side in (start, end)]
        return np.concatenate([sides[0], tokens, sides[1]], axis=1)

    token_ids = around([clip.tokenizer.bos_token_id, *before], [*behind, clip.tokenizer.eos_token_id])
    tail_ids = around([], tail)
    one = np.ones(count, np.int32)
    return Classes(
        token_ids=token_ids,
        eot=one * (token_ids.shape[1] - 1),
        tail_ids=tail_ids,
        name_length=one,
        tail_eot=one * (tail_ids.shape[1] - 1),
    )
