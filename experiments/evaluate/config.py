"""Few-shot, base-to-new, transfer and test-time accuracy of a prompt tuner, with and without meta-learning.

    python -m experiments.evaluate --tuner=coop --dataset=glyphs:arabic,glyphs:shapes --shots=1,4,16 --seeds=1,2,3
    python -m experiments.evaluate --meta=runs/meta_train/meta.safetensors --protocol=base_to_new
    python -m experiments.evaluate --tuner="ivlp(depth=9)" --regularizers=npt:1.0,kgcoop:8 --meta=META
    python -m experiments.evaluate --baselines="linear_probe,tip_adapter(epochs=20)" --protocol=few_shot
    python -m experiments.evaluate --meta=META --controls=random_tasks=OTHER_META --learning_rate=0.1,0.3
    python -m experiments.evaluate --meta=META --protocol=test_time --domains=unseen

Every method is tuned on the same draws, by default to convergence: 300 steps with a cosine from 0.3. Accuracies after
0, 30 and 100 steps come from the same run (--report_steps). With --meta, four methods are compared: the tuner
alone, "+gram" (the learned initialization and the learned regulator, frozen), "+gram:init_only" and
"+gram:regulator_only". Regularizers and regulators are part of all names, as in "coop+kgcoop+gram"; docs/composing.md
lists what can be combined. If a method has several candidate settings, one of them is selected for all datasets on the
validation split, with seeds of its own; the selection never reads a test image. --split=val measures validation images,
too: use it, and other seeds, for choices of your own.

Writes WORKDIR/results.json and, like experiments.report, prints and writes tables and plots. WORKDIR/rows.jsonl keeps
every finished unit, one seed of a method on a dataset: the same command resumes, and one with more seeds, datasets,
shots or --save_prompts measures only what is missing. With --distributed, processes
share the units, and process i keeps its own in rows-i.jsonl (docs/launching.md). Image features are kept in
--feature_store, where later runs read them.

With no flags: CoOp on three datasets of 29 to 99 classes, under 4 minutes on two cores and 2 GiB. glyphs:greek_small
alone takes half a minute; a third of it is compilation, which the work directory keeps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gram_jax import choices
from gram_jax.clip.images import CROP_ROUNDINGS, READINGS
from gram_jax.data.readers.sources import forms
from gram_jax.evaluation import protocols

from .._launch import setting
from . import presets

PARTS = ("zero_shot", "tuner", "gram", "init_only", "regulator_only", "controls")
LOSSES = ("cross_entropy", "dpt")
REGULATIONS = ("frozen", "alternating")
UNSEEN = "unseen"
SPLITS = ("test", "val")
SCARCE = ("refuse", "take_all")


def _preset(name: str, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """Returns a flag whose default may come from a preset."""
    plain = presets.PLAIN[name]
    shown = ",".join(map(str, plain)) if isinstance(plain, tuple) else plain
    return setting(None, f"{help}; default {shown or 'none'}, or the preset's", choices=choices)


@dataclasses.dataclass(frozen=True)
class Flags:
    """The methods, the datasets, and the measurements. None stands for a default that depends on other flags."""

    preset: str | None = setting(
        None, "a published recipe, for every flag that is not given; see presets.py", choices=presets.NAMES
    )
    clip: str = setting("mini", 'folder, file, hub name, OpenCLIP MODEL:TAG, or "mini"')
    tuner: str | None = setting(
        None,
        f"the tuner with its settings, such as ivlp(depth=9, num_visual=4); one of {', '.join(choices.TUNERS)}; "
        "default that of --meta, or coop. Settings that are not given are the preset's",
    )
    regularizers: str | None = _preset(
        "regularizers",
        "added to the loss, such as npt(centered=True):1.0,kgcoop:8; without a weight, the published one; some of "
        f"{', '.join(choices.REGULARIZERS)}",
    )
    regulator: str | None = setting(
        None,
        "a regulator that needs no meta-learning, such as prograd(strength=0.8); one of "
        f"{', '.join(choices.REGULATORS)}",
    )
    regulation: str | None = _preset(
        "regulation",
        "whether the regulator is frozen, or learned along with the prompt by ProMetaR's two steps on every batch",
        REGULATIONS,
    )
    loss: str | None = _preset(
        "loss", "cross_entropy, or DPT's loss in stages for --tuner=dpt: dpt(guided_epochs=30, class_weight=0.3)"
    )
    aggregation: tuple[float, ...] | None = setting(
        None, "mean and width, in epochs, of the Gaussian weights of the prompts of all epochs; default the preset's"
    )
    meta: str = setting("", "meta checkpoint; empty for none")
    controls: tuple[str, ...] = setting((), "further meta checkpoints, NAME=PATH", repeated=True)
    methods: tuple[str, ...] | None = setting(None, f"some of {', '.join(PARTS)}; default all that are possible")
    baselines: str | None = _preset(
        "baselines",
        "baselines on the same draws, with their settings, such as tip_adapter(epochs=20),linear_probe; some of "
        f"{', '.join(choices.BASELINES)}",
    )
    dataset: tuple[str, ...] = setting(
        ("glyphs:latin_accented", "glyphs:arabic", "glyphs:shapes"), f"datasets: {forms()}"
    )
    protocol: tuple[str, ...] | None = _preset("protocol", f"some of {', '.join(protocols.PROTOCOLS)}")
    source: tuple[str, ...] | None = setting(
        None, "datasets that cross_dataset and domain_generalization tune on; default those of --dataset"
    )
    targets: tuple[str, ...] = setting((), "datasets that cross_dataset tests; default the others of --dataset")
    follow_classes: bool = setting(
        False,
        "cross_dataset: also measure structured initializations with prompts that move, for other class names, as the "
        "initialization would; no image of the target is read",
    )
    domains: tuple[str, ...] = setting(
        (),
        f'domains that few_shot and test_time test as well; "{UNSEEN}", the default of domain_generalization, for all '
        "unseen ones of glyphs and all variants of ImageNet",
    )
    tau: tuple[float, ...] = setting((1.0, 0.25, 0.06), "imbalanced: images of the smallest class over the largest's")
    largest: int = setting(16, "imbalanced: labeled images of the largest class")
    shots: tuple[int, ...] | None = _preset("shots", "labeled images per class")
    seeds: tuple[int, ...] | None = _preset("seeds", "seeds of the reported draws")
    learning_rate: tuple[float, ...] | None = _preset("learning_rate", "candidate learning rates of the tuner alone")
    gram_learning_rate: tuple[float, ...] | None = setting(
        None, "candidate learning rates of the meta-learned methods; default those of --learning_rate"
    )
    gram_rate_factor: tuple[float, ...] | None = setting(
        None, "multiples of the meta-learned inner rates, as candidates of the meta-learned methods instead"
    )
    gates: tuple[float, ...] = setting(
        choices.GATES,
        "weights of the offset of a structured initialization; the one with the smallest loss on the labeled images is "
        "used; 1: always the whole offset",
    )
    part_rates: str | None = _preset(
        "part_rates", "multiples of a given learning rate by part of the prompt, such as visual:5,class_aware:5"
    )
    part_warmup: str | None = setting(
        None, "epochs of warmup_cosine at 1e-5 by part of the prompt, such as visual:10; default 1, or the preset's"
    )
    steps: tuple[int, ...] | None = _preset("steps", "candidate numbers of optimizer steps")
    epochs: tuple[int, ...] | None = setting(
        None, "candidate numbers of epochs, instead of --steps; the rest of an epoch, too small a batch, is dropped"
    )
    init_text: tuple[str, ...] | None = setting(
        None, 'candidate words of the initialization, empty for random values; default "a photo of a"', repeated=True
    )
    batch_size: int | None = _preset("batch_size", "images per step")
    optimizer: str | None = _preset("optimizer", "the optimizer; adamw for test_time", (*choices.OPTIMIZERS, "adamw"))
    momentum: float | None = _preset("momentum", "momentum of sgd")
    weight_decay: float | None = _preset(
        "weight_decay", "decay of the prompts, added to their gradients before momentum"
    )
    schedule: str | None = _preset("schedule", "the schedule of the learning rate", choices.SCHEDULES)
    augmentation: str | None = _preset(
        "augmentation",
        "random resized crops and flips of training images: a fresh one each time, or one of --views stored ones",
        choices.AUGMENTATIONS,
    )
    image_reading: str | None = _preset(
        "image_reading",
        "how image files become RGB: upright (EXIF orientation, transparency on white, scaled 16-bit grayscale), or "
        "plain (Pillow's own conversion, as in Dassl)",
        READINGS,
    )
    crop_rounding: str | None = _preset(
        "crop_rounding", "offset of the center crop: down (transformers) or half_even (torchvision)", CROP_ROUNDINGS
    )
    few_images: str | None = _preset(
        "few_images", "classes with fewer training images than shots: refuse them, or take_all of their images", SCARCE
    )
    views: int = setting(8, "stored views of an image")
    test_time_views: int = setting(64, "test_time: views of a test image, the unaugmented image included")
    test_time_share: float = setting(0.1, "test_time: share of the views that is tuned on, the most confident ones")
    test_time_batch: int = setting(16, "test_time: images that are tuned on side by side")
    report_steps: tuple[int, ...] = setting((0, 30, 100), "steps that are measured besides the last one")
    split: str = setting("test", "the images that are measured: test; or val, to choose something", choices=SPLITS)
    select_seeds: tuple[int, ...] = setting((101, 102, 103), "seeds of the draws that settings are selected on")
    select_shots: tuple[int, ...] | None = setting(None, "shots that settings are selected on; default all of --shots")
    metrics: tuple[str, ...] = setting(
        (), f"what is measured besides accuracy after the last step: some of {', '.join(choices.METRICS)}"
    )
    max_test_images: int = setting(0, "test and validation images per class; 0 for all")
    image_batch: int = setting(64, "images that the image transformer sees at once")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    class_chunk: int = setting(
        512, "classes whose texts a step computes side by side; its memory grows with them; 0 for all of them"
    )
    shard_classes: bool = setting(False, "spread the classes over the devices of this process, for thousands of them")
    dataset_seed: int = setting(0, "seed of datasets that are drawn, and of splits that are made")
    gray_range: float | None = setting(
        None,
        "the white value of grayscale images with more than 8 bits; default: the range that a dataset uses",
        above=0,
    )
    feature_store: str | None = setting(
        None, "local folder of image features for later runs; default features beside --workdir; empty for none"
    )
    save_prompts: bool = setting(False, "write the tuned prompts of the first seed to WORKDIR/prompts")
    save_confusion: bool = setting(False, "write confusion matrices after the last step to WORKDIR/confusion")
    save_predictions: bool | None = setting(
        None,
        "write what the first seed predicts for every test image to WORKDIR/predictions, for report.html; default: of "
        "units that are measured; true: measure finished ones again for it",
    )
    save_features: bool = setting(
        False, "write test features under the prompts of the first seed, and without one, to WORKDIR/features"
    )
