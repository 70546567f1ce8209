"""CLIP weights: reading under any known naming, writing, and hashing."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gram_jax.clip.config import ClipConfig
from gram_jax.clip.formats.namings import naming_of_params, naming_of_tensors
from gram_jax.clip.formats.table import Naming, WeightsError, from_file, to_file
from gram_jax.clip.formats.tensors import Tensors, open_tensors
from gram_jax.clip.formats.vit import HUGGINGFACE
from gram_jax.clip.model import Params, init_params
from gram_jax.errors import require_known
from gram_jax.io import atomic_path

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(jnp.bfloat16)}
_FILE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MOST_LISTED = 10  # problems of one type in an error message


def read_weights(
    source: Tensors | Sequence[str | Path], config: ClipConfig, dtype: str = "float32", stated: str = "config.json"
) -> Params:
    """Reads CLIP weights from the tensors of one checkpoint, or from its files.

    Reads one leaf at a time: the peak host memory is the parameters and a few copies of the largest leaf. A damaged
    file, and tensors that are missing, unexpected, or have another shape or
    type than `config` demands, raise WeightsError, which lists them all.

    Args:
      source: the tensors, or safetensors files, or PyTorch files.
      config: the sizes.
      dtype: dtype of the parameters: "float32", "float16" or "bfloat16".
      stated: the place that states the sizes, for messages.
    """
    require_known("dtype", dtype, DTYPES)
    tensors = source if isinstance(source, Tensors) else open_tensors([Path(file) for file in source])
    naming = naming_of_tensors(tensors.entries) or HUGGINGFACE
    shapes = flatten_dict(_shapes(config))
    _check_tensors(tensors, naming, {path: leaf.shape for path, leaf in shapes.items()}, stated)
    leaves: dict[tuple[str, ...], jax.Array] = {}
    broken: list[str] = []
    for row in naming.rows:
        if row.path not in shapes:
            continue
        shape, stacked = shapes[row.path].shape, "{}" in row.name
        names = row.names(shape[0] if stacked else 1)
        leaf = np.empty(shape if stacked else (1, *shape), DTYPES[dtype])
        with tensors.reading(names) as read, np.errstate(over="ignore"):  # infinite numbers are reported below
            for index, name in enumerate(names):
                leaf[index] = from_file(read(name), row.layout, row.part, row.parts).reshape(leaf.shape[1:])
        broken += [name for name, part in zip(names, leaf, strict=True) if not np.isfinite(part).all()]
        leaves[row.path] = jax.device_put(leaf if stacked else leaf[0])  # jnp.asarray compiles one for each shape
    subject = f"{', '.join(map(str, tensors.files))}, as {dtype}, is no usable model, use another copy or dtype"
    _refuse(subject, {"not finite": broken})
    return unflatten_dict(leaves)


def write_weights(params: Params, config: ClipConfig, file: str | Path, dtype: str | None = None) -> None:
    """Writes parameters, which must fit `config`, atomically as a safetensors file.

    The names are those of Hugging Face for every architecture that transformers has. `dtype` is "float32", "float16" or
    "bfloat16"; None is that of each leaf.
    """
    from safetensors.numpy import save_file

    if dtype is not None:
        require_known("dtype", dtype, DTYPES)
    _check_params(params, config)
    target = DTYPES[dtype] if dtype else None
    tensors = {name: np.array(tensor, target, order="C") for name, tensor in _tensors(params)}
    with atomic_path(file) as part:
        save_file(tensors, part, metadata={"format": "pt"})  # transformers refuses the file without it
        # safetensors makes the file readable by its owner only; the other files of the folder follow the user's mask.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)


def weights_hash(params: Params) -> str:
    """Returns a hash of the weights' content: 64 hexadecimal digits of SHA-256.

    Each tensor is hashed under its name and shape in a written file, as little-endian float32. Hence the hash depends
    neither on the layout of the parameter tree nor on the dtype of a lossless copy.

    Args:
      params: the parameters.
    """
    digests = []
    for name, tensor in _tensors(params):
        values = np.array(tensor, "<f4", order="C")
        digests.append(f"{name} {list(values.shape)} {hashlib.sha256(values.data).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _shapes(config: ClipConfig) -> Params:
    return jax.eval_shape(lambda: init_params(jax.random.key(0), config))


def _tensors(params: Params, naming: Naming | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names, and views in the file's layout, of the tensors of parameters."""
    leaves = flatten_dict(params)
    naming = naming or naming_of_params(leaves)
    rows_of_leaves = (row for row in naming.rows if row.path in leaves)
    for name, group in itertools.groupby(rows_of_leaves, key=lambda row: row.name):
        rows, stacked = list(group), "{}" in name
        arrays = [np.asarray(leaves[row.path]) for row in rows]
        for index, own in enumerate(rows[0].names(len(arrays[0]) if stacked else 1)):
            parts = [
                to_file(array[index] if stacked else array, row.layout) for row, array in zip(rows, arrays, strict=True)
            ]
            yield own, parts[0] if len(parts) == 1 else np.concatenate(parts)


def _expected(naming: Naming, leaves: Mapping[tuple[str, ...], tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shape that each tensor must have; leaves that the naming lacks are listed under their own path."""
    expected: dict[str, tuple[int, ...]] = {}
    for row in naming.rows:
        if row.path not in leaves:
            continue
        shape, stacked = leaves[row.path], "{}" in row.name
        # A broadcast scalar has a shape but needs no memory.
        found = to_file(np.broadcast_to(np.float32(0), shape[1:] if stacked else shape), row.layout).shape
        found = found if row.part is None else (row.parts * found[0], *found[1:])
        expected |= dict.fromkeys(row.names(shape[0] if stacked else 1), found)
    named = {row.path for row in naming.rows}
    return expected | {"/".join(path): shape for path, shape in leaves.items() if path not in named}


def _check_tensors(
    tensors: Tensors, naming: Naming, leaves: Mapping[tuple[str, ...], tuple[int, ...]], stated: str
) -> None:
    """Reports all misfits of the tensors in one error."""
    expected = _expected(naming, leaves)
    unexpected, misshaped, mistyped = list(tensors.repeated), [], []
    for name, (_, _, shape, dtype) in tensors.entries.items():
        if name.endswith(naming.constants):
            continue
        if name not in expected:
            unexpected.append(f"{name} {list(shape)}")
        elif shape != expected[name] and not (expected[name] == () and shape == (1,)):  # a scalar in either form
            misshaped.append(f"{name} {list(shape)} instead of {list(expected[name])}")
        elif dtype not in _FILE_DTYPES:
            mistyped.append(f"{name} {dtype} instead of {', '.join(_FILE_DTYPES)}")
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in tensors.entries]
    subject = f"{', '.join(map(str, tensors.files))} does not fit {stated}, use the files of one model"
    problems = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped, "of a wrong type": mistyped}
    _refuse(subject, problems)


def _refuse(subject: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raises WeightsError if there are problems; lists the first ones of each type in one line."""
    parts = []
    for problem, names in problems.items():
        if names:
            more = f", and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
            parts.append(f"{len(names)} {problem} ({', '.join(names[:_MOST_LISTED])}{more})")
    if parts:
        raise WeightsError(f"{subject}: {'; '.join(parts)}")


def _check_params(params: Params, config: ClipConfig) -> None:
    given, expected = (
        {name: np.shape(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}
        for tree in (params, _shapes(config))
    )
    misshaped = [
        f"{name} {list(given[name])} instead of {list(expected[name])}"
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    problems = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped}
    _refuse("the parameters do not fit the configuration", problems)
