"""Images in class folders, with or without train, val and test: a user's own data."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

from gram_jax.data.dataset import Dataset
from gram_jax.data.readers.coop_imagenet import read_class_names
from gram_jax.data.readers.files import (
    class_images,
    examples,
    list_folder,
    local_folder,
    path_of,
    read_json,
    read_lines,
)
from gram_jax.data.splits import ROLES, Item, Roles, assign_roles, build, divide
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError

NAME_FILES = ("classnames.txt", "classes.json")
TEMPLATE_FILE = "template.txt"


def labeled(path: str | os.PathLike[str], seed: int = 0) -> Dataset:
    """A folder of class folders, or folders train, val, test of class folders.

    Where there is nothing but folders called train, val (valid, validation) and test, these are the splits: without
    test, val serves as test. A folder of class folders, or train alone, is divided by ``splits.divide``.

    Labels follow the sorted names of the class folders. A class is called as its folder, underscores as spaces, or as
    the folder's name in classnames.txt (a folder, a space or a tab, and its name on each line) or classes.json (an
    object). template.txt may hold a template; "a photo of a {}." is the default.

    Args:
      path: the folder.
      seed: the seed of a split that is made.

    Returns:
      A ``Dataset`` whose references are paths relative to the folder; reading gives the path of the image.

    Raises:
      InputError: where folders hold no images, are too small to divide, or lack a name.

    Reference:
      Our own choice; the division is CoOp's.
    """
    what = f"folder:{os.fspath(path)}"
    root = local_folder(path, what)
    roles, classes, notes = _find(root, what)
    # A class that is in one split only is still a class.
    folders = sorted({folder for found in classes.values() for folder in found})
    labels = {folder: label for label, folder in enumerate(folders)}
    names, source = _names(root, folders, what)
    items = {
        split: {folder: [Item(image, labels[folder]) for image in images] for folder, images in found.items()}
        for split, found in classes.items()
    }
    if roles.divided:
        (whole,) = items.values()
        parts, said = divide(whole, random.Random(seed), what), f"made, as none is given: {roles.said}; seed {seed}"
    else:
        parts = {roles.of[split]: [item for each in found.values() for item in each] for split, found in items.items()}
        said = roles.said
    about = {"source": source, "split": said, "notes": notes}
    read = functools.partial(path_of, str(root))
    return build(f"folder:{root.name}", parts, names, _template(root, what), read, about)


def _find(root: Path, what: str) -> tuple[Roles, dict[str, dict[str, list[str]]], list[str]]:
    """The images of each class of each split, and what the splits are used as."""
    top = list_folder(root).folders
    splits = top if top and set(top) <= ROLES.keys() else [""]
    beside = [folder for folder in top if folder not in ROLES]
    if splits == [""] and "train" in top and not list_folder(root / "train").images:
        raise InputError(
            f"{what}: folders train, val and test are splits where nothing is beside them, and {root} also holds "
            f"{examples(beside)}; move it away"
        )
    if splits == [""]:
        _check_depth(root, top, what)
    roles = assign_roles(splits if splits != [""] else ["train"], what)
    classes, notes = {}, []
    for split in splits:
        classes[split], skipped = class_images(root, split, what)
        notes += [f"files that are no images: {examples(skipped)}"] if skipped else []
        loose = [f"{split}/{image}" if split else image for image in list_folder(root / split).images]
        notes += [f"images that lie in no class folder and are left out: {examples(loose)}"] if loose else []
    return roles, classes, notes


def _check_depth(root: Path, top: list[str], what: str) -> None:
    """Raises InputError where the class folders lie one folder below: folders of folders, and no images in any."""
    inside = [list_folder(root / each) for each in top]
    if any(each.images for each in inside) or not any(each.folders for each in inside):
        return
    if {each.lower() for each in top} <= ROLES.keys():
        raise InputError(f"{what}: folders of splits are called train, val and test, and not {examples(top)}; rename")
    deeper = next(name for name, each in zip(top, inside, strict=True) if each.folders)
    raise InputError(
        f"{what}: the folders in it, {examples(top)}, hold folders and no images; if those are the classes, give "
        f"folder:{root / deeper}"
    )


def _names(root: Path, folders: list[str], what: str) -> tuple[list[str], str]:
    """Class names in label order, and where they come from."""
    there = [name for name in NAME_FILES if (root / name).is_file()]
    if not there:
        return folders, "the names of the folders"
    if len(there) > 1:
        raise InputError(f"{what}: both {' and '.join(there)} name the classes; remove one of them")
    path = root / there[0]
    names = read_class_names(path, what) if path.suffix == ".txt" else read_json(path, what)
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise InputError(f'{what}: {path} must be an object of names by folder, such as {{"n01440764": "tench"}}')
    unnamed = [folder for folder in folders if folder not in names]
    if unnamed:
        raise InputError(f"{what}: {len(unnamed)} class folders have no name in {path}: {examples(unnamed)}; add them")
    return [names[folder] for folder in folders], path.name


def _template(root: Path, what: str) -> str:
    """The one line of template.txt, if there is one."""
    path = root / TEMPLATE_FILE
    if not path.is_file():
        return DEFAULT
    lines = [line for _, line in read_lines(path, what)]
    if len(lines) > 1 or lines[0].count("{}") != 1:
        raise InputError(f"{what}: {path} holds {examples(lines)}; give one line with one {{}} for the class name")
    return lines[0]
