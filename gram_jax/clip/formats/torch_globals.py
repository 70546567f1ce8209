"""The globals that PyTorch's checkpoints use, as inert values for `unpickle`: tensors, storages, dtypes, containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from gram_jax.clip.formats.unpickle import Call, ModuleClass, StateDict, refuse
from gram_jax.errors import InputError

_STORAGES = {
    **{"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
_DTYPES = {name: np.dtype(name) for name in {*_STORAGES.values(), "uint16", "uint32", "uint64"} - {"bfloat16"}}
_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_MAX_DIMENSIONS = 64  # of a NumPy array
_MAX_SIZE = 1 << 60  # elements


@dataclasses.dataclass(frozen=True)
class StorageType:
    """The class of a storage; without a dtype, its size is in bytes."""

    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage, by its key in the file and its size in bytes; the dtype is that of its class."""

    key: str
    size: int
    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: offset and strides are in elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def find(name: str) -> Any:
    """Returns the inert value of a global of `torch.save`; raises InputError for every other global."""
    package, _, last = name.rpartition(".")
    if package in ("torch", "torch.cuda") and last.removesuffix("Storage") in _STORAGES and last.endswith("Storage"):
        return StorageType(_DTYPES[_STORAGES[last.removesuffix("Storage")]])
    if name in ("torch.UntypedStorage", "torch.storage.UntypedStorage"):
        return StorageType(None)
    if package == "torch" and last in _DTYPES:
        return _DTYPES[last]
    if name in _CALLS:
        return Call(name, _CALLS[name])
    if "sparse" in last:
        raise refuse(name, "sparse tensors are not read; convert them by .to_dense()")
    if last == "_rebuild_qtensor" or last.startswith(("QInt", "QUInt")):
        raise refuse(name, "quantized tensors are not read; convert them by .dequantize()")
    raise refuse(name)


def find_script(name: str) -> Any:
    """Returns the inert value of a global of `torch.jit.save`: that of `find`, or a class of the archive itself."""
    return ModuleClass(name) if name.startswith("__torch__.") else find(name)


def load_storage(identity: Any) -> Storage:
    """Returns the storage of a persistent id: ("storage", class, key, location, size[, None])."""
    valid = isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"
    if not valid or not isinstance(identity[1], StorageType) or not isinstance(identity[2], str):
        found = identity[0] if isinstance(identity, tuple) and identity else identity
        found = found[:50] if isinstance(found, str) else type(found).__name__
        raise InputError(f"the file refers to a {found!r} outside the pickle; only storages of tensors are read")
    if len(identity) == 6 and identity[5] is not None:
        raise InputError("the file has views of storages, as PyTorch before 0.4 wrote them; save it again")
    _, kind, key, _, count = identity[:5]
    _check_sizes("a storage", (count,))
    return Storage(key, count * (kind.dtype.itemsize if kind.dtype else 1), kind.dtype)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None, metadata: Any = None
) -> Tensor:
    """Returns a tensor after all checks: the view is inside its storage."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise InputError("the file has a tensor without a storage or a shape; copy it again")
    dtype = storage.dtype or dtype
    if not isinstance(dtype, np.dtype):
        raise InputError("the file has a tensor without a dtype; copy it again")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise InputError(f"the file has a tensor with {len(shape)} dimensions, {len(strides)} strides; copy it again")
    _check_sizes("a tensor", (offset, *shape, *strides))
    if metadata:
        raise InputError("the file has a conjugated or negated view; call .resolve_conj().resolve_neg() before saving")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.size:
        raise InputError(
            f"a tensor {list(shape)} ends at element {last} of a storage of {storage.size} bytes; copy it again"
        )
    used = (stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    return Tensor(storage, dtype, offset, shape, tuple(used))


def _check_sizes(thing: str, sizes: tuple[Any, ...]) -> None:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < _MAX_SIZE:
            shown = size if isinstance(size, int) else type(size).__name__
            raise InputError(f"the file has {thing} with {shown} as a size, an offset or a stride; copy it again")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    del grad, hooks
    return _tensor(storage, offset, shape, strides, metadata=metadata)


def _rebuild_tensor_v3(*arguments: Any) -> Tensor:
    storage, offset, shape, strides, _, _, dtype, *metadata = arguments
    return _tensor(storage, offset, shape, strides, dtype, any(metadata))


def _rebuild_parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> Tensor:
    del grad, hooks, state
    if not isinstance(data, Tensor):
        raise InputError(f"the file has a parameter that is a {type(data).__name__}; copy it again")
    return data


def _size(sizes: Any) -> tuple[Any, ...]:
    if not isinstance(sizes, (tuple, list)):
        raise InputError(f"the file has a torch.Size of a {type(sizes).__name__}; copy it again")
    return tuple(sizes)


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: StateDict(),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": _size,
    "torch.device": lambda *parts: ":".join(str(part)[:50] for part in parts[:2]),
    "torch.jit._pickle.restore_type_tag": lambda value, _: value,
    **dict.fromkeys(
        (f"torch.jit._pickle.build_{kind}list" for kind in ("int", "tensor", "double", "bool")), lambda items: items
    ),
}
