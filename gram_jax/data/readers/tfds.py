"""Image-classification datasets that TFDS has prepared, read without TensorFlow."""

from __future__ import annotations

import functools
import os
import random
import re
from typing import Any

import numpy as np
from etils import epath

from gram_jax.clip.images import ImageTransform
from gram_jax.data.dataset import Dataset
from gram_jax.data.readers.files import examples
from gram_jax.data.splits import ROLES, Item, Roles, assign_roles, build, divide, group
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError

_SPEC = re.compile(r"((?P<folder>([/~.]|\w+://)[^:]*):)?(?P<name>\w[\w./-]*)(:(?P<split>\w+))?")
UNLABELED = -1  # what TFDS writes where a label is withheld, as in ImageNet's test split
_BATCH = 256  # records that are read at once
_DECODE = ImageTransform(size=None, crop=None)  # to RGB, upright, with named errors


def labeled(data_dir: str | os.PathLike[str], name: str, split: str = "", seed: int = 0) -> Dataset:
    """A prepared dataset with an ``image`` and a ``label``.

    TFDS's train, validation and test are train, val and test. Without test, validation serves as test and there is no
    val (Food101, ImageNet); a dataset with train alone (EuroSAT) is divided by ``splits.divide``. Splits without labels
    are left out, and so are splits of other names, unless ``split`` asks for one: then it is test.

    TFDS's splits and label orders are not those of CoOp's tables. All records are read once for their labels, of which
    TFDS keeps no index: some 3,000 images of 100 KB a second. Images are decoded one by one, when they are asked for.

    Args:
      data_dir: TFDS's folder of datasets, local or remote; "" for TFDS's own (``TFDS_DATA_DIR``, or
        ~/tensorflow_datasets).
      name: "NAME", "NAME/CONFIG", "NAME/VERSION" or "NAME/CONFIG/VERSION", as folders below ``data_dir``.
      split: a split of TFDS that is read alone; "" for all.
      seed: the seed of a split that is made.

    Returns:
      A ``Dataset`` whose references are (split, index); reading gives a uint8 array ``[H, W, 3]``.

    Raises:
      InputError: where nothing is prepared, TensorFlow would be needed to read it, or it has no image and label.

    Reference:
      tensorflow.org/datasets, data sources.
    """
    what = f"tfds:{name}"
    folder = prepared_folder(data_dir, name)
    builder, image, label = _open(folder, what)
    sizes = {each: info.num_examples for each, info in builder.info.splits.items() if info.num_examples}
    if split and split not in sizes:
        raise InputError(f"{what} has no images of split {split!r}; it has {', '.join(sizes)}")
    sources = {each: _source(str(folder), image, each) for each in sizes}
    unlabeled = [each for each, source in sources.items() if int(source[0][label]) == UNLABELED]
    usual = [each for each in sizes if each in ROLES and each not in unlabeled]
    wanted = [split] if split else usual
    if not set(wanted) - set(unlabeled):
        raise InputError(f"{what} has no labeled images of {split or 'train, validation or test'}; it has {sizes}")
    names = list(builder.info.features[label].names)
    items = {each: _items(sources[each], each, label, len(names), what) for each in wanted}
    roles = assign_roles(usual, what) if usual else Roles({}, False, "")
    if split:
        parts, said = {roles.of.get(split, "test"): items[split]}, f"split {split} alone"
    elif roles.divided:
        (pile,) = items.values()
        classes = {f"{each} ({names[each]})": found for each, found in sorted(group(pile).items())}
        parts, said = divide(classes, random.Random(seed), what), f"made, as none is given: {roles.said}; seed {seed}"
    else:
        parts, said = {roles.of[each]: found for each, found in items.items()}, roles.said
    notes = [f"split {each} has no labels and is left out" for each in unlabeled if each not in wanted]
    notes += [f"split {each} is left alone" for each in sizes if each not in (*ROLES, *wanted, *unlabeled)]
    about = {"source": builder.info.full_name, "split": said, "notes": notes}
    read = functools.partial(read_record, str(folder), image)
    return build(what.replace("/", "-"), parts, names, DEFAULT, read, about)


