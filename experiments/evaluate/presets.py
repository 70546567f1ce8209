"""Published recipes by name: what `--preset` sets, and where each number was read.

All of them share Dassl's optimizer: SGD with momentum 0.9 and weight decay 5e-4 on the prompts, one epoch at 1e-5 (ten
of DPT's visual parts), then a cosine by epochs that does not reach 0; fresh random resized crops and flips; the last
step, three seeds. Names end in the backbone that they were published for, which `--clip` chooses; they run on any clip
that has the layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gram_jax import tuners
from gram_jax.data.readers.coop_datasets import DATASETS
from gram_jax.errors import InputError
from gram_jax.evaluation.protocols import TEST_TIME

from .._launch import json_object

IMAGENET = "coop:imagenet"
PHOTO_WORDS = "a photo of a"


class Preset(NamedTuple):
    """A published recipe.

    Attributes:
      tuner: the tuner, and its settings.
      learning_rate: of SGD.
      epochs: their number, by shots where it depends on them.
      batch_size: images a step.
      use: what it is for: "fs" (few_shot), "b2n" (base_to_new) or "xd" (cross_dataset and domain_generalization).
      provenance: where the numbers were read.
      imagenet_epochs: the number on ImageNet, where it is another one.
      regularizers: their names and weights, as `--regularizers` takes them.
      regulator: as `--regulator` takes it.
      regulation: as `--regulation` takes it.
      loss: as `--loss` takes it.
      part_rates: as `--part_rates` takes them.
      part_warmup: as `--part_warmup` takes it, but on ImageNet, where every part warms up for one epoch.
      aggregation: mean and width, in epochs, of the bell over the prompts of all epochs, by dataset; "" is any other.
      needs: what belongs to the recipe and is no setting of `experiments.evaluate`; such a recipe is refused.
    """

    tuner: tuple[str, Mapping[str, Any]]
    learning_rate: float
    epochs: int | Mapping[int, int]
    batch_size: int
    use: str
    provenance: str
    imagenet_epochs: int | None = None
    regularizers: tuple[str, ...] = ()
    regulator: str | None = None
    regulation: str = "frozen"
    loss: str = "cross_entropy"
    part_rates: Mapping[str, float] = MappingProxyType({})
    part_warmup: Mapping[str, int] = MappingProxyType({})
    aggregation: Mapping[str, tuple[float, float]] = MappingProxyType({})
    needs: str = ""


DEFAULT_STEPS = (50,)
# What is set where neither a flag nor a preset says otherwise.
PLAIN = {
    "protocol": ("few_shot", "base_to_new"),
    "shots": (1, 4, 16),
    "seeds": (1, 2, 3),
    "learning_rate": (0.3, 1.0, 3.0),
    "steps": DEFAULT_STEPS,
    "batch_size": 32,
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "augmentation": "none",
    "loss": "cross_entropy",
    "regulation": "frozen",
    "part_rates": "{}",
}
# The same where each test image is tuned on alone: TPT.
UNLABELED = {"learning_rate": (0.005,), "steps": (1,), "optimizer": "adamw"}
SHARED = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "warmup_cosine",
    "augmentation": "fresh",
    "seeds": (1, 2, 3),
}
USES = {
    "fs": {"protocol": ("few_shot",), "shots": (1, 2, 4, 8, 16)},
    "b2n": {"protocol": ("base_to_new",), "shots": (16,)},
    "xd": {"protocol": ("cross_dataset", "domain_generalization"), "shots": (16,)},
}

_COOP = "KaiyangZhou/CoOp ff61507: configs/trainers, scripts, COOP.md"
_MAPLE = "muzairkhattak/multimodal-prompt-learning 69bce21: configs/trainers"
_SRC = "muzairkhattak/PromptSRC bb95c77: configs/trainers"
_KG = "htyao89/KgCoOp c43ccc3: configs, scripts"
_META = "mlvlab/ProMetaR c907bdb: configs/trainers"

_WORDS = {"init_text": PHOTO_WORDS}
_COOP_4 = ("coop", {"num_tokens": 4, **_WORDS})
_COCOOP = ("cocoop", {"num_tokens": 4, **_WORDS})
_IVLP_9 = ("ivlp", {"num_text": 4, "num_visual": 4, "depth": 9, **_WORDS})
_IVLP_3 = ("ivlp", {"num_text": 4, "num_visual": 4, "depth": 3, **_WORDS})
_MAPLE_9 = ("maple", {"num_tokens": 2, "depth": 9, **_WORDS})
_MAPLE_3 = ("maple", {"num_tokens": 2, "depth": 3, **_WORDS})
_VISUAL_DPT = ("visual", "class_aware", "classifier")
_FEW = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
_PROMPTSRC = ("promptsrc:1",)  # (25, 10, 1), its own weights
_LATE = [name for name, entry in DATASETS.items() if entry.late_average]

PRESETS: dict[str, Preset] = {
    "coop_fs_vitb16": Preset(("coop", {"num_tokens": 16}), 0.002, _FEW, 32, "fs", _COOP, 50),
    "coop_b2n_vitb16": Preset(_COOP_4, 0.002, 200, 32, "b2n", f"{_COOP} (vit_b16_ctxv1)", 50),
    "coop_xd_vitb16": Preset(_COOP_4, 0.002, 200, 32, "xd", f"{_COOP} (vit_b16_ep50_ctxv1)", 50),
    "cocoop_b2n_vitb16": Preset(_COCOOP, 0.002, 10, 1, "b2n", f"{_COOP} (vit_b16_c4_ep10_batch1_ctxv1)"),
    "cocoop_xd_vitb16": Preset(_COCOOP, 0.002, 10, 1, "xd", f"{_COOP} (vit_b16_c4_ep10_batch1_ctxv1)"),
    "vpt_b2n_vitb16": Preset(("vpt", {"num_tokens": 8, "depth": 12}), 0.0025, 5, 4, "b2n", _MAPLE),
    "text_deep_b2n_vitb16": Preset(
        ("text_deep", {"num_tokens": 4, "depth": 12, **_WORDS}), 0.0025, 5, 4, "b2n", _MAPLE
    ),
    "ivlp_b2n_vitb16": Preset(
        ("ivlp", {"num_text": 2, "num_visual": 2, "depth": 12, **_WORDS}), 0.0035, 5, 4, "b2n", _MAPLE
    ),
    "ivlp_ep20_b2n_vitb16": Preset(_IVLP_9, 0.0025, 20, 4, "b2n", f"{_SRC} (IVLP, vit_b16_c2_ep20_batch4_4+4ctx)"),
    "maple_b2n_vitb16": Preset(_MAPLE_9, 0.0035, 5, 4, "b2n", f"{_MAPLE} (vit_b16_c2_ep5_batch4_2ctx)"),
    "maple_xd_vitb16": Preset(_MAPLE_3, 0.0026, 2, 4, "xd", f"{_MAPLE} (..._2ctx_cross_datasets)"),
    "kgcoop_b2n_vitb16": Preset(_COOP_4, 0.002, 100, 128, "b2n", _KG, regularizers=("kgcoop:8",)),
    "prograd_fs_rn50": Preset(
        ("coop", {"num_tokens": 16}), 0.002, _FEW, 32, "fs", "BeierZhu/Prompt-align 1b76203: README, configs", 50,
        regulator="prograd", needs="a ResNet-50, and a context that ends in the template's words",
    ),
    "promptsrc_b2n_vitb16": Preset(
        _IVLP_9, 0.0025, 20, 4, "b2n", _SRC, regularizers=_PROMPTSRC, aggregation={"": (15, 1)}
    ),
    "promptsrc_xd_vitb16": Preset(
        _IVLP_3, 0.0025, 20, 4, "xd", _SRC, regularizers=_PROMPTSRC, aggregation={"": (6, 10)}
    ),
    "promptsrc_fs_vitb16": Preset(
        _IVLP_9, 0.0025, 50, 4, "fs", _SRC, regularizers=_PROMPTSRC,
        aggregation={"": (30, 30)} | {f"coop:{name}": (45, 5) for name in _LATE},
    ),
    "prometar_b2n_vitb16": Preset(
        _IVLP_9, 0.0025, 10, 4, "b2n", _META, regulator="prometar", regulation="alternating"
    ),
    "dpt_fs_vitb32": Preset(
        ("dpt", {"num_text": 16, "num_visual": 10, "num_classes": 10, "class_layers": 1, "class_specific": True}),
        0.002, {1: 60, 2: 100}, 32, "fs", "fanrena/DPT 11fef90: scripts, configs", loss="dpt",
        part_rates=dict.fromkeys(_VISUAL_DPT, 5), part_warmup=dict.fromkeys(_VISUAL_DPT, 10),
    ),
}  # fmt: skip
NAMES = tuple(PRESETS)


def epochs(name: str, dataset: str, shots: int) -> int:
    """How many epochs a recipe takes.

    Args:
      name: a preset.
      dataset: the dataset's name, as in results.
      shots: labeled images a class.

    Returns:
      The number; between numbers of shots that are published, that of the next smaller one.

    Example:
      >>> epochs("coop_fs_vitb16", "coop:dtd", 4), epochs("coop_fs_vitb16", "coop:imagenet", 4)
      (100, 50)
    """
    preset = PRESETS[name]
    if dataset == IMAGENET and preset.imagenet_epochs is not None:
        return preset.imagenet_epochs
    if isinstance(preset.epochs, int):
        return preset.epochs
    return preset.epochs[max((known for known in preset.epochs if known <= shots), default=min(preset.epochs))]


def aggregation(name: str, dataset: str) -> tuple[float, float] | None:
    """The mean and the width, in epochs, of a recipe's bell over the prompts of all epochs.

    Args:
      name: a preset.
      dataset: the dataset's name, as in results.

    Returns:
      Both, or None where the recipe takes the last prompts.

    Example:
      >>> aggregation("promptsrc_fs_vitb16", "coop:dtd"), aggregation("promptsrc_fs_vitb16", "coop:food101")
      ((45, 5), (30, 30))
    """
    found = PRESETS[name].aggregation
    return found.get(dataset, found.get(""))


def warmup(name: str, dataset: str) -> Mapping[str, int]:
    """How many epochs the warm-up of each part of a recipe's prompt takes, where it is not one.

    Args:
      name: a preset.
      dataset: the dataset's name, as in results.

    Returns:
      Numbers by part.

    Example:
      >>> warmup("dpt_fs_vitb32", "coop:dtd")["visual"], dict(warmup("dpt_fs_vitb32", "coop:imagenet"))
      (10, {})
    """
    return {} if dataset == IMAGENET else PRESETS[name].part_warmup


def settings(name: str) -> dict[str, Any]:
    """The settings of `experiments.evaluate` that a recipe stands for, but for the number of epochs."""
    preset = PRESETS[name]
    tuner, of_tuner = preset.tuner
    # Without words, the context starts at random.
    start = {"init_text": ("",)} if tuner in ("coop", "dpt") and "init_text" not in of_tuner else {}
    return {
        **SHARED,
        **USES[preset.use],
        "tuner": tuner,
        "tuner_settings": json.dumps(of_tuner),
        "learning_rate": (preset.learning_rate,),
        "batch_size": preset.batch_size,
        "regularizers": preset.regularizers or None,
        "regulator": preset.regulator,
        "regulation": preset.regulation,
        "loss": preset.loss,
        "part_rates": json.dumps(dict(preset.part_rates)),
        **start,
    }


def filled(config: Any) -> dict[str, Any]:
    """What the settings that are not given (None) are: those of the preset, if there is one, or the plain ones.

    Settings of the tuner that are given stand over those of the recipe. With a meta checkpoint, which brings its own,
    the recipe's tuner is left out.

    Args:
      config: the settings of `experiments.evaluate`.

    Returns:
      Values by name.

    Raises:
      InputError: the recipe is of another tuner than the one asked for, needs a tuner that there is not, or more than
        settings.
    """
    found = dict(PLAIN)
    if config.protocol == (TEST_TIME,):
        found |= _unlabeled(config)
    if config.preset is not None:
        found |= _recipe(config)
    return {name: value for name, value in found.items() if name == "tuner_settings" or getattr(config, name) is None}


def _unlabeled(config: Any) -> dict[str, Any]:
    """What test-time tuning takes: PyTorch's AdamW, at one rate for all methods; learned rates are those of SGD."""
    if config.optimizer not in (None, "adamw"):
        return UNLABELED
    rates = config.learning_rate or UNLABELED["learning_rate"]
    return UNLABELED | {"weight_decay": 0.01, "gram_learning_rate": rates}


def _recipe(config: Any) -> dict[str, Any]:
    if config.preset not in PRESETS:
        raise InputError(f"--preset={config.preset}: choose among {', '.join(NAMES)}")
    preset, found = PRESETS[config.preset], settings(config.preset)
    tuner, of_tuner = preset.tuner
    if tuner not in tuners.NAMES:
        raise InputError(f"--preset={config.preset} is of the tuner {tuner!r}; there are {', '.join(tuners.NAMES)}")
    if preset.needs:
        raise InputError(
            f"--preset={config.preset} needs {preset.needs}, which experiments.evaluate has no setting for; what it "
            f"has: {found | {'epochs': preset.epochs}}"
        )
    if config.tuner not in (None, tuner):
        raise InputError(f"--preset={config.preset} is of the tuner {tuner!r}; leave --tuner={config.tuner} out")
    if config.steps not in (None, DEFAULT_STEPS):
        raise InputError(f"--steps={config.steps}: a preset counts in epochs; give --epochs")
    if config.meta:
        del found["tuner"], found["tuner_settings"], found["regulator"], found["regulation"]
    else:
        found["tuner_settings"] = json.dumps({**of_tuner, **json_object("tuner_settings", config.tuner_settings)})
    return found
