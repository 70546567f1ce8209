"""Rules that read the published files of datasets in CoOp's layout: folders, lists, annotations and split files.

A rule maps a `Source` to `Contents`. The split rules are those of CoOp's public code, which made the published split
files; without such a file, a rule makes a split of the same form with a generator of its own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gram_jax.data.account import Account
from gram_jax.data.dataset import SPLITS
from gram_jax.data.readers.files import class_images, names_of_folders, read_class_names, read_json, read_lines
from gram_jax.data.splits import DIVIDED, Item, divide, group, hold_out
from gram_jax.errors import InputError, examples
from gram_jax.io import file_hash

CLASS_NAMES = "classnames.txt"
_HELD_OUT = "test as given, a fifth of each class's training images held out as val"
_DIGITS = 9  # the longest label


class Source(NamedTuple):
    """A dataset to read: its folder, its name in messages, and the generator of a split that is made."""

    folder: Path
    what: str
    rng: random.Random


class Contents(NamedTuple):
    """The items of each split (paths relative to the folder), class names in label order, and remarks for reports.

    `left_out` counts what is in the folders and not read.
    """

    items: dict[str, list[Item]]
    class_names: list[str]
    source: str
    split: str
    notes: list[str]
    left_out: Account = Account()


def by_folders(
    source: Source, images: str, excluded: Sequence[str] = (), renamed: Mapping[str, str] = MappingProxyType({})
) -> Contents:
    """Reads class folders below `images`, without the `excluded` ones, and makes a split.

    Labels follow the sorted names of the folders; `renamed` maps folders to class names.
    """
    classes, left_out = class_images(source.folder, images, source.what, excluded)
    labeled = {name: [Item(path, label) for path in classes[name]] for label, name in enumerate(classes)}
    names = [renamed.get(name, name) for name in classes]
    parts = divide(labeled, source.rng, source.what)
    return Contents(parts, names, f"the folders of {images}", DIVIDED, [], left_out)


def flowers(source: Source) -> Contents:
    """Reads Flowers102 and makes a split; labels count from 1 in imagelabels.mat, cat_to_name.json names them."""
    path, names_path = source.folder / "imagelabels.mat", source.folder / "cat_to_name.json"
    names = read_json(names_path, source.what)
    if not isinstance(names, dict):
        raise InputError(f"{source.what}: {names_path} is no object of names by class number; download it again")
    pairs, items = [], []
    for number, label in enumerate(_matlab(source, "imagelabels.mat", "labels"), 1):
        if str(label) not in names:
            raise InputError(f"{source.what}: {path} has the label {label}, which cat_to_name.json does not name")
        items.append(Item(f"jpg/image_{number:05d}.jpg", int(label) - 1))
        pairs.append((int(label) - 1, names[str(label)]))
    parts = divide(group(items), source.rng, source.what)
    return Contents(parts, names_of_labels(pairs, f"{source.what}: {path}"), path.name, DIVIDED, [])


def pets(source: Source) -> Contents:
    """Reads OxfordPets and makes a split; the name of a breed is that of its images, in lower case."""
    pairs: list[tuple[int, str]] = []

    def read(name: str) -> list[Item]:
        items = []
        for where, (image, label) in _fields(source.folder / "annotations" / name, 2, source.what):
            items.append(Item(f"images/{image}.jpg", _from_one(label, where)))
            pairs.append((items[-1].label, image.rpartition("_")[0].lower()))
        return items

    train, test = read("trainval.txt"), read("test.txt")
    names = names_of_labels(pairs, f"{source.what}: {source.folder / 'annotations'}")
    return _held_out(source, train, test, names, "annotations/trainval.txt and test.txt")


def cars(source: Source) -> Contents:
    """Reads StanfordCars and makes a split; the year moves from the end of a name to its beginning."""
    split = [str(name).rpartition(" ") for name in _matlab(source, "devkit/cars_meta.mat", "class_names")]
    names = [f"{year} {model}" if model else year for model, _, year in split]

    def read(images: str, file: str) -> list[Item]:
        items = []
        for entry in _matlab(source, file, "annotations"):
            label = int(entry["class"]) - 1
            if not 0 <= label < len(names):
                path = source.folder / file
                raise InputError(f"{source.what}: {path} has the class {label + 1}; cars_meta.mat names {len(names)}")
            items.append(Item(f"{images}/{entry['fname']}", label))
        return items

    train = read("cars_train", "devkit/cars_train_annos.mat")
    test = read("cars_test", "cars_test_annos_withlabels.mat")
    return _held_out(source, train, test, names, "the devkit's annotations")


def scenes(source: Source) -> Contents:
    """Reads SUN397 and makes a split; a class path is read backwards: /b/bow_window/indoor is indoor bow window."""
    paths = [line.removeprefix("/") for _, line in read_lines(source.folder / "ClassName.txt", source.what)]
    labels = {path: label for label, path in enumerate(paths)}
    names = [" ".join(reversed(path.split("/")[1:])) for path in paths]

    def read(name: str) -> list[Item]:
        images = [(where, line.removeprefix("/")) for where, line in read_lines(source.folder / name, source.what)]
        return [Item(f"SUN397/{image}", _label_of(labels, image.rpartition("/")[0], where)) for where, image in images]

    train, test = read("Training_01.txt"), read("Testing_01.txt")
    return _held_out(source, train, test, names, "Training_01.txt and Testing_01.txt")


def actions(source: Source) -> Contents:
    """Reads the middle frames of UCF101 and makes a split; ApplyEyeMakeup is named Apply_Eye_Makeup."""
    lists = source.folder / "ucfTrainTestlist"
    numbered = _fields(lists / "classInd.txt", 2, source.what)
    pairs = [(_from_one(label, where), action) for where, (label, action) in numbered]
    ordered = names_of_labels(pairs, f"{source.what}: {lists / 'classInd.txt'}")
    labels = {action: label for label, action in enumerate(ordered)}
    names = ["_".join(re.findall("[A-Z][^A-Z]*", action)) for action in ordered]

    def read(name: str) -> list[Item]:
        items = []
        for where, (video,) in _fields(lists / name, 1, source.what):
            action, _, file = video.rpartition("/")
            label = _label_of(labels, action, where)
            items.append(Item(f"UCF-101-midframes/{names[label]}/{file.removesuffix('.avi')}.jpg", label))
        return items

    train, test = read("trainlist01.txt"), read("testlist01.txt")
    return _held_out(source, train, test, names, "ucfTrainTestlist, the first of its three")


def aircraft(source: Source) -> Contents:
    """Reads FGVC-Aircraft from its own lists of variants."""
    names = [name for _, name in read_lines(source.folder / "variants.txt", source.what)]
    labels = {name: label for label, name in enumerate(names)}
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for where, line in read_lines(source.folder / f"images_variant_{split}.txt", source.what):
            image, _, name = line.partition(" ")
            items[split].append(Item(f"images/{image}.jpg", _label_of(labels, name, where)))
    return Contents(items, names, "images_variant_*.txt", "as published, from the dataset's own lists", [])


def imagenet(source: Source, train: str, test: str) -> Contents:
    """Reads ImageNet: one folder of class folders is train, the other is test, and there is no val split.

    One of the two folders may be missing. Labels follow the sorted names of the class folders.
    """
    roles = {train: "train", test: "test"}
    existing = [images for images in roles if (source.folder / images).is_dir()]
    notes = [f"{images} is missing" for images in roles if images not in existing]
    classes, left_out = {}, Account()
    for images in existing or roles:
        classes[images], more = class_images(source.folder, images, source.what)
        left_out.add(more)
    first, *others = classes.values()
    for other in others:
        if alone := sorted(set(first) ^ set(other)):
            raise InputError(
                f"{source.what}: {len(alone)} class folders are only in one of {' and '.join(classes)}: "
                f"{examples(alone)}"
            )
    items = {roles[images]: _labeled(each.values()) for images, each in classes.items()}
    path = source.folder / CLASS_NAMES
    names = names_of_folders(first, read_class_names(path, source.what), path, source.what)
    split = f"as published: {test} serves as test, there is no val split"
    return Contents(items, names, path.name, split, notes, left_out)


def variant(source: Source, images: str, numbered: bool = False) -> Contents:
    """Reads a variant of ImageNet, which is test only.

    If `numbered` (ImageNetV2), the class folders are numbers, the lines of classnames.txt from 0. Otherwise they are
    named as ImageNet's, and only existing folders are classes: ImageNet-A and -R have 200.
    """
    classes, left_out = class_images(source.folder, images, source.what)
    path = names_file(source.folder)
    names = read_class_names(path, source.what)
    if numbered:
        numbers = [str(label) for label in range(len(names))]
        if odd := sorted(set(numbers) ^ set(classes)):
            raise InputError(
                f"{source.what}: {path} names {len(names)} classes, so {source.folder / images} must hold the folders "
                f"0 to {len(names) - 1}; missing or too many: {examples(odd)}"
            )
        classes, class_names = {number: classes[number] for number in numbers}, list(names.values())
    else:
        class_names = names_of_folders(classes, names, path, source.what)
    items = {"test": _labeled(classes.values())}
    return Contents(items, class_names, path.name, "as published: all of it is test", [], left_out)


def names_file(folder: Path) -> Path:
    """Returns the class names of a variant of ImageNet: its own classnames.txt, or else ImageNet's."""
    own, original = folder / CLASS_NAMES, folder.parent / "imagenet" / CLASS_NAMES
    return original if original.is_file() and not own.is_file() else own