def split_spec(rest: str) -> tuple[str, str, str]:
    """The parts of "NAME", "NAME:SPLIT", "FOLDER:NAME" or "FOLDER:NAME:SPLIT".

    A folder is what starts with "/", "~" or ".", or is a URL; without one, TFDS's own is meant.

    Args:
      rest: what follows "tfds:" in a specification.

    Returns:
      (folder, name, split), "" for what is not given.

    Raises:
      InputError: for a specification of another form.

    Example:
      >>> split_spec("dtd:train"), split_spec("gs://bucket/data:eurosat/rgb")
      (('', 'dtd', 'train'), ('gs://bucket/data', 'eurosat/rgb', ''))

    Reference:
      Our own choice.
    """
    found = _SPEC.fullmatch(rest)
    if not found:
        raise InputError(
            f"'tfds:{rest}' is no tfds:NAME, tfds:NAME:SPLIT, tfds:FOLDER:NAME or tfds:FOLDER:NAME:SPLIT, such as "
            "tfds:dtd:train or tfds:/data/tfds:eurosat/rgb"
        )
    return found["folder"] or "", found["name"], found["split"] or ""


def prepared_folder(data_dir: str | os.PathLike[str], name: str) -> epath.Path:
    """The folder of a prepared dataset: its newest version, where none is named.

    Args:
      data_dir: as in ``labeled``.
      name: as in ``labeled``.

    Returns:
      The folder that holds features.json.

    Raises:
      InputError: where there is none, or there are several configurations.
    """
    from tensorflow_datasets.core import constants

    top = epath.Path(data_dir or constants.get_default_data_dir()).expanduser()
    if not top.is_dir():
        raise InputError(
            f"tfds:{name}: there is no folder {top}; set TFDS_DATA_DIR, or give the folder: tfds:/FOLDER:{name}"
        )
    folder = top / name
    while not (folder / "features.json").exists():
        inside = [each.name for each in folder.iterdir() if each.is_dir()] if folder.is_dir() else []
        versions = [each for each in inside if re.fullmatch(r"\d+\.\d+\.\d+", each)]
        if versions:
            inside = [max(versions, key=lambda version: tuple(map(int, version.split("."))))]
        if len(inside) != 1:
            held = sorted(each.name for each in (folder if inside else top).iterdir() if each.is_dir())
            problem = "several configurations are" if inside else "it is not"
            raise InputError(
                f"tfds:{name}: {problem} prepared in {folder if inside else top}, which holds "
                f"{examples(held) if held else 'nothing'}; prepare it with tfds.builder({name!r}, data_dir=..., "
                "file_format='array_record').download_and_prepare(), or name what is there"
            )
        folder /= inside[0]
    return folder


def read_record(folder: str, image: str, reference: tuple[str, int]) -> np.ndarray:
    """The image of a record.

    Args:
      folder: the folder of the prepared dataset.
      image: the name of the image feature.
      reference: (split, index).

    Returns:
      uint8 ``[H, W, 3]``.

    Raises:
      ImageError: where the image cannot be read; the message names the record.
    """
    split, index = reference
    record = _source(folder, image, split)[index]
    return _DECODE.pixels(record[image], f"record {index} of split {split} in {folder}")


def _open(folder: epath.Path, what: str) -> tuple[Any, str, str]:
    """The builder, and the names of the image and the label."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    formats = {each.value for each in builder.info.available_file_formats()}
    random_access = {each.value for each in tfds.core.FileFormat.with_random_access()}
    if not formats & random_access:
        raise InputError(
            f"{what} is prepared in {folder} as {', '.join(sorted(formats))}, which only TensorFlow reads; prepare it "
            "again with file_format='array_record', in another data_dir"
        )
    features, keys = dict(builder.info.features.items()), builder.info.supervised_keys
    image, label = keys if keys and len(keys) == 2 else ("image", "label")
    if not isinstance(features.get(image), tfds.features.Image) or not isinstance(
        features.get(label), tfds.features.ClassLabel
    ):
        raise InputError(
            f"{what} is no image-classification dataset: it has {', '.join(sorted(features))}, and needs an image and "
            "a label"
        )
    return builder, image, label


@functools.lru_cache(maxsize=16)
def _source(folder: str, image: str, split: str) -> Any:
    """The records of a split with their images as they are stored; opened once in each process."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})


def _items(source: Any, split: str, label: str, classes: int, what: str) -> list[Item]:
    """Every record of a split by its place, with its label."""
    items: list[Item] = []
    for start in range(0, len(source), _BATCH):
        records = source.__getitems__(list(range(start, min(start + _BATCH, len(source)))))
        items += [Item((split, start + place), int(record[label])) for place, record in enumerate(records)]
    odd = [item for item in items if not 0 <= item.label < classes]
    if odd:
        raise InputError(
            f"{what}: record {odd[0].reference[1]} of split {split} has the label {odd[0].label}, one of {len(odd)} "
            f"that have no name; there are names for 0 to {classes - 1}"
        )
    return items
