"""One range for the grayscale images of a dataset that have more than 8 bits."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gram_jax.clip.decoding import BEYOND, deep_gray_values, read_rgb
from gram_jax.data.dataset import Dataset
from gram_jax.errors import require_number

RANGES = (1, 255, 1023, 4095, 16383, 65535)  # floats up to 1, then 8, 10, 12, 14 and 16 bits
_SUFFIXES = (".png", ".apng", ".tif", ".tiff", ".pgm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf")
# PNG, TIFF, PGM and JPEG 2000.
_BEGINS = (b"\x89PNG", b"II*\0", b"MM\0*", b"P2", b"P5", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
_SAMPLED = 256  # images whose values are looked at


class GrayRange(NamedTuple):
    """The value that is white, and a note for reports."""

    largest: float
    note: str


def find_range(sources: Iterable[Any], given: float | None = None) -> GrayRange | None:
    """Returns the range of grayscale with more than 8 bits, from up to 256 such images; None if there are none.

    The largest value of all images decides: the range is the smallest of 0..1 (floats), 8, 10, 12, 14 and 16 bits that
    holds it. So a dark image is as dark as it is among the others.

    Args:
      sources: image files, or their contents; anything else has no such images.
      given: the value that is white, instead.
    """
    if given is not None:
        require_number("gray_range", given, above=0)
    suspects = [source for source in sources if is_deep(source)]
    step = max(1, -(-len(suspects) // _SAMPLED))
    with ThreadPoolExecutor(8) as pool:
        values = [each for each in pool.map(deep_gray_values, suspects[::step]) if each is not None]
    found = [each for each in values if np.isfinite(each[2] - each[1])]  # others raise an error when they are read
    if not found:
        return None
    number = f"{len(found)}" if step == 1 else f"{len(found)} sampled"
    modes, low, high = sorted({mode for mode, *_ in found}), min(e[1] for e in found), max(e[2] for e in found)
    largest = given if given is not None else _fitting(high, modes == ["F"])
    return GrayRange(
        largest,
        f"{number} grayscale images of more than 8 bits (mode {', '.join(modes)}) have values from {low:g} to "
        f"{high:g}; they are read as 0..{largest:g} (--gray_range sets the white value)",
    )


def _fitting(high: float, floats: bool) -> float:
    """Returns the smallest usual range that holds a value; only floats are in 0..1, and may leave a range a little."""
    most = high / (1 + BEYOND) if floats else high
    return next((each for each in RANGES[0 if floats else 1 :] if each >= most), RANGES[-1])


def is_deep(source: Any) -> bool:
    """Returns whether a file, or its content, may hold grayscale with more than 8 bits.

    A file is judged by its suffix and, for PNG, its header, as a content is; TIFF, PGM and JPEG 2000 may always.

    Example:
      >>> is_deep("photo.jpg"), is_deep(__file__)
      (False, False)
    """
    if isinstance(source, bytes):
        begin = source[:26]
        if not begin.startswith(_BEGINS):
            return False
    elif not isinstance(source, str) or os.path.splitext(source)[1].lower() not in _SUFFIXES:
        return False
    else:
        try:
            if not os.path.isfile(source):
                return False
            with open(source, "rb") as file:
                begin = file.read(26)
        except OSError:
            return False
    return not begin.startswith(b"\x89PNG") or (len(begin) == 26 and begin[24] == 16 and begin[25] == 0)


def with_gray_range(dataset: Dataset, given: float | None = None) -> Dataset:
    """Returns a dataset of encoded images whose grayscale of more than 8 bits is scaled by one range, with a note.

    Image files are all looked at; of records, up to 256. Other datasets are returned unchanged.

    Args:
      dataset: the dataset.
      given: the value that is white; None for the range of the images, see `find_range`.
    """
    if dataset.content is None:
        return dataset
    references: Sequence[Any] = [each for each in dataset.references if isinstance(each, str)]
    references = references or dataset.references[:: max(1, -(-len(dataset) // _SAMPLED))]
    if (found := find_range(map(dataset.read, references), given)) is None:
        return dataset
    notes = [*dataset.about.get("notes", ()), found.note]
    about = {**dataset.about, "notes": notes, "gray_range": found.largest}
    return dataclasses.replace(
        dataset,
        read=functools.partial(_read, dataset.read, found.largest),
        content=functools.partial(_content, dataset.content, found.largest),
        about=about,
    )


def scaled(source: Any, largest: float | None, name: str = "the image") -> Any:
    """Returns an image as it is; or its pixels, if it may hold grayscale with more than 8 bits and has a range.

    Args:
      source: an image file, its content, or any other image.
      largest: the value that is white; None for no range.
      name: the name of encoded content in errors.
    """
    if largest is None or not is_deep(source):
        return source
    return read_rgb(source, largest, name=None if isinstance(source, str) else name)


def _read(read: Callable[[Any], Any], largest: float, reference: Any) -> Any:
    return scaled(read(reference), largest, str(reference))


def _content(content: Callable[[Any], str], largest: float, reference: Any) -> str:
    return f"{content(reference)} {largest:g}"
