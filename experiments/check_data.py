"""Checks datasets: lists files that exist or are missing, and writes a contact sheet of images.

    python -m experiments.check_data --dataset=coop:/data:caltech101
    python -m experiments.check_data --dataset=coop:/data
    python -m experiments.check_data --dataset=folder:/photos,csv:/photos/list.csv,tfds:dtd --read_all

``coop:ROOT`` without a name means all fifteen datasets. Nothing is downloaded, and only WORKDIR is written to. The exit
status is 0 if no problem is found, and 2 otherwise: everything that an evaluation refuses a dataset for (one class,
class names with the same tokens, no test images, with ``--shots`` too few training images), missing files, images that
cannot be read, numbers of classes and images that differ from the published ones (``--nocounts`` accepts these). What
was left out and what is unusual is printed and does not change the status: where every image is read, also images of
one color, dark datasets, and equal images in several splits or classes.

Listing takes seconds and a few hundred MB (ImageNet, on a local disk: ten seconds, 2 GB). All images are read if there
are at most 1,000 in files, or with ``--read_all``: 600 JPEGs of 500 x 375 pixels a second on one core, 170 of 1000 x
750. Otherwise, or with ``--noread_all``, only images that are shown are read. Writes ``WORKDIR/DATASET.png``, a contact
sheet, and ``WORKDIR/check.html``: counts, what was left out, samples of every class, and suspicious images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import textwrap
from typing import Any

import numpy as np

import gram_jax as gram
from gram_jax import evaluation, reporting, runtime
from gram_jax.clip import ImageError, ImageTransform
from gram_jax.clip.decoding import frame_count
from gram_jax.data import Dataset, coop, load_dataset
from gram_jax.data.account import told
from gram_jax.data.looks import Looked, Suspicion
from gram_jax.errors import InputError, examples, require_int
from gram_jax.io import write_json
from gram_jax.reporting.contact_sheet import contact_sheet

from ._launch import at_least, launch, setting

ACCOUNT, PAGE = "account.json", "check.html"
_THUMBNAIL = ImageTransform(size=96, crop=(96, 96))
_WHOLE = ImageTransform(size=None, crop=None)
_FEW = 1000  # up to this number, images in files are all read
_SHOWN = 10  # broken images that are named
_LINES = 3  # of class names on the terminal


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of `check_data`."""

    dataset: tuple[str, ...] = setting(
        ("glyphs:chess",), "datasets: coop:ROOT:NAME, coop:ROOT, tfds:NAME, folder:PATH, csv:PATH, glyphs:NAME"
    )
    images: int = setting(24, "images on the contact sheet; 0 for no sheet")
    columns: int = setting(8, "images a row of the sheet")
    clip: str = setting("", "a folder, a hub name, or mini: also check that this clip can read the class names")
    shots: tuple[int, ...] = setting((), "labeled images per class that an evaluation is to draw; checked if given")
    read_all: bool | None = setting(None, f"read every image; default: if at most {_FEW:,} are in files")
    counts: bool = setting(True, "report numbers of classes and images that differ from the published ones as problems")
    seed: int = setting(0, "seed of drawn datasets, and of splits that are made")
    gray_range: float | None = setting(
        None,
        "the white value of grayscale images with more than 8 bits; default: the range that a dataset uses",
        above=0,
    )

    def __post_init__(self) -> None:
        if not self.dataset:
            raise InputError("--dataset is empty; give at least one")
        require_int("--images", self.images, 0)
        require_int("--columns", self.columns)
        at_least(self, 1, "shots")


def run(config: Config, workdir: Any) -> None:
    """Checks every dataset; raises InputError with all problems, one a line, if there are any."""
    found = []
    for spec in coop.expand(config.dataset, coop.NAMES):
        print(f"\n{spec}")
        found.append(check(config, spec, workdir))
        count = len(found[-1].problems)
        print(f"  problems: {count}" if count else "  no problems found")
    write_json(workdir / ACCOUNT, {"datasets": {each.name: account(each) for each in found}})
    reporting.pages.check_page(found, workdir / PAGE)
    print(f"\n{PAGE} in {workdir}")
    problems = [f"{each.name}: {problem}" for each in found for problem in each.problems]
    if problems:
        raise InputError("\n  ".join([f"problems: {len(problems)}", *problems]))


