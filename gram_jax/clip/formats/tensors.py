"""The tensors of a checkpoint by name, whatever the container: safetensors or PyTorch, one file or shards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.clip.decoding import SNIFFED, format_of
from gram_jax.clip.formats.table import WeightsError
from gram_jax.clip.formats.torch_file import TorchFile, read_torch

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # of NumPy's types in safetensors files
# Of PyTorch's data parallelism and compilation, of Lightning, and of models that hold a clip.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "clip.", "clip_model.")
_CUSTOM_TEXT = "text."  # of OpenCLIP's models with a text tower of their own


class Tensor(NamedTuple):
    """Where a tensor is, and its shape and type (as safetensors files write it: "F32", "F16", "BF16", ...)."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class Tensors(NamedTuple):
    """The tensors of one checkpoint; build with `open_tensors`.

    Attributes:
      files: the files, in order.
      entries: every tensor by its name without the prefixes of wrappers.
      repeated: a phrase for every tensor that is in two files.
      torch_files: the files of PyTorch, whose tensors are mapped when they are read.
    """

    files: tuple[Path, ...]
    entries: dict[str, Tensor]
    repeated: tuple[str, ...]
    torch_files: dict[Path, TorchFile]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.entries.items()}

    @contextlib.contextmanager
    def reading(self, names: Iterable[str]) -> Iterator[Callable[[str], np.ndarray]]:
        """Yields a function that reads one of these tensors; files are open inside the block only."""
        # The pages of a mapped file count as memory of the process until it is closed.
        with contextlib.ExitStack() as stack:
            files = {self.entries[name].file for name in names} - self.torch_files.keys()
            opened = {file: stack.enter_context(_open(file)) for file in files}

            def read(name: str) -> np.ndarray:
                entry = self.entries[name]
                if entry.file in opened:
                    return opened[entry.file].get_tensor(entry.name)  # type: ignore[no-any-return]
                return self.torch_files[entry.file][entry.name]

            yield read


def open_tensors(files: Sequence[Path]) -> Tensors:
    """Lists the tensors of safetensors or PyTorch files; raises WeightsError for a damaged one."""
    found: list[Tensor] = []
    torch_files = {}
    for file in files:
        if file.suffix == SAFETENSORS:
            with _open(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dictionary, cannot be iterated)
                    part = tensors.get_slice(name)
                    found.append(Tensor(file, name, tuple(part.get_shape()), part.get_dtype()))
        else:
            require_binary(file)
            torch_files[file] = read_torch(file)
            for name, place in torch_files[file].tensors.items():
                found.append(Tensor(file, name, place.shape, _CODES.get(place.dtype.name, place.dtype.name)))
    entries: dict[str, Tensor] = {}
    repeated = []
    rename = _renaming([tensor.name for tensor in found])
    for tensor in found:
        name = rename(tensor.name)
        if name in entries:
            repeated.append(f"{name} in both {entries[name].file.name} and {tensor.file.name}")
        entries.setdefault(name, tensor)
    return Tensors(tuple(files), entries, tuple(repeated), torch_files)


def _renaming(names: Sequence[str]) -> Callable[[str], str]:
    """Returns the function that removes the prefixes that all names share, and OpenCLIP's of a custom text tower."""
    prefix = ""
    while wrapper := next((each for each in _WRAPPERS if _all_start(names, prefix + each)), None):
        prefix += wrapper
    custom = f"{prefix}{_CUSTOM_TEXT}token_embedding.weight" in names

    def rename(name: str) -> str:
        name = name.removeprefix(prefix)
        return name.removeprefix(_CUSTOM_TEXT) if custom else name

    return rename


def _all_start(names: Sequence[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def require_binary(file: Path) -> None:
    """Raises WeightsError if a file of weights is what a failed download leaves: a Git LFS pointer or a web page."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        found = format_of(opened.read(SNIFFED))
        if found in ("Git LFS pointer", "HTML"):
            remedy = "run git lfs pull in its folder" if found != "HTML" else "download it again"
            raise WeightsError(f"{file} is no file of weights, its content is {found}; {remedy}")


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(str(file), "numpy")
    except (SafetensorError, OSError) as error:
        require_binary(file)
        raise WeightsError(f"{file} is not a complete safetensors file ({error}); download it again") from error
    with opened as tensors:
        yield tensors