def read_split_file(source: Source, file: str, base: str) -> Contents:
    """Reads a published split: an object of train, val and test, lists of [path, label, class name].

    The paths are relative to the folder `base`. The existence of the images is not checked.
    """
    path = source.folder / file
    document = read_json(path, source.what)
    if not isinstance(document, dict) or not all(isinstance(document.get(split), list) for split in SPLITS):
        content = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{source.what}: {path} holds {content}; a split file holds the lists train, val and test")
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    pairs = []
    for split in SPLITS:
        for number, entry in enumerate(document[split]):
            image, label, name = _entry(entry, f"{source.what}: {path}, {split} entry {number}")
            items[split].append(Item(f"{base}/{image}" if base else image, label))
            pairs.append((label, name))
    if not pairs:
        raise InputError(f"{source.what}: {path} lists no images; download it again")
    digest = file_hash(path)
    names = names_of_labels(pairs, f"{source.what}: {path}")
    return Contents(items, names, f"{path.name}, SHA-256 {digest}", "as published, from the split file", [])


def names_of_labels(pairs: Iterable[tuple[int, str]], what: str) -> list[str]:
    """Returns the class names in label order, from (label, name) of every image.

    Example:
      >>> names_of_labels([(1, "dog"), (0, "cat"), (1, "dog")], "toy")
      ['cat', 'dog']
    """
    names: dict[int, str] = {}
    for label, name in pairs:
        if names.setdefault(label, name) != name:
            raise InputError(f"{what}: label {label} has the names {names[label]!r} and {name!r}; download it again")
    if len(names) <= max(names, default=0):
        # The search ends after one more label than there are names: the largest label may be any number.
        first = next(label for label in range(len(names) + 1) if label not in names)
        raise InputError(f"{what}: no image has the label {first}, so it has no name; download it again")
    return [names[label] for label in range(len(names))]


