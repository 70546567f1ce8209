"""Splits of CoOp's datasets where the published file is missing, by the rules that the file was made by."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gram_jax.data.readers.coop_published import Found, label_of, names_of_labels
from gram_jax.data.readers.files import class_images, examples, read_json, read_lines
from gram_jax.data.splits import DIVIDED, Item, divide, group, hold_out
from gram_jax.errors import InputError

CALTECH_EXCLUDED = ("BACKGROUND_Google", "Faces_easy")
CALTECH_NAMES = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"}
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def by_folders(
    folder: Path,
    rng: random.Random,
    what: str,
    images: str,
    excluded: Sequence[str] = (),
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Found:
    """A made split of class folders: Caltech101, DTD, EuroSAT and Food101.

    Args:
      folder: the dataset's folder.
      rng: the generator of the split.
      what: the dataset, for messages.
      images: the folder of class folders.
      excluded: class folders that are left out.
      renamed: class names that differ from the folders'.

    Returns:
      What was read; labels follow the sorted names of the folders.

    Raises:
      InputError: where folders are missing or too small.
    """
    classes, skipped = class_images(folder, images, what, excluded)
    labeled = {name: [Item(path, label) for path in classes[name]] for label, name in enumerate(classes)}
    notes = [f"files that are no images: {examples(skipped)}"] if skipped else []
    names = [renamed.get(name, name) for name in classes]
    return Found(divide(labeled, rng, what), names, f"the folders of {images}", DIVIDED, notes)


def flowers(folder: Path, rng: random.Random, what: str) -> Found:
    """A made split of Flowers102, whose labels count from 1 in imagelabels.mat and are named in cat_to_name.json.

    Args:
      folder: the dataset's folder.
      rng: the generator of the split.
      what: the dataset, for messages.

    Returns:
      What was read.

    Raises:
      InputError: where a file is missing, or a label without a name.
    """
    path = folder / "imagelabels.mat"
    names = read_json(folder / "cat_to_name.json", what)
    if not isinstance(names, dict):
        raise InputError(f"{what}: {folder / 'cat_to_name.json'} is no table of names by class number; get it again")
    pairs, items = [], []
    for number, label in enumerate(_matlab(path, "labels", what), 1):
        if str(label) not in names:
            raise InputError(f"{what}: {path} has the label {label}, which cat_to_name.json has no name for")
        items.append(Item(f"jpg/image_{number:05d}.jpg", int(label) - 1))
        pairs.append((int(label) - 1, names[str(label)]))
    parts = divide(group(items), rng, what)
    return Found(parts, names_of_labels(pairs, f"{what}: {path}"), path.name, DIVIDED, [])


def pets(folder: Path, rng: random.Random, what: str) -> Found:
    """A made split of OxfordPets; a breed's name is that of its images, in lower case.

    Args:
      folder: the dataset's folder.
      rng: the generator of the split.
      what: the dataset, for messages.

    Returns:
      What was read.

    Raises:
      InputError: where a file of annotations is missing or cannot be read.
    """
    pairs = []

    def read(name: str) -> list[Item]:
        items = []
        path = folder / "annotations" / name
        for number, (image, label) in _fields(path, 2, what):
            items.append(Item(f"images/{image}.jpg", _from_one(label, f"{what}: {path}, line {number}")))
            pairs.append((items[-1].label, image.rpartition("_")[0].lower()))
        return items

    trained, tested = read("trainval.txt"), read("test.txt")
    names = names_of_labels(pairs, f"{what}: {folder / 'annotations'}")
    return _held_out(trained, tested, names, "annotations/trainval.txt and test.txt", rng, what)


def cars(folder: Path, rng: random.Random, what: str) -> Found:
    """A made split of StanfordCars; the year, last in the devkit's names, comes first.

    Args:
      folder: the dataset's folder.
      rng: the generator of the split.
      what: the dataset, for messages.

    Returns:
      What was read.

    Raises:
      InputError: where a file of annotations is missing or cannot be read.
    """
    names = []
    for name in _matlab(folder / "devkit" / "cars_meta.mat", "class_names", what):
        model, _, year = str(name).rpartition(" ")
        names.append(f"{year} {model}" if model else year)

    def read(images: str, path: Path) -> list[Item]:
        items = []
        for entry in _matlab(path, "annotations", what):
            label = int(entry["class"]) - 1
            if not 0 <= label < len(names):
                raise InputError(f"{what}: {path} has the class {label + 1}, cars_meta.mat names {len(names)}")
            items.append(Item(f"{images}/{entry['fname']}", label))
        return items

    trained = read("cars_train", folder / "devkit" / "cars_train_annos.mat")
    tested = read("cars_test", folder / "cars_test_annos_withlabels.mat")
    return _held_out(trained, tested, names, "the devkit's annotations", rng, what)


def scenes(folder: Path, rng: random.Random, what: str) -> Found:
    """A made split of SUN397; the words of a class path come in reverse: /b/bow_window/indoor is indoor bow window.

    Args:
      folder: the dataset's folder.
      rng: the generator of the split.
      what: the dataset, for messages.

    Returns:
      What was read.

    Raises:
      InputError: where a list is missing or holds a path of no class.
    """
    paths = [line.removeprefix("/") for _, line in read_lines(folder / "ClassName.txt", what)]
    labels = {path: label for label, path in enumerate(paths)}
    names = [" ".join(reversed(path.split("/")[1:])) for path in paths]

    def read(name: str) -> list[Item]:
        items = []
        for number, line in read_lines(folder / name, what):
            image = line.removeprefix("/")
            label = label_of(labels, image.rpartition("/")[0], f"{what}: {folder / name}, line {number}")
            items.append(Item(f"SUN397/{image}", label))
        return items

    trained, tested = read("Training_01.txt"), read("Testing_01.txt")
    return _held_out(trained, tested, names, "Training_01.txt and Testing_01.txt", rng, what)


def actions(folder: Path, rng: random.Random, what: str) -> Found:
    """A made split of UCF101's middle frames; ApplyEyeMakeup is called, and lies in, Apply_Eye_Makeup.

    Args:
      folder: the dataset's folder.
      rng: the generator of the split.
      what: the dataset, for messages.

    Returns:
      What was read.

    Raises:
      InputError: where a list is missing or names an action that classInd.txt does not.
    """
    lists = folder / "ucfTrainTestlist"
    pairs = []
    for number, (label, action) in _fields(lists / "classInd.txt", 2, what):
        pairs.append((_from_one(label, f"{what}: {lists / 'classInd.txt'}, line {number}"), action))
    actions_of = names_of_labels(pairs, f"{what}: {lists / 'classInd.txt'}")
    labels = {action: label for label, action in enumerate(actions_of)}
    names = ["_".join(re.findall("[A-Z][^A-Z]*", action)) for action in actions_of]

    def read(name: str) -> list[Item]:
        items = []
        for number, (video,) in _fields(lists / name, 1, what):
            action, _, file = video.rpartition("/")
            label = label_of(labels, action, f"{what}: {lists / name}, line {number}")
            items.append(Item(f"UCF-101-midframes/{names[label]}/{file.removesuffix('.avi')}.jpg", label))
        return items

    trained, tested = read("trainlist01.txt"), read("testlist01.txt")
    return _held_out(trained, tested, names, "ucfTrainTestlist, the first of its three", rng, what)


MAKERS: dict[str, Callable[[Path, random.Random, str], Found]] = {
    "caltech101": functools.partial(
        by_folders, images="101_ObjectCategories", excluded=CALTECH_EXCLUDED, renamed=CALTECH_NAMES
    ),
    "oxford_pets": pets,
    "stanford_cars": cars,
    "oxford_flowers": flowers,
    "food101": functools.partial(by_folders, images="images"),
    "sun397": scenes,
    "dtd": functools.partial(by_folders, images="images"),
    "eurosat": functools.partial(by_folders, images="2750", renamed=EUROSAT_NAMES),
    "ucf101": actions,
}


def _held_out(
    trained: list[Item], tested: list[Item], names: list[str], source: str, rng: random.Random, what: str
) -> Found:
    """A made split where the test images are given."""
    train, val = hold_out(group(trained), rng, what)
    rule = "test as given, a fifth of each class's training images held out as val"
    return Found({"train": train, "val": val, "test": tested}, names, source, rule, [])


def _from_one(text: str, where: str) -> int:
    """A class number that counts from 1, as a label from 0."""
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{where} has the class number {text!r}; expected one from 1")
    return int(text) - 1


def _fields(path: Path, count: int, what: str) -> list[tuple[int, list[str]]]:
    """The first parts of every line of a text file, with the line's number."""
    rows = []
    for number, line in read_lines(path, what):
        fields = line.split()
        if len(fields) < count:
            raise InputError(f"{what}: {path}, line {number} is {line!r}; expected at least {count} parts")
        rows.append((number, fields[:count]))
    return rows


def _matlab(path: Path, variable: str, what: str) -> list[Any]:
    """The entries of a variable of a MATLAB file."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{what}: there is no file {path}")
    try:
        found = loadmat(path, simplify_cells=True)
    except Exception as error:  # the reader fails on broken data in every way there is
        raise InputError(f"{what}: {path} cannot be read as a MATLAB file ({error}); get it again") from error
    if variable not in found:
        raise InputError(f"{what}: {path} has no {variable!r}; get it again")
    return [found[variable]] if isinstance(found[variable], (str, dict)) else list(found[variable])
