"""The field's eleven datasets and ImageNet's four variants, in the folders of CoOp's DATASETS.md."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gram_jax.data.dataset import SPLITS, Dataset
from gram_jax.data.readers import coop_imagenet
from gram_jax.data.readers.coop_layouts import LAYOUTS, NAMES, VARIANTS, Layout
from gram_jax.data.readers.coop_published import Found, aircraft, read_split_file
from gram_jax.data.readers.coop_rules import MAKERS
from gram_jax.data.readers.files import examples, list_folder, local_folder, missing, path_of
from gram_jax.data.splits import build
from gram_jax.data.templates import dataset_template
from gram_jax.errors import InputError

__all__ = ["ELEVEN", "NAMES", "VARIANTS", "Part", "differences", "expand", "labeled", "split_spec", "survey"]


ELEVEN = tuple(name for name in NAMES if name not in VARIANTS)
_OF_FOLDER = {layout.folder: name for name, layout in LAYOUTS.items()}


class Part(NamedTuple):
    """A file or folder of a dataset: whether it is there, whether reading fails without it, and what it is."""

    path: str
    there: bool
    needed: bool
    remark: str


def split_spec(rest: str) -> tuple[str, str]:
    """The root and the name in "ROOT:NAME", or in the path of a dataset's own folder.

    Args:
      rest: what follows "coop:" in a specification.

    Returns:
      (root, name).

    Raises:
      InputError: where a part is missing or the name is none of ``NAMES``.

    Example:
      >>> split_spec("/data:oxford_pets"), split_spec("/data/caltech-101")
      (('/data', 'oxford_pets'), ('/data', 'caltech101'))

    Reference:
      Our own choice.
    """
    root, _, name = rest.rpartition(":")
    if root and name in NAMES:
        return root, name
    above, _, folder = rest.rstrip("/").rpartition("/")
    if folder in _OF_FOLDER:
        return above or ("/" if rest.startswith("/") else "."), _OF_FOLDER[folder]
    raise InputError(
        f"'coop:{rest}' is no coop:ROOT:NAME, such as coop:/data:caltech101, ROOT being the folder that holds "
        f"{', '.join(_OF_FOLDER)}; the names are {', '.join(NAMES)}"
    )


def expand(specs: Sequence[str], names: Sequence[str] = ELEVEN) -> tuple[str, ...]:
    """Specifications of datasets, "coop:ROOT" alone standing for many.

    Args:
      specs: specifications, of any reader.
      names: what "coop:ROOT" stands for.

    Returns:
      The specifications, each of one dataset.

    Example:
      >>> len(expand(["coop:/data", "glyphs:chess"])), expand(["coop:/data/dtd"])
      (12, ('coop:/data/dtd',))

    Reference:
      Our own choice.
    """
    found: list[str] = []
    for spec in specs:
        prefix, _, rest = spec.partition(":")
        whole = prefix == "coop" and rest and ":" not in rest and rest.rstrip("/").rpartition("/")[2] not in _OF_FOLDER
        found += [f"{spec}:{name}" for name in names] if whole else [spec]
    return tuple(found)


def labeled(root: str | os.PathLike[str], name: str, seed: int = 0) -> Dataset:
    """One of the fifteen datasets.

    Splits, labels, class names and templates are CoOp's; underscores in class names become spaces. Images are ordered
    as in the split file, and by name where CoOp takes the order of the disk. Where a split file is missing, the split
    is made by the published rule, and ``about["split"]`` says so; the images of a split file must all be there.

    Args:
      root: the folder that holds the datasets' folders.
      name: a name of ``NAMES``.
      seed: the seed of a split that is made.

    Returns:
      A ``Dataset`` whose references are paths relative to the dataset's folder; reading gives the path of the image.

    Raises:
      InputError: where something is missing or does not fit; the message names it.

    Reference:
      Zhou et al., "Learning to Prompt for Vision-Language Models" (2022) and its DATASETS.md.
    """
    what, layout = f"coop:{name}", _layout(name)
    folder = local_folder(local_folder(root, what) / layout.folder, what)
    found = _read(folder, name, layout, what, seed)
    _check(folder, found, what)
    about = {"source": found.source, "split": found.split, "notes": found.notes}
    read = functools.partial(path_of, str(folder))
    dataset = build(what, found.items, found.class_names, dataset_template(name), read, about, layout.domain)
    notes = [*dataset.about["notes"], *differences(dataset)]
    return dataclasses.replace(dataset, about={**dataset.about, "notes": notes})


def survey(root: str | os.PathLike[str], name: str) -> list[Part]:
    """What is there of a dataset, file by file, and what is missing.

    Args:
      root: the folder that holds the datasets' folders.
      name: a name of ``NAMES``.

    Returns:
      One entry for each file or folder that the dataset is read from.

    Raises:
      InputError: for an unknown name, or a root that does not exist.

    Reference:
      CoOp's DATASETS.md.
    """
    layout = _layout(name)
    folder = local_folder(root, f"coop:{name}") / layout.folder
    parts = [Part(f"{folder}/", folder.is_dir(), True, "the dataset's folder")]
    for images in layout.images:
        there = (folder / images).is_dir()
        remark = "images"
        if there:
            listing = list_folder(folder / images)
            remark = f"{len(listing.folders)} folders, {len(listing.images)} images"
        parts.append(Part(f"{images}/", there, True, remark))
    made = False
    if layout.split_file:
        there = (folder / layout.split_file).is_file()
        made = not there
        remark = "the published split" + ("" if there else "; without it one is made, which is another one")
        parts.append(Part(layout.split_file, there, False, remark))
    for file in layout.needed:
        path = coop_imagenet.names_file(folder, layout) if layout.domain else folder / file
        remark = "" if path.parent == folder else f", from {path.parent.name}"
        parts.append(Part(file, path.is_file(), True, f"class names or splits{remark}"))
    for file in layout.annotations if made else ():
        parts.append(Part(file, (folder / file).is_file(), True, "what a split is made from"))
    return parts


def differences(dataset: Dataset) -> list[str]:
    """Where a dataset's numbers of classes and images are not the published ones.

    Args:
      dataset: one of the fifteen, as read.

    Returns:
      One sentence for each difference.

    Raises:
      InputError: for a dataset that is none of them.

    Reference:
      Zhou et al., "Conditional Prompt Learning for Vision-Language Models" (2022), table of datasets.
    """
    layout = _layout(dataset.name.removeprefix("coop:"))
    pairs = [("classes", len(dataset.class_names), layout.classes)]
    for split in SPLITS:
        pairs.append((f"{split} images", int((dataset.splits == split).sum()), layout.sizes.get(split, 0)))
    return [f"{found} {what}, {expected} are published" for what, found, expected in pairs if found != expected]


def _layout(name: str) -> Layout:
    if name not in NAMES:
        raise InputError(f"there is no coop dataset {name!r}; the names are {', '.join(NAMES)}")
    return LAYOUTS[name]


def _read(folder: Path, name: str, layout: Layout, what: str, seed: int) -> Found:
    """Items and names, from whichever files this dataset has them in."""
    if name == "imagenet":
        return coop_imagenet.imagenet(folder, layout, what)
    if layout.domain:
        numbered = name == "imagenetv2"
        return (coop_imagenet.numbered_variant if numbered else coop_imagenet.variant)(folder, layout, what)
    if not layout.split_file:
        return aircraft(folder, what)
    if (folder / layout.split_file).is_file():
        return read_split_file(folder, layout, what)
    made = MAKERS[name](folder, random.Random(seed), what)
    return made._replace(split=f"made, as {layout.split_file} is missing: {made.split}; seed {seed}")


def _check(folder: Path, found: Found, what: str) -> None:
    """Raises InputError where an image is listed twice or is not there."""
    paths = [item.reference for split in SPLITS for item in found.items.get(split, ())]
    if len(set(paths)) < len(paths):
        twice = sorted(path for path, count in Counter(paths).items() if count > 1)
        raise InputError(f"{what}: {found.source} lists {len(twice)} images more than once: {examples(twice)}")
    if lost := missing(folder, paths):
        cause = (
            "the list is another dataset's, or the images lie elsewhere"
            if len(lost) == len(paths)
            else "unpack the archive again, or get the list that belongs to these images"
        )
        raise InputError(
            f"{what}: {len(lost)} of the {len(paths)} images that {found.source} lists are not in {folder}: "
            f"{examples(lost)}; {cause}"
        )
