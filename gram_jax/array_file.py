"""Files of named arrays: safetensors with a JSON header and a digest, the format of everything that is learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gram_jax.errors import InputError
from gram_jax.io import PathLike, atomic_path

FORMAT = 1
_KEY = "gram_jax"  # the one metadata entry: safetensors writes several in random order, and equal files would differ
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")


class ArrayFileError(InputError):
    """A file of arrays is damaged, holds something else, or belongs to another clip."""


def write_arrays(path: PathLike, tree: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Writes nested dictionaries of arrays and a header, atomically.

    Each array is a safetensors entry named by its keys, joined by "/". The metadata entry "gram_jax" is JSON: the
    header, the empty dictionaries of the tree, and a SHA-256 digest of everything. Equal contents make equal files.

    Args:
      path: the file, local or `gs://`; missing folders are created.
      tree: nested dictionaries with arrays as leaves; keys are strings without "/".
      header: JSON values.

    Example:
      >>> import tempfile
      >>> path = f"{tempfile.mkdtemp()}/arrays.safetensors"
      >>> write_arrays(path, {"context": np.zeros((4, 8)), "phi": {}}, {"kind": "example"})
      >>> tree, header = read_arrays(path)
      >>> tree["context"].shape, tree["phi"], header
      ((4, 8), {}, {'kind': 'example'})
    """
    from safetensors.numpy import save

    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: arrays must be in nested dictionaries, not in a {type(tree).__name__}")
    entries = dict(_flatten(tree))
    leaves = {name: leaf for name, leaf in entries.items() if leaf is not None}
    try:
        content = {"format": FORMAT, "header": dict(header), "empty": sorted(entries.keys() - leaves.keys())}
        content["digest"] = _digest(content, leaves)
        metadata = json.dumps(content, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the header of {path} must be JSON: {error}") from error
    with atomic_path(path) as part:
        part.write_bytes(save(leaves, {_KEY: metadata}))


def read_arrays(path: PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the tree, with NumPy arrays as leaves, and the header of a file that `write_arrays` wrote.

    A file that is damaged, or that something else wrote, raises ArrayFileError.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = epath.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path} does not exist")
    data = file.read_bytes()
    try:
        leaves = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArrayFileError(f"{path} is not a complete safetensors file ({error}); save it again") from error
    if _KEY not in metadata:
        raise ArrayFileError(f"{path} is a safetensors file that gram_jax did not write: it has no gram_jax header")
    try:
        content = json.loads(metadata[_KEY])
        digest = content.pop("digest")
        if content["format"] != FORMAT:
            raise InputError(f"format {content['format']!r} is not {FORMAT}; read it with the release that wrote it")
        if digest != _digest(content, leaves):
            raise InputError("the digest of its contents is wrong; save it again")
        return _unflatten(leaves, content["empty"]), dict(content["header"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArrayFileError(f"{path} cannot be read: {error}") from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields the name and array of every leaf, and the name and None of every empty dictionary."""
    import jax  # late: files are read without it

    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise InputError(f"the key {key!r} below {prefix or '/'!r} must be a string without '/'")
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}/") if value else [(name, None)]
            continue
        if not isinstance(value, (np.ndarray, np.generic, jax.Array)) or str(value.dtype) not in _DTYPES:
            found = getattr(value, "dtype", type(value).__name__)
            raise InputError(f"{name} is {found}; it must be an array of {', '.join(_DTYPES)}")
        yield name, np.array(value, order="C")


def _unflatten(leaves: Mapping[str, np.ndarray], empty: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in [*leaves.items(), *((name, {}) for name in empty)]:
        *parents, last = name.split("/")
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise InputError(f"the array {name} is inside another array")
        if last in branch:
            raise InputError(f"the array {name} occurs twice")
        branch[last] = leaf
    return tree


def _digest(content: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
