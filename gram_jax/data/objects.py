"""Images and labels as Python objects: lists of paths, PIL images or arrays, or a folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.data.dataset import Dataset
from gram_jax.data.gray import find_range, scaled
from gram_jax.data.readers import files, folder
from gram_jax.data.spellings import role_of, without_ids
from gram_jax.data.templates import DEFAULT
from gram_jax.errors import InputError, examples


def image_list(images: Any) -> list[Any]:
    """Returns images that `Clip.preprocess` accepts; raises InputError about what is no list of images.

    Args:
      images: a sequence of paths, PIL images, encoded images (bytes) or arrays `[height, width, 3]`, or one array
        `[images, height, width, 3]`. Arrays are uint8, or floats in [0, 1], which become bytes.

    Example:
      >>> image_list(np.ones((2, 4, 5, 3)))[1].dtype
      dtype('uint8')
    """
    if isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "getbands") or not hasattr(images, "__len__"):
        raise InputError(f"images is {_found(images)}; give a list of images, [image] for a single one")
    listed = [_image(image, f"images[{index}]") for index, image in enumerate(images)]
    if not listed:
        raise InputError("images is empty; give at least one image")
    return listed


def label_array(labels: Any, count: int) -> np.ndarray:
    """Returns labels `[count]`, strings or integers; raises InputError about others.

    Args:
      labels: one label for each image.
      count: the number of images.

    Example:
      >>> label_array(["cat", "dog"], 2).tolist()
      ['cat', 'dog']
    """
    if labels is None:
        raise InputError("labels is None; give one label for each image")
    array = np.asarray(labels)
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(each, str) for each in array):
        array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in "Uiub":
        raise InputError(f"labels is {array.dtype}{list(array.shape)}; give a list of strings or of integers")
    if len(array) != count:
        raise InputError(f"there are {count} images and {len(array)} labels; give one label for each image")
    return array


def class_words(classes: np.ndarray, given: Sequence[str] | Mapping[Any, str] | None) -> tuple[str, ...]:
    """Returns the words for the sorted labels, without ids such as "001.".

    Args:
      classes: the sorted labels.
      given: a word for each of them, or by label; None for the labels themselves.
    """
    labels = classes.tolist()
    if given is None:
        return tuple(name.replace("_", " ") for name in without_ids(list(map(str, labels)))[0])
    if isinstance(given, Mapping):
        if missing := [label for label in labels if label not in given]:
            raise InputError(f"class_names has no name for the labels {examples(missing)}")
        return tuple(str(given[label]) for label in labels)
    if isinstance(given, str) or len(given) != len(labels):
        found = given if isinstance(given, str) else f"{len(given)} names"
        raise InputError(
            f"class_names={found}: there are {len(labels)} labels, {examples(labels)}; give one name for each, sorted"
        )
    return tuple(map(str, given))


def class_folders(path: str | os.PathLike[str]) -> tuple[list[str], list[str], list[str]]:
    """Returns the paths and the labels of the images in a folder of class folders, and lines for the user.

    Labels are the names of the classes, as `load_dataset("folder:PATH")` reads them. The lines tell what is left out,
    and which names are read differently. Folders of splits raise InputError: the caller must say which of them to use.

    Args:
      path: the folder.
    """
    what = f"images={os.fspath(path)!r}"
    root = files.local_folder(path, what)
    folders = files.list_folder(root).folders
    if folders and all(map(role_of, folders)):
        raise InputError(f"{what} holds the splits {examples(folders)}; give one of them, such as {root / folders[-1]}")
    classes, left_out = files.class_images(root, "", what)
    folder.count_beside(left_out, files.list_folder(root))
    names = folder.names_of(root, {name: len(images) for name, images in classes.items()}, what)
    label = {name: " ".join(own.replace("_", " ").split()) for name, own in names.of.items()}
    pairs = [(str(root / image), label[name]) for name, images in classes.items() for image in images]
    paths, labels = zip(*pairs, strict=True)
    return list(paths), list(labels), [*left_out.lines(), *(f"note: {note}" for note in names.notes)]


def labeled_objects(
    images: Sequence[Any], codes: np.ndarray, class_names: Sequence[str], splits: np.ndarray, name: str = "images"
) -> Dataset:
    """Returns images in memory, or paths, as a dataset; grayscale with more than 8 bits has one range.

    Args:
      images: the images, from `image_list`.
      codes: int `[images]`, indices into the class names.
      class_names: the class names.
      splits: "train", "val" or "test" for each image.
      name: the name of the dataset.

    Example:
      >>> labeled_objects(["a.png", "b.png"], np.array([0, 1]), ["cat", "dog"], np.array(["train", "val"]))[1]
      'b.png'
    """
    found = find_range(images)
    largest = None if found is None else found.largest
    return Dataset(
        name,
        tuple(range(len(images))),
        codes.astype(np.int32),
        splits,
        tuple(class_names),
        DEFAULT,
        read=lambda number: scaled(images[number], largest, f"images[{number}]"),
        about={} if found is None else {"notes": [found.note], "gray_range": largest},
    )


def _image(image: Any, name: str) -> Any:
    if isinstance(image, (str, os.PathLike)):
        if not Path(image).expanduser().is_file():
            raise InputError(f"{name}={os.fspath(image)!r}: there is no such file; check the path")
        return str(Path(image).expanduser())
    if isinstance(image, bytes) or hasattr(image, "getbands"):
        return image
    if not hasattr(image, "dtype"):
        raise InputError(f"{name} is {_found(image)}; give a path, a PIL image or an array [height, width, 3]")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size or not (array.dtype.kind == "f" or _is_bytes(array)):
        raise InputError(
            f"{name} is {array.dtype}{list(array.shape)}; give uint8 or floats in [0, 1], [height, width, 3]"
        )
    if _is_bytes(array):
        return array
    if not (np.min(array) >= 0 and np.max(array) <= 1):
        raise InputError(f"{name} has values from {np.min(array):g} to {np.max(array):g}; give floats in [0, 1]")
    return np.rint(255 * array.astype(np.float64)).astype(np.uint8)


def _is_bytes(array: np.ndarray) -> bool:
    return array.dtype == np.uint8


def _found(value: Any) -> str:
    return f"the path {os.fspath(value)!r}" if isinstance(value, (str, os.PathLike)) else f"a {type(value).__name__}"
