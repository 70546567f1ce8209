"""Images in class folders, with or without folders for train, val and test."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from gram_jax.data.dataset import Dataset
from gram_jax.data.readers import files
from gram_jax.data.splits import ROLES, Item, arrange, build
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError, examples

NAME_FILES = ("classnames.txt", "classes.json")
TEMPLATE_FILE = "template.txt"


def labeled(path: str | os.PathLike[str], seed: int = 0) -> Dataset:
    """Reads a folder of class folders, or folders train, val and test of class folders.

    If all folders are called train, val (valid, validation) or test, they are the splits; without test, val serves as
    test. A folder of class folders, or train alone, is divided by ``splits.divide`` with the seed.

    Labels follow the sorted names of the class folders. The name of a class is that of its folder, with spaces for
    underscores, or the folder's name in classnames.txt (lines of a folder, a space or a tab, and a name) or in
    classes.json (an object). template.txt may hold a template; the default is "a photo of a {}.". References are paths
    relative to the folder; reading returns the path of an image.
    """
    what = f"folder:{os.fspath(path)}"
    root = files.local_folder(path, what)
    classes, notes = _list_splits(root, what)
    # A class may occur in one split only.
    folders = sorted({folder for images in classes.values() for folder in images})
    labels = {folder: label for label, folder in enumerate(folders)}
    items = {
        split or "train": [Item(path, labels[folder]) for folder, paths in images.items() for path in paths]
        for split, images in classes.items()
    }
    names, source = _names(root, folders, what)
    parts, remark = arrange(items, names, seed, what)
    about = {"source": source, "split": remark, "notes": notes}
    read = functools.partial(os.path.join, str(root))
    return build(f"folder:{root.name}", parts, names, _template(root, what), read, about)


def _list_splits(root: Path, what: str) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Returns the images of each class of each split ("" for a folder without splits), and notes."""
    top = files.list_folder(root).folders
    splits = top if top and set(top) <= ROLES.keys() else [""]
    if splits == [""]:
        _check_depth(root, top, what)
    classes, notes = {}, []
    for split in splits:
        classes[split], skipped = files.class_images(root, split, what)
        loose = [f"{split}/{image}" if split else image for image in files.list_folder(root / split).images]
        notes += skipped
        notes += [f"images outside class folders, left out: {examples(loose)}"] if loose else []
    return classes, notes


def _check_depth(root: Path, top: list[str], what: str) -> None:
    """Raises InputError if there are other folders beside those of the splits, or the class folders lie deeper."""
    if "train" in top and not files.list_folder(root / "train").images:
        others = [folder for folder in top if folder not in ROLES]
        raise InputError(
            f"{what}: {root} holds train and also {examples(others)}; folders of splits must be alone, move the others"
        )
    inside = [files.list_folder(root / each) for each in top]
    if any(each.images for each in inside) or not any(each.folders for each in inside):
        return
    if {each.lower() for each in top} <= ROLES.keys():
        raise InputError(f"{what}: call the folders of splits train, val and test, not {examples(top)}")
    deeper = next(name for name, each in zip(top, inside, strict=True) if each.folders)
    raise InputError(
        f"{what}: its folders {examples(top)} hold folders and no images; if these are the classes, give "
        f"folder:{root / deeper}"
    )


def _names(root: Path, folders: list[str], what: str) -> tuple[list[str], str]:
    """Returns the class names in label order, and their source."""
    existing = [name for name in NAME_FILES if (root / name).is_file()]
    if not existing:
        return folders, "the names of the folders"
    if len(existing) > 1:
        raise InputError(f"{what}: both {' and '.join(existing)} name the classes; remove one of them")
    path = root / existing[0]
    names = files.read_class_names(path, what) if path.suffix == ".txt" else files.read_json(path, what)
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise InputError(f'{what}: {path} must be an object of names by folder, such as {{"n01440764": "tench"}}')
    return files.names_of_folders(folders, names, path, what), path.name


def _template(root: Path, what: str) -> str:
    path = root / TEMPLATE_FILE
    if not path.is_file():
        return DEFAULT
    lines = [line for _, line in files.read_lines(path, what)]
    if len(lines) > 1 or lines[0].count("{}") != 1:
        raise InputError(f"{what}: {path} holds {examples(lines)}; give one line with one {{}} for the class name")
    return lines[0]
