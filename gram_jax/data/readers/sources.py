"""Datasets by specification: the prefix chooses the reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.dataset import Dataset
from gram_jax.data.gray import with_gray_range
from gram_jax.data.readers import coop, csv, folder
from gram_jax.errors import InputError, nearest


class Reader(NamedTuple):
    """A reader: the form of its specifications, and a function of a specification without its prefix and a seed."""

    form: str
    read: Callable[[str, int], Dataset]


def _glyphs(rest: str, seed: int) -> Dataset:
    from gram_jax.data import glyphs

    name, _, domain = rest.partition("/")
    return glyphs.labeled(name, domain, seed)


def _tfds(rest: str, seed: int) -> Dataset:
    from gram_jax.data.readers import tfds

    return tfds.labeled(*tfds.split_spec(rest), seed)


READERS = {
    "glyphs": Reader("glyphs:NAME or glyphs:NAME/DOMAIN", _glyphs),
    "coop": Reader("coop:ROOT:NAME or coop:ROOT/FOLDER", lambda rest, seed: coop.labeled(*coop.split_spec(rest), seed)),
    "tfds": Reader("tfds:NAME or tfds:FOLDER:NAME, either with :SPLIT", _tfds),
    "folder": Reader("folder:PATH", folder.labeled),
    "csv": Reader("csv:PATH", csv.labeled),
}


def forms() -> str:
    """Returns the forms of a specification that the readers understand."""
    return "; ".join(reader.form for reader in READERS.values())


def register_reader(prefix: str, form: str, read: Callable[[str, int], Dataset]) -> None:
    """Adds a reader, so that `load_dataset` opens "PREFIX:..." with it.

    Args:
      prefix: a new prefix, without ":".
      form: the form of a specification, such as "mine:PATH", for messages.
      read: maps the specification without its prefix, and a seed, to a ``Dataset``.

    Example:
      >>> def read(rest, seed):
      ...     return Dataset(f"toy:{rest}", (0,), [0], ["test"], ("cat",), "a {}.", lambda reference: "cat.jpg")
      >>> register_reader("toy", "toy:NAME", read)
      >>> load_dataset("toy:pets").name
      'toy:pets'
    """
    if not prefix or ":" in prefix or prefix in READERS:
        raise InputError(f"the prefix {prefix!r} is empty, contains ':' or is one of {', '.join(READERS)}; use another")
    READERS[prefix] = Reader(form, read)


def load_dataset(spec: str, *, seed: int = 0, gray_range: float | None = None, scale_gray: bool = True) -> Dataset:
    """Returns the dataset that a specification names.

    * "glyphs:NAME" or "glyphs:NAME/DOMAIN": the glyph benchmark; DOMAIN is a typeface, a rendering, face+rendering, or
      the path of a font file ("glyphs:greek_small//path/to/any.ttf").
    * "coop:ROOT:NAME": one of the datasets of ``coop.NAMES`` in the folders of CoOp's DATASETS.md below ROOT;
      "coop:ROOT/FOLDER", such as coop:/data/dtd, is the same.
    * "tfds:NAME" or "tfds:NAME:SPLIT": a dataset that TFDS has prepared as array_record, in ``TFDS_DATA_DIR`` or
      ~/tensorflow_datasets; "tfds:FOLDER:NAME" or "tfds:FOLDER:NAME:SPLIT" for another folder, such as /data/tfds.
    * "folder:PATH": class folders, or folders train, val and test of class folders, in any usual spelling.
    * "csv:PATH": a table with the columns image, label and, optionally, split, in any usual spelling.
    * prefixes that were added by `register_reader`.

    Class names have spaces for underscores. ``Dataset.about`` tells the origin of the splits, what is unusual, and what
    was left out. Files are listed now; images are read when they are needed. Grayscale images with more than 8 bits are
    scaled by one range for the whole dataset.

    Args:
      spec: the specification.
      seed: the seed of drawn datasets, and of splits that are made because none is given.
      gray_range: the value that is white in grayscale images with more than 8 bits; None for the smallest usual range
        that holds all of them (``gray.find_range``).
      scale_gray: whether there is such a range; otherwise the image transform alone decides what these images become.

    Example:
      >>> load_dataset("glyphs:chess/negative").class_names[0]
      'white king'
    """
    prefix, _, rest = map(str.strip, spec.partition(":"))
    if prefix not in READERS:
        path = Path(spec.strip()).expanduser()
        own = f"{'folder' if path.is_dir() else 'csv'}:{spec.strip()}"
        hint = f" (did you mean {own!r}?)" if path.exists() else nearest(prefix, READERS)
        raise InputError(f"the dataset {spec!r} has no known prefix{hint}; give {forms()}")
    if not rest:
        raise InputError(f"the dataset {spec!r} names nothing after its prefix; give {forms()}")
    dataset = READERS[prefix].read(rest, seed)
    return with_gray_range(dataset, gray_range) if scale_gray else dataset


def load_datasets(
    specs: Iterable[str], *, seed: int = 0, gray_range: float | None = None, scale_gray: bool = True
) -> dict[str, Dataset]:
    """Returns datasets by specification, under different names.

    Folders and tables of one name are called by as many of the folders above them as tell them apart. Two
    specifications of one dataset raise InputError.

    Args:
      specs: specifications, each of which is read once.
      seed, gray_range, scale_gray: as for `load_dataset`.

    Example:
      >>> list(load_datasets(["glyphs:chess", "glyphs:digits"]))
      ['glyphs:chess', 'glyphs:digits']
    """
    settings: dict[str, Any] = {"seed": seed, "gray_range": gray_range, "scale_gray": scale_gray}
    loaded = {spec: load_dataset(spec, **settings) for spec in dict.fromkeys(specs)}
    same: dict[str, list[str]] = {}
    for spec, dataset in loaded.items():
        same.setdefault(dataset.name, []).append(spec)
    for name, group in same.items():
        if len(group) > 1:
            loaded |= {
                spec: dataclasses.replace(loaded[spec], name=new) for spec, new in _told_apart(name, group).items()
            }
    return loaded


def _told_apart(name: str, specs: list[str]) -> dict[str, str]:
    """Returns a name for each specification that has the same short one."""
    prefix, _, short = name.partition(":")
    parents = {spec: Path(spec.partition(":")[2]).expanduser().absolute().parts[:-1] for spec in specs}
    for depth in range(1, 1 + max(map(len, parents.values()))):
        names = {spec: f"{prefix}:{'-'.join((*parts[-depth:], short))}" for spec, parts in parents.items()}
        if prefix in ("folder", "csv") and len(set(names.values())) == len(specs):
            return names
    raise InputError(
        f"{specs[0]!r} and {specs[1]!r} are both called {name!r} in results; give one of them, or rename one"
    )
