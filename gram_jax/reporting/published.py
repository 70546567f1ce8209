"""Published accuracies of CLIP ViT-B/16 in %, as printed in the named source, for comparison with measured ones.

Missing numbers were not available, such as UNIGRAM's and the larger few-shot tables, or belong to other protocols:
TPT adapts to test images; PromptKD learns from a larger teacher on unlabeled images of all classes. Base-to-new,
cross-dataset, domain generalization and long tails use 16 shots (16 images of the largest class).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gram_jax.data.readers import coop
from gram_jax.evaluation.results import Results
from gram_jax.evaluation.statistics import harmonic_of_means, mean_of_harmonics

SHOTS = 16
PREFIX = "coop:"
ELEVEN = tuple(f"{PREFIX}{name}" for name in coop.NAMES if name not in coop.VARIANTS)
SOURCE, VARIANTS = f"{PREFIX}imagenet", coop.VARIANTS

ONPOKD = "the tables of OnPoKD"
PROTEXT = "the tables of ProText"
LOGOPROMPT = "the tables of LoGoPrompt, whose authors ran it"
UPROMPT = "a table of UPrompt"
SEVERAL = "the tables of ProText, LoGoPrompt and SAMPLe"
CPT = "a reading note on CPT, arXiv 2605.11939"
PROMISE = "a reading note on Promise"
QCOOP = "a note on QCoOp"
LIST = "zhengli97/Awesome-Prompt-Adapter-Learning-for-VLMs 01290df"
KGCOOP = "the README of htyao89/KgCoOp c43ccc3"
MAPLE = "the README of muzairkhattak/multimodal-prompt-learning 69bce21"
PROMPTSRC = "the README of muzairkhattak/PromptSRC bb95c77"

# Base/new of five methods on every dataset.
_FIVE = ("CLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC")
_BASE_TO_NEW = """
imagenet       72.43/68.14 76.47/67.88 75.98/70.43 76.66/70.54 77.60/70.73
caltech101     96.84/94.00 98.00/89.81 97.96/93.81 97.74/94.36 98.10/94.03
oxford_pets    91.17/97.26 93.67/95.29 95.20/97.69 95.43/97.76 95.33/97.30
stanford_cars  63.37/74.89 78.12/60.40 70.49/73.59 72.94/74.00 78.27/74.97
oxford_flowers 72.08/77.80 97.60/59.67 94.87/71.75 95.92/72.46 98.07/76.50
food101        90.10/91.22 88.33/82.26 90.70/91.29 90.71/92.05 90.67/91.53
fgvc_aircraft  27.19/36.29 40.44/22.30 33.41/23.71 37.44/35.61 42.73/37.87
sun397         69.36/75.35 80.60/65.89 79.74/76.86 80.82/78.70 82.67/78.47
dtd            53.24/59.90 79.44/41.18 77.01/56.00 80.36/59.18 83.37/62.97
eurosat        56.48/64.05 92.19/54.74 87.49/60.04 94.07/73.23 92.90/73.90
ucf101         70.53/77.50 84.69/56.05 82.33/73.45 83.00/78.66 87.10/78.80
"""
# Averages over the eleven: base, new, H of means. Other sources report other numbers for CoOp and ProGrad.
_AVERAGES = {
    "CoOp, in KgCoOp's table": (82.63, 67.99, 74.60, KGCOOP),
    "ProDA": (81.56, 72.30, 76.65, LIST),
    "KgCoOp": (80.73, 73.60, 77.00, KGCOOP),
    "ProGrad, in KgCoOp's table": (82.48, 70.75, 76.16, KGCOOP),
    "ProGrad, in QCoOp's table": (82.79, 68.55, 75.00, QCOOP),
    "VPT deep": (80.24, 73.43, 76.68, MAPLE),
    "deep language prompts": (81.72, 73.81, 77.56, MAPLE),
    "IVLP": (82.15, 74.07, 77.90, MAPLE),
    "IVLP, 20 epochs": (84.21, 71.79, 77.51, PROMPTSRC),
    "DePT": (83.80, 72.89, 77.97, LIST),
    "TCP": (84.13, 75.36, 79.51, LIST),
    "CoPrompt": (84.00, 77.23, 80.48, LIST),
    "ProMetaR": (84.39, 76.93, 80.49, PROMISE),
    "MMRL": (85.68, 77.16, 81.20, LIST),
    "Promise on MMRL": (86.14, 78.84, 82.33, PROMISE),
}
_TARGETS = ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
            "eurosat", "ucf101")  # fmt: skip
_CROSS_DATASET = {
    "CLIP": ("66.72 92.98 89.13 65.29 71.30 86.11 24.90 62.59 44.56 47.84 66.83", PROTEXT),
    "CoOp": ("71.51 93.70 89.14 64.51 68.71 85.30 18.47 64.15 41.92 46.39 66.55", PROTEXT),
    "CoCoOp": ("71.02 94.43 90.14 65.32 71.88 86.06 22.94 67.36 45.73 45.37 68.21", PROTEXT),
    "MaPLe": ("70.72 93.53 90.49 65.57 72.23 86.20 24.74 67.01 46.49 48.06 68.69", PROTEXT),
    "PromptSRC": ("71.27 93.60 90.25 65.70 70.25 86.15 23.90 67.10 46.87 45.50 68.75", PROTEXT),
}
_CROSS_AVERAGES = {"NPT": (67.11, CPT), "CPT": (67.78, CPT)}
_DOMAINS = {
    "CLIP": ("66.73 60.83 46.15 47.77 73.96", SEVERAL),
    "CoOp": ("71.51 64.20 47.99 49.71 75.21", SEVERAL),
    "CoCoOp": ("71.02 64.07 48.75 50.63 76.18", SEVERAL),
    "MaPLe": ("70.72 64.07 49.15 50.90 76.98", SEVERAL),
    "PromptSRC": ("71.27 64.35 49.55 50.90 77.80", UPROMPT),
    "VPT": ("70.72 58.22 44.67 43.00 71.86", LOGOPROMPT),
    "DPT": ("69.95 15.93 13.41 9.10 32.34", LOGOPROMPT),
}
# H of base-to-new, apparently the mean of H over datasets, for tau = 1, 0.25 and 0.06.
_TAUS = (1.0, 0.25, 0.06)
_IMBALANCED = {
    "MaPLe": (78.25, 71.38, 69.12),
    "CoPrompt": (78.72, 72.24, 71.04),
    "NPT": (78.31, 72.98, 71.76),
    "DeKg": (80.12, 72.99, 71.50),
    "DPC": (79.62, 72.92, 71.75),
    "CPT": (80.28, 73.58, 72.47),
}
_FEW_SHOT = {  # averages over the eleven, by the number of shots
    "linear probe": {1: 45.83, 2: 57.98},
    "CoOp": {1: 67.56, 2: 70.65},
    "CoCoOp": {1: 66.79, 2: 67.65},
}


class Published(NamedTuple):
    """A row of a published table: fractions by column, and the source."""

    method: str
    values: dict[str, float]
    source: str


def unlike(results: Results) -> dict[str, str]:
    """Returns datasets with the name of a published one that differ from it, and the first reason for each.

    Reasons are a limited number of test images, a split that replaces the published one, and other numbers of classes
    or images than published. The config of the results describes how each dataset was read.
    """
    about = results.config.get("datasets")
    about = about if isinstance(about, Mapping) else {}
    differing = {}
    for name in sorted({*about, *(row.dataset for row in results.rows)}):
        if name.startswith(PREFIX) and (reasons := _reasons(about.get(name, {}), results.config)):
            differing[name] = reasons[0] + f", and {len(reasons) - 1} more" * (len(reasons) > 1)
    return differing


def _reasons(about: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    reasons = []
    if config.get("max_test_images"):
        reasons.append(f"{config['max_test_images']} test images per class")
    if str(about.get("split", "")).startswith("made"):
        reasons.append("its split was made")
    return reasons + [note for note in about.get("notes", ()) if note.endswith("are published")]


def base_to_new(datasets: Collection[str]) -> list[Published]:
    """Returns rows with "base", "new", "H of means" and, if numbers of each dataset are known, "mean of H".

    There are rows only if all datasets are among the eleven; if only the averages of a method are known, only for all
    eleven datasets.

    Example:
      >>> {row.method: round(100 * row.values["new"], 2) for row in base_to_new(["coop:dtd", "coop:eurosat"])}["CoOp"]
      47.96
    """
    table = {f"{PREFIX}{name}": cells for name, *cells in map(str.split, _BASE_TO_NEW.strip().splitlines())}
    if not datasets or not set(datasets) <= table.keys():
        return []
    rows = []
    for place, method in enumerate(_FIVE):
        base, new = np.array([list(map(float, table[name][place].split("/"))) for name in datasets]).T / 100
        values = {
            "base": float(base.mean()),
            "new": float(new.mean()),
            "H of means": harmonic_of_means(base, new),
            "mean of H": mean_of_harmonics(base, new),
        }
        rows.append(Published(method, values, ONPOKD))
    if set(datasets) == set(ELEVEN):
        for method, (*numbers, source) in _AVERAGES.items():
            values = dict(zip(("base", "new", "H of means"), (number / 100 for number in numbers), strict=True))
            rows.append(Published(method, values, source))
    return rows


def transfer(protocol: str, source: str, others: Sequence[str]) -> list[Published]:
    """Returns rows of cross-dataset transfer or domain generalization: source, targets by name, and their "mean".

    There are rows only if the source is ImageNet and all targets (`others`, as in rows) are in the published table.

    Example:
      >>> rows = transfer("domain_generalization", "coop:imagenet", ["imagenet_a", "imagenet_r"])
      >>> {row.method: round(100 * row.values["mean"], 3) for row in rows}["MaPLe"]
      63.94
    """
    crossing = protocol == "cross_dataset"
    names = [f"{PREFIX}{name}" for name in _TARGETS] if crossing else list(VARIANTS)
    if source != SOURCE or not others or not set(others) <= set(names):
        return []
    rows = []
    for method, (text, where) in (_CROSS_DATASET if crossing else _DOMAINS).items():
        values = dict(zip((source, *names), (float(number) / 100 for number in text.split()), strict=True))
        values = {name: values[name] for name in (source, *others)}
        values["mean"] = float(np.mean([values[name] for name in others]))
        rows.append(Published(method, values, where))
    if crossing and set(others) == set(names):
        rows += [Published(method, {"mean": mean / 100}, where) for method, (mean, where) in _CROSS_AVERAGES.items()]
    return rows


def imbalanced(tau: float, datasets: Collection[str]) -> list[Published]:
    """Returns rows with "mean of H" of base-to-new with a long tail; only for exactly the eleven datasets."""
    if set(datasets) != set(ELEVEN) or tau not in _TAUS:
        return []
    place = _TAUS.index(tau)
    return [Published(method, {"mean of H": numbers[place] / 100}, CPT) for method, numbers in _IMBALANCED.items()]


def few_shot(datasets: Mapping[int | None, Collection[str]]) -> list[Published]:
    """Returns rows of accuracy by the number of shots, as text, if exactly the eleven datasets were measured."""
    complete = [shots for shots, names in datasets.items() if set(names) == set(ELEVEN)]
    rows = []
    for method, numbers in _FEW_SHOT.items():
        values = {str(shots): numbers[shots] / 100 for shots in complete if shots in numbers}
        if values:
            rows.append(Published(method, values, PROTEXT))
    return rows
