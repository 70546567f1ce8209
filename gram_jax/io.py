"""Paths, JSON files and atomic writes, local and remote (gs://)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from gram_jax.errors import InputError

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def absolute(path: PathLike) -> epath.Path:
    """Returns an absolute path, "~" being the home folder; remote paths (`gs://...`) are absolute already.

    `epath.Path.resolve` is no substitute: it would turn `gs://bucket` into a local folder of that name.

    Example:
      >>> str(absolute("gs://bucket/run")), absolute("run").is_absolute()
      ('gs://bucket/run', True)
    """
    return epath.Path(path if is_remote(path) else os.path.abspath(os.path.expanduser(path)))


def is_remote(path: PathLike) -> bool:
    """Returns whether a path is a URL such as `gs://bucket/file`."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path beside `path`; on success renames it to `path`, on an error deletes it.

    A reader, or a run that was killed, sees the old file or the complete new one. Missing parent folders are created.
    The temporary name is unique and ends in ".part", so processes of several hosts may write the same file. An OSError
    without a file name (such as a full disk) gets the name of the file.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f"{target.name}.{uuid.uuid4().hex[:12]}.part"
    try:
        yield part
        part.replace(target)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path beside `path`, as `atomic_path` does; an older file of other content is kept.

    The older file is renamed: `results.json` becomes `results-1.json`, the next one `results-2.json`. A warning
    names it.
    """
    target = epath.Path(path)
    with atomic_path(target) as part:
        yield part
        if target.exists() and file_hash(target) != file_hash(part):
            logger.warning("the older %s is kept as %s", target.name, keep_older(target).name)


def keep_older(path: PathLike) -> epath.Path:
    """Renames a file to the first free name with a number before its suffix, and returns the new path."""
    target = epath.Path(path)
    names = (f"{target.stem}-{number}{target.suffix}" for number in itertools.count(1))
    older = next(other for name in names if not (other := target.parent / name).exists())
    target.rename(older)
    return older


def file_hash(path: PathLike) -> str:
    """Returns the SHA-256 of a file."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: PathLike, content: str | bytes) -> None:
    """Writes a whole file atomically; text is encoded as UTF-8."""
    with atomic_path(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: PathLike, value: Any, indent: int | None = 2) -> None:
    """Writes a JSON file atomically, with a final newline."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    write_file(path, text.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes its JSON escape


def read_json(path: PathLike) -> Any:
    """Returns the content of a JSON file; raises InputError if it is not valid UTF-8 or not valid JSON."""
    try:
        return json.loads(epath.Path(path).read_bytes().decode("utf-8-sig"))  # editors add the mark
    except (ValueError, RecursionError) as error:
        raise InputError(f"{os.fspath(path)} is not valid JSON: {error}") from error


def write_npz(path: PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed `.npz` file atomically."""
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle


def write_npy(path: PathLike, array: np.ndarray) -> None:
    """Writes an `.npy` file atomically."""
    # Through memory, because NumPy's own writing to a file hides the reason of a failure.
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_file(path, buffer.getvalue())
