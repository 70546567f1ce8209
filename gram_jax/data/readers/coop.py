"""The field's eleven datasets and ImageNet's four variants, in the folders of CoOp's DATASETS.md."""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gram_jax.data.content import files_below
from gram_jax.data.dataset import SPLITS, Dataset
from gram_jax.data.readers.coop_datasets import DATASETS, CoopDataset
from gram_jax.data.readers.coop_rules import Contents, Source, names_file, read_split_file
from gram_jax.data.readers.files import list_folder, local_folder, missing
from gram_jax.data.splits import build
from gram_jax.errors import InputError, examples, require_known

PREFIX = "coop:"
NAMES = tuple(DATASETS)
VARIANTS = tuple(name for name, entry in DATASETS.items() if entry.domain)  # of ImageNet, test only
ELEVEN = tuple(name for name in NAMES if name not in VARIANTS)
_OF_FOLDER = {entry.folder: name for name, entry in DATASETS.items()}


class Part(NamedTuple):
    """A file or folder of a dataset: whether it exists, whether reading fails without it, and a remark."""

    path: str
    exists: bool
    needed: bool
    remark: str


def facts(name: str) -> CoopDataset | None:
    """Returns the facts about a dataset by the name of its ``Dataset``, such as "coop:dtd"; None for other datasets.

    Example:
      >>> facts("coop:dtd").template, facts("glyphs:chess")
      ('{} texture.', None)
    """
    return DATASETS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None


def split_spec(rest: str) -> tuple[str, str]:
    """Splits "ROOT:NAME", or the path of a dataset's own folder, into root and name.

    Example:
      >>> split_spec("/data:oxford_pets"), split_spec("/data/caltech-101")
      (('/data', 'oxford_pets'), ('/data', 'caltech101'))
    """
    root, _, name = rest.rpartition(":")
    if root and name in NAMES:
        return root, name
    above, _, folder = rest.rstrip("/").rpartition("/")
    if folder in _OF_FOLDER:
        return above or ("/" if rest.startswith("/") else "."), _OF_FOLDER[folder]
    raise InputError(
        f"'coop:{rest}' is no coop:ROOT:NAME, such as coop:/data:caltech101, where the folder ROOT holds "
        f"{', '.join(_OF_FOLDER)}; the names are {', '.join(NAMES)}"
    )


def expand(specs: Sequence[str], names: Sequence[str] = ELEVEN) -> tuple[str, ...]:
    """Replaces each "coop:ROOT" without a name by "coop:ROOT:NAME" for every given name.

    Example:
      >>> len(expand(["coop:/data", "glyphs:chess"])), expand(["coop:/data/dtd"])
      (12, ('coop:/data/dtd',))
    """
    expanded: list[str] = []
    for spec in specs:
        prefix, _, rest = spec.partition(":")
        whole = prefix == "coop" and rest and ":" not in rest and rest.rstrip("/").rpartition("/")[2] not in _OF_FOLDER
        expanded += [f"{spec}:{name}" for name in names] if whole else [spec]
    return tuple(expanded)


def labeled(root: str | os.PathLike[str], name: str, seed: int = 0) -> Dataset:
    """Reads one of the fifteen datasets.

    Splits, labels, class names and templates are CoOp's; underscores in class names become spaces. Images are in the
    order of the split file, and sorted by name where CoOp uses the order of the disk. Without the split file, a split
    is made by the published rule, and ``about["split"]`` begins with "made". All images of a split file must exist.
    References are paths relative to the dataset's folder; reading returns the path of an image.

    Args:
      root, name: the folder that holds the datasets' folders, and a name of ``NAMES``.
      seed: the seed of a split that is made.

    Reference:
      Zhou et al., "Learning to Prompt for Vision-Language Models" (2022) and its DATASETS.md.
    """
    require_known("coop dataset", name, NAMES)
    what, entry = f"{PREFIX}{name}", DATASETS[name]
    folder = local_folder(local_folder(root, what) / entry.folder, what)
    contents = _read(Source(folder, what, random.Random(seed)), entry, seed)
    _check(folder, contents, what)
    about = {"source": contents.source, "split": contents.split, "notes": contents.notes, "account": contents.left_out}
    reading = files_below(folder, sum(map(len, contents.items.values())))
    names, domain = contents.class_names, entry.domain
    dataset = build(what, contents.items, names, entry.template, reading, about, domain=domain, published=True)
    notes = [*dataset.about["notes"], *differences(dataset)]
    return dataclasses.replace(dataset, about={**dataset.about, "notes": notes})


