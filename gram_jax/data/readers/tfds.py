"""Image-classification datasets that TFDS has prepared, read without TensorFlow."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gram_jax.data.account import Account, LeftOut
from gram_jax.data.content import Files, content_of
from gram_jax.data.dataset import Dataset
from gram_jax.data.spellings import WITHOUT_IDS, role_of, without_ids
from gram_jax.data.splits import Item, arrange, assign_roles, build
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError, examples

_SPEC = re.compile(r"((?P<folder>([/~.]|\w+://)[^:]*):)?(?P<name>\w[\w./-]*)(:(?P<split>\w+))?")
UNLABELED = -1  # the label that TFDS writes for withheld labels, as in ImageNet's test split
_AGAIN = "copy it again, or prepare the dataset again"
_BATCH = 256  # records that are read at once


def labeled(data_dir: str | os.PathLike[str], name: str, split: str = "", seed: int = 0) -> Dataset:
    """Reads a prepared dataset with an ``image`` and a ``label``.

    TFDS's train, validation and test are train, val and test. Without test, validation serves as test and there is no
    val (Food101, ImageNet); a dataset with train alone (EuroSAT) is divided by ``splits.divide``. Splits without labels
    and splits with other names are left out, unless ``split`` asks for one: then it is test.

    The splits and label orders of TFDS differ from those of CoOp's tables. TFDS keeps no index of labels, so all
    records are read once: about 3,000 images of 100 KB a second. Reading returns an image as it is encoded. References
    are (split, index).

    Args:
      data_dir: TFDS's folder of datasets, local or remote; "" for TFDS's default (``TFDS_DATA_DIR``, or
        ~/tensorflow_datasets).
      name: "NAME", "NAME/CONFIG", "NAME/VERSION" or "NAME/CONFIG/VERSION", as folders below ``data_dir``.
      split: the only split of TFDS to read; "" for all.
      seed: the seed of a division.

    Reference:
      tensorflow.org/datasets, data sources.
    """
    what = f"tfds:{name}"
    folder = prepared_folder(data_dir, name)
    prepared = _open(folder, what)
    if split and split not in prepared.sizes:
        raise InputError(f"{what} has no images of split {split!r}; it has {', '.join(prepared.sizes)}")
    sources = {each: _source(str(folder), each, prepared.image) for each in prepared.sizes}
    unlabeled = [each for each, source in sources.items() if int(source[0][prepared.label]) == UNLABELED]
    usual = [each for each in prepared.sizes if role_of(each) and each not in unlabeled]
    wanted = [split] if split else usual
    if not set(wanted) - set(unlabeled):
        asked = split or "train, validation or test"
        raise InputError(f"{what} has no labeled images of {asked}; it has {prepared.sizes}")
    items = {each: _items(sources[each], each, prepared, what) for each in wanted}
    if split:
        roles = assign_roles(usual, what).of if usual else {}
        parts, remark = {roles.get(split, "test"): items[split]}, f"split {split} alone"
    else:
        parts, remark = arrange(items, prepared.names, seed, what)
    account = _left_out(prepared, wanted, unlabeled)
    names, stripped = without_ids(prepared.names)
    notes = [WITHOUT_IDS] if stripped else []
    about = {"source": prepared.source, "split": remark, "notes": notes, "account": account}
    reading = Files(
        functools.partial(read_record, str(folder), prepared.image), functools.partial(_content, str(folder))
    )
    return build(what.replace("/", "-"), parts, names, DEFAULT, reading, about)


def _left_out(prepared: _Prepared, wanted: Sequence[str], unlabeled: Sequence[str]) -> Account:
    """Returns the account of the splits and features that are not read."""
    account = Account()
    for each in (each for each in prepared.sizes if each not in wanted):
        reason = "records of splits without labels" if each in unlabeled else "records of splits that are not read"
        account.add(Account(left_out={reason: LeftOut(prepared.sizes[each], [f"split {each}"])}))
    account.leave_out("features that are not read", prepared.others)
    return account


@functools.lru_cache(maxsize=64)
def _files_content(folder: str, split: str) -> str:
    """Returns a hash of the sizes of a split's files and of what their begin, middle and end hold."""
    files = sorted(epath.Path(folder).glob(f"*-{split}.array_record-*"))
    states = [[path.name, path.stat().length, content_of(folder, False, path.name)] for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _content(folder: str, reference: tuple[str, int]) -> str:
    return _files_content(folder, reference[0])[:16]


def split_spec(rest: str) -> tuple[str, str, str]:
    """Splits "NAME", "NAME:SPLIT", "FOLDER:NAME" or "FOLDER:NAME:SPLIT" into (folder, name, split), "" if missing.

    A folder starts with "/", "~" or ".", or is a URL; without one, TFDS's default folder is meant.

    Example:
      >>> split_spec("dtd:train"), split_spec("gs://bucket/data:eurosat/rgb")
      (('', 'dtd', 'train'), ('gs://bucket/data', 'eurosat/rgb', ''))
    """
    match = _SPEC.fullmatch(rest)
    if not match:
        raise InputError(
            f"'tfds:{rest}' is no tfds:NAME, tfds:NAME:SPLIT, tfds:FOLDER:NAME or tfds:FOLDER:NAME:SPLIT, such as "
            "tfds:dtd:train or tfds:/data/tfds:eurosat/rgb"
        )
    return match["folder"] or "", match["name"], match["split"] or ""


def prepared_folder(data_dir: str | os.PathLike[str], name: str) -> epath.Path:
    """Returns the folder of a prepared dataset, which holds features.json; its newest version, if none is named."""
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
            place = folder if inside else top
            entries = sorted(each.name for each in place.iterdir() if each.is_dir())
            problem = "several configurations are" if inside else "it is not"
            raise InputError(
                f"tfds:{name}: {problem} prepared in {place}, which holds {examples(entries) or 'nothing'}; name one "
                f"of these, or prepare it with tfds.builder({name!r}, data_dir=..., file_format='array_record')"
                ".download_and_prepare()"
            )
        folder /= inside[0]
    return folder


def read_record(folder: str, image: str, reference: tuple[str, int]) -> bytes:
    """Returns the encoded image of a record, (split, index)."""
    split, index = reference
    return _source(folder, split, image)[index][image]


class _Prepared(NamedTuple):
    """The facts of a prepared dataset: its full name, image and label features, class names, images by split.

    `others` are the features that are not read.
    """

    source: str
    image: str
    label: str
    names: list[str]
    sizes: dict[str, int]
    others: list[str]


def _open(folder: epath.Path, what: str) -> _Prepared:
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(folder).info
    formats = {each.value for each in info.available_file_formats()}
    random_access = {each.value for each in tfds.core.FileFormat.with_random_access()}
    if not formats & random_access:
        raise InputError(
            f"{what} is prepared in {folder} as {', '.join(sorted(formats))}, which only TensorFlow reads; prepare it "
            "again with file_format='array_record', in another data_dir"
        )
    features, keys = dict(info.features.items()), info.supervised_keys
    image, label = keys if keys and len(keys) == 2 else ("image", "label")
    is_image = isinstance(features.get(image), tfds.features.Image)
    if not is_image or not isinstance(features.get(label), tfds.features.ClassLabel):
        raise InputError(
            f"{what} has the features {', '.join(sorted(features))}; image classification needs an image and a label"
        )
    sizes = {each: split.num_examples for each, split in info.splits.items() if split.num_examples}
    others = sorted(features.keys() - {image, label})
    return _Prepared(info.full_name, image, label, list(features[label].names), sizes, others)


class Records:
    """The records of a split in random access, with encoded images; a record that cannot be read raises InputError.

    array_record raises errors of several types, or returns empty records, where a file is missing, cut off or damaged.
    """

    def __init__(self, source: Any, folder: str, split: str):
        self._source, self._folder, self._split = source, folder, split
        info = source.dataset_info.splits[split]
        self._files, self._lengths = [os.fspath(path) for path in info.filepaths], list(info.shard_lengths)
        if lost := [path for path in self._files if not epath.Path(path).exists()]:
            raise InputError(
                f"{len(lost)} of {len(self._files)} files of split {split} are missing: {examples(lost)}; {_AGAIN}"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns records by index."""
        try:
            records = self._source.__getitems__(list(indices))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"{self._file(indices[0])} cannot be read ({error}); {_AGAIN}") from error
        for index, record in zip(indices, records, strict=True):
            if not record or any(value is None for value in record.values()):
                raise InputError(
                    f"{self._file(index)} is cut off or damaged at record {index} of {self._split}; {_AGAIN}"
                )
        return records

    def _file(self, index: int) -> str:
        ends = np.cumsum(self._lengths)
        return self._files[min(int(np.searchsorted(ends, index, side="right")), len(self._files) - 1)]


def open_source(folder: str, split: str, image: str) -> Records:
    """Opens the records of a split in random access, with encoded images."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    return Records(builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()}), folder, split)


_source = functools.lru_cache(maxsize=16)(open_source)  # once in each process


def _items(source: Any, split: str, prepared: _Prepared, what: str) -> list[Item]:
    """Returns the index and the label of every record of a split."""
    items: list[Item] = []
    for start in range(0, len(source), _BATCH):
        records = source.read(range(start, min(start + _BATCH, len(source))))
        items += [Item((split, start + place), int(record[prepared.label])) for place, record in enumerate(records)]
    classes = len(prepared.names)
    odd = [item for item in items if not 0 <= item.label < classes]
    if odd:
        raise InputError(
            f"{what}: record {odd[0].reference[1]} of split {split} has the label {odd[0].label}, one of {len(odd)} "
            f"labels without a name; there are names for 0 to {classes - 1}"
        )
    return items
