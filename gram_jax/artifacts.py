"""Tuned prompts and meta checkpoints on disk: small files that name the tuner, the regulator and the clip they need."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import regulators, tuners
from gram_jax.array_file import ArrayFileError, read_arrays, write_arrays
from gram_jax.clip import Clip, weights_hash
from gram_jax.errors import InputError
from gram_jax.io import PathLike
from gram_jax.meta import Meta, Structure
from gram_jax.registry import Registry
from gram_jax.regulators import Regulator
from gram_jax.summary import short
from gram_jax.tuners import Prompt, Tuner

PROMPT, META = "prompt", "meta"


class LoadedPrompt(NamedTuple):
    """A tuned prompt and its tuner: `tuner.apply(prompt, clip, classes, images)`."""

    prompt: Prompt
    tuner: Tuner

    def __repr__(self) -> str:
        return short(self)


class LoadedMeta(NamedTuple):
    """The result of meta-learning, its tuner and regulator, and the notes that were saved with it."""

    meta: Meta
    tuner: Tuner
    regulator: Regulator
    notes: dict[str, Any]

    def __repr__(self) -> str:
        return short(self)


class Description(NamedTuple):
    """The header of a file: its kind, "prompt" or "meta", its tuner, and the regulator and notes of "meta".

    `classes` are the names of the classes that a prompt was tuned on; None if the file does not name them.
    `classifier` is what `PromptClassifier.save` adds to a prompt: class names, labels, settings; None for others.
    `template` is that of the dataset, for prompts that read it.
    """

    kind: str
    tuner: Tuner
    regulator: Regulator | None
    notes: dict[str, Any]
    classes: tuple[str, ...] | None = None
    classifier: dict[str, Any] | None = None
    template: str | None = None

    def __repr__(self) -> str:
        return short(self)


def save_prompt(
    path: PathLike,
    prompt: Prompt,
    tuner: Tuner,
    clip: Clip,
    *,
    classes: Sequence[str] | None = None,
    classifier: Mapping[str, Any] | None = None,
    template: str | None = None,
) -> None:
    """Saves a tuned prompt in a file of a few kilobytes.

    The header names the tuner, its settings, the clip, and the classes if they are given.

    Args:
      path: the file, usually `NAME.safetensors`.
      prompt: the prompt.
      tuner: its tuner, one in `gram_jax.tuners.REGISTRY`.
      clip: the clip that it was tuned on.
      classes: the names of the classes that it was tuned on; a class-specific prompt is of use for these alone.
      template: the template of the dataset, for tuners that read it (`Tuner.reads_template`).
      classifier: JSON values that make the prompt a classifier, see `PromptClassifier.save`.

    Example:
      >>> import tempfile
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner, path = tiny_clip(), tuners.coop(), f"{tempfile.mkdtemp()}/prompt.safetensors"
      >>> save_prompt(path, tuner.init(jax.random.key(0), clip, None), tuner, clip)
      >>> loaded = load_prompt(path, clip)
      >>> loaded.tuner.name, loaded.prompt["context"].shape == (4, clip.config.text.width)
      ('coop', True)
    """
    check_prompt("the prompt", prompt, tuner, clip)
    own: dict[str, Any] = {} if classes is None else {"classes": list(classes)}
    own |= {} if template is None else {"template": template}
    own |= {} if classifier is None else {"classifier": dict(classifier)}
    write_arrays(path, prompt, {"kind": PROMPT} | _header(tuner, clip) | own)


def load_prompt(path: PathLike, clip: Clip) -> LoadedPrompt:
    """Returns a tuned prompt, bit for bit as it was saved, and its tuner.

    Args:
      path: a file that `save_prompt` wrote.
      clip: the clip that the prompt was tuned on.

    Raises:
      ArrayFileError: the file is damaged, is not a prompt, belongs to another clip, or needs an unregistered tuner.
    """
    tree, header = read_arrays(path)
    tuner = _describe(path, header, PROMPT).tuner
    _check_clip(path, header, clip)
    prompt = jax.tree.map(jnp.asarray, tree)
    check_prompt(str(path), prompt, tuner, clip)
    return LoadedPrompt(prompt, tuner)


def save_meta(
    path: PathLike,
    meta: Meta,
    tuner: Tuner,
    regulator: Regulator,
    clip: Clip,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Saves the result of meta-learning: initialization, regulator parameters and inner learning rates.

    Args:
      path: the file, usually `NAME.safetensors`.
      meta: the result; its initialization may be structured.
      tuner: the tuner of the prompt, a registered one that is not class-specific.
      regulator: the regulator of the parameters, a registered one.
      clip: the clip that it was learned on.
      notes: JSON values to keep with it, e.g. the settings of the run.

    Example:
      >>> import tempfile
      >>> from gram_jax.meta import init_meta
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner, regulator = tiny_clip(), tuners.coop(), regulators.affine()
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> meta = init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.1)
      >>> path = f"{tempfile.mkdtemp()}/meta.safetensors"
      >>> save_meta(path, meta, tuner, regulator, clip, notes={"steps": 100})
      >>> loaded = load_meta(path, clip)
      >>> loaded.regulator.name, loaded.notes
      ('affine', {'steps': 100})
    """
    if tuner.settings.get("class_specific"):
        raise InputError(
            f"{tuner.name} has class_specific=True; a meta checkpoint needs a prompt shared by all classes"
        )
    _check_meta("the meta checkpoint", meta, tuner, regulator, clip)
    _check_registered(regulators.REGISTRY, regulator.name)
    header = {
        "kind": META,
        **_header(tuner, clip),
        "regulator": regulator.name,
        "regulator_settings": dict(regulator.settings),
        "notes": dict(notes or {}),
    }
    tree = {"prompt": meta.prompt, "phi": meta.phi, "log_rates": meta.log_rates}
    if meta.offsets is not None:
        tree["offsets"] = meta.offsets
    if meta.structure is not None:
        tree["structure"] = dataclasses.asdict(meta.structure)
    write_arrays(path, tree, header)