def _entry(entry: Any, where: str) -> tuple[str, int, str]:
    """Returns one checked entry of a split file."""
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[2], str)):
        raise InputError(f"{where} is {entry!r}; expected [path, label, class name]")
    image, label, name = entry
    if isinstance(label, bool) or not str(label).isdecimal() or len(str(label)) > _DIGITS:
        raise InputError(f"{where} has the label {str(label)[:40]!r}; expected a number from 0")
    if image.startswith("/") or ".." in image.split("/"):
        raise InputError(f"{where} has the path {image!r}, which leads out of the dataset's folder")
    if not name.strip():
        raise InputError(f"{where}: the label {label} has no class name")
    return image, int(label), name


def _labeled(classes: Iterable[Sequence[str]]) -> list[Item]:
    return [Item(path, label) for label, paths in enumerate(classes) for path in paths]


def _held_out(source: Source, train: list[Item], test: list[Item], names: list[str], files: str) -> Contents:
    """Makes a split of a dataset whose test images are given."""
    kept, val = hold_out(group(train), source.rng, source.what)
    return Contents({"train": kept, "val": val, "test": test}, names, files, _HELD_OUT, [])


def _label_of(labels: Mapping[str, int], name: str, where: str) -> int:
    if name not in labels:
        raise InputError(f"{where}: {name!r} is none of the {len(labels)} classes, so it has no label")
    return labels[name]


def _from_one(text: str, where: str) -> int:
    """Turns a class number that counts from 1 into a label."""
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{where} has the class number {text!r}; expected a number from 1")
    return int(text) - 1


def _fields(path: Path, count: int, what: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the place of every line of a text file, for messages, and its first fields."""
    for where, line in read_lines(path, what):
        fields = line.split()
        if len(fields) < count:
            raise InputError(f"{where} is {line!r}; expected at least {count} fields")
        yield where, fields[:count]


def _matlab(source: Source, file: str, variable: str) -> list[Any]:
    """Returns the entries of a variable of a MATLAB file."""
    from scipy.io import loadmat

    path = source.folder / file
    if not path.is_file():
        raise InputError(f"{source.what}: there is no file {path}")
    try:
        variables = loadmat(path, simplify_cells=True)
    except Exception as error:  # on broken data, the reader raises errors of many types
        raise InputError(f"{source.what}: {path} is no MATLAB file ({error}); download it again") from error
    if variable not in variables:
        raise InputError(f"{source.what}: {path} has no {variable!r}; download it again")
    value = variables[variable]
    return [value] if isinstance(value, (str, dict)) else list(value)
