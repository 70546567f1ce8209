"""PyTorch's checkpoint files, read without PyTorch and without executing anything.

`read_torch` reads the three layouts: the zip archive of `torch.save`, the older stream of pickles, and the TorchScript
archive of `torch.jit.save`. Tensors stay in the file, and each one is mapped into memory when it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import mmap
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.clip.formats import torch_globals
from gram_jax.clip.formats.torch_globals import Storage, Tensor
from gram_jax.clip.formats.unpickle import Module, unpickle
from gram_jax.clip.formats.zip_members import members, start_of
from gram_jax.errors import InputError, examples

MAX_PICKLE = 16 << 20  # bytes; that of a checkpoint with optimizer states of 1,500 tensors has 1 MiB
_MAX_NAME, _MAX_DEPTH, _MAX_ENTRIES = 1000, 50, 100_000  # characters of a name; modules inside modules; attributes
_MIN_EXPANDED = 1 << 20  # elements that a view may have even if the file has fewer bytes
_PLAIN = (str, int, float, bool)
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training checkpoints keep the state dict
_PICKLE_STARTS = (b"\x80", b"(", b"]", b"}", b"c")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older layout
# SHA-256 of OpenAI's files, from their public addresses.
OPENAI_FILES = {
    "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101.pt": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4.pt": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16.pt": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64.pt": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14.pt": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L-14-336px.pt": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}


class Extent(NamedTuple):
    """The place of a storage: a file, a position in it, and a size, in bytes."""

    path: Path
    start: int
    size: int


class Place(NamedTuple):
    """A tensor in a file; offset and strides, in elements, are those in its storage."""

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: Extent
    offset: int
    strides: tuple[int, ...]


class TorchFile(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name, as read-only NumPy arrays that are mapped when they are looked up.

    Memory is used while an array exists. Tensors that share a storage share memory.

    Attributes:
      tensors: shape, dtype and place of every tensor, by name.
      metadata: plain values beside the tensors (text, numbers, booleans), by name.
      left_out: names of entries that are neither, such as the state of an optimizer.
    """

    def __init__(self, tensors: Mapping[str, Place], metadata: Mapping[str, Any], left_out: Sequence[str]):
        self.tensors, self.metadata, self.left_out = dict(tensors), dict(metadata), tuple(left_out)
        self._mapped: weakref.WeakValueDictionary[Extent, np.ndarray] = weakref.WeakValueDictionary()

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        extent = tensor.storage
        if not math.prod(tensor.shape):
            return np.empty(tensor.shape, tensor.dtype)
        if (storage := self._mapped.get(extent)) is None:
            storage = np.memmap(extent.path, np.uint8, "r", extent.start, (extent.size,))
            self._mapped[extent] = storage
        size = tensor.dtype.itemsize
        strides = tuple(size * stride for stride in tensor.strides)
        return np.ndarray(tensor.shape, tensor.dtype, storage, size * tensor.offset, strides)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def read_torch(path: str | Path, *, verify: bool = True) -> TorchFile:
    """Returns the tensors of a checkpoint file of PyTorch, of any of its layouts.

    A state dict inside {"state_dict": ...} or {"model": ...} is unwrapped. The names of a TorchScript archive are the
    paths of its attributes, as in its own `state_dict()`; tensors among its constants are not part of it.

    Args:
      path: the file.
      verify: compare a file with the name of one of OpenAI's with the published SHA-256. That reads the whole file.

    Raises:
      InputError: the file is damaged, needs anything but tensors and plain values, or is not OpenAI's.

    Reference: https://docs.pytorch.org/docs/stable/notes/serialization.html
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            if verify and path.name in OPENAI_FILES:
                _verify(file, OPENAI_FILES[path.name])
            with contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as mapped:
                return _read(path, mapped)
        except (ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
            problem = error if isinstance(error, InputError) else f"it is damaged ({error}); copy it again"
            raise InputError(f"{path} cannot be read: {problem}") from error


def _verify(file: BufferedReader, published: str) -> None:
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != published:
        raise InputError(
            f"its SHA-256 is {found}, that of OpenAI's file of this name is {published}; download it again, or rename "
            "the file if it is another model"
        )


def _read(path: Path, file: mmap.mmap) -> TorchFile:
    if file[:4] == b"PK\3\4":
        value, extents = _read_zip(path, file)
    elif file[:1] in _PICKLE_STARTS:
        value, extents = _read_stream(path, file)
    else:
        raise InputError(_unknown(file))
    tensors, metadata, left_out = _script_state(value) if isinstance(value, Module) else _state(value)
    places = {}
    for name, tensor in tensors.items():
        key, size = tensor.storage.key, tensor.storage.size
        if (extent := extents.get(key)) is None or extent.size < size:
            found = "is missing" if extent is None else f"has {extent.size} bytes instead of {size}"
            raise InputError(f"the storage {key[:100]!r} of {name!r} {found}; copy the file again")
        if math.prod(max(side, 1) for side in tensor.shape) > max(len(file), _MIN_EXPANDED):
            raise InputError(f"{name!r} is expanded to {list(tensor.shape)}; call .contiguous() before saving")
        places[name] = Place(tensor.shape, tensor.dtype, extent, tensor.offset, tensor.strides)
    return TorchFile(places, metadata, left_out)


def _unknown(file: mmap.mmap) -> str:
    head = file[:512]
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with: git lfs pull"
    if head[257:262] == b"ustar":
        return "it is a tar archive of PyTorch before 0.1.10; save it again with torch.save"
    return f"it starts with {head[:8]!r}, unlike the files of torch.save and torch.jit.save; copy it again"


def _read_zip(path: Path, file: mmap.mmap) -> tuple[Any, dict[str, Extent]]:
    """Returns the value of an archive, and its storages by their keys."""
    found = members(file)
    roots = [name.removesuffix("/data.pkl") for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise InputError(f"it is a zip archive with {len(roots)} members */data.pkl instead of 1, not of torch.save")
    root = roots[0]
    if (order := found.get(f"{root}/byteorder")) is not None:
        start = start_of(file, f"{root}/byteorder", order)
        if (name := file[start : start + min(order.size, 16)]) != b"little":
            raise InputError(f"its byte order is {name!r}, only b'little' is read; save it again on another machine")
    pickle = f"{root}/data.pkl"
    start, size = start_of(file, pickle, found[pickle]), found[pickle].size
    if size > MAX_PICKLE:
        raise InputError(f"{pickle[:100]!r} has {size} bytes, the limit is {MAX_PICKLE}")
    find = torch_globals.find_script if f"{root}/constants.pkl" in found else torch_globals.find
    extents = {}

    def load(identity: Any) -> Storage:
        storage = torch_globals.load_storage(identity)
        if (member := found.get(name := f"{root}/data/{storage.key}")) is not None and storage.key not in extents:
            extents[storage.key] = Extent(path, start_of(file, name, member), member.size)
        return storage

    return unpickle(BytesIO(file[start : start + size]), find, load), extents


def _read_stream(path: Path, file: mmap.mmap) -> tuple[Any, dict[str, Extent]]:
    """Returns the value of a stream of pickles, and its storages, which follow them, by their keys."""
    stream = BytesIO(file[:MAX_PICKLE])
    storages: dict[str, Storage] = {}

    def load(identity: Any) -> Storage:
        storage = torch_globals.load_storage(identity)
        if storages.setdefault(storage.key, storage) != storage:
            raise InputError(f"the storage {storage.key[:100]!r} has two sizes or dtypes; copy the file again")
        return storage

    if unpickle(stream, torch_globals.find, load) != MAGIC or unpickle(stream, torch_globals.find, load) != PROTOCOL:
        raise InputError("it is a pickle, but not of torch.save; save the tensors with torch.save")
    system = unpickle(stream, torch_globals.find, load)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("its byte order is not little-endian; save it again on another machine")
    value, keys = (unpickle(stream, torch_globals.find, load) for _ in range(2))
    position, extents = stream.tell(), {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise InputError("it lists a storage that no tensor uses; copy the file again")
        storage = storages[key]
        (count,) = struct.unpack_from("<q", file, position)
        size = count * (storage.dtype.itemsize if storage.dtype else 1)
        if size != storage.size or position + 8 + size > len(file):
            raise InputError(f"the storage {key[:100]!r} of {storage.size} bytes is cut; copy the file again")
        extents[key] = Extent(path, position + 8, size)
        position += 8 + size
    return value, extents


_State = tuple[dict[str, Tensor], dict[str, Any], list[str]]


def _state(value: Any) -> _State:
    """Returns the tensors, plain values and other names of a state dict, unwrapped, or of one tensor."""
    metadata: dict[str, Any] = {}
    left_out: list[str] = []
    for _ in range(1 + len(_WRAPPERS)):
        if not isinstance(value, dict):
            raise InputError(f"it contains a {type(value).__name__}, not a dictionary of tensors; save a state dict")
        tensors = {name: item for name, item in value.items() if isinstance(item, Tensor)}
        inner = next((key for key in _WRAPPERS if not tensors and isinstance(value.get(key), dict)), None)
        metadata |= {str(name): item for name, item in value.items() if isinstance(item, _PLAIN)}
        left_out += [
            str(name) for name, item in value.items() if not isinstance(item, (Tensor, *_PLAIN)) and name != inner
        ]
        if inner is None:
            break
        value = value[inner]
    return _checked(tensors, metadata, left_out)


def _script_state(root: Module) -> _State:
    """Returns the tensors, plain values and other names of a TorchScript object, named by the paths of attributes."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    left_out: list[str] = []
    visits = itertools.count(1)

    def visit(module: Module, prefix: str, depth: int) -> None:
        if depth > _MAX_DEPTH or len(prefix) > _MAX_NAME:
            raise InputError(f"its modules are nested more than {_MAX_DEPTH} deep, or in a cycle; do not trust it")
        for name, item in module.attributes.items():
            if next(visits) > _MAX_ENTRIES:
                raise InputError(f"its modules have more than {_MAX_ENTRIES} attributes; do not trust it")
            if not isinstance(name, str) or len(name) > _MAX_NAME:
                raise InputError(f"its modules have an attribute without a name of at most {_MAX_NAME} characters")
            path = f"{prefix}{name}"
            if isinstance(item, Module):
                visit(item, f"{path}.", depth + 1)
            elif isinstance(item, Tensor):
                tensors[path] = item
            elif isinstance(item, _PLAIN):
                metadata[path] = item
            elif item is not None:
                left_out.append(path)

    visit(root, "", 0)
    return _checked(tensors, metadata, left_out)


def _checked(tensors: dict[Any, Tensor], metadata: dict[str, Any], left_out: list[str]) -> _State:
    if not tensors:
        found = examples([name[:50] for name in (*left_out, *metadata)]) or "nothing"
        raise InputError(f"it contains no tensors with names, but {found}; save a state dict")
    wrong = [name for name in tensors if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME]
    if wrong:
        shown = wrong[0][:50] if isinstance(wrong[0], str) else wrong[0]
        raise InputError(f"it has {len(wrong)} tensors without a valid name, as {shown!r}; save a state dict")
    return tensors, metadata, left_out
