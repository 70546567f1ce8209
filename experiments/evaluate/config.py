"""The settings of `experiments.evaluate`, and what is wrong with them before anything is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gram_jax import objectives, regulators, tuners
from gram_jax import tuning as tuning_lib
from gram_jax.data.readers.sources import forms
from gram_jax.errors import InputError
from gram_jax.evaluation.measures import CHOICES
from gram_jax.evaluation.protocols import PROTOCOLS, TEST_TIME, UNSEEN

from .._launch import at_least, positive, setting
from . import learning as _learning
from . import methods as _methods
from . import presets as _presets
from . import test_time as _test_time
from .inputs import AUGMENTATIONS

_SPECS = forms()
_MAY_BE_EMPTY = ("domains", "controls", "targets", "metrics", "regularizers")


def _preset(name: str, help: str, choices: Sequence[str] | None = None) -> Any:
    """A setting that a preset may give; None until the configuration is made."""
    plain = _presets.PLAIN[name]
    shown = ",".join(map(str, plain)) if isinstance(plain, tuple) else plain
    return setting(None, f"{help}; default {shown}, or the preset's", choices=choices)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is tuned, on what, and how it is measured."""

    preset: str | None = setting(
        None,
        "a published recipe, for every setting that is not given; experiments/_presets.py says where it comes from",
        choices=_presets.NAMES,
    )
    clip: str = setting("mini", 'a folder, a hub name, or "mini"')
    tuner: str | None = setting(None, "the tuner; default that of --meta, or coop", choices=tuners.NAMES)
    tuner_settings: str = setting("{}", 'settings of the tuner as JSON, for example {"num_tokens": 4}')
    regularizers: tuple[str, ...] | None = setting(
        None,
        f"added to the loss, NAME:WEIGHT, or NAME for the published weight; some of {', '.join(objectives.NAMES)}; "
        "default none, or the preset's",
    )
    regularizer_settings: str | None = setting(None, 'their settings as JSON, e.g. {"npt": {"centered": true}}')
    regulator: str | None = setting(
        None, "what holds gradients against a second one, without learning: prograd", choices=regulators.NAMES
    )
    regulator_settings: str | None = setting(None, 'its settings as JSON, e.g. {"strength": 0.8}')
    regulation: str | None = _preset(
        "regulation",
        "whether a regulator is as it is, or learned along with the prompt by ProMetaR's two steps on every batch",
        _learning.REGULATIONS,
    )
    loss: str | None = _preset(
        "loss", "the cross-entropy, or that of DPT, in stages, which goes with --tuner=dpt", _learning.LOSSES
    )
    loss_settings: str = setting(
        "{}", 'settings of --loss=dpt as JSON; default {"guided_epochs": 30, "class_weight": 0.3}'
    )
    aggregation: tuple[float, ...] | None = setting(
        None,
        "mean and width, in epochs, of a bell by which the prompts of all epochs are averaged; default the last "
        "prompts, or the preset's",
    )
    meta: str = setting("", "meta checkpoint; empty for none")
    controls: tuple[str, ...] = setting((), "further meta checkpoints, NAME=PATH", repeated=True)
    methods: tuple[str, ...] | None = setting(None, f"some of {', '.join(_methods.PARTS)}; default all that there are")
    dataset: tuple[str, ...] = setting(
        ("glyphs:latin_accented", "glyphs:arabic", "glyphs:shapes"), f"datasets: {_SPECS}"
    )
    protocol: tuple[str, ...] | None = _preset("protocol", f"some of {', '.join(PROTOCOLS)}")
    source: tuple[str, ...] | None = setting(
        None, "datasets that cross_dataset and domain_generalization tune on; default those of --dataset"
    )
    targets: tuple[str, ...] = setting(
        (), "datasets that cross_dataset is tested on, as those of --dataset; default the others of --dataset"
    )
    follow_classes: bool = setting(
        False,
        "cross_dataset: structured starts also measured with prompts that move, on other class names, as the start "
        "would; no image of the target is seen",
    )
    domains: tuple[str, ...] = setting(
        (),
        f'domains that few_shot and test_time are tested on as well; "{UNSEEN}" for all unseen ones of glyphs and all '
        "variants of ImageNet, which is what domain_generalization is tested on if none is given",
    )
    tau: tuple[float, ...] = setting((1.0, 0.25, 0.06), "imbalanced: images of the smallest class over the largest's")
    largest: int = setting(16, "imbalanced: labeled images of the largest class")
    shots: tuple[int, ...] | None = _preset("shots", "labeled images a class")
    seeds: tuple[int, ...] | None = _preset("seeds", "seeds of the draws that are reported")
    learning_rate: tuple[float, ...] | None = _preset("learning_rate", "candidate learning rates of the tuner alone")
    gram_learning_rate: tuple[float, ...] | None = setting(
        None, "candidate learning rates of the meta-learned methods; default multiples of the meta-learned inner rates"
    )
    gram_rate_factor: tuple[float, ...] = setting((1.0,), "those multiples")
    part_rates: str | None = _preset(
        "part_rates", 'by part of the prompt, multiples of a given learning rate, as JSON, e.g. {"visual": 5}'
    )
    part_warmup: str | None = setting(
        None,
        'by part of the prompt, epochs at 1e-5 under --schedule=warmup_cosine, as JSON, e.g. {"visual": 10}; default '
        "1, or the preset's",
    )
    steps: tuple[int, ...] | None = _preset("steps", "candidate numbers of optimizer steps")
    epochs: tuple[int, ...] | None = setting(
        None, "candidate numbers of epochs, instead of --steps; the rest of an epoch, too small a batch, is dropped"
    )
    init_text: tuple[str, ...] | None = setting(
        None, 'candidate words that the tuner alone starts as, empty for a random start; default "a photo of a"',
        repeated=True,
    )  # fmt: skip
    batch_size: int | None = _preset("batch_size", "images a step")
    optimizer: str | None = _preset(
        "optimizer", "the optimizer; adamw for test_time", (*tuning_lib.step.OPTIMIZERS, "adamw")
    )
    momentum: float | None = _preset("momentum", "momentum of sgd")
    weight_decay: float | None = _preset(
        "weight_decay", "decay of the prompts, added to their gradients before momentum"
    )
    schedule: str | None = _preset("schedule", "the learning rate along a run", tuning_lib.schedules.SCHEDULES)
    augmentation: str | None = _preset(
        "augmentation",
        "random resized crops and flips of training images: a fresh one each time, or one of --views that are stored, "
        "which spares encoding them again",
        AUGMENTATIONS,
    )
    views: int = setting(8, "views of an image that are stored")
    test_time_views: int = setting(64, "test_time: views of a test image, the image as it is among them")
    test_time_share: float = setting(0.1, "test_time: share of the views that are tuned on, the surest")
    test_time_batch: int = setting(16, "test_time: images that are tuned on side by side")
    report_steps: tuple[int, ...] = setting((0, 1, 5), "steps that are measured beside the last one")
    select_seeds: tuple[int, ...] = setting(
        (101, 102, 103), "seeds of the draws that settings are selected on; as many as --seeds share compiled steps"
    )
    select_shots: tuple[int, ...] | None = setting(None, "shots that settings are selected on; default all of --shots")
    metrics: tuple[str, ...] = setting(
        (), f"what is measured beside accuracy after the last step: some of {', '.join(CHOICES)}"
    )
    max_test_images: int = setting(0, "test and validation images a class; 0 for all")
    image_batch: int = setting(64, "images that the image transformer sees at once")
    compute_dtype: str = setting("float32", "precision of the frozen compute", choices=("float32", "bfloat16"))
    class_chunk: int = setting(
        512, "classes whose texts a step computes side by side, which its memory grows with; 0 for all of them"
    )
    shard_classes: bool = setting(False, "spread the classes over the devices of this process, for thousands of them")
    dataset_seed: int = setting(0, "seed of datasets that are drawn, and of splits that are made")
    save_prompts: bool = setting(False, "write the tuned prompts of the first seed to WORKDIR/prompts")
    save_confusion: bool = setting(False, "write confusion matrices after the last step to WORKDIR/confusion")
    save_features: bool = setting(
        False, "write test features under the prompts of the first seed, and without one, to WORKDIR/features"
    )

    def __post_init__(self) -> None:
        for name, value in _presets.filled(self).items():
            object.__setattr__(self, name, value)
        lists = ("dataset", "protocol", "shots", "seeds", "learning_rate", "gram_rate_factor", "steps", "select_seeds")
        lists += ("gram_learning_rate", "init_text", "select_shots", "methods", "source", "tau", "epochs")
        for name in (*lists, *_MAY_BE_EMPTY):
            values = getattr(self, name)
            if values == () and name not in _MAY_BE_EMPTY:
                raise InputError(f"--{name} is empty; give at least one value")
            if values is not None and len(set(values)) < len(values):
                raise InputError(f"--{name}={','.join(map(str, values))}: give each value once")
        at_least(self, 1, "shots", "select_shots", "steps", "epochs")
        positive(self, "learning_rate", "gram_learning_rate", "gram_rate_factor")
        if any(not 0 < value <= 1 for value in self.tau):
            raise InputError(f"--tau={self.tau}: every value must be above 0 and at most 1")
        at_least(self, 1, "batch_size", "image_batch", "largest", "views", "test_time_views", "test_time_batch")
        at_least(self, 0, "report_steps", "max_test_images", "class_chunk")
        for name, known in (("protocol", PROTOCOLS), ("methods", _methods.PARTS), ("metrics", CHOICES)):
            for value in getattr(self, name) or ():
                if value not in known:
                    raise InputError(f"--{name}={value}: choose among {', '.join(known)}")
        if both := sorted(set(self.seeds) & set(self.select_seeds)):
            raise InputError(f"--seeds and --select_seeds share {both}; settings are selected on draws of their own")
        self._check_protocols()
        _test_time.check(self)
        self._check_composition()
        _learning.check(self)
        _methods.parse_controls(self.controls)

    def _check_protocols(self) -> None:
        """Raises InputError for a setting of a protocol that is not asked for."""
        for name, users in (
            ("domains", ("few_shot", "domain_generalization", TEST_TIME)),
            ("targets", ("cross_dataset",)),
            ("follow_classes", ("cross_dataset",)),
            ("source", ("cross_dataset", "domain_generalization")),
        ):
            if getattr(self, name) and not set(users) & set(self.protocol):
                verb = "are measured under" if name == "domains" else "belongs to"
                raise InputError(f"--{name} {verb} {' and '.join(users)}; --protocol has none of these, add one")

    def _check_composition(self) -> None:
        """Raises InputError for regularizers, a regulator or an average that cannot be, or would change nothing."""
        named = [term.name for term in _methods.composed_of(self)]
        for name in objectives.CLASSIFICATION:
            if name in named and "imbalanced" not in self.protocol:
                raise InputError(
                    f"--regularizers={name}: every class has as many images under {', '.join(self.protocol)}, so it "
                    "changes nothing; drop it, or add --protocol=imbalanced"
                )
        _methods.chosen_regulator(self)
        if self.aggregation:
            if len(self.aggregation) != 2 or not all(abs(value) < float("inf") for value in self.aggregation):
                raise InputError(f"--aggregation={self.aggregation}: give two numbers, mean and width in epochs")
            if self.aggregation[1] <= 0:
                raise InputError(f"--aggregation={self.aggregation}: the width must be above 0")
            if self.epochs is None and self.preset is None:
                raise InputError(f"--aggregation={self.aggregation} is over epochs; give --epochs instead of --steps")
