"""CLIP weights in Hugging Face's safetensors layout: one table for reading, writing and hashing."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gram_jax.clip.config import ClipConfig
from gram_jax.clip.model import Params, init_params
from gram_jax.errors import InputError, require_known
from gram_jax.io import atomic_path

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(jnp.bfloat16)}
_FILE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CHANNELS = 3
_MOST_LISTED = 10  # problems of one type in an error message


class WeightsError(InputError):
    """Weights that cannot be read or do not fit the configuration; the message lists all problems."""


class Row(NamedTuple):
    """One leaf of the parameter tree, by its keys, and its tensors in the file.

    `hf` is the tensor's name; with `{}` for the layer, there is one tensor per index of the leaf's first axis. `layout`
    is "same", "transposed" (kernels are [out, in] in the file) or "patches" (the file has a convolution kernel
    [out, channel, row, column]; the leaf's rows are ordered by (row, column, channel)).
    """

    hf: str
    path: tuple[str, ...]
    layout: str = "same"


def _norm(hf: str, *path: str) -> list[Row]:
    return [Row(f"{hf}.weight", (*path, "scale")), Row(f"{hf}.bias", (*path, "bias"))]


def _dense(hf: str, *path: str) -> list[Row]:
    return [Row(f"{hf}.weight", (*path, "kernel"), "transposed"), Row(f"{hf}.bias", (*path, "bias"))]


def _layers(tower: str) -> list[Row]:
    hf, path = f"{tower}_model.encoder.layers.{{}}", (tower, "layers")
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    return [
        *_norm(f"{hf}.layer_norm1", *path, "norm_1"),
        *(row for name, key in attention.items() for row in _dense(f"{hf}.self_attn.{name}", *path, "attention", key)),
        *_norm(f"{hf}.layer_norm2", *path, "norm_2"),
        *_dense(f"{hf}.mlp.fc1", *path, "mlp", "up"),
        *_dense(f"{hf}.mlp.fc2", *path, "mlp", "down"),
    ]


TABLE: tuple[Row, ...] = (
    Row("logit_scale", ("logit_scale",)),
    Row("text_model.embeddings.token_embedding.weight", ("text", "token_embedding")),
    Row("text_model.embeddings.position_embedding.weight", ("text", "position_embedding")),
    *_layers("text"),
    *_norm("text_model.final_layer_norm", "text", "final_norm"),
    Row("text_projection.weight", ("text", "projection"), "transposed"),
    Row("vision_model.embeddings.class_embedding", ("vision", "class_embedding")),
    Row("vision_model.embeddings.patch_embedding.weight", ("vision", "patch_embedding"), "patches"),
    Row("vision_model.embeddings.position_embedding.weight", ("vision", "position_embedding")),
    *_norm("vision_model.pre_layrnorm", "vision", "pre_norm"),  # the misspelling is the file format's
    *_layers("vision"),
    *_norm("vision_model.post_layernorm", "vision", "post_norm"),
    Row("visual_projection.weight", ("vision", "projection"), "transposed"),
)


def _to_hf(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "transposed":
        return array.T
    if layout == "patches":
        rows, width = array.shape
        side = math.isqrt(rows // _CHANNELS)
        if side * side * _CHANNELS != rows:
            raise WeightsError(f"the patch embedding has {rows} rows: only square patches of RGB images are supported")
        return array.reshape(side, side, _CHANNELS, width).transpose(3, 2, 0, 1)
    return array


def _from_hf(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "transposed":
        return array.T
    if layout == "patches":
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array


def _tensors(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names, and views in the file's layout, of the tensors of parameters."""
    leaves = flatten_dict(params)
    for row in TABLE:
        leaf = np.asarray(leaves[row.path])
        for index, part in enumerate(leaf) if "{}" in row.hf else [(0, leaf)]:
            yield row.hf.format(index), _to_hf(part, row.layout)


def _shapes(config: ClipConfig) -> Params:
    return jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(str(file), "numpy")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is not a complete safetensors file ({error}); download it again") from error
    with opened as tensors:
        yield tensors


def _refuse(subject: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raises WeightsError if there are problems; lists the first ones of each type in one line."""
    parts = []
    for problem, names in problems.items():
        if names:
            more = f", and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
            parts.append(f"{len(names)} {problem} ({', '.join(names[:_MOST_LISTED])}{more})")
    if parts:
        raise WeightsError(f"{subject}: {'; '.join(parts)}")


def _locate(files: Sequence[Path], expected: Mapping[str, tuple[int, ...]]) -> dict[str, Path]:
    """Returns the file of every tensor; all misfits are reported in one error."""
    where: dict[str, Path] = {}
    unexpected, misshaped, mistyped = [], [], []
    for file in files:
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary, cannot be iterated)
                if name.endswith(".position_ids"):  # a constant in old files
                    continue
                part = tensors.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if name not in expected:
                    unexpected.append(f"{name} {list(shape)}")
                elif name in where:
                    unexpected.append(f"{name} in both {where[name].name} and {file.name}")
                elif shape != expected[name]:
                    misshaped.append(f"{name} {list(shape)} instead of {list(expected[name])}")
                elif dtype not in _FILE_DTYPES:
                    mistyped.append(f"{name} {dtype} instead of {', '.join(_FILE_DTYPES)}")
                where[name] = file
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in where]
    subject = f"{', '.join(map(str, files))} does not fit config.json, use the files of one model"
    _refuse(
        subject, {"missing": missing, "unexpected": unexpected, "misshaped": misshaped, "of a wrong type": mistyped}
    )
    return where


def read_weights(files: Sequence[str | Path], config: ClipConfig, dtype: str = "float32") -> Params:
    """Reads Hugging Face CLIP weights from one safetensors file or the shards of one model.

    Reads one leaf at a time: the peak host memory is the parameters and a few copies of the largest leaf. A damaged
    file, and tensors that are missing, unexpected, or have another shape or type than `config` demands, raise
    WeightsError, which lists them all. `dtype` of the parameters is "float32", "float16" or "bfloat16".
    """
    require_known("dtype", dtype, DTYPES)
    shapes = _shapes(config)
    # A broadcast scalar has a shape but needs no memory.
    views = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    where = _locate([Path(file) for file in files], {name: tensor.shape for name, tensor in _tensors(views)})
    leaves, shapes = {}, flatten_dict(shapes)
    for row in TABLE:
        shape, stacked = shapes[row.path].shape, "{}" in row.hf
        names = [row.hf.format(index) for index in range(shape[0])] if stacked else [row.hf]
        leaf = np.empty(shape if stacked else (1, *shape), DTYPES[dtype])
        # Opened again for each leaf: the pages of a mapped file count as memory of the process until it is closed.
        with contextlib.ExitStack() as stack:
            opened = {file: stack.enter_context(_open(file)) for file in {where[name] for name in names}}
            for index, name in enumerate(names):
                leaf[index] = _from_hf(opened[where[name]].get_tensor(name), row.layout)
        leaves[row.path] = jnp.asarray(leaf if stacked else leaf[0])
    return unflatten_dict(leaves)


def write_weights(params: Params, config: ClipConfig, file: str | Path, dtype: str | None = None) -> None:
    """Writes parameters, which must fit `config`, atomically as the safetensors file of a Hugging Face CLIP.

    `dtype` is "float32", "float16" or "bfloat16"; None is that of each leaf.
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

    Each tensor is hashed under its Hugging Face name and shape, as little-endian float32. Hence the hash depends
    neither on the layout of the parameter tree nor on the dtype of a lossless copy.

    Args:
      params: the parameters.
    """
    digests = []
    for name, tensor in _tensors(params):
        values = np.array(tensor, "<f4", order="C")
        digests.append(f"{name} {list(values.shape)} {hashlib.sha256(values.data).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


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
