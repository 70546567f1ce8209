"""Shards of a corpus: checked pairs as TFDS records, with captions and digests.

A shard STEM consists of STEM.array_record (the records), STEM.captions (a JSON text per line), STEM.digests (32 bytes
per pair), STEM.skipped (a JSON list per line), and STEM.json, which is written last and marks the shard as complete.
Worker processes import this module, which must not import JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gram_jax.data.account import Account
from gram_jax.data.pairs.base import BROKEN_IMAGE, UNUSED, Pair, Skipped
from gram_jax.data.pairs.reading import read_unit
from gram_jax.io import PathLike, atomic_path, read_json, write_json

DIGEST_BYTES = 32
# Images are already compressed: compressing again would double the writing time and save nothing.
_OPTIONS = "group_size:1,uncompressed"
_MAX_RATIO = 100  # of an image's sides; beyond it the resized image would exceed any limit of pixels


@dataclasses.dataclass(frozen=True)
class Shard:
    """The number of pairs in a shard, the numbers of skipped entries by reason, and the account of what is not used."""

    pairs: int
    skipped: dict[str, int]
    unused: dict[str, Any] = dataclasses.field(default_factory=lambda: Account().to_json())


def digest(image: bytes, caption: str) -> bytes:
    """Returns the SHA-256 of a pair's content; equal digests mean equal bytes of image and caption."""
    return hashlib.sha256(len(image).to_bytes(8, "little") + image + caption.encode()).digest()


def serialize(pair: Pair) -> bytes:
    """Returns the TFDS record of a pair, a `tf.train.Example`; equal pairs give equal bytes."""
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def feature(value: bytes) -> Any:
        return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))

    # File names on Linux may hold bytes that are not UTF-8.
    name = pair.name.encode("utf-8", "backslashreplace")
    values = {"image": feature(pair.image), "caption": feature(pair.caption.encode()), "source": feature(name)}
    features = tf_feature_pb2.Features(feature=values)
    return tf_example_pb2.Example(features=features).SerializeToString(deterministic=True)


def check_image(pair: Pair, max_pixels: int) -> Pair | Skipped:
    """Decodes the image of a pair completely; returns the pair, or why its image is broken.

    Images with more than `max_pixels` are refused before they are decoded.
    """
    from gram_jax.clip.images import ImageError, ImageTransform

    try:
        pixels = ImageTransform(size=None, crop=None, max_pixels=max_pixels).pixels(pair.image, "the image")
    except ImageError as error:
        return Skipped(pair.name, BROKEN_IMAGE, str(error))
    height, width = pixels.shape[:2]
    if max(height, width) > _MAX_RATIO * min(height, width):
        return Skipped(pair.name, BROKEN_IMAGE, f"{width} x {height} pixels: the aspect ratio exceeds {_MAX_RATIO}:1")
    return pair


def write_shard(stem: PathLike, unit: dict[str, Any], max_pixels: int) -> Shard:
    """Reads, checks and writes the pairs of a unit of `plan_units` in constant memory.

    Example:
      >>> import tempfile
      >>> from gram_jax.data.pairs.reading import Reading, plan_units
      >>> (unit,) = plan_units("glyphs", Reading(pairs=3))
      >>> write_shard(f"{tempfile.mkdtemp()}/00000", unit, max_pixels=10_000).pairs
      3
    """
    skipped: dict[str, int] = {}
    unused = Account()
    with contextlib.ExitStack() as stack:
        captions, digests, dropped = (
            stack.enter_context(stack.enter_context(atomic_path(f"{os.fspath(stem)}.{suffix}")).open("wb"))
            for suffix in ("captions", "digests", "skipped")
        )
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # decoders warn of odd images; unreadable ones are listed

        def records() -> Iterator[bytes]:
            for entry in read_unit(unit):
                pair = check_image(entry, max_pixels) if isinstance(entry, Pair) else entry
                if isinstance(pair, Skipped) and pair.reason == UNUSED:
                    unused.leave_out(pair.detail, [pair.name])
                    continue
                if isinstance(pair, Skipped):
                    skipped[pair.reason] = skipped.get(pair.reason, 0) + 1
                    dropped.write(json.dumps(pair).encode() + b"\n")
                    continue
                captions.write(json.dumps(pair.caption, ensure_ascii=False).encode() + b"\n")
                digests.write(digest(pair.image, pair.caption))
                yield serialize(pair)

        pairs = write_records(f"{os.fspath(stem)}.array_record", records())
    shard = Shard(pairs, skipped, unused.to_json())
    write_json(f"{os.fspath(stem)}.json", dataclasses.asdict(shard))
    return shard


def read_shard(stem: PathLike) -> Shard | None:
    """Returns the counts of a shard, or None if it is incomplete."""
    try:
        return Shard(**read_json(f"{os.fspath(stem)}.json"))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_records(path: PathLike, records: Iterable[bytes]) -> int:
    """Writes an array_record file atomically; returns the number of records, raises OSError if not all are written."""
    from array_record.python import array_record_module

    count = 0
    with atomic_path(path) as part:
        with _disk_errors(path):
            writer = array_record_module.ArrayRecordWriter(os.fspath(part), _OPTIONS)
        try:
            for record in records:
                with _disk_errors(path):
                    writer.write(record)
                count += 1
        finally:
            with _disk_errors(path):
                writer.close()
        reader = array_record_module.ArrayRecordReader(os.fspath(part))
        written = reader.num_records()
        reader.close()
        if written != count:
            raise OSError(f"{os.fspath(path)} holds {written} of {count} records; is the disk full?")
    return count


@contextlib.contextmanager
def _disk_errors(path: PathLike) -> Iterator[None]:
    """Converts errors of the writer's C++ code to OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{os.fspath(path)} cannot be written: {error}") from error


def copy_records(source: PathLike, target: PathLike, keep: np.ndarray) -> int:
    """Copies the records of an array_record file that `keep`, bool `[records]`, selects; returns their number."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(os.fspath(source))
    try:
        return write_records(target, (reader.read([int(row)])[0] for row in np.flatnonzero(keep)))
    finally:
        reader.close()
