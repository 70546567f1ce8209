"""Pairs by number: the records of a TFDS dataset, the draws of the glyph benchmark."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from gram_jax.data.pairs.base import CAPTION_KEYS, REFUSED, UNUSED, Pair, Reading, Skipped, choose_columns, make_pair
from gram_jax.data.readers.tfds import open_source
from gram_jax.errors import InputError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def plan(source: str, rest: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields one unit per `reading.unit_pairs` records."""
    if source == "glyphs":
        shared, total = {"seed": reading.seed}, reading.pairs
    else:
        shared, total = _tfds(rest, reading)
    for first in range(0, total, reading.unit_pairs):
        yield {"kind": source, **shared, "first": first, "count": min(reading.unit_pairs, total - first)}
        shared = {name: value for name, value in shared.items() if name != "unused"}  # counted once


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Yields the pairs of a range of records."""
    numbers = range(unit["first"], unit["first"] + unit["count"])
    return _glyphs(unit["seed"], numbers) if unit["kind"] == "glyphs" else _records(unit, numbers)


def _glyphs(seed: int, numbers: range) -> Iterator[Pair]:
    from gram_jax.data import glyphs

    for number in numbers:
        drawn = glyphs.pair(number, seed)
        yield Pair(f"glyphs/{seed}/{number}", glyphs.encode_png(drawn.image), drawn.caption)


def _tfds(rest: str, reading: Reading) -> tuple[dict[str, Any], int]:
    """Returns the settings of a unit of a TFDS dataset, and the number of records."""
    import tensorflow_datasets as tfds

    name, *options = rest.split(":")
    versions = [option for option in options if _VERSION.fullmatch(option)]
    splits = [option for option in options if option not in versions]
    if len(versions) > 1 or len(splits) > 1:
        raise InputError(f"'tfds:{rest}' is not of the form tfds:NAME[:VERSION][:SPLIT]")
    split = splits[0] if splits else "train"
    builder = _builder(name, versions[0] if versions else "", os.path.expanduser(reading.data_dir))
    folder = os.fspath(builder.data_dir)
    if not builder.info.file_format or builder.info.file_format.value != "array_record":
        raise InputError(
            f"the TFDS dataset in {folder} is not in array_record format, and other formats require TensorFlow; "
            "prepare it with download_and_prepare(file_format='array_record')"
        )
    if split not in builder.info.splits:
        raise InputError(
            f"the TFDS dataset in {folder} has no split {split!r}; choose from {', '.join(builder.info.splits)}"
        )
    features = dict(sorted(builder.info.features.items()))  # TFDS has them in any order
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    columns = choose_columns(f"the TFDS dataset in {folder}", list(features), reading, images)
    shared = {"folder": folder, "split": split, "columns": columns, "max_bytes": reading.max_bytes}
    shared["unused"] = [name for name in features if name not in columns]
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
            f"there is no prepared TFDS dataset {name!r} in {data_dir or tfds.core.constants.DATA_DIR}; give its "
            "data_dir, or the folder that holds its dataset_info.json"
        ) from error


_opened = functools.lru_cache(maxsize=1)(open_source)  # a process reads units of one source


def _records(unit: dict[str, Any], numbers: range) -> Iterator[Pair | Skipped]:
    image, caption = unit["columns"]
    yield from (Skipped(name, UNUSED, "features that are not read") for name in unit.get("unused", ()))
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
    """Returns the captions of a record: a text, a list of texts, or either within a dictionary, as in COCO."""
    if isinstance(value, (bytes, str)):
        return [value]
    if isinstance(value, dict):
        return [text for name in CAPTION_KEYS if name in value for text in _texts(value[name])]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [text for item in value for text in _texts(item)]
    return []
