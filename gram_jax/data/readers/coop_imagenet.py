"""ImageNet and its four variants: class folders, and classnames.txt, which names them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gram_jax.data.readers.coop_layouts import Layout
from gram_jax.data.readers.coop_published import Found
from gram_jax.data.readers.files import class_images, examples, read_lines
from gram_jax.data.splits import Item
from gram_jax.errors import InputError


def read_class_names(path: Path, what: str) -> dict[str, str]:
    """A file of class names: on each line a folder, a space or a tab, and the name.

    Args:
      path: the file.
      what: the dataset, for messages.

    Returns:
      Names by folder, in the order of the file.

    Raises:
      InputError: where the file is missing, a line lacks a part, or a folder is named twice.
    """
    names: dict[str, str] = {}
    for number, line in read_lines(path, what):
        # A tab, where there is one, lets folders have spaces in their names.
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if not name.strip():
            raise InputError(f"{what}: {path}, line {number} is {line!r}; expected a folder and its class name")
        if folder in names:
            raise InputError(f"{what}: {path}, line {number} names the folder {folder!r} a second time")
        names[folder] = name.strip()
    return names


def imagenet(folder: Path, layout: Layout, what: str) -> Found:
    """ImageNet: images/train is train, images/val is test, and there is no val split.

    Either of the two folders may be missing, where a program needs the other one alone.

    Args:
      folder: the dataset's folder.
      layout: where its images lie.
      what: the dataset, for messages.

    Returns:
      What was read; labels follow the sorted names of the class folders.

    Raises:
      InputError: where both folders are missing, they hold other classes, or a class folder has no name.
    """
    there = [images for images in layout.images if (folder / images).is_dir()]
    notes = [f"{images} is missing" for images in layout.images if images not in there]
    classes = {}
    for images in there or layout.images:
        classes[images], skipped = class_images(folder, images, what)
        notes += [f"files in {images} that are no images: {examples(skipped)}"] if skipped else []
    first, *others = classes.values()
    for other in others:
        if alone := sorted(set(first) ^ set(other)):
            raise InputError(
                f"{what}: {len(alone)} class folders are in one of {' and '.join(classes)} only: {examples(alone)}"
            )
    roles = dict(zip(layout.images, ("train", "test"), strict=True))
    items = {
        roles[images]: [Item(path, label) for label, paths in enumerate(found.values()) for path in paths]
        for images, found in classes.items()
    }
    path = folder / layout.needed[0]
    names = _named(list(first), read_class_names(path, what), path, what)
    split = "as published: images/val serves as test, there is no val split"
    return Found(items, names, path.name, split, notes)


def variant(folder: Path, layout: Layout, what: str) -> Found:
    """A variant of ImageNet, all of it test: ImageNet-Sketch, -A and -R, whose folders are named as ImageNet's.

    Only the classes that there are folders for get a label and a name.

    Args:
      folder: the dataset's folder.
      layout: where its images lie.
      what: the dataset, for messages.

    Returns:
      What was read; labels follow the sorted names of the class folders.

    Raises:
      InputError: where folders are missing or a class folder has no name.
    """
    classes, skipped = class_images(folder, layout.images[0], what)
    path = names_file(folder, layout)
    names = _named(list(classes), read_class_names(path, what), path, what)
    return _tested(classes.values(), names, path, skipped)


def numbered_variant(folder: Path, layout: Layout, what: str) -> Found:
    """ImageNetV2, all of it test: its folders are numbers, the place of a class in classnames.txt.

    Args:
      folder: the dataset's folder.
      layout: where its images lie.
      what: the dataset, for messages.

    Returns:
      What was read.

    Raises:
      InputError: where the folders are not the numbers from 0 to the number of names less 1.
    """
    classes, skipped = class_images(folder, layout.images[0], what)
    path = names_file(folder, layout)
    names = list(read_class_names(path, what).values())
    expected = [str(label) for label in range(len(names))]
    if odd := sorted(set(expected) ^ set(classes)):
        raise InputError(
            f"{what}: {path} names {len(names)} classes, so {folder / layout.images[0]} must hold the folders 0 to "
            f"{len(names) - 1}; missing or too many: {examples(odd)}"
        )
    return _tested([classes[number] for number in expected], names, path, skipped)


def names_file(folder: Path, layout: Layout) -> Path:
    """The class names of a variant: its own copy of classnames.txt, or else ImageNet's.

    Args:
      folder: the variant's folder.
      layout: what the file is called.

    Returns:
      A path, which need not exist.
    """
    own, original = folder / layout.needed[0], folder.parent / "imagenet" / layout.needed[0]
    return original if original.is_file() and not own.is_file() else own


def _named(folders: list[str], names: dict[str, str], path: Path, what: str) -> list[str]:
    unnamed = [folder for folder in folders if folder not in names]
    if unnamed:
        raise InputError(
            f"{what}: {len(unnamed)} class folders have no name in {path}: {examples(unnamed)}; get the file again, or "
            "remove what is no class"
        )
    return [names[folder] for folder in folders]


def _tested(classes: Iterable[list[str]], names: list[str], path: Path, skipped: list[str]) -> Found:
    items = [Item(image, label) for label, images in enumerate(classes) for image in images]
    notes = [f"files that are no images: {examples(skipped)}"] if skipped else []
    return Found({"test": items}, names, path.name, "as published: all of it is test", notes)
