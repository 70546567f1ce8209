"""Datasets by name: the prefix of a specification chooses the reader."""

from __future__ import annotations

from collections.abc import Callable

from gram_jax.data.dataset import Dataset
from gram_jax.data.readers import coop
from gram_jax.data.readers import csv as tables
from gram_jax.data.readers import folder as folders
from gram_jax.errors import InputError

FORMS = {
    "glyphs": "glyphs:NAME or glyphs:NAME/DOMAIN",
    "coop": "coop:ROOT:NAME or coop:ROOT/FOLDER",
    "tfds": "tfds:NAME or tfds:FOLDER:NAME, either with :SPLIT",
    "folder": "folder:PATH",
    "csv": "csv:PATH",
}


def load_dataset(spec: str, *, seed: int = 0) -> Dataset:
    """Opens the dataset that a specification names.

    * "glyphs:NAME" or "glyphs:NAME/DOMAIN", the embedded world; DOMAIN is a typeface, a rendering, face+rendering, or
      the path of a font file ("glyphs:greek_small//path/to/any.ttf").
    * "coop:ROOT:NAME", one of the fifteen datasets of ``coop.NAMES`` in the folders of CoOp's DATASETS.md below ROOT;
      "coop:ROOT/FOLDER", such as coop:/data/dtd, is the same.
    * "tfds:NAME" or "tfds:NAME:SPLIT", a dataset that TFDS has prepared as array_record, in ``TFDS_DATA_DIR`` or
      ~/tensorflow_datasets; "tfds:FOLDER:NAME" or "tfds:FOLDER:NAME:SPLIT" for another folder, such as /data/tfds.
    * "folder:PATH", class folders, or folders train, val and test of class folders.
    * "csv:PATH", a table with the columns image, label and, optionally, split.

    Class names have spaces for underscores. ``Dataset.about`` says where the splits come from and what is odd. Files
    are looked up here; images are read when they are asked for.

    Args:
      spec: the specification.
      seed: the seed of datasets that are drawn, and of splits that are made where none is given.

    Returns:
      A ``Dataset``.

    Raises:
      InputError: for an unknown prefix, dataset or domain, and for files that are missing or do not fit; the message
        names them.

    Example:
      >>> load_dataset("glyphs:chess/negative").class_names[0]
      'white king'

    Reference:
      Our own choice.
    """
    prefix, _, rest = spec.partition(":")
    if prefix not in _READERS or not rest:
        problem = "nothing behind its prefix" if prefix in _READERS else "no known prefix"
        raise InputError(f"the dataset {spec!r} has {problem}; give {'; '.join(FORMS.values())}")
    return _READERS[prefix](rest, seed)


def _glyphs(rest: str, seed: int) -> Dataset:
    from gram_jax.data import glyphs

    name, _, domain = rest.partition("/")
    return glyphs.labeled(name, domain, seed)


def _coop(rest: str, seed: int) -> Dataset:
    return coop.labeled(*coop.split_spec(rest), seed)


def _tfds(rest: str, seed: int) -> Dataset:
    from gram_jax.data.readers import tfds as prepared

    return prepared.labeled(*prepared.split_spec(rest), seed)


_READERS: dict[str, Callable[[str, int], Dataset]] = {
    "glyphs": _glyphs,
    "coop": _coop,
    "tfds": _tfds,
    "folder": folders.labeled,
    "csv": tables.labeled,
}
