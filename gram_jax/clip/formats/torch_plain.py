"""Lists and dictionaries of text and numbers that `torch.save` wrote, read without executing anything."""

from __future__ import annotations

import contextlib
import mmap
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

from gram_jax.clip.formats.torch_file import MAGIC, PROTOCOL
from gram_jax.clip.formats.unpickle import refuse, unpickle
from gram_jax.clip.formats.zip_members import members, start_of
from gram_jax.errors import InputError

MAX_BYTES = 128 << 20  # of a pickle; the longest metadata of a published dataset has 12 MB
MAX_STEPS = 20_000_000  # opcodes; 60,000 images need 1,500,000


def read_plain(path: str | Path) -> Any:
    """Returns the value that `torch.save` wrote, if it holds lists, dictionaries, text, numbers and None only.

    Both layouts are read, the zip archive and the older stream of pickles. No global of the file is looked up.

    Args:
      path: the file, such as metadata_compositional-split-natural.t7.

    Raises:
      InputError: the file is damaged, is not of `torch.save`, or holds anything else, such as tensors.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            with contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as mapped:
                return _from_zip(mapped) if mapped[:4] == b"PK\3\4" else _from_stream(mapped)
        except (ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
            problem = error if isinstance(error, InputError) else f"it is damaged ({error}); copy it again"
            raise InputError(f"{path} cannot be read: {problem}") from error


def _from_zip(file: mmap.mmap) -> Any:
    found = members(file)
    names = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise InputError(f"it is a zip archive with {len(names)} members */data.pkl instead of 1, not of torch.save")
    start, size = start_of(file, names[0], found[names[0]]), found[names[0]].size
    return _value(BytesIO(file[start : start + min(size, MAX_BYTES)]))


def _from_stream(file: mmap.mmap) -> Any:
    stream = BytesIO(file[:MAX_BYTES])
    if _value(stream) != MAGIC or _value(stream) != PROTOCOL:
        raise InputError("it is a pickle, but not of torch.save; convert it to JSON")
    _value(stream)  # the sizes of integers on the machine that wrote it
    return _value(stream)


def _value(stream: BytesIO) -> Any:
    return unpickle(stream, _no_global, _no_global, MAX_STEPS)


def _no_global(name: Any) -> Any:
    raise refuse(str(name), "only lists, dictionaries, text and numbers are read here")
