"""Says what is there of a dataset and what is missing, file by file, and shows some of its images.

    python -m experiments.check_data --dataset=coop:/data:caltech101
    python -m experiments.check_data --dataset=coop:/data
    python -m experiments.check_data --dataset=folder:/photos,csv:/photos/list.csv,tfds:dtd --read_all

``coop:ROOT`` without a name is all fifteen. Nothing is downloaded and nothing outside WORKDIR is written. The exit
status is 0 if all is well and 2 if something that is needed is missing or wrong: files, images that cannot be read,
numbers of classes and images that are not the published ones (``--nocounts`` lets these pass).

Listing takes seconds and a few hundred MB (ImageNet, on a local disk: ten seconds, 2 GB). Every image is opened where
there are at most 1,000 in files, or with ``--read_all``, on one core some 600 JPEGs of 500 x 375 pixels a second, 170
of 1000 x 750; else, or with ``--noread_all``, only those of the sheet. Writes ``WORKDIR/DATASET.png``.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_jax import runtime
from gram_jax.clip import ImageError, ImageTransform
from gram_jax.data import Dataset, load_dataset
from gram_jax.data.dataset import SPLITS
from gram_jax.data.readers import coop
from gram_jax.data.readers.coop_layouts import LAYOUTS
from gram_jax.errors import InputError
from gram_jax.reporting.contact_sheet import contact_sheet

from ._launch import at_least, launch, setting

_THUMBNAIL = ImageTransform(size=96, crop=(96, 96))
_WHOLE = ImageTransform(size=None, crop=None)
_FEW = 1000  # images in files that are read without being asked for
_SHOWN = 10  # broken images that are named


@dataclasses.dataclass(frozen=True)
class Config:
    """What is checked, and how far."""

    dataset: tuple[str, ...] = setting(
        ("glyphs:chess",), "datasets: coop:ROOT:NAME, coop:ROOT, tfds:NAME, folder:PATH, csv:PATH, glyphs:NAME"
    )
    images: int = setting(24, "images on the contact sheet; 0 for no sheet")
    columns: int = setting(8, "images a row of the sheet")
    read_all: bool | None = setting(None, f"read every image; default where there are at most {_FEW:,}, in files")
    counts: bool = setting(True, "numbers of classes and images other than the published ones are wrong")
    seed: int = setting(0, "seed of datasets that are drawn, and of splits that are made")

    def __post_init__(self) -> None:
        if not self.dataset:
            raise InputError("--dataset is empty; give at least one")
        at_least(self, 0, "images")
        at_least(self, 1, "columns")


def run(config: Config, workdir: Any) -> None:
    """Checks every dataset; raises ValueError, all problems in its message, if there are any."""
    problems = []
    for spec in coop.expand(config.dataset, coop.NAMES):
        print(f"\n{spec}")
        found = check(config, spec, workdir)
        print(f"  missing or wrong: {len(found)}" if found else "  all is well")
        problems += [f"{spec}: {problem}" for problem in found]
    if problems:
        raise InputError("\n  ".join([f"missing or wrong: {len(problems)}", *problems]))


def check(config: Config, spec: str, workdir: Any) -> list[str]:
    """Prints what there is of one dataset, and returns what is wrong with it."""
    problems = []
    if spec.startswith("coop:"):
        problems += survey(*coop.split_spec(spec.removeprefix("coop:")))
    try:
        dataset = load_dataset(spec, seed=config.seed)
    except ValueError as error:
        print(f"  cannot be read: {error}")
        return problems or [str(error)]
    differences = coop.differences(dataset) if spec.startswith("coop:") else []
    describe(dataset, differences)
    if differences and config.counts:
        problems.append(f"{'; '.join(differences)} (--nocounts lets this pass)")
    if config.images:
        problems += show(config, dataset, workdir / (re.sub(r"[^A-Za-z0-9]+", "-", spec).strip("-") + ".png"))
    in_files = dataset.seed is None  # images that are drawn cannot be broken
    few = in_files and len(dataset) <= _FEW
    if few if config.read_all is None else config.read_all:
        # Those of the sheet are named once.
        problems += [problem for problem in read_all(dataset) if problem not in problems]
    elif in_files:
        print("  not every image was read; --read_all does")
    return problems


def survey(root: str, name: str) -> list[str]:
    """Prints the files of one of CoOp's datasets, and returns those that are needed and missing."""
    parts = coop.survey(root, name)
    width = max(len(part.path) for part in parts[1:])  # the first is the whole folder
    for part in parts:
        state = "found" if part.there else "missing" if part.needed else "absent"
        print(f"  {state:<7}  {part.path:<{width}}  {part.remark}".rstrip())
    folder = parts[0].path
    # Where the folder is missing, so is all that is in it.
    missing = [part.path for part in parts if part.needed and not part.there]
    lost = missing[:1] if folder in missing else missing
    return [f"{path} is missing" for path in lost]


def describe(dataset: Dataset, differences: Sequence[str]) -> None:
    """Prints sizes, names and whatever else decides a result; differences are seen in the table of sizes."""
    layout = LAYOUTS.get(dataset.name.removeprefix("coop:"))
    print(f"  {'':<7}  {'found':>8}" + (f"  {'published':>9}" if layout else ""))
    rows = [(split, int(np.sum(dataset.splits == split)), layout and layout.sizes.get(split, 0)) for split in SPLITS]
    for what, found, published in [*rows, ("classes", len(dataset.class_names), layout and layout.classes)]:
        print(f"  {what:<7}  {found:>8}" + (f"  {published:>9}" if layout else ""))
    for what in ("source", "split"):
        if what in dataset.about:
            print(f"  {what}: {dataset.about[what]}")
    for note in dataset.about.get("notes", ()):
        if note not in differences:
            print(f"  note: {note}")
    print(f"  template: {dataset.template}\n  content hash: {dataset.content_hash}")
    names = f"class names: {', '.join(dataset.class_names)}"
    print(textwrap.fill(names, 118, initial_indent="  ", subsequent_indent="    "))


def spread(labels: np.ndarray, count: int) -> list[int]:
    """Positions of images of as many classes as possible, in label order if not all classes fit.

    Args:
      labels: int ``[images]``.
      count: how many positions, at most.

    Returns:
      Positions: the first image of every class, then the second of every class, and so on.
    """
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)  # of an image within its class
    turns = order[np.lexsort((labels[order], rank))]
    if len(starts) > count:
        return turns[np.linspace(0, len(starts) - 1, count).astype(int)].tolist()
    return turns[:count].tolist()


def show(config: Config, dataset: Dataset, path: Any) -> list[str]:
    """Writes the contact sheet, and returns what is wrong with the images on it."""
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
    """Reads every image, and returns what is wrong with those that cannot be read."""
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
