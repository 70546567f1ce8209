"""Small copies of every layout that the readers know: the real formats, a handful of classes, tiny JPEGs."""

from __future__ import annotations

import colorsys
import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")
# How a class is called by the source (folder, annotation or synset), and how the published split calls it. The first
# is in label order.
CLASSES: dict[str, dict[str, str]] = {
    "caltech101": {
        "Faces": "face", "Leopards": "leopard", "accordion": "accordion", "airplanes": "airplane",
        "car_side": "car_side",
    },
    "oxford_pets": {name: name.lower() for name in ("Abyssinian", "american_bulldog", "basset_hound", "Bengal")},
    "stanford_cars": {
        "AM General Hummer SUV 2000": "2000 AM General Hummer SUV",
        "Acura RL Sedan 2012": "2012 Acura RL Sedan",
        "Acura TL Type-S 2008": "2008 Acura TL Type-S",
        "Ram C/V Cargo Van Minivan 2012": "2012 Ram C/V Cargo Van Minivan",
    },
    "oxford_flowers": {
        "1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells", "4": "sweet pea",
    },
    "food101": {name: name for name in ("apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio")},
    "fgvc_aircraft": {name: name for name in ("707-320", "A340-600", "DC-10", "F-16A/B")},
    "sun397": {
        "a/abbey": "abbey",
        "a/apartment_building/outdoor": "outdoor apartment_building",
        "b/bow_window/indoor": "indoor bow_window",
        "b/bow_window/outdoor": "outdoor bow_window",
    },
    "dtd": {name: name for name in ("banded", "blotchy", "polka-dotted", "zigzagged")},
    "eurosat": {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "SeaLake": "Sea or Lake",
    },
    "ucf101": {
        "ApplyEyeMakeup": "Apply_Eye_Makeup",
        "BabyCrawling": "Baby_Crawling",
        "Billiards": "Billiards",
        "YoYo": "Yo_Yo",
    },
    "imagenet": {
        "n01440764": "tench",
        "n01443537": "goldfish",
        "n01484850": "great white shark",
        "n04355933": "sunglasses",
        "n04356056": "sunglasses",
    },
}  # fmt: skip
SUBSET = ("n01443537", "n04355933")  # the classes of ImageNet-A and -R, of which there are 200 in truth
FOLDERS = {
    "imagenet": "imagenet",
    "caltech101": "caltech-101",
    "oxford_pets": "oxford_pets",
    "stanford_cars": "stanford_cars",
    "oxford_flowers": "oxford_flowers",
    "food101": "food-101",
    "fgvc_aircraft": "fgvc_aircraft",
    "sun397": "sun397",
    "dtd": "dtd",
    "eurosat": "eurosat",
    "ucf101": "ucf101",
    "imagenetv2": "imagenetv2",
    "imagenet_sketch": "imagenet-sketch",
    "imagenet_a": "imagenet-adversarial",
    "imagenet_r": "imagenet-rendition",
}
NAMES = tuple(FOLDERS)
_SPLIT_FILES = {
    "caltech101": ("Caltech101", "101_ObjectCategories"),
    "oxford_pets": ("OxfordPets", "images"),
    "stanford_cars": ("StanfordCars", ""),
    "oxford_flowers": ("OxfordFlowers", "jpg"),
    "food101": ("Food101", "images"),
    "sun397": ("SUN397", "SUN397"),
    "dtd": ("DescribableTextures", "images"),
    "eurosat": ("EuroSAT", "2750"),
    "ucf101": ("UCF101", "UCF-101-midframes"),
}
_VARIANTS = {
    "imagenetv2": "imagenetv2-matched-frequency-format-val",
    "imagenet_sketch": "images",
    "imagenet_a": "imagenet-a",
    "imagenet_r": "imagenet-r",
}


class Copy(NamedTuple):
    """What was written: for each split the images, as paths in the dataset's folder, with label and published name."""

    folder: Path
    entries: dict[str, list[tuple[str, int, str]]]

    @property
    def split_file(self) -> Path:
        """The one split_zhou_*.json in the folder."""
        (found,) = self.folder.glob("split_zhou_*.json")
        return found


