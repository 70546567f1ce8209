"""Checks datasets: lists files that exist or are missing, and writes a contact sheet of images.

    python -m experiments.check_data --dataset=coop:/data:caltech101
    python -m experiments.check_data --dataset=coop:/data
    python -m experiments.check_data --dataset=folder:/photos,csv:/photos/list.csv,tfds:dtd --read_all

``coop:ROOT`` without a name means all fifteen datasets. Nothing is downloaded, and only WORKDIR is written to. The exit
status is 0 if no problem is found, and 2 otherwise: missing files, images that cannot be read, numbers of classes and
images that differ from the published ones (``--nocounts`` accepts these).

Listing takes seconds and a few hundred MB (ImageNet, on a local disk: ten seconds, 2 GB). All images are read if there
are at most 1,000 in files, or with ``--read_all``: 600 JPEGs of 500 x 375 pixels a second on one core, 170 of 1000 x
750. Otherwise, or with ``--noread_all``, only the images of the contact sheet are read. Writes ``WORKDIR/DATASET.png``.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from typing import Any

import numpy as np

from gram_jax import runtime
from gram_jax.clip import ImageError, ImageTransform
from gram_jax.data import Dataset, coop, load_dataset
from gram_jax.errors import InputError, require_int
from gram_jax.reporting.contact_sheet import contact_sheet

from ._launch import launch, setting

_THUMBNAIL = ImageTransform(size=96, crop=(96, 96))
_WHOLE = ImageTransform(size=None, crop=None)
_FEW = 1000  # up to this number, images in files are all read
_SHOWN = 10  # broken images that are named


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of `check_data`."""

    dataset: tuple[str, ...] = setting(
        ("glyphs:chess",), "datasets: coop:ROOT:NAME, coop:ROOT, tfds:NAME, folder:PATH, csv:PATH, glyphs:NAME"
    )
    images: int = setting(24, "images on the contact sheet; 0 for no sheet")
    columns: int = setting(8, "images a row of the sheet")
    read_all: bool | None = setting(None, f"read every image; default: if at most {_FEW:,} are in files")
    counts: bool = setting(True, "report numbers of classes and images that differ from the published ones as problems")
    seed: int = setting(0, "seed of drawn datasets, and of splits that are made")

    def __post_init__(self) -> None:
        if not self.dataset:
            raise InputError("--dataset is empty; give at least one")
        require_int("--images", self.images, 0)
        require_int("--columns", self.columns)


def run(config: Config, workdir: Any) -> None:
    """Checks every dataset; raises InputError with all problems, one a line, if there are any."""
    problems = []
    for spec in coop.expand(config.dataset, coop.NAMES):
        print(f"\n{spec}")
        own = check(config, spec, workdir)
        print(f"  problems: {len(own)}" if own else "  no problems found")
        problems += [f"{spec}: {problem}" for problem in own]
    if problems:
        raise InputError("\n  ".join([f"problems: {len(problems)}", *problems]))


def check(config: Config, spec: str, workdir: Any) -> list[str]:
    """Prints the facts about one dataset, and returns its problems."""
    problems = []
    if spec.startswith(coop.PREFIX):
        problems += survey(*coop.split_spec(spec.removeprefix(coop.PREFIX)))
    try:
        dataset = load_dataset(spec, seed=config.seed)
    except InputError as error:
        print(f"  cannot be read: {error}")
        return problems or [str(error)]
    describe(dataset)
    differences = coop.differences(dataset)
    if differences and config.counts:
        problems.append(f"{'; '.join(differences)} (--nocounts accepts this)")
    if config.images:
        problems += show(config, dataset, workdir / (re.sub(r"[^A-Za-z0-9]+", "-", spec).strip("-") + ".png"))
    in_files = dataset.seed is None  # drawn images cannot be broken
    few = in_files and len(dataset) <= _FEW
    if few if config.read_all is None else config.read_all:
        # A broken image of the sheet is named once.
        problems += [problem for problem in read_all(dataset) if problem not in problems]
    elif in_files:
        print("  not all images were read; give --read_all to read them")
    return problems


def survey(root: str, name: str) -> list[str]:
    """Prints the files of one of CoOp's datasets, and returns the needed files that are missing."""
    parts = coop.survey(root, name)
    width = max(len(part.path) for part in parts[1:])  # the first is the whole folder
    for part in parts:
        state = "found" if part.exists else "missing" if part.needed else "absent"
        print(f"  {state:<7}  {part.path:<{width}}  {part.remark}".rstrip())
    # If the whole folder is missing, its files are not listed one by one.
    missing = [part.path for part in parts if part.needed and not part.exists]
    return [f"{path} is missing" for path in (missing[:1] if missing[:1] == [parts[0].path] else missing)]


def describe(dataset: Dataset) -> None:
    """Prints sizes, class names and everything else that affects a result."""
    sizes, known = coop.sizes(dataset), coop.facts(dataset.name) is not None
    print(f"  {'':<7}  {'found':>8}" + (f"  {'published':>9}" if known else ""))
    for what, number, published in (*sizes[1:], sizes[0]):
        print(f"  {what.split()[0]:<7}  {number:>8}" + (f"  {published:>9}" if known else ""))
    for what in ("source", "split"):
        if what in dataset.about:
            print(f"  {what}: {dataset.about[what]}")
    differences = coop.differences(dataset)  # the table shows them
    for note in dataset.about.get("notes", ()):
        if note not in differences:
            print(f"  note: {note}")
    print(f"  template: {dataset.template}\n  content hash: {dataset.content_hash}")
    names = f"class names: {', '.join(dataset.class_names)}"
    print(textwrap.fill(names, 118, initial_indent="  ", subsequent_indent="    "))


def spread(labels: np.ndarray, count: int) -> list[int]:
    """Returns the positions of `count` images: the first of every class, then the second of every class, and so on.

    If not all classes fit, the classes are evenly spread in label order.
    """
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)  # the rank of an image in its class
    turns = order[np.lexsort((labels[order], rank))]
    if len(starts) > count:
        return turns[np.linspace(0, len(starts) - 1, count).astype(int)].tolist()
    return turns[:count].tolist()


def show(config: Config, dataset: Dataset, path: Any) -> list[str]:
    """Writes the contact sheet, and returns the problems of its images."""
    pictures, labels, problems = [], [], []
    for position in spread(dataset.labels, config.images):
        try:
            pictures.append(_pixels(_THUMBNAIL, dataset, position))
        except ImageError as error:
            problems.append(str(error))
        else:
            labels.append(dataset.class_names[dataset.labels[position]])
    if pictures:
        with path.open("wb") as file:
            contact_sheet(pictures, labels, config.columns, scale=1, lines=3).save(file, "PNG")
        print(f"  {len(pictures)} images in {path}")
    return problems


def read_all(dataset: Dataset) -> list[str]:
    """Reads every image, and returns the problems of those that cannot be read."""
    broken = []
    for position in runtime.Progress.over(range(len(dataset)), f"reading {dataset.name}", unit="image"):
        try:
            _pixels(_WHOLE, dataset, position)
        except ImageError as error:
            broken.append(str(error))
    print(f"  {len(dataset) - len(broken)} of {len(dataset)} images can be read")
    more = [f"{len(broken) - _SHOWN} more images cannot be read"] if len(broken) > _SHOWN else []
    return broken[:_SHOWN] + more


def _pixels(transform: ImageTransform, dataset: Dataset, position: int) -> np.ndarray:
    reference = dataset.references[position]
    return transform.pixels(dataset.read(reference), f"{dataset.name}, {reference}")


if __name__ == "__main__":
    launch(run, Config)
