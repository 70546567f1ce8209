"""Published recipes by name: the flags that `--preset` sets, and the source of each number.

All recipes share Dassl's optimizer: SGD with momentum 0.9 and weight decay 5e-4 on the prompts; one epoch at 1e-5 (ten
for DPT's visual parts), then a cosine by epochs that does not reach 0; fresh random resized crops and flips; the last
step; three seeds. A name ends in the backbone that the recipe was published for. `--clip` chooses the backbone: any
clip with enough layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gram_jax.data.readers.coop_datasets import DATASETS
from gram_jax.errors import InputError, nearest
from gram_jax.registry import parse_call

IMAGENET = "coop:imagenet"


class Preset(NamedTuple):
    """A published recipe.

    Attributes:
      tuner, learning_rate, batch_size: in the form of `--tuner`; the rate of SGD; images per step.
      epochs: the number of epochs; by shots if it depends on them.
      use: "fs" (few_shot), "b2n" (base_to_new), "xd" (cross_dataset and domain_generalization) or "tpt" (test_time; the
        epochs and the batch size are not used).
      provenance: the source of the numbers.
      imagenet_epochs, flags: the number of epochs on ImageNet, if it differs; further flags, by name.
      part_warmup: epochs of the warm-up by part, except on ImageNet, where every part warms up for one epoch.
      aggregation: mean and width, in epochs, of the Gaussian over the prompts of all epochs, by dataset; "" stands for
        any other dataset.
    """

    tuner: str
    learning_rate: float
    epochs: int | Mapping[int, int]
    batch_size: int
    use: str
    provenance: str
    imagenet_epochs: int | None = None
    flags: Mapping[str, Any] = MappingProxyType({})
    part_warmup: Mapping[str, int] = MappingProxyType({})
    aggregation: Mapping[str, tuple[float, float]] = MappingProxyType({})


DEFAULT_STEPS = (300,)
# The defaults without a preset.
PLAIN: dict[str, Any] = {
    "protocol": ("few_shot", "base_to_new"),
    "shots": (1, 4, 16),
    "seeds": (1, 2, 3),
    "learning_rate": (0.3,),
    "steps": DEFAULT_STEPS,
    "batch_size": 32,
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "augmentation": "none",
    "image_reading": "upright",
    "crop_rounding": "down",
    "few_images": "refuse",
    "regularizers": "",
    "baselines": "",
    "loss": "cross_entropy",
    "regulation": "frozen",
    "part_rates": "",
}
# The defaults of test-time tuning: TPT.
UNLABELED = {"learning_rate": (0.005,), "steps": (1,), "optimizer": "adamw"}
SHARED = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "warmup_cosine",
    "augmentation": "fresh",
    "image_reading": "plain",
    "crop_rounding": "half_even",
    "few_images": "take_all",
    "seeds": (1, 2, 3),
}
USES = {
    "fs": {"protocol": ("few_shot",), "shots": (1, 2, 4, 8, 16)},
    "b2n": {"protocol": ("base_to_new",), "shots": (16,)},
    "xd": {"protocol": ("cross_dataset", "domain_generalization"), "shots": (16,)},
    "tpt": {"protocol": ("test_time",)},
}

_COOP = "KaiyangZhou/CoOp ff61507: configs/trainers, scripts, COOP.md"
_MAPLE = "muzairkhattak/multimodal-prompt-learning 69bce21: configs/trainers"
_SRC = "muzairkhattak/PromptSRC bb95c77: configs/trainers"
_KG = "htyao89/KgCoOp c43ccc3: configs, scripts"
_META = "mlvlab/ProMetaR c907bdb: configs/trainers"

_COOP_4 = "coop(num_tokens=4, init_text='a photo of a')"
_COCOOP = "cocoop(num_tokens=4, init_text='a photo of a')"
_IVLP_9 = "ivlp(num_text=4, num_visual=4, depth=9, init_text='a photo of a')"
_IVLP_3 = "ivlp(num_text=4, num_visual=4, depth=3, init_text='a photo of a')"
_MAPLE_9 = "maple(num_tokens=2, depth=9, init_text='a photo of a')"
_MAPLE_3 = "maple(num_tokens=2, depth=3, init_text='a photo of a')"
_FEW = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
_PROMPTSRC = {"regularizers": "promptsrc:1"}  # (25, 10, 1), its own weights
_LATE = [name for name, facts in DATASETS.items() if facts.late_average]
_VISUAL_DPT = ("visual", "class_aware", "classifier")

PRESETS: dict[str, Preset] = {
    "coop_fs_vitb16": Preset("coop(num_tokens=16)", 0.002, _FEW, 32, "fs", _COOP, 50),
    "coop_b2n_vitb16": Preset(_COOP_4, 0.002, 200, 32, "b2n", f"{_COOP} (vit_b16_ctxv1)", 50),
    "coop_xd_vitb16": Preset(_COOP_4, 0.002, 200, 32, "xd", f"{_COOP} (vit_b16_ep50_ctxv1)", 50),
    "cocoop_b2n_vitb16": Preset(_COCOOP, 0.002, 10, 1, "b2n", f"{_COOP} (vit_b16_c4_ep10_batch1_ctxv1)"),
    "cocoop_xd_vitb16": Preset(_COCOOP, 0.002, 10, 1, "xd", f"{_COOP} (vit_b16_c4_ep10_batch1_ctxv1)"),
    "vpt_b2n_vitb16": Preset("vpt(num_tokens=8, depth=12)", 0.0025, 5, 4, "b2n", _MAPLE),
    "text_deep_b2n_vitb16": Preset(
        "text_deep(num_tokens=4, depth=12, init_text='a photo of a')", 0.0025, 5, 4, "b2n", _MAPLE
    ),
    "ivlp_b2n_vitb16": Preset(
        "ivlp(num_text=2, num_visual=2, depth=12, init_text='a photo of a')", 0.0035, 5, 4, "b2n", _MAPLE
    ),
    "ivlp_ep20_b2n_vitb16": Preset(_IVLP_9, 0.0025, 20, 4, "b2n", f"{_SRC} (IVLP, vit_b16_c2_ep20_batch4_4+4ctx)"),
    "maple_b2n_vitb16": Preset(_MAPLE_9, 0.0035, 5, 4, "b2n", f"{_MAPLE} (vit_b16_c2_ep5_batch4_2ctx)"),
    "maple_xd_vitb16": Preset(_MAPLE_3, 0.0026, 2, 4, "xd", f"{_MAPLE} (..._2ctx_cross_datasets)"),
    "kgcoop_b2n_vitb16": Preset(_COOP_4, 0.002, 100, 128, "b2n", _KG, flags={"regularizers": "kgcoop:8"}),
    "coop_fs_rn50": Preset("coop(num_tokens=16)", 0.002, _FEW, 32, "fs", f"{_COOP} (rn50, rn50_ep50, rn50_ep100)", 50),
    "prograd_fs_rn50": Preset(
        "coop(num_tokens=16)", 0.002, _FEW, 32, "fs",
        "BeierZhu/Prompt-align 1b76203: README, configs; the context starts at random, where the public code has zeros "
        "and the words of the dataset's template", 50, flags={"regulator": "prograd"},
    ),
    "tpt_rn50": Preset(
        "coop(num_tokens=4, init_text='a photo of a')", 0.005, 0, 0, "tpt", "azshue/TPT 63ecbac: tpt_classification.py",
    ),
    "tip_adapter_fs_rn50": Preset(
        "coop()", 0.001, 20, 256, "fs",
        "gaopengcuhk/Tip-Adapter: main.py, configs; validation images choose, where the public code takes the epoch "
        "that is best on the test split",
        flags={"methods": ("zero_shot",), "baselines": "tip_adapter(recipe=True),tip_adapter(epochs=20, recipe=True)"},
    ),
    "promptsrc_b2n_vitb16": Preset(
        _IVLP_9, 0.0025, 20, 4, "b2n", _SRC, flags=_PROMPTSRC, aggregation={"": (15, 1)}
    ),
    "promptsrc_xd_vitb16": Preset(_IVLP_3, 0.0025, 20, 4, "xd", _SRC, flags=_PROMPTSRC, aggregation={"": (6, 10)}),
    "promptsrc_fs_vitb16": Preset(
        _IVLP_9, 0.0025, 50, 4, "fs", _SRC, flags=_PROMPTSRC,
        aggregation={"": (30, 30)} | {f"coop:{name}": (45, 5) for name in _LATE},
    ),
    "prometar_b2n_vitb16": Preset(
        _IVLP_9, 0.0025, 10, 4, "b2n", _META, flags={"regulator": "prometar", "regulation": "alternating"}
    ),
    "dpt_fs_vitb32": Preset(
        "dpt(num_text=16, num_visual=10, num_classes=10, class_layers=1, class_specific=True)",
        0.002, {1: 60, 2: 100}, 32, "fs", "fanrena/DPT 11fef90: scripts, configs",
        flags={"loss": "dpt", "part_rates": ",".join(f"{part}:5" for part in _VISUAL_DPT)},
        part_warmup=dict.fromkeys(_VISUAL_DPT, 10),
    ),
}  # fmt: skip
NAMES = tuple(PRESETS)


def epochs(name: str, dataset: str, shots: int) -> int:
    """Returns the number of epochs of a recipe; between published numbers of shots, the next smaller one counts.

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
    """Returns mean and width, in epochs, of a recipe's Gaussian over the prompts of all epochs; None for the last."""
    by_dataset = PRESETS[name].aggregation
    return by_dataset.get(dataset, by_dataset.get(""))


def warmup(name: str, dataset: str) -> Mapping[str, int]:
    """Returns the epochs of a recipe's warm-up by part of the prompt; parts that are not named have one."""
    return {} if dataset == IMAGENET else PRESETS[name].part_warmup


def flags_of(name: str) -> dict[str, Any]:
    """Returns the flags that a recipe stands for, without the number of epochs."""
    if name not in PRESETS:
        raise InputError(f"--preset={name}{nearest(name, NAMES)}: choose from {', '.join(NAMES)}")
    preset = PRESETS[name]
    call = parse_call(preset.tuner)
    # Without words, the context is initialized at random.
    words = {"init_text": ("",)} if call.name in ("coop", "dpt") and "init_text" not in call.settings else {}
    own: dict[str, Any] = {"tuner": preset.tuner, "learning_rate": (preset.learning_rate,)}
    if preset.use == "tpt":
        return {**USES[preset.use], **own, **preset.flags}
    own["batch_size"] = preset.batch_size
    return {**SHARED, **USES[preset.use], **own, **preset.flags, **words}