def jpeg(label: int, number: int) -> bytes:
    """A small image whose color tells its class, with noise that tells it from others of its class."""
    color = np.array(colorsys.hsv_to_rgb(label * 0.61803 % 1, 0.8, 0.9)) * 255
    rng = np.random.default_rng([label % 100, number])
    pixels = color + rng.normal(0, 20, (10 + number % 3, 12, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_image(path: Path, label: int, number: int) -> None:
    """Such an image as a file, with the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(label, number))


def write_coop(root: Path, name: str, per_class: Sequence[int] = (4, 2, 3), classes: int | None = None) -> Copy:
    """One of the fifteen datasets in the layout of CoOp's DATASETS.md, with everything that belongs to it.

    Args:
      root: the folder that all datasets lie in.
      name: one of ``NAMES``.
      per_class: images of each class in train, val and test. ImageNet has no val, its variants have test alone.
      classes: how many classes; all of ``CLASSES`` by default.

    Returns:
      What was written; remove ``split_file`` for a dataset that comes without it.
    """
    folder = root / FOLDERS[name]
    if name in ("imagenet", *_VARIANTS):
        return _imagenet(folder, name, per_class, classes)
    known = dict(list(CLASSES[name].items())[:classes])
    entries: dict[str, list[tuple[str, int, str]]] = {split: [] for split in SPLITS}
    rng = random.Random(name)
    images = [
        (split, label, source, number)
        for split, count in zip(SPLITS, per_class, strict=True)
        for label, source in enumerate(known)
        for number in range(count)
    ]
    rng.shuffle(images)  # so that the order of the list is neither that of labels nor that of names
    for serial, (split, label, source, _) in enumerate(images, 1):
        path = _image_path(name, source, split, serial)
        write_image(folder / path, label, serial)
        entries[split].append((path, label, known[source]))
    _ANNOTATIONS.get(name, lambda *_: None)(folder, list(known), entries)
    if name in _SPLIT_FILES:
        title, base = _SPLIT_FILES[name]
        cut = len(base) + 1 if base else 0
        document = {split: [(path[cut:], *rest) for path, *rest in listed] for split, listed in entries.items()}
        (folder / f"split_zhou_{title}.json").write_text(json.dumps(document, indent=4))
    return Copy(folder, entries)


def write_all(root: Path, per_class: Sequence[int] = (4, 2, 3), classes: int | None = None) -> dict[str, Copy]:
    """All fifteen datasets, by name."""
    return {name: write_coop(root, name, per_class, classes) for name in NAMES}


def write_folder(
    root: Path, class_folders: Sequence[str] = ("big_cat", "dog"), sizes: Mapping[str, int] | int = 8
) -> Path:
    """Class folders of images: one folder of them, or one of each split if ``sizes`` are given by split."""
    by_split = {"": sizes} if isinstance(sizes, int) else sizes
    for split, count in by_split.items():
        for label, name in enumerate(class_folders):
            for number in range(count):
                write_image(root / split / name / f"{number:03d}.jpg", label, number + 1000 * len(split))
    return root


def write_csv(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("image", "label", "split")) -> Path:
    """A table, and the images that its first column names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    labels = sorted({row[1] for row in rows})
    for number, row in enumerate(rows):
        write_image(path.parent / row[0], labels.index(row[1]), number)
    return path


def write_tfds(
    data_dir: Path,
    name: str,
    splits: Mapping[str, Sequence[int]],
    class_names: Sequence[str] = ("big_cat", "dog"),
    version: str = "1.0.0",
    encode: Callable[[int, int], bytes] = jpeg,
    label_key: str = "label",
) -> Path:
    """A dataset as TFDS prepares it: array_record files of JPEG bytes and labels.

    Args:
      data_dir: the folder of TFDS datasets.
      name: the dataset, in small letters and underscores.
      splits: the label of every image of each split.
      class_names: the names of the labels.
      version: its version.
      encode: makes an image of a label and a number.
      label_key: what the label is called.

    Returns:
      The folder of this version.
    """
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        label_key: tfds.features.ClassLabel(names=list(class_names)),
    }

    def records(labels: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, label in enumerate(labels):
            yield number, {"image": encode(label, number), label_key: int(label)}

    def info(self: Any) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    body = {
        "__module__": __name__,
        "VERSION": tfds.core.Version(version),
        "name": name,
        "_info": info,
        "_split_generators": lambda self, _: {split: records(labels) for split, labels in splits.items()},
        "_generate_examples": lambda self: None,
    }
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return data_dir / name / version


def _imagenet(folder: Path, name: str, per_class: Sequence[int], classes: int | None) -> Copy:
    """ImageNet or a variant: folders of synsets, numbers for ImageNetV2, and classnames.txt of all classes."""
    known = dict(list(CLASSES["imagenet"].items())[:classes])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{synset} {each}\n" for synset, each in known.items()))
    there = [synset for synset in known if synset in SUBSET] if name in ("imagenet_a", "imagenet_r") else list(known)
    places = {"train": "images/train", "test": "images/val"} if name == "imagenet" else {"test": _VARIANTS[name]}
    entries: dict[str, list[tuple[str, int, str]]] = {}
    for split, place in places.items():
        entries[split] = []
        for label, synset in enumerate(there):
            inside = str(label) if name == "imagenetv2" else synset
            for number in range(per_class[SPLITS.index(split)]):
                path = f"{place}/{inside}/{synset}_{number:04d}.JPEG"
                write_image(folder / path, label, number + 100 * NAMES.index(name))
                entries[split].append((path, label, known[synset]))
    if name in ("imagenet_a", "imagenet_r"):
        (folder / _VARIANTS[name] / "README.txt").write_text("as in the archive")
    return Copy(folder, entries)


def _image_path(name: str, source: str, split: str, serial: int) -> str:
    """Where an image lies in the dataset's folder, called as in the real one."""
    match name:
        case "caltech101":
            return f"101_ObjectCategories/{source}/image_{serial:04d}.jpg"
        case "oxford_pets":
            return f"images/{source}_{serial}.jpg"
        case "stanford_cars":
            return f"cars_{'test' if split == 'test' else 'train'}/{serial:05d}.jpg"
        case "oxford_flowers":
            return f"jpg/image_{serial:05d}.jpg"
        case "food101":
            return f"images/{source}/{100000 + serial}.jpg"
        case "fgvc_aircraft":
            return f"images/{serial:07d}.jpg"
        case "sun397":
            return f"SUN397/{source}/sun_a{serial:05d}.jpg"
        case "dtd":
            return f"images/{source}/{source}_{serial:04d}.jpg"
        case "eurosat":
            return f"2750/{source}/{source}_{serial}.jpg"
        case "ucf101":
            return f"UCF-101-midframes/{CLASSES[name][source]}/v_{source}_g{serial:02d}_c01.jpg"
    raise AssertionError(name)


def _listed(entries: Mapping[str, list[tuple[str, int, str]]], *splits: str) -> list[tuple[str, int]]:
    """Paths below the folder of images, and labels, in the order of the files' names."""
    return sorted((path.partition("/")[2], label) for split in splits for path, label, _ in entries[split])


def _caltech_annotations(folder: Path, sources: list[str], entries: Mapping) -> None:
    del sources, entries
    for excluded in ("BACKGROUND_Google", "Faces_easy"):
        write_image(folder / "101_ObjectCategories" / excluded / "image_0001.jpg", 99, 0)


def _pets_annotations(folder: Path, sources: list[str], entries: Mapping) -> None:
    del sources
    (folder / "annotations").mkdir()
    for file, splits in (("trainval.txt", ("train", "val")), ("test.txt", ("test",))):
        lines = [f"{Path(path).stem} {label + 1} 1 1\n" for path, label in _listed(entries, *splits)]
        (folder / "annotations" / file).write_text("".join(lines))


def _cars_annotations(folder: Path, sources: list[str], entries: Mapping) -> None:
    from scipy.io import savemat

    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([sources], dtype=object)})
    for file, splits in (
        ("devkit/cars_train_annos.mat", ("train", "val")),
        ("cars_test_annos_withlabels.mat", ("test",)),
    ):
        listed = _listed(entries, *splits)
        kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
        table = np.array([[(1, label + 1, path) for path, label in listed]], dtype=kind)
        savemat(folder / file, {"annotations": table})


