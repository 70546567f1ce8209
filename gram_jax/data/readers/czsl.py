"""MIT-States, UT-Zappos, C-GQA and datasets in their layout: images of pairs, and lists of the pairs of each split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.clip.formats.torch_plain import read_plain
from gram_jax.data.account import Account
from gram_jax.data.compositions import Compositions, PairDataset, require_pairs
from gram_jax.data.content import files_below
from gram_jax.data.dataset import SPLITS, Dataset
from gram_jax.data.readers.files import local_folder, missing, read_json, read_lines, read_text
from gram_jax.errors import InputError, examples

SPLIT = "compositional-split-natural"
TEMPLATE = "a photo of {}"
IMAGES = "images"
_FIELDS = ("image", "attr", "obj", "set")
_ABSENT = "NA"


class Sizes(NamedTuple):
    """Published numbers: names, pairs of each split (in train all are seen; of the others, both numbers), images."""

    attributes: int
    objects: int
    train: int
    val: tuple[int, int]
    test: tuple[int, int]
    images: tuple[int, int, int]


PUBLISHED = {
    "mit-states": Sizes(115, 245, 1262, (300, 300), (400, 400), (30338, 10420, 12995)),
    "ut-zappos": Sizes(16, 12, 83, (15, 15), (18, 18), (22998, 3214, 2914)),
    "cgqa": Sizes(413, 674, 5592, (1252, 1040), (888, 923), (26920, 7280, 5098)),
}
_SPELLINGS = {"mit_states": "mit-states", "ut-zap50k": "ut-zappos", "ut_zappos": "ut-zappos", "c-gqa": "cgqa"}


def labeled_pairs(root: str | os.PathLike[str]) -> PairDataset:
    """Reads the dataset in a folder.

        ROOT/images/...                                              the images
        ROOT/compositional-split-natural/{train,val,test}_pairs.txt  a pair in each line, ATTRIBUTE OBJECT
        ROOT/metadata_compositional-split-natural.t7                 the image, attr, obj and set of each image

    The metadata may also have the suffix .pt, .json (a list of objects) or .jsonl (an object in each line). Rows
    without an attribute or a set, and rows whose pair is not in the list of their set, are left out and counted.
    Attributes, objects and pairs are the sorted unions of the lists; in names, full stops and underscores become
    spaces. Numbers that differ from the published ones of a folder's name are noted.

    Args:
      root: the dataset's folder; its name is that of the dataset.

    Reference:
      The public code of "Learning to Compose Soft Prompts for Compositional Zero-Shot Learning" and of
      "Open World Compositional Zero-Shot Learning".
    """
    folder = local_folder(root, f"czsl:{os.fspath(root)}")
    what = f"czsl:{folder.name}"
    lists = {split: _read_list(folder / SPLIT / f"{split}_pairs.txt", what) for split in SPLITS}
    place, compositions = _compositions(lists)
    account = Account()
    items = list(_items(_metadata(folder, what), lists, place, account))
    items.sort(key=lambda item: SPLITS.index(item[0]))  # stable
    if lost := missing(folder / IMAGES, [path for _, path, _ in items]):
        raise InputError(
            f"{what}: {len(lost)} of {len(items)} images are not in {folder / IMAGES}: {examples(lost)}; unpack the "
            "archive again (UT-Zappos must be moved to images/ATTRIBUTE_OBJECT/ first)"
        )
    account.read["images"] = len(items)
    splits = np.array([split for split, _, _ in items])
    notes = _differences(folder.name, compositions, splits)
    reading = files_below(folder / IMAGES, len(items))
    dataset = Dataset(
        name=what,
        references=tuple(path for _, path, _ in items),
        labels=np.array([label for _, _, label in items], np.int32),
        splits=splits,
        class_names=compositions.names,
        template=TEMPLATE,
        read=reading.read,
        about={"source": SPLIT, "split": "as given", "notes": notes, "account": account.to_json()},
        content=reading.content,
    )
    found = PairDataset(dataset, compositions)
    require_pairs(found)
    return found


def _compositions(lists: dict[str, dict[tuple[str, str], None]]) -> tuple[dict[tuple[str, str], int], Compositions]:
    """Returns the number of each pair, as the lists write it, and the class list."""
    union = sorted(set().union(*lists.values()))
    attributes, objects = (sorted({pair[side] for pair in union}) for side in (0, 1))
    masks = {split: np.array([pair in listed for pair in union]) for split, listed in lists.items()}
    pairs = np.array([(attributes.index(a), objects.index(o)) for a, o in union], np.int32)
    listed = {split: masks[split] for split in ("val", "test")}
    readable = [tuple(map(_readable, own)) for own in (attributes, objects)]
    compositions = Compositions(readable[0], readable[1], pairs, masks["train"], listed)
    return {pair: number for number, pair in enumerate(union)}, compositions


def _readable(name: str) -> str:
    return " ".join(name.replace(".", " ").replace("_", " ").lower().split())


def _read_list(path: Path, what: str) -> dict[tuple[str, str], None]:
    """Returns the pairs of a list, without those that it repeats."""
    pairs: dict[tuple[str, str], None] = {}
    for where, line in read_lines(path, what):
        if len(parts := line.split()) != 2:
            raise InputError(f"{where} is {line!r}; expected an attribute, a space and an object")
        pairs[parts[0], parts[1]] = None
    return pairs


def _metadata(folder: Path, what: str) -> list[dict[str, str]]:
    """Returns the rows of the metadata, checked."""
    paths = [folder / f"metadata_{SPLIT}{suffix}" for suffix in (".t7", ".pt", ".json", ".jsonl")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError(f"{what}: there is no {paths[0].name} in {folder}; unpack compositional_split_natural.tar.gz")
    rows = _rows(path, what)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{what}: {path} holds a {type(rows).__name__}; expected a list of images; download it again")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(field), str) for field in _FIELDS):
            raise InputError(f"{what}: {path}, entry {number}, is {row!r:.100}; expected texts {', '.join(_FIELDS)}")
    return rows


def _rows(path: Path, what: str) -> Any:
    if path.suffix in (".t7", ".pt"):
        return read_plain(path)
    if path.suffix == ".json":
        return read_json(path, what)
    import json

    try:
        return [json.loads(line) for line in read_text(path, what).splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: {path} is no JSON lines ({error}); write an object in each line") from error


def _items(
    rows: list[dict[str, str]],
    lists: dict[str, dict[tuple[str, str], None]],
    place: dict[tuple[str, str], int],
    account: Account,
) -> Iterator[tuple[str, str, int]]:
    """Yields split, path and pair of each image that is used."""
    for row in rows:
        path, attribute, object_, split = (row[field] for field in _FIELDS)
        if _ABSENT in (attribute, split):
            account.leave_out("images without an attribute or a set", [path])
        elif split not in lists:
            account.leave_out("images of another set than train, val and test", [path])
        elif (attribute, object_) not in lists[split]:
            account.leave_out("images whose pair is not in the list of their set", [path])
        else:
            yield split, path, place[attribute, object_]


def _differences(name: str, compositions: Compositions, splits: np.ndarray) -> list[str]:
    """Lists the numbers that differ from the published ones, as "... are published"."""
    published = PUBLISHED.get(_SPELLINGS.get(name.lower(), name.lower()))
    if published is None:
        return []
    seen, listed = compositions.seen, compositions.listed
    numbers = {
        "attributes": (len(compositions.attributes), published.attributes),
        "objects": (len(compositions.objects), published.objects),
        "train pairs": (int(seen.sum()), published.train),
    }
    for split, images in zip(SPLITS, published.images, strict=True):
        numbers[f"{split} images"] = int((splits == split).sum()), images
    for split, counts in (("val", published.val), ("test", published.test)):
        for kind, mask, count in zip(("seen", "unseen"), (seen, ~seen), counts, strict=True):
            numbers[f"{kind} {split} pairs"] = int((listed[split] & mask).sum()), count
    return [f"{found} {kind}, {count} are published" for kind, (found, count) in numbers.items() if found != count]
