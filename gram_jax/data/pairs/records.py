"""Pairs that are counted: the records of a TFDS dataset, the draws of the embedded world."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from gram_jax.data.pairs.reading import CAPTION_KEYS, REFUSED, Pair, Reading, Skipped, make_pair
from gram_jax.errors import InputError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def plan(kind: str, rest: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """One unit for every `reading.unit_pairs` records.

    Raises:
      FileNotFoundError: there is no such TFDS dataset.
      InputError: it cannot be read without TensorFlow, or lacks images, captions or the split.
    """
    if kind == "glyphs":
        shared, total = {"seed": reading.seed}, reading.pairs
    else:
        shared, total = _tfds(rest, reading)
    size = reading.unit_pairs
    return (
        {"kind": kind, **shared, "first": first, "count": min(size, total - first)} for first in range(0, total, size)
    )


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """The pairs of a range of records."""
    numbers = range(unit["first"], unit["first"] + unit["count"])
    return _glyphs(unit["seed"], numbers) if unit["kind"] == "glyphs" else _records(unit, numbers)


def _glyphs(seed: int, numbers: range) -> Iterator[Pair]:
    from gram_jax.data import glyphs

    for number in numbers:
        drawn = glyphs.pair(number, seed)
        yield Pair(f"glyphs/{seed}/{number}", glyphs.encode_png(drawn.image), drawn.caption)


def _tfds(rest: str, reading: Reading) -> tuple[dict[str, Any], int]:
    """What a unit of a TFDS dataset holds, and the number of records."""
    import tensorflow_datasets as tfds

    name, *options = rest.split(":")
    versions = [option for option in options if _VERSION.fullmatch(option)]
    splits = [option for option in options if option not in versions]
    if len(versions) > 1 or len(splits) > 1:
        raise InputError(f"'tfds:{rest}' cannot be read; give tfds:NAME[:VERSION][:SPLIT]")
    split = splits[0] if splits else "train"
    builder = _builder(name, versions[0] if versions else "", os.path.expanduser(reading.data_dir))
    folder = os.fspath(builder.data_dir)
    if not builder.info.file_format or builder.info.file_format.value != "array_record":
        raise InputError(
            f"the TFDS dataset in {folder} was not prepared as array_record, which alone can be read without "
            "TensorFlow; prepare it with download_and_prepare(file_format='array_record')"
        )
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise InputError(f"the TFDS dataset in {folder} has no split {split!r}; it has {known}")
    features = dict(sorted(builder.info.features.items()))  # TFDS has them in any order
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    captions = [name for name in CAPTION_KEYS if name in features]
    columns = []
    for asked, usual, what in (
        (reading.image_column, images, "image_column"),
        (reading.caption_column, captions, "caption_column"),
    ):
        found = [asked] if asked in features else [] if asked else usual
        if not found:
            raise InputError(f"the TFDS dataset in {folder} has the features {', '.join(features)}; name one as {what}")
        columns.append(found[0])
    shared = {"folder": folder, "split": split, "columns": columns, "max_bytes": reading.max_bytes}
    return shared, builder.info.splits[split].num_examples


def _builder(name: str, version: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    folder = os.path.expanduser(name)
    if os.path.isfile(os.path.join(folder, "dataset_info.json")):
        return tfds.builder_from_directory(folder)
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir or None, version=version or None)
    except tfds.core.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"no prepared TFDS dataset {name!r} was found in {data_dir or tfds.core.constants.DATA_DIR}; give its "
            "data_dir, or the folder that holds its dataset_info.json"
        ) from error


def open_source(folder: str, split: str, image: str) -> Any:
    """The records of a TFDS dataset in random access, images as the bytes that were stored."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})


_opened = functools.lru_cache(maxsize=1)(open_source)  # the units of a process are of one source


def _records(unit: dict[str, Any], numbers: range) -> Iterator[Pair | Skipped]:
    image, caption = unit["columns"]
    source = _opened(unit["folder"], unit["split"], image)
    for number in numbers:
        record = source[number]
        name = f"{unit['split']}/{number}"
        texts, size = _texts(record[caption]), len(record[image])
        if size > unit["max_bytes"]:
            yield Skipped(name, REFUSED, f"{size} bytes, the limit is {unit['max_bytes']}")
            continue
        for place, text in enumerate(texts):
            yield make_pair(name if len(texts) == 1 else f"{name}/{place}", record[image], text)
        if not texts:
            yield make_pair(name, record[image], None)


def _texts(value: Any) -> list[bytes | str]:
    """The captions of a record: a text, a list of texts, or either within a dictionary, as COCO's are."""
    if isinstance(value, (bytes, str)):
        return [value]
    if isinstance(value, dict):
        return [text for name in CAPTION_KEYS if name in value for text in _texts(value[name])]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [text for item in value for text in _texts(item)]
    return []