def _flowers_annotations(folder: Path, sources: list[str], entries: Mapping) -> None:
    from scipy.io import savemat

    labels = [label + 1 for _, label in _listed(entries, *SPLITS)]
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    names = {source: CLASSES["oxford_flowers"][source] for source in reversed(sources)}
    (folder / "cat_to_name.json").write_text(json.dumps(names))


def _aircraft_annotations(folder: Path, sources: list[str], entries: Mapping) -> None:
    (folder / "variants.txt").write_text("".join(f"{source}\n" for source in sources))
    for split, listed in entries.items():
        lines = [f"{Path(path).stem} {name}\n" for path, _, name in listed]
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))


def _scenes_annotations(folder: Path, sources: list[str], entries: Mapping) -> None:
    (folder / "ClassName.txt").write_text("".join(f"/{source}\n" for source in sources))
    for file, splits in (("Training_01.txt", ("train", "val")), ("Testing_01.txt", ("test",))):
        (folder / file).write_text("".join(f"/{path}\n" for path, _ in _listed(entries, *splits)))


def _actions_annotations(folder: Path, sources: list[str], entries: Mapping) -> None:
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i} {source}\n" for i, source in enumerate(sources, 1)))
    for file, splits in (("trainlist01.txt", ("train", "val")), ("testlist01.txt", ("test",))):
        lines = []
        for path, label in _listed(entries, *splits):
            video = f"{sources[label]}/{Path(path).stem}.avi"
            lines.append(f"{video}\n" if file.startswith("test") else f"{video} {label + 1}\n")
        (lists / file).write_text("".join(lines))


_ANNOTATIONS = {
    "caltech101": _caltech_annotations,
    "oxford_pets": _pets_annotations,
    "stanford_cars": _cars_annotations,
    "oxford_flowers": _flowers_annotations,
    "fgvc_aircraft": _aircraft_annotations,
    "sun397": _scenes_annotations,
    "ucf101": _actions_annotations,
}
