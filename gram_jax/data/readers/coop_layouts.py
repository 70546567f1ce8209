"""The fifteen datasets of CoOp's DATASETS.md: where their files lie, and how many images they should hold."""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """Where a dataset lies below the common root, and what is published of it.

    Attributes:
      folder: its folder.
      images: folders that hold its images, relative to ``folder``.
      base: what the paths of its split file are relative to.
      split_file: the published split, or None where there is none.
      needed: files without which it cannot be read.
      annotations: files that a split is made from where the split file is missing.
      classes: the published number of classes.
      sizes: the published number of images of each split.
      domain: the visual domain, "" for the ordinary one.
    """

    folder: str
    images: tuple[str, ...]
    classes: int
    sizes: dict[str, int]
    base: str = ""
    split_file: str | None = None
    needed: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    domain: str = ""


def _sizes(train: int, val: int, test: int) -> dict[str, int]:
    return {split: size for split, size in (("train", train), ("val", val), ("test", test)) if size}


def _split(folder: str, images: str, name: str, classes: int, sizes: dict[str, int], *annotations: str) -> Layout:
    """A dataset with a split file whose paths start in its one folder of images."""
    return Layout(folder, (images,), classes, sizes, images, f"split_zhou_{name}.json", annotations=annotations)


_NAMES = "classnames.txt"
_UCF = tuple(f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01"))

LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout(
        "imagenet", ("images/train", "images/val"), 1000, _sizes(1281167, 0, 50000), needed=(_NAMES,)
    ),
    "caltech101": _split("caltech-101", "101_ObjectCategories", "Caltech101", 100, _sizes(4128, 1649, 2465)),
    "oxford_pets": _split(
        "oxford_pets", "images", "OxfordPets", 37, _sizes(2944, 736, 3669),
        "annotations/trainval.txt", "annotations/test.txt",
    ),
    "stanford_cars": Layout(
        "stanford_cars", ("cars_train", "cars_test"), 196, _sizes(6509, 1635, 8041), "",
        "split_zhou_StanfordCars.json",
        annotations=("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
    ),
    "oxford_flowers": _split(
        "oxford_flowers", "jpg", "OxfordFlowers", 102, _sizes(4093, 1633, 2463), "imagelabels.mat", "cat_to_name.json"
    ),
    "food101": _split("food-101", "images", "Food101", 101, _sizes(50500, 20200, 30300)),
    "fgvc_aircraft": Layout(
        "fgvc_aircraft", ("images",), 100, _sizes(3334, 3333, 3333),
        needed=("variants.txt", *(f"images_variant_{split}.txt" for split in ("train", "val", "test"))),
    ),
    "sun397": _split(
        "sun397", "SUN397", "SUN397", 397, _sizes(15880, 3970, 19850),
        "ClassName.txt", "Training_01.txt", "Testing_01.txt",
    ),
    "dtd": _split("dtd", "images", "DescribableTextures", 47, _sizes(2820, 1128, 1692)),
    "eurosat": _split("eurosat", "2750", "EuroSAT", 10, _sizes(13500, 5400, 8100)),
    "ucf101": _split("ucf101", "UCF-101-midframes", "UCF101", 101, _sizes(7639, 1898, 3783), *_UCF),
    "imagenetv2": Layout(
        "imagenetv2", ("imagenetv2-matched-frequency-format-val",), 1000, _sizes(0, 0, 10000),
        needed=(_NAMES,), domain="imagenetv2",
    ),
    "imagenet_sketch": Layout(
        "imagenet-sketch", ("images",), 1000, _sizes(0, 0, 50889), needed=(_NAMES,), domain="imagenet_sketch"
    ),
    "imagenet_a": Layout(
        "imagenet-adversarial", ("imagenet-a",), 200, _sizes(0, 0, 7500), needed=(_NAMES,), domain="imagenet_a"
    ),
    "imagenet_r": Layout(
        "imagenet-rendition", ("imagenet-r",), 200, _sizes(0, 0, 30000), needed=(_NAMES,), domain="imagenet_r"
    ),
}  # fmt: skip

NAMES = tuple(LAYOUTS)
VARIANTS = tuple(name for name, layout in LAYOUTS.items() if layout.domain)  # of ImageNet, for testing alone
