"""Reading image-text pairs from a specification, as a stream.

A specification is first divided into units (JSON values, a few thousand pairs each). Any process can read a unit alone
and in any order, so that the preparation of a corpus is parallel and resumable.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from gram_jax.data.pairs import archives, folder, records, tables
from gram_jax.data.pairs.base import Pair, Reading, Skipped
from gram_jax.errors import InputError

# Each reader is a module with two generators: `plan(source, rest, reading)` yields units, `read(unit)` yields entries.
_READERS: dict[str, Any] = {"csv": tables, "tsv": tables, "webdataset": archives, "folder": folder}
_READERS |= {"tfds": records, "glyphs": records}


def plan_units(spec: str, reading: Reading | None = None) -> Iterator[dict[str, Any]]:
    """Returns an iterator of the units of a specification, JSON objects for `read_unit`, in constant memory.

    Args:
      spec: one of

        * "csv:FILE", "tsv:FILE": a header, a column of paths (absolute, or relative to FILE), a column of captions. A
          csv may quote fields; a tsv has no quotes.
        * "webdataset:FILES": tar archives of KEY.jpg (png, webp, ...) and KEY.txt or KEY.json, as img2dataset writes
          them. FILES may hold braces and wildcards: "/data/{00000..00331}.tar", "/data/*.tar".
        * "folder:PATH": images anywhere below PATH, each with a .txt or .json of the same stem.
        * "tfds:NAME[:VERSION][:SPLIT]" or "tfds:FOLDER[:SPLIT]": a TFDS dataset in array_record format.
        * "glyphs": the glyph benchmark.

      reading: settings; by default those of `Reading()`.

    Example:
      >>> [unit["count"] for unit in plan_units("glyphs", Reading(pairs=5, unit_pairs=2))]
      [2, 2, 1]
    """
    source, separator, rest = spec.partition(":")
    if source not in _READERS or bool(separator) != (source != "glyphs") or (separator and not rest):
        raise InputError(
            f"the source of pairs {spec!r} is unknown; give csv:FILE, tsv:FILE, webdataset:FILES, folder:PATH, "
            "tfds:NAME or glyphs"
        )
    units = _READERS[source].plan(source, rest, reading or Reading())
    first = list(itertools.islice(units, 1))  # at once, so that errors are raised here and not by the consumer
    return itertools.chain(first, units)


def read_unit(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Returns the entries of a unit in order: each a `Pair`, or `Skipped` if it is none.

    A file that has changed since it was planned is an InputError.

    Args:
      unit: a unit of `plan_units`, unchanged or after a JSON round trip.

    Example:
      >>> (unit,) = plan_units("glyphs", Reading(pairs=2))
      >>> [pair.name for pair in read_unit(unit)]
      ['glyphs/0/0', 'glyphs/0/1']
    """
    return _READERS[unit["kind"]].read(unit)


def read_pairs(spec: str, reading: Reading | None = None) -> Iterator[Pair | Skipped]:
    """Returns all entries of a specification in order, `Pair` or `Skipped`, read in this process.

    Args:
      spec, reading: as for `plan_units`.

    Example:
      >>> next(read_pairs("glyphs", Reading(pairs=2))).image[1:4]
      b'PNG'
    """
    for unit in plan_units(spec, reading):
        yield from read_unit(unit)