def account(found: reporting.pages.CheckedDataset) -> dict[str, Any]:
    """Returns what was found as JSON values, with `Dataset.about`."""
    about = {} if found.dataset is None else dict(found.dataset.about)
    return {**about, "problems": list(found.problems), "notes": list(found.notes)}


def check(config: Config, spec: str, workdir: Any) -> reporting.pages.CheckedDataset:
    """Prints the facts about one dataset, and returns what is wrong and what is unusual."""
    problems = []
    if spec.startswith(coop.PREFIX):
        problems += survey(*coop.split_spec(spec.removeprefix(coop.PREFIX)))
    try:
        dataset = load_dataset(spec, seed=config.seed, gray_range=config.gray_range)
    except InputError as error:
        print(f"  cannot be read: {error}")
        return reporting.pages.CheckedDataset(spec, None, problems or [str(error)], [])
    describe(dataset)
    problems += evaluation.checks.problems(dataset, shots=config.shots)
    if config.clip:
        problems += unreadable(config.clip, dataset)
    differences = coop.differences(dataset)
    if differences and config.counts:
        problems.append(f"{'; '.join(differences)} (--nocounts accepts this)")
    if config.images:
        problems += show(config, dataset, workdir / (re.sub(r"[^A-Za-z0-9]+", "-", spec).strip("-") + ".png"))
    in_files, notes = dataset.seed is None, evaluation.checks.remarks(dataset)  # drawn images cannot be broken
    suspicious: list[Suspicion] = []
    few = in_files and len(dataset) <= _FEW
    everything = few if config.read_all is None else config.read_all
    if everything:
        broken, looked = read_all(dataset)
        notes += [*looked.notes(), *several_frames(dataset)]
        suspicious = looked.suspicious()
        # A broken image of the sheet is named once.
        problems += [problem for problem in broken if problem not in problems]
    elif in_files:
        print("  not all images were read; give --read_all to read them, and to find equal or dark images")
    for note in notes:
        print(f"  note: {note}")
    notes = [*dataset.about.get("notes", ()), *notes]
    return reporting.pages.CheckedDataset(spec, dataset, problems, notes, suspicious, everything or not in_files)


def unreadable(name: str, dataset: Dataset) -> list[str]:
    """Returns why a clip cannot read the class names of a dataset."""
    try:
        evaluation.checks.require_readable(gram.load_clip(name), dataset, dataset.class_names, dataset.template, name)
    except InputError as error:
        return [str(error)]
    return []


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
    for line in told(dataset.about):
        if line.removeprefix("note: ") not in differences:
            print(f"  {line}")
    shots, smallest = evaluation.checks.most_shots(dataset)
    print(f"  few-shot: up to {shots} shots (class {smallest!r} has {shots} training images)")
    print(f"  template: {dataset.template}\n  content hash: {dataset.content_hash}")
    names = f"class names: {', '.join(dataset.class_names)}"
    lines = textwrap.wrap(names, 118, initial_indent="  ", subsequent_indent="    ")
    print("\n".join(lines[:_LINES]) + f" ..., all in {PAGE}" * (len(lines) > _LINES))


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


def read_all(dataset: Dataset) -> tuple[list[str], Looked]:
    """Reads every image; returns the problems of those that cannot be read, and what the others look like."""
    broken, looked = [], Looked(dataset)
    for position in runtime.Progress.over(range(len(dataset)), f"reading {dataset.name}", unit="image"):
        try:
            looked.add(position, _pixels(_WHOLE, dataset, position))
        except ImageError as error:
            broken.append(str(error))
    print(f"  {len(dataset) - len(broken)} of {len(dataset)} images can be read")
    more = [f"{len(broken) - _SHOWN} more images cannot be read"] if len(broken) > _SHOWN else []
    return broken[:_SHOWN] + more, looked


def several_frames(dataset: Dataset) -> list[str]:
    """Returns a note on image files with several frames or pages, of which the first is read."""
    several = []
    for each in dataset.references if any(isinstance(each, str) for each in dataset.references) else ():
        with contextlib.suppress(ImageError):  # reported already
            if isinstance(path := dataset.read(each), str) and frame_count(path) > 1:
                several.append(each)
    return [f"{len(several)} images have several frames, the first is read: {examples(several)}"] if several else []


def _pixels(transform: ImageTransform, dataset: Dataset, position: int) -> np.ndarray:
    reference = dataset.references[position]
    return transform.pixels(dataset.read(reference), f"{dataset.name}, {reference}")


if __name__ == "__main__":
    launch(run, Config)
