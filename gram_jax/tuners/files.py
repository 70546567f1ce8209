"""Learned arrays in files: safetensors with a JSON header that says what they belong to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from gram_jax.clip import Clip, weights_hash
from gram_jax.errors import InputError
from gram_jax.tuners.base import Prompt, Tuner

FORMAT = 1
_KEY = "gram_jax"  # the one metadata entry: several would be written in random order, and equal files differ
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
_PACKAGES = ("gram_jax", "jax")
_FREE = ("chunk",)  # settings that change memory and speed, and no number


class ArrayFileError(InputError):
    """A file of learned arrays is damaged, or belongs to another clip, tuner or settings; the message says which."""


def write_arrays(path: str | os.PathLike[str], tree: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Writes nested dictionaries of arrays and a header; the file appears whole or not at all.

    Leaves are safetensors under their keys joined by "/". The metadata entry "gram_jax" is JSON: the header, the empty
    dictionaries of the tree, and a SHA-256 digest of everything. Equal contents make equal files.

    Args:
      path: where to write; missing folders are made. `gs://` paths work.
      tree: nested dictionaries with arrays as leaves; keys are texts without "/".
      header: JSON values.

    Raises:
      InputError: if the tree holds something else, or the header is no JSON.

    Example:
      >>> import tempfile
      >>> path = f"{tempfile.mkdtemp()}/arrays.safetensors"
      >>> write_arrays(path, {"context": jnp.zeros((4, 8)), "phi": {}}, {"kind": "example"})
      >>> tree, header = read_arrays(path)
      >>> tree["context"].shape, tree["phi"], header
      ((4, 8), {}, {'kind': 'example'})

    Reference:
      Our own choice.
    """
    from safetensors.numpy import save

    if not isinstance(tree, Mapping):
        raise InputError(f"Arrays are written from nested dictionaries, found {type(tree).__name__}.")
    leaves, empty = {}, []
    for name, leaf in _flatten(tree):
        if leaf is None:
            empty.append(name)
        else:
            leaves[name] = leaf
    try:
        content = {"format": FORMAT, "header": dict(header), "empty": sorted(empty)}
        content["digest"] = _digest(content, leaves)
        metadata = json.dumps(content, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The header of {path} must be JSON: {error}.") from error
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f"{path.name}.part"
    part.write_bytes(save(leaves, {_KEY: metadata}))
    part.replace(path)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `write_arrays` wrote.

    Args:
      path: the file.

    Returns:
      The tree, with NumPy arrays as leaves, and the header.

    Raises:
      FileNotFoundError: if there is no such file.
      ArrayFileError: if the file is damaged, or was not written by `write_arrays`.

    Example:
      >>> import tempfile
      >>> path = f"{tempfile.mkdtemp()}/arrays.safetensors"
      >>> write_arrays(path, {"rate": np.float32(0.5)}, {})
      >>> float(read_arrays(path)[0]["rate"])
      0.5

    Reference:
      Our own choice.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the file that was saved.")
    data = path.read_bytes()
    try:
        leaves = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArrayFileError(f"{path} is no whole safetensors file ({error}); save it again.") from error
    if _KEY not in metadata:
        raise ArrayFileError(f"{path} is a safetensors file without gram_jax's header; it was not saved by gram_jax.")
    try:
        content = json.loads(metadata[_KEY])
        digest = content.pop("digest")
        if content["format"] == FORMAT and digest != _digest(content, leaves):
            raise InputError("its contents do not have the digest that was written")
        if content["format"] == FORMAT:
            return _unflatten(leaves, content["empty"]), dict(content["header"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArrayFileError(f"{path} is damaged ({error}); save it again.") from error
    raise ArrayFileError(
        f"{path} has format {content['format']}, this release reads {FORMAT}; use the one that wrote it."
    )


def save_prompt(path: str | os.PathLike[str], prompt: Prompt, tuner: Tuner, clip: Clip) -> None:
    """Saves a tuned prompt: a few kilobytes that say which tuner, settings and clip they belong to.

    Nothing of the class list is saved; a class-specific prompt, which is of use to its own class list only, says so in
    the header.

    Args:
      path: the file, usually `NAME.safetensors`.
      prompt: what `tuner.init` made, tuned.
      tuner: the tuner.
      clip: the clip that it was tuned on.

    Raises:
      InputError: if the prompt is not one of this tuner on this clip.

    Example:
      >>> import tempfile
      >>> from gram_jax.testing import tiny_clip
      >>> from gram_jax.tuners import coop
      >>> clip, tuner, path = tiny_clip(), coop(), f"{tempfile.mkdtemp()}/prompt.safetensors"
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> save_prompt(path, prompt, tuner, clip)
      >>> bool(jnp.all(load_prompt(path, tuner, clip)["context"] == prompt["context"]))
      True

    Reference:
      Our own choice.
    """
    check_prompt("the prompt", prompt, tuner, clip)
    write_arrays(path, prompt, {"kind": "prompt"} | describe(tuner, clip))


def load_prompt(path: str | os.PathLike[str], tuner: Tuner, clip: Clip) -> Prompt:
    """Loads a tuned prompt, for the tuner, settings and clip that it was tuned with.

    The header (`read_arrays(path)[1]`) says which tuner that is: `make(header["tuner"], **header["settings"])`.

    Args:
      path: the file.
      tuner: the tuner.
      clip: the clip.

    Returns:
      The prompt, to the last bit as it was saved.

    Raises:
      FileNotFoundError: if there is no such file.
      ArrayFileError: if the file is damaged, holds no prompt, or belongs to another tuner, other settings or another
        clip; the message states what was found and what was expected.

    Example:
      >>> import tempfile
      >>> from gram_jax.testing import tiny_clip
      >>> from gram_jax.tuners import coop, vpt
      >>> clip, path = tiny_clip(), f"{tempfile.mkdtemp()}/prompt.safetensors"
      >>> save_prompt(path, coop().init(jax.random.key(0), clip, None), coop(), clip)
      >>> load_prompt(path, vpt(), clip)
      Traceback (most recent call last):
        ...
      gram_jax.tuners.files.ArrayFileError: ... was saved by the tuner 'coop', not by 'vpt'...

    Reference:
      Our own choice.
    """
    tree, header = read_arrays(path)
    check_kind(path, header, "prompt")
    check_described(path, header, tuner, clip)
    prompt = jax.tree.map(jnp.asarray, tree)
    check_prompt(str(path), prompt, tuner, clip)
    return prompt


def describe(tuner: Tuner, clip: Clip) -> dict[str, Any]:
    """What learned arrays belong to, as JSON values: the part that headers of all kinds share."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return {
        "tuner": tuner.name,
        "settings": dict(tuner.settings),
        "class_specific": _class_specific(tuner),
        "clip": _clip_sizes(clip) | {"weights_hash": weights_hash(clip.params)},
        "versions": versions,
    }


def check_kind(path: Any, header: Mapping[str, Any], kind: str) -> None:
    """Raises ArrayFileError unless a header is of one kind."""
    found = header.get("kind")
    if found != kind:
        raise ArrayFileError(f"{path} holds {found!r}, not {kind!r}; give a file that was saved as {kind!r}.")


def check_described(path: Any, header: Mapping[str, Any], tuner: Tuner, clip: Clip) -> None:
    """Raises ArrayFileError unless a header is what `describe` says of this tuner and clip; versions may differ."""
    found = header.get("clip")
    whole = isinstance(header.get("settings"), dict) and isinstance(found, dict) and "tuner" in header
    if not whole or not {*_clip_sizes(clip), "weights_hash"} <= found.keys():
        raise ArrayFileError(f"{path} does not say which tuner, settings and clip it belongs to; save it again.")
    if header["tuner"] != tuner.name:
        raise ArrayFileError(
            f"{path} was saved by the tuner {header['tuner']!r}, not by {tuner.name!r}; load it with that tuner."
        )
    theirs, ours = (
        {name: value for name, value in settings.items() if name not in _FREE}
        for settings in (header["settings"], tuner.settings)
    )
    if theirs != ours:
        pairs = [(name, theirs.get(name), ours.get(name)) for name in sorted(theirs.keys() | ours.keys())]
        differing = "; ".join(f"{name} is {old!r} there and {new!r} here" for name, old, new in pairs if old != new)
        raise ArrayFileError(
            f"{path} was saved with other settings of {tuner.name}: {differing}. Use those of the file."
        )
    for name, size in _clip_sizes(clip).items():
        if found[name] != size:
            raise ArrayFileError(
                f"{path} was tuned on a clip whose {name.replace('_', ' ')} is {found[name]}; this clip's is {size}. "
                "Load the clip that it was tuned on."
            )
    digest = weights_hash(clip.params)
    if (other := str(found["weights_hash"])) != digest:
        raise ArrayFileError(
            f"{path} was tuned on a clip of the same sizes with other weights: hash {other[:12]}..., "
            f"this clip's is {digest[:12]}... Load the clip that it was tuned on."
        )


def check_prompt(what: str, prompt: Any, tuner: Tuner, clip: Clip) -> None:
    """Raises ArrayFileError unless a prompt has the leaves, shapes and dtypes that the tuner's `init` gives.

    A class-specific prompt is not checked: its shapes hang on a class list that is not known here.
    """
    if _class_specific(tuner):
        return
    expected = _shapes(jax.eval_shape(lambda key: tuner.init(key, clip, None), jax.random.key(0)))
    found = _shapes(prompt)
    if found != expected:
        raise ArrayFileError(f"{what} is not one of {tuner.name} on this clip: found {found}, expected {expected}.")


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in leaves
    }


def _class_specific(tuner: Tuner) -> bool:
    return bool(tuner.settings.get("class_specific", False))


def _clip_sizes(clip: Clip) -> dict[str, int]:
    config = clip.config
    return {"text_width": config.text.width, "vision_width": config.vision.width, "embed_dim": config.embed_dim}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray | None]]:
    """Names and arrays of leaves; None stands for an empty dictionary."""
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise InputError(f"Keys must be texts without '/', found {key!r} below {prefix or 'the top'!r}.")
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if value:
                yield from _flatten(value, f"{name}/")
            else:
                yield name, None
            continue
        if not isinstance(value, (np.ndarray, np.generic, jax.Array)) or str(value.dtype) not in _DTYPES:
            found = getattr(value, "dtype", type(value).__name__)
            raise InputError(f"{name} must be an array of {', '.join(_DTYPES)}, found {found}.")
        yield name, np.array(value, order="C")


def _unflatten(leaves: Mapping[str, np.ndarray], empty: Sequence[str]) -> dict[str, Any]:
    """The tree of leaves and empty dictionaries under their names."""
    tree: dict[str, Any] = {}
    for name, leaf in [*leaves.items(), *((name, {}) for name in empty)]:
        *parents, last = name.split("/")
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise InputError(f"{name} lies below an array")
        if last in branch:
            raise InputError(f"{name} is there twice")
        branch[last] = leaf
    return tree


def _digest(content: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(leaves):
        leaf = leaves[name]
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
