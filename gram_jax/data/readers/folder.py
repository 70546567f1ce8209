"""Images in class folders, with or without folders for train, val and test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from gram_jax.data.account import Account
from gram_jax.data.content import files_below
from gram_jax.data.dataset import Dataset
from gram_jax.data.readers import files
from gram_jax.data.spellings import (
    WITHOUT_IDS,
    like_a_split,
    merge_spellings,
    require_distinct,
    role_of,
    says_nothing,
    without_ids,
)
from gram_jax.data.splits import Item, arrange, build
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError, examples

NAME_FILES = ("classnames.txt", "classes.json")
TEMPLATE_FILE = "template.txt"


class Names(NamedTuple):
    """The class name of each folder, where the names are from, and notes."""

    of: dict[str, str]
    source: str
    notes: list[str]


def labeled(path: str | os.PathLike[str], seed: int = 0) -> Dataset:
    """Reads a folder of class folders, or folders train, val and test of class folders.

    If all folders are splits in a usual spelling (``spellings.role_of``: Train, testing, valid, dev, ...), they are the
    splits; without test, val serves as test. The splits may also be the folders in every class folder. A folder of
    class folders, or train alone, is divided by ``splits.divide`` with the seed. Subfolders of a class folder belong to
    the class.

    Labels follow the sorted names of the class folders. The name of a class is that of its folder, with spaces for
    underscores and without a WordNet id or number in front, or the folder's name in classnames.txt (lines of a folder,
    a space or a tab, and a name) or in classes.json (an object). Folders whose names a clip cannot tell apart are one
    class. template.txt may hold a template; the default is "a photo of a {}.". References are paths relative to the
    folder; reading returns the path of an image.
    """
    what = f"folder:{os.fspath(path)}"
    root = files.local_folder(path, what)
    account = Account()
    classes = _list_splits(root, what, account)
    # A class may occur in one split only.
    folders = sorted({folder for images in classes.values() for folder in images})
    counts = {folder: sum(len(images.get(folder, ())) for images in classes.values()) for folder in folders}
    found = names_of(root, counts, what)
    names = list(dict.fromkeys(found.of[folder] for folder in folders))
    labels = {folder: names.index(found.of[folder]) for folder in folders}
    items = {
        split or "train": [Item(path, labels[folder]) for folder, paths in images.items() for path in paths]
        for split, images in classes.items()
    }
    parts, remark = arrange(items, names, seed, what)
    about = {"source": found.source, "split": remark, "notes": found.notes, "account": account}
    reading = files_below(root, sum(map(len, items.values())))
    return build(f"folder:{root.name}", parts, names, _template(root, what), reading, about)


def _list_splits(root: Path, what: str, account: Account) -> dict[str, dict[str, list[str]]]:
    """Returns the images of each class of each split ("" for a folder without splits), and counts what is left out."""
    top = files.list_folder(root)
    splits = top.folders if top.folders and all(map(role_of, top.folders)) else [""]
    if splits == [""]:
        inside = {each: files.list_folder(root / each) for each in top.folders}
        if inside and all(_holds_splits(root / each, inside[each]) for each in inside):
            count_beside(account, top)
            return _list_classes(root, inside, what, account)
        _check_depth(root, inside, what)
    classes = {}
    for split in splits:
        classes[split], left_out = files.class_images(root, split, what)
        account.add(left_out)
        prefix = f"{split}/" if split else ""
        count_beside(account, files.list_folder(root / split), prefix)
    if splits != [""]:
        count_beside(account, top._replace(others=top.others + top.images, images=[]))
    return classes


def _holds_splits(folder: Path, inside: files.Listing) -> bool:
    """Returns whether a class folder holds folders of splits with images, and no other images."""
    named = bool(inside.folders) and all(map(role_of, inside.folders)) and not inside.images
    return named and all(files.list_folder(folder / each).images for each in inside.folders)


def _list_classes(
    root: Path, inside: dict[str, files.Listing], what: str, account: Account
) -> dict[str, dict[str, list[str]]]:
    """Returns the images of each class of each split, where the class folders hold the splits."""
    classes: dict[str, dict[str, list[str]]] = {}
    for name, listing in inside.items():
        splits, left_out = files.class_images(root, name, what)
        account.add(left_out)
        count_beside(account, listing, f"{name}/")
        for split, images in splits.items():
            classes.setdefault(str(role_of(split)), {}).setdefault(name, []).extend(images)
    return classes


def count_beside(account: Account, listing: files.Listing, prefix: str = "") -> None:
    """Counts what lies beside class folders; `prefix` is put before its names."""
    read = {*NAME_FILES, TEMPLATE_FILE} if not prefix else set()
    others = [name for name in listing.others if name.lower() not in read]
    for reason, names in (
        ("images outside class folders", listing.images), (files.OUTSIDE, others), (files.HIDDEN, listing.hidden),
    ):  # fmt: skip
        account.leave_out(reason, [prefix + name for name in names])


def _check_depth(root: Path, inside: dict[str, files.Listing], what: str) -> None:
    """Raises InputError if there are other folders beside those of the splits, or the class folders lie deeper.

    Args:
      root, what: the dataset's folder, and its name in messages.
      inside: the content of each of its folders.
    """
    top = list(inside)
    splits = [each for each in top if role_of(each) and inside[each].folders and not inside[each].images]
    if splits:
        others = [folder for folder in top if not role_of(folder)]
        raise InputError(
            f"{what}: {root} holds {examples(splits)} and also {examples(others)}; folders of splits must be alone, "
            "move the others"
        )
    with_images = any(each.images for each in inside.values())
    divided = [name for name, each in inside.items() if len({*map(role_of, each.folders)} - {None}) > 1]
    if divided and with_images:
        raise InputError(
            f"{what}: {root / divided[0]} holds the splits {examples(inside[divided[0]].folders)}, and there are "
            "images of no split beside them or in other classes; divide all classes, or none"
        )
    deeper = [name for name, each in inside.items() if each.folders]
    if with_images or not deeper or _one_folder_each(root, inside):
        return
    if sum(map(like_a_split, top)) > 1:
        raise InputError(f"{what}: its folders {examples(top)} look like splits; call them train, val and test")
    raise InputError(
        f"{what}: its folders {examples(top)} hold folders and no images; if these are the classes, give "
        f"folder:{root / deeper[0]}"
    )


def _one_folder_each(root: Path, inside: dict[str, files.Listing]) -> bool:
    """Returns whether all folders hold one folder each, for the images: cat/images, dog/images."""
    return all(
        len(each.folders) == 1
        and says_nothing(each.folders[0])
        and files.list_folder(root / name / each.folders[0]).images
        for name, each in inside.items()
    )


def names_of(root: Path, counts: dict[str, int], what: str) -> Names:
    """Returns the class name of each folder, by the number of its images."""
    folders = list(counts)
    existing = [name for name in files.list_folder(root).others if name.lower() in NAME_FILES]
    if not existing:
        plain, stripped = without_ids(folders)
        notes = [WITHOUT_IDS] if stripped else []
        merged = merge_spellings(dict(zip(plain, counts.values(), strict=True)))
        of = {folder: merged.name_of[name] for folder, name in zip(folders, plain, strict=True)}
        return Names(of, "the names of the folders", notes + merged.notes)
    if len(existing) > 1:
        raise InputError(f"{what}: both {' and '.join(existing)} name the classes; remove one of them")
    path = root / existing[0]
    names = files.read_class_names(path, what) if path.suffix.lower() == ".txt" else files.read_json(path, what)
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise InputError(f'{what}: {path} must be an object of names by folder, such as {{"n01440764": "tench"}}')
    chosen = files.names_of_folders(folders, names, path, what)
    absent = [folder for folder in names if folder not in counts]
    notes = [f"names in {path.name} without a folder: {examples(absent)}"] if absent else []
    require_distinct(chosen, f"{what}: {path}")
    return Names(dict(zip(folders, chosen, strict=True)), path.name, notes)


def _template(root: Path, what: str) -> str:
    path = root / TEMPLATE_FILE
    if not path.is_file():
        return DEFAULT
    lines = [line for _, line in files.read_lines(path, what)]
    if len(lines) > 1 or lines[0].count("{}") != 1:
        raise InputError(f"{what}: {path} holds {examples(lines)}; give one line with one {{}} for the class name")
    return lines[0]