def load_meta(path: PathLike, clip: Clip) -> LoadedMeta:
    """Returns a meta checkpoint, bit for bit as it was saved, with its tuner, its regulator and its notes.

    Args:
      path: a file that `save_meta` wrote, as `experiments.meta_train` does.
      clip: the clip that it was learned on.

    Raises:
      ArrayFileError: the file is damaged, is no meta checkpoint, or needs another clip or an unregistered method.
    """
    tree, header = read_arrays(path)
    _, tuner, regulator, notes, *_ = _describe(path, header, META)
    assert regulator is not None  # a meta checkpoint has one
    _check_clip(path, header, clip)
    tree = jax.tree.map(jnp.asarray, tree)
    try:
        if "structure" in tree:
            tree["structure"] = Structure(**tree["structure"])
        meta = Meta(**tree)
    except TypeError as error:
        raise ArrayFileError(f"{path} is not a complete meta checkpoint ({error}); save it again") from error
    _check_meta(str(path), meta, tuner, regulator, clip)
    return LoadedMeta(meta, tuner, regulator, notes)


def fit_classes(prompt: Prompt, tuner: Tuner, clip: Clip, names: Sequence[str]) -> Prompt:
    """Returns a class-specific prompt without what belongs to classes that filled up its class list, at the end.

    Args:
      prompt, tuner, clip: a prompt, its tuner and its clip.
      names: the classes that it was tuned on.
    """
    if not tuner.settings.get("class_specific"):
        return prompt
    classes = clip.class_tokens(list(names), allow_duplicates=True)
    shapes = jax.eval_shape(lambda key: tuner.init(key, clip, classes), jax.random.key(0))
    return jax.tree.map(lambda leaf, shape: leaf[tuple(map(slice, shape.shape))], prompt, shapes)


def describe(path: PathLike) -> Description:
    """Returns the header of a file that `save_prompt` or `save_meta` wrote, without the clip that it belongs to."""
    return _describe(path, read_arrays(path)[1], PROMPT, META)


