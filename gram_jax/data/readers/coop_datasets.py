"""The datasets of CoOp's DATASETS.md: one entry holds all facts about a dataset. To add a dataset, add an entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from gram_jax.data.readers import coop_rules as rules
from gram_jax.data.readers.coop_rules import CLASS_NAMES, Contents, Source
from gram_jax.data.templates import DEFAULT


class TipSettings(NamedTuple):
    """What Tip-Adapter's public code sets for a dataset: the ends of its search, its first alpha, epochs of tuning."""

    beta: float = 7.0
    alpha: float = 3.0
    first_alpha: float = 1.17
    epochs: int = 20
    templates: str = ""  # an ensemble instead of the dataset's template


class CoopDataset(NamedTuple):
    """The facts about a published dataset."""

    name: str  # as in "coop:ROOT:NAME"
    folder: str  # below the common root
    images: tuple[str, ...]  # the folders of its images, relative to `folder`
    counts: tuple[int, int, int, int]  # the published numbers of classes and of images in train, val and test
    read: Callable[[Source], Contents]  # without a split file; makes a split, if there should be one
    template: str = DEFAULT  # the hand-written template of CoOp's zero-shot CLIP
    loss_templates: Mapping[str, str] = MappingProxyType({})  # used by a regularizer's public code, by regularizer
    split_file: str | None = None  # the published split
    needed: tuple[str, ...] = ()  # files without which the dataset cannot be read
    annotations: tuple[str, ...] = ()  # files that a split is made from, if the split file is missing
    domain: str = ""  # the visual domain of a variant of ImageNet; "" for an ordinary dataset
    late_average: bool = False  # whether PromptSRC's few-shot recipe averages the prompts of later epochs
    tip: TipSettings = TipSettings()

    @property
    def base(self) -> str:
        """The folder that the paths of the split file are relative to: that of the images, if there is only one."""
        return self.images[0] if len(self.images) == 1 else ""


# fmt: off
_EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River",
    "SeaLake": "Sea or Lake",
}
# fmt: on


def _variant(name: str, folder: str, images: str, classes: int, test: int, numbered: bool = False) -> CoopDataset:
    """Returns a variant of ImageNet, which is test only."""
    read = partial(rules.variant, images=images, numbered=numbered)
    return CoopDataset(name, folder, (images,), (classes, 0, 0, test), read, needed=(CLASS_NAMES,), domain=name)


# fmt: off
_ENTRIES = (
    CoopDataset(
        "imagenet", folder="imagenet", images=("images/train", "images/val"), counts=(1000, 1281167, 0, 50000),
        read=partial(rules.imagenet, train="images/train", test="images/val"), needed=(CLASS_NAMES,),
        tip=TipSettings(templates="clip_7"),
    ),
    CoopDataset(
        "caltech101", folder="caltech-101", images=("101_ObjectCategories",), counts=(100, 4128, 1649, 2465),
        read=partial(
            rules.by_folders, images="101_ObjectCategories", excluded=("BACKGROUND_Google", "Faces_easy"),
            renamed={"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"},
        ),
        split_file="split_zhou_Caltech101.json", tip=TipSettings(12, 5, 3),
    ),
    CoopDataset(
        "oxford_pets", folder="oxford_pets", images=("images",), counts=(37, 2944, 736, 3669),
        read=rules.pets, template="a photo of a {}, a type of pet.", split_file="split_zhou_OxfordPets.json",
        loss_templates={"distillation": "a type of pet, a photo of a {}."},
        annotations=("annotations/trainval.txt", "annotations/test.txt"),
    ),
    CoopDataset(
        "stanford_cars", folder="stanford_cars", images=("cars_train", "cars_test"), counts=(196, 6509, 1635, 8041),
        read=rules.cars, split_file="split_zhou_StanfordCars.json",
        annotations=("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
        late_average=True, tip=TipSettings(20, 10, 3),
    ),
    CoopDataset(
        "oxford_flowers", folder="oxford_flowers", images=("jpg",), counts=(102, 4093, 1633, 2463),
        read=rules.flowers, template="a photo of a {}, a type of flower.", split_file="split_zhou_OxfordFlowers.json",
        loss_templates={"distillation": "a type of flower, a photo of a {}."},
        annotations=("imagelabels.mat", "cat_to_name.json"), late_average=True, tip=TipSettings(50, 50, 10),
    ),
    CoopDataset(
        "food101", folder="food-101", images=("images",), counts=(101, 50500, 20200, 30300),
        read=partial(rules.by_folders, images="images"), template="a photo of {}, a type of food.",
        loss_templates={"distillation": "a type of food, a photo of {}."}, split_file="split_zhou_Food101.json",
        tip=TipSettings(10, 10),
    ),
    CoopDataset(
        "fgvc_aircraft", folder="fgvc_aircraft", images=("images",), counts=(100, 3334, 3333, 3333),
        read=rules.aircraft, template="a photo of a {}, a type of aircraft.",
        loss_templates={"distillation": "a type of aircraft, a photo of a {}."}, tip=TipSettings(30, 30, 5),
        needed=("variants.txt", *(f"images_variant_{split}.txt" for split in ("train", "val", "test"))),
        late_average=True,
    ),
    CoopDataset(
        "sun397", folder="sun397", images=("SUN397",), counts=(397, 15880, 3970, 19850),
        read=rules.scenes, split_file="split_zhou_SUN397.json",
        annotations=("ClassName.txt", "Training_01.txt", "Testing_01.txt"), tip=TipSettings(12, 10),
    ),
    CoopDataset(
        "dtd", folder="dtd", images=("images",), counts=(47, 2820, 1128, 1692),
        read=partial(rules.by_folders, images="images"), template="{} texture.",
        loss_templates={"kgcoop": "a photo of a {}, a type of texture.", "distillation": "a texture of {}."},
        split_file="split_zhou_DescribableTextures.json", late_average=True, tip=TipSettings(13, 13, 2),
    ),
    CoopDataset(
        "eurosat", folder="eurosat", images=("2750",), counts=(10, 13500, 5400, 8100),
        read=partial(rules.by_folders, images="2750", renamed=_EUROSAT_NAMES),
        template="a centered satellite photo of {}.", split_file="split_zhou_EuroSAT.json", late_average=True,
        tip=TipSettings(12, 10, 2, 100),
    ),
    CoopDataset(
        "ucf101", folder="ucf101", images=("UCF-101-midframes",), counts=(101, 7639, 1898, 3783),
        read=rules.actions, template="a photo of a person doing {}.", split_file="split_zhou_UCF101.json",
        annotations=tuple(f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")),
        tip=TipSettings(first_alpha=3),
    ),
    _variant("imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val", 1000, 10000, numbered=True),
    _variant("imagenet_sketch", "imagenet-sketch", "images", 1000, 50889),
    _variant("imagenet_a", "imagenet-adversarial", "imagenet-a", 200, 7500),
    _variant("imagenet_r", "imagenet-rendition", "imagenet-r", 200, 30000),
)
# fmt: on
DATASETS = {entry.name: entry for entry in _ENTRIES}