def survey(root: str | os.PathLike[str], name: str) -> list[Part]:
    """Lists the files and folders that the dataset `name` below `root` is read from; the first is its folder."""
    require_known("coop dataset", name, NAMES)
    entry = DATASETS[name]
    folder = local_folder(root, f"{PREFIX}{name}") / entry.folder
    parts = [Part(f"{folder}/", folder.is_dir(), True, "the dataset's folder")]
    for images in entry.images:
        exists, remark = (folder / images).is_dir(), "images"
        if exists:
            listing = list_folder(folder / images)
            remark = f"{len(listing.folders)} folders, {len(listing.images)} images"
        parts.append(Part(f"{images}/", exists, True, remark))
    made = False
    if entry.split_file:
        made = not (folder / entry.split_file).is_file()
        remark = "the published split" + ("; without it, another split is made" if made else "")
        parts.append(Part(entry.split_file, not made, False, remark))
    for file in entry.needed:
        path = names_file(folder) if entry.domain else folder / file
        remark = "" if path.parent == folder else f", from {path.parent.name}"
        parts.append(Part(file, path.is_file(), True, f"class names or splits{remark}"))
    for file in entry.annotations if made else ():
        parts.append(Part(file, (folder / file).is_file(), True, "for the split that is made"))
    return parts


def differences(dataset: Dataset) -> list[str]:
    """Lists the numbers of classes and images that differ from the published ones, as "... are published"."""
    return [
        f"{number} {what}, {published} are published"
        for what, number, published in sizes(dataset)
        if published not in (None, number)
    ]


def sizes(dataset: Dataset) -> list[tuple[str, int, int | None]]:
    """Returns (what, number, published number) for the classes and the images of each split; None if unpublished."""
    entry = facts(dataset.name)
    numbers = len(dataset.class_names), *(int((dataset.splits == split).sum()) for split in SPLITS)
    what = "classes", *(f"{split} images" for split in SPLITS)
    return list(zip(what, numbers, entry.counts if entry else (None,) * 4, strict=True))


def _read(source: Source, entry: CoopDataset, seed: int) -> Contents:
    """Reads the split file, or the other files if there is none."""
    if entry.split_file and (source.folder / entry.split_file).is_file():
        return read_split_file(source, entry.split_file, entry.base)
    contents = entry.read(source)
    made = f"made, because {entry.split_file} is missing: {contents.split}; seed {seed}"
    return contents._replace(split=made) if entry.split_file else contents


def _check(folder: Path, contents: Contents, what: str) -> None:
    """Raises InputError if an image is listed twice or is missing."""
    paths = [item.reference for split in SPLITS for item in contents.items.get(split, ())]
    if len(set(paths)) < len(paths):
        twice = sorted(path for path, count in Counter(paths).items() if count > 1)
        raise InputError(f"{what}: {contents.source} repeats {len(twice)} images: {examples(twice)}")
    if lost := missing(folder, paths):
        remedy = (
            "check that the list belongs to this dataset, and that the images are in this folder"
            if len(lost) == len(paths)
            else "unpack the archive again, or get the list that belongs to these images"
        )
        raise InputError(
            f"{what}: {len(lost)} of the {len(paths)} images of {contents.source} are not in {folder}: "
            f"{examples(lost)}; {remedy}"
        )