def content_hash(path: PathLike) -> str:
    """Returns a SHA-256 over all of a saved file that changes numbers: not over its notes, nor the versions."""
    tree, header = read_arrays(path)
    told = {name: value for name, value in header.items() if name not in ("notes", "versions")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(where)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def check_prompt(what: str, prompt: Any, tuner: Tuner, clip: Clip) -> None:
    """Raises ArrayFileError unless a prompt has the leaves, shapes and dtypes that the tuner's `init` returns.

    A class-specific prompt, or one of attributes and objects, is not checked: its shapes depend on a class list.
    """
    if tuner.settings.get("class_specific") or tuner.needs_pairs:
        return
    _check_shapes(what, prompt, _initial_shapes(what, lambda key: tuner.init(key, clip, None)))


def _header(tuner: Tuner, clip: Clip) -> dict[str, Any]:
    _check_registered(tuners.REGISTRY, tuner.name)
    versions = {}
    for name in ("gram_jax", "jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout that is not installed
            versions[name] = importlib.metadata.version(name)
    return {
        "tuner": tuner.name,
        "settings": dict(tuner.settings),
        "class_specific": bool(tuner.settings.get("class_specific", False)),
        "clip": _clip_sizes(clip) | {"weights_hash": weights_hash(clip.params)},
        "versions": versions,
    }


def _check_registered(registry: Registry, name: str) -> None:
    if name not in registry:
        raise InputError(
            f"the {registry.family} {name!r} is not registered, and files name it; pass its factory to "
            f"gram_jax.{registry.family}s.REGISTRY.register"
        )


def _describe(path: PathLike, header: Mapping[str, Any], *kinds: str) -> Description:
    kind = header.get("kind")
    if kind not in kinds:
        wanted = " or ".join(map(repr, kinds))
        raise ArrayFileError(f"{path} holds {kind!r}, not {wanted}; give a file that was saved as {wanted}")
    tuner = _make(path, tuners.REGISTRY, header.get("tuner"), header.get("settings"))
    if kind == PROMPT:
        classes, classifier = header.get("classes"), header.get("classifier")
        if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise ArrayFileError(f"{path} has classes that are no list of names; save it again")
        template = header.get("template")
        if not isinstance(classifier, dict | None) or not isinstance(template, str | None):
            raise ArrayFileError(f"{path} has a header that does not describe its classifier; save it again")
        return Description(kind, tuner, None, {}, None if classes is None else tuple(classes), classifier, template)
    regulator = _make(path, regulators.REGISTRY, header.get("regulator"), header.get("regulator_settings"))
    if not isinstance(notes := header.get("notes"), dict):
        raise ArrayFileError(f"{path} has no notes; save it again")
    return Description(kind, tuner, regulator, notes)


def _make(path: PathLike, registry: Registry, name: Any, settings: Any) -> Any:
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise ArrayFileError(f"{path} does not name its {registry.family} and its settings; save it again")
    try:
        return registry.make(name, **settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArrayFileError(f"{path}: {error}") from error


def _check_clip(path: PathLike, header: Mapping[str, Any], clip: Clip) -> None:
    """Raises ArrayFileError unless a header names this clip."""
    found, expected = header.get("clip"), _clip_sizes(clip)
    if not isinstance(found, dict) or not {*expected, "weights_hash"} <= found.keys():
        raise ArrayFileError(f"{path} does not name the clip that it belongs to; save it again")
    for name, size in expected.items():
        if found[name] != size:
            raise ArrayFileError(
                f"{path} belongs to a clip with {name}={found[name]}, but this clip has {name}={size}; load that clip"
            )
    digest, other = weights_hash(clip.params), str(found["weights_hash"])
    if other != digest:
        raise ArrayFileError(
            f"{path} belongs to a clip with other weights: their hash is {other[:12]}..., and the hash of this clip's "
            f"weights is {digest[:12]}...; load that clip"
        )


def _clip_sizes(clip: Clip) -> dict[str, int]:
    config = clip.config
    return {"text_width": config.text.width, "vision_width": config.vision.width, "embed_dim": config.embed_dim}


def _check_meta(what: str, meta: Meta, tuner: Tuner, regulator: Regulator, clip: Clip) -> None:
    """Raises ArrayFileError unless every part of a `Meta` has the shapes of this tuner and regulator."""
    check_prompt(f"the prompt of {what}", meta.prompt, tuner, clip)
    expected = {
        "phi": _initial_shapes(what, lambda key: regulator.init(key, meta.prompt)),
        "log_rates": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), meta.prompt),
    }
    prototypes = regulator.settings.get("prototypes")
    if meta.structure is None and (meta.offsets is not None or prototypes is not None):
        raise ArrayFileError(f"{what} has no prototypes, which its offsets or its regulator {regulator.name} need")
    if meta.structure is not None:
        if getattr(meta.structure.prototypes, "ndim", None) != 2:
            raise ArrayFileError(f"the prototypes of {what} are not a matrix; save it again")
        count, width = meta.structure.prototypes.shape
        if prototypes not in (None, count):
            raise ArrayFileError(f"{what} has {count} prototypes, but {regulator.name} has prototypes={prototypes}")
        if meta.offsets is not None:
            expected["offsets"] = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), meta.prompt)
        sizes = {"prototypes": (count, width), "center": (width,), "temperature": ()}
        expected["structure"] = jax.eval_shape(
            lambda: Structure(**{k: jnp.zeros(v, jnp.float32) for k, v in sizes.items()})
        )
    for part, shapes in expected.items():
        _check_shapes(f"{part} of {what}", getattr(meta, part), shapes)


def _initial_shapes(what: str, init: Callable[[jax.Array], Any]) -> Any:
    try:
        return jax.eval_shape(init, jax.random.key(0))
    except (ValueError, TypeError, OverflowError) as error:
        raise ArrayFileError(f"{what} does not fit its tuner, regulator or clip: {error}") from error


def _check_shapes(what: str, found: Any, expected: Any) -> None:
    found, expected = _shapes(found), _shapes(expected)
    if found != expected:
        raise ArrayFileError(f"{what} has the arrays {found}, but its tuner and regulator need {expected}")


def _shapes(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
