"""The shards of a corpus: pairs that were checked, as TFDS records, with what the whole needs to know of them.

A shard STEM is a few files: STEM.array_record (the records), STEM.captions (a JSON text a line), STEM.digests (32 bytes
a pair), STEM.skipped (a JSON list a line), and at last STEM.json: where that is, the shard is whole. This module
imports no JAX, so that worker processes are light and never touch an accelerator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.data.pairs.reading import BROKEN_IMAGE, Pair, Skipped, read_unit

DIGEST_BYTES = 32
# Images are compressed already: compressing again takes twice the time of all other writing and saves nothing.
_OPTIONS = "group_size:1,uncompressed"
_MAX_RATIO = 100  # of an image's sides; the resized image would have more pixels than any limit


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is in a shard.

    Attributes:
      pairs: how many pairs it holds.
      skipped: how many entries are no pairs, by reason.
    """

    pairs: int
    skipped: dict[str, int]


def digest(image: bytes, caption: str) -> bytes:
    """SHA-256 of a pair's content: two pairs are the same if image and caption are the same to the byte.

    Example:
      >>> digest(b"image", "a cat") == digest(b"image", "a dog")
      False
    """
    return hashlib.sha256(len(image).to_bytes(8, "little") + image + caption.encode()).digest()


def serialize(pair: Pair) -> bytes:
    """The TFDS record of a pair, a `tf.train.Example`; equal pairs make equal bytes."""
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def feature(value: bytes) -> Any:
        return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))

    # A name may hold bytes that are no UTF-8, as file names on Linux do.
    name = pair.name.encode("utf-8", "backslashreplace")
    found = {"image": feature(pair.image), "caption": feature(pair.caption.encode()), "source": feature(name)}
    features = tf_feature_pb2.Features(feature=found)
    return tf_example_pb2.Example(features=features).SerializeToString(deterministic=True)


def check_image(pair: Pair, max_pixels: int) -> Pair | Skipped:
    """The pair, if its image can be read to the last pixel by what reads images later.

    Args:
      pair: the pair.
      max_pixels: images with more pixels are refused before they are decoded.

    Returns:
      The pair, or why its image is broken.
    """
    from gram_jax.clip.images import ImageError, ImageTransform

    try:
        pixels = ImageTransform(size=None, crop=None, max_pixels=max_pixels).pixels(pair.image, "the image")
    except ImageError as error:
        return Skipped(pair.name, BROKEN_IMAGE, str(error))
    height, width = pixels.shape[:2]
    if max(height, width) > _MAX_RATIO * min(height, width):
        return Skipped(pair.name, BROKEN_IMAGE, f"{width} x {height} pixels are a line, not a picture")
    return pair


def write_shard(stem: str | os.PathLike[str], unit: dict[str, Any], max_pixels: int) -> Shard:
    """Reads, checks and writes the pairs of a unit; memory does not grow with their number.

    Args:
      stem: the path of the shard without suffix.
      unit: from `plan_units`.
      max_pixels: see `check_image`.

    Returns:
      What the shard holds.

    Raises:
      OSError: the shard cannot be written, for example to a full disk.
      ValueError, FileNotFoundError: as `read_unit`.

    Example:
      >>> import tempfile
      >>> from gram_jax.data.pairs.reading import Reading, plan_units
      >>> (unit,) = plan_units("glyphs", Reading(pairs=3))
      >>> write_shard(f"{tempfile.mkdtemp()}/00000", unit, max_pixels=10_000).pairs
      3
    """
    stem = Path(stem)
    skipped: dict[str, int] = {}
    # The number of the process: what an interrupted run left behind is never written to by two.
    parts = {kind: _with_suffix(stem, f"{kind}.{os.getpid()}.part") for kind in ("captions", "digests", "skipped")}
    with (
        warnings.catch_warnings(),
        open(parts["captions"], "w", encoding="utf-8", newline="\n") as captions,
        open(parts["digests"], "wb") as digests,
        open(parts["skipped"], "w", encoding="utf-8", newline="\n") as dropped,
    ):
        warnings.simplefilter("ignore")  # decoders warn of each odd image; those that cannot be read are listed

        def records() -> Iterator[bytes]:
            for found in read_unit(unit):
                pair = check_image(found, max_pixels) if isinstance(found, Pair) else found
                if isinstance(pair, Skipped):
                    skipped[pair.reason] = skipped.get(pair.reason, 0) + 1
                    dropped.write(json.dumps(pair) + "\n")
                    continue
                captions.write(json.dumps(pair.caption, ensure_ascii=False) + "\n")
                digests.write(digest(pair.image, pair.caption))
                yield serialize(pair)

        pairs = write_records(_with_suffix(stem, "array_record"), records())
    for kind, part in parts.items():
        part.replace(_with_suffix(stem, kind))
    shard = Shard(pairs, skipped)
    write_json(_with_suffix(stem, "json"), dataclasses.asdict(shard))
    return shard


def read_shard(stem: str | os.PathLike[str]) -> Shard | None:
    """What a shard holds, or None where it is not whole."""
    path = _with_suffix(Path(stem), "json")
    try:
        return Shard(**json.loads(path.read_text())) if path.exists() else None
    except (ValueError, TypeError):
        return None


def write_records(path: Path, records: Iterable[bytes]) -> int:
    """Writes an array_record file, which appears whole or not at all.

    Returns:
      The number of records.

    Raises:
      OSError: not all of them could be written.
    """
    from array_record.python import array_record_module

    part = _with_suffix(path, f"{os.getpid()}.part")
    count = 0
    with _told(path):
        writer = array_record_module.ArrayRecordWriter(os.fspath(part), _OPTIONS)
    try:
        for record in records:
            with _told(path):
                writer.write(record)
            count += 1
    finally:
        with _told(path):
            writer.close()
    reader = array_record_module.ArrayRecordReader(os.fspath(part))
    found = reader.num_records()
    reader.close()
    if found != count:
        raise OSError(f"{path} holds {found} of {count} records; is the disk full?")
    part.replace(path)
    return count


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the writer's C++ raises as what it is, an error of the disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def copy_records(source: Path, target: Path, keep: np.ndarray) -> int:
    """Writes the records of an array_record file that are kept.

    Args:
      source: the file.
      target: the new file.
      keep: bool `[records]`.

    Returns:
      Their number.
    """
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(os.fspath(source))
    try:
        return write_records(target, (reader.read([int(row)])[0] for row in np.flatnonzero(keep)))
    finally:
        reader.close()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; the file appears whole or not at all."""
    part = _with_suffix(path, f"{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.parent / f"{path.name}.{suffix}"
