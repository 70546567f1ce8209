"""The methods of a stream, and published recipes by name."""

from __future__ import annotations

from typing import Any, NamedTuple


class Method(NamedTuple):
    """A method of continual learning; `tuned` is False for those that classify frozen features.

    Attributes:
      project: updates are projected into the null space of old tasks, and the norms' statistics are kept.
      distance: the weight of the squared distance to the prompt after the last task is read from --distance.
      replay: each batch has as many images of old tasks again.
      joint: all tasks are learned at once.
      gram: every task begins at GRAM's initialization, and GRAM's regulator acts on the gradients; needs --meta.
    """

    tuned: bool = True
    project: bool = False
    distance: bool = False
    replay: bool = False
    joint: bool = False
    gram: bool = False


METHODS = {
    "zero_shot": Method(tuned=False),
    "nearest_mean": Method(tuned=False),
    "sequential": Method(),
    "l2": Method(distance=True),
    "replay": Method(replay=True),
    "null_space": Method(project=True),
    "joint": Method(joint=True),
    "gram": Method(gram=True),
    "gram+null_space": Method(gram=True, project=True),
}
BASELINES = tuple(name for name, method in METHODS.items() if not method.gram)
FROZEN = tuple(name for name, method in METHODS.items() if not method.tuned)

_FORMS = "photo", "blurry photo", "black and white photo", "low contrast photo", "high contrast photo"
_CIFAR = [*(f"a {form} of {{}} {{{{}}}}." for form in _FORMS), "a bad photo of {} {{}}.", "a good photo of {} {{}}."]
# The templates of CLIP's notebook for CIFAR, with "a" and with "the".
CIFAR_TEMPLATES = tuple(
    text.format(article)
    for article in ("a", "the")
    for text in (*_CIFAR, "a photo of {} small {{}}.", "a photo of {} big {{}}.")
)

PLAIN: dict[str, Any] = {
    "tasks": 10,
    "seeds": (2024, 2025, 2026),
    "num_tokens": 4,
    "depth": None,
    "learning_rate": 0.01,
    "steps": 20,
    "epochs": None,
    "batch_size": 32,
    "eta": 0.97,
    "weight_decay": 5e-5,
    "temperature": 1.0,
    "templates": "own",
    "augmentation": "none",
    "refine_head": False,
}
_CLIP: dict[str, Any] = {
    "learning_rate": 0.001, "steps": None, "epochs": 20, "batch_size": 220, "eta": 0.98, "depth": 4,
    "augmentation": "fresh", "refine_head": True,
}  # fmt: skip
# CLIP-NSP^2: 10 epochs in which every image comes twice. The public code adds AutoAugment; here, crops and flips only.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar100_10": _CLIP | {"tasks": 10, "templates": "cifar_18"},
    "cifar100_20": _CLIP | {"tasks": 20, "templates": "cifar_18"},
    "imagenet_r_10": _CLIP | {"tasks": 10, "templates": "clip_7"},
    "domainnet_10": _CLIP | {"tasks": 10, "templates": "clip_7"},
}
