"""Continual learning: a prompt along a stream of tasks, in the null space of old tasks, against its baselines.

    python -m experiments.continual
    python -m experiments.continual --stream=glyphs:dominoes --tasks=10 --methods=sequential,null_space,joint
    python -m experiments.continual --stream=glyphs:chess/noise,glyphs:chess/rotated --methods=nearest_mean,null_space
    python -m experiments.continual --preset=cifar100_10 --clip=openai/clip-vit-base-patch16 --stream=folder:cifar100

One dataset is cut into --tasks tasks by its classes; several datasets are a task each, and equal class names are one
class. After every task, the accuracy on all tasks so far is measured among all classes so far; no task is named at test
time. The method is VPT-NSP^2 on a clip: prompts as keys and values, updates in the null space of old tasks
(`null_space`), against tuning without it (`sequential`), with a penalty on the distance to the last prompt (`l2`), with
replayed images (`replay`), all tasks at once (`joint`), the frozen clip (`zero_shot`) and the nearest class mean of its
features (`nearest_mean`). `gram` and `gram+null_space` begin every task at the initialization of a meta checkpoint
(--meta) for the tuner vpt_kv, and apply its regulator.

Writes WORKDIR/results.json (the whole matrix, and each measure under every definition), table.md, matrices.png,
along.png and the last prompt of every run in WORKDIR/prompts. A finished method and seed is kept in WORKDIR/rows.jsonl,
and a run inside a task in WORKDIR/checkpoints: rerun the command to resume.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gram_jax.choices import HEADS
from gram_jax.data import templates
from gram_jax.data.readers.sources import forms
from gram_jax.errors import InputError, require_known

from .._launch import at_least, positive, setting
from .presets import BASELINES, METHODS, PLAIN, PRESETS


@dataclasses.dataclass(frozen=True)
class Config:
    """The stream, the methods and the recipe."""

    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    stream: tuple[str, ...] = setting(
        ("glyphs:playing_cards",), f"one dataset, whose classes are cut into tasks, or several, a task each: {forms()}"
    )
    methods: tuple[str, ...] = setting(BASELINES, f"some of {', '.join(METHODS)}")
    preset: str | None = setting(None, "a published recipe; flags that are given override it", choices=tuple(PRESETS))
    tasks: int | None = setting(None, "tasks that the classes of one dataset are cut into; default: 10")
    seeds: tuple[int, ...] | None = setting(None, "seeds of class order, prompt and batches; default: 2024,2025,2026")
    heads: str = setting("text", "text features of the classes, or a learned linear layer", choices=HEADS)
    num_tokens: int | None = setting(None, "prompt tokens of a layer; default: 4")
    depth: int | None = setting(None, "layers with prompts, from the first on; default: all")
    learning_rate: float | None = setting(None, "learning rate of Adam; default: 0.01")
    steps: int | None = setting(None, "optimizer steps of a task, unless --epochs is given; default: 20")
    epochs: int | None = setting(None, "epochs of a task, in place of --steps")
    batch_size: int | None = setting(None, "images per step; default: 32")
    eta: float | None = setting(None, "weight of the projection, from 0 to 1; default: 0.97")
    divide: bool = setting(True, "divide projections by their Frobenius norm, as the public code does")
    gain: bool = setting(False, "include the norm's gain in the null space, which the public code leaves out")
    norm_weight: float = setting(1.0, "weight of the consistency of the norms' statistics, with the projection")
    distance: float = setting(0.1, "weight of the squared distance to the last prompt, of the method l2")
    replay: int = setting(2, "images per class that the method replay keeps")
    weight_decay: float | None = setting(None, "added to the gradients before Adam; default: 5e-5")
    temperature: float | None = setting(None, "logits are divided by it in training; default: 1")
    templates: str | None = setting(
        None, f'"own" for the dataset\'s, cifar_18, or one of {", ".join(templates.ENSEMBLES)}; default: own'
    )
    augmentation: str | None = setting(None, '"none", or "fresh" for random crops and flips; default: none')
    refine_head: bool | None = setting(None, "retrain the image projection after each task; default: no")
    meta: str | None = setting(None, "meta checkpoint of the tuner vpt_kv, for gram and gram+null_space")
    train_images: int = setting(0, "training images per class; 0 for all")
    max_test_images: int = setting(0, "test images per class; 0 for all")
    split: str = setting("test", "the split that is measured; val chooses settings", choices=("val", "test"))
    image_batch: int = setting(64, "images that the image transformer encodes at once")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    dataset_seed: int = setting(0, "seed of generated datasets and splits")
    checkpoint_seconds: float = setting(60.0, "seconds between checkpoints inside a task")

    def __post_init__(self) -> None:
        for name in self.methods:
            require_known("--methods", name, METHODS)
        if not self.methods or not self.stream:
            raise InputError("--methods and --stream need at least one value each")
        if any(METHODS[name].gram for name in self.methods) and self.meta is None:
            raise InputError("--methods=gram needs --meta, the file that experiments.meta_train --tuner=vpt_kv writes")
        if self.templates not in (None, "own", "cifar_18"):
            require_known("--templates", str(self.templates), ("own", "cifar_18", *templates.ENSEMBLES))
        if self.augmentation is not None:
            require_known("--augmentation", self.augmentation, ("none", "fresh"))
        at_least(self, 1, "tasks", "steps", "epochs", "batch_size", "replay", "image_batch")
        at_least(self, 0, "train_images", "max_test_images")
        at_least(self, 3, "num_tokens")  # the elbow of fewer singular values does not exist
        positive(self, "learning_rate", "temperature")
        if self.recipe["refine_head"] and self.heads != "text":
            raise InputError("--refine_head retrains the projection onto text features: it needs --heads=text")

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings of the recipe: given flags, then the preset, then the defaults; and the rest of the flags."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        chosen = PLAIN | PRESETS.get(self.preset or "", {})
        if self.steps is not None and self.epochs is None:
            chosen = chosen | {"epochs": None}
        return dict(vars(self)) | chosen | given
