"""The settings of an evaluation: flags with every default filled in, parsed once into objects."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from gram_jax import objectives, regulators, tuners
from gram_jax.choices import METRICS, TEST_TIME_OPTIMIZERS
from gram_jax.errors import InputError, explain, nearest, require_int, require_known, require_number
from gram_jax.evaluation import BaselineMethod, Protocol, TestTimePlan, TuningPlan, baselines, protocols
from gram_jax.evaluation.plans import Length, StagedLoss, require_one_gradient
from gram_jax.evaluation.protocols import TEST_TIME
from gram_jax.registry import Call, parse_call, split_calls
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner
from gram_jax.tuning import select_views

from .._launch import at_least, positive, require_ranges
from . import presets
from .config import LOSSES, PARTS, Flags

_MAY_BE_EMPTY = ("domains", "controls", "targets", "metrics")
_LISTS = ("dataset", "protocol", "shots", "seeds", "gates", "learning_rate", "gram_learning_rate", "gram_rate_factor",
          "steps", "epochs", "init_text", "select_seeds", "select_shots", "methods", "source", "tau")  # fmt: skip
# Flags of learning from labeled images, which test-time tuning does not do.
_LABELED = ("shots", "select_shots", "epochs", "batch_size", "momentum", "schedule", "augmentation", "aggregation",
            "loss", "regulation", "part_rates", "part_warmup")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings(Flags):
    """Flags with every default filled in, and what they stand for; `resolve` makes it.

    Attributes:
      protocols: the protocols, one for each tau of a long tail.
      tuner_call: the tuner with its settings; None for that of the meta checkpoint.
      fixed_regulator, terms: the regulator without a meta checkpoint; the regularizers, by name.
      rate_factors: multiples of a given learning rate, by part of the prompt.
      warmup: epochs of the warm-up by part; None for the preset's, or 1.
    """

    protocols: tuple[Protocol, ...] = ()
    tuner_call: Call | None = None
    plan: TuningPlan | TestTimePlan | None = None
    fixed_regulator: Regulator | None = None
    baseline_methods: tuple[BaselineMethod, ...] = ()
    terms: tuple[objectives.Term, ...] = ()
    control_paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rate_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warmup: Mapping[str, int] | None = None

    @property
    def flags(self) -> dict[str, Any]:
        """The value of every flag, JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Flags)}

    @property
    def test_time(self) -> bool:
        """Whether prompts are tuned on test images."""
        return isinstance(self.plan, TestTimePlan)

    def counts(self, protocol: Protocol, select: bool = False) -> tuple[int | None, ...]:
        """Returns the numbers of labeled images per class that a protocol is run, or selected, with."""
        return protocol.counts((self.select_shots if select else None) or self.shots)

    def length(self, dataset: str, shots: int | None, steps: int | None = None, epochs: int | None = None) -> Length:
        """Returns the length of a run on a dataset; the preset's without `steps` and `epochs`."""
        if steps is None and epochs is None:
            epochs = presets.epochs(self.preset, dataset, shots)
        warmup = self.warmup
        if warmup is None:
            warmup = presets.warmup(self.preset, dataset) if self.preset else {}
        return Length(steps, epochs, warmup, self.gaussian(dataset))

    def gaussian(self, dataset: str) -> tuple[float, float] | None:
        """Returns mean and width of the Gaussian over the prompts of a dataset's epochs; None for the last prompts."""
        if self.aggregation is not None or self.preset is None:
            return self.aggregation or None
        return presets.aggregation(self.preset, dataset)

    def family(self, tuner: str) -> str:
        """Returns the name of a tuner in rows with all that it is composed with: "coop+kgcoop", "coop+kgcoop:2"."""
        parts = [tuner]
        for name, weight, _ in self.terms:
            parts.append(name if weight == objectives.terms(name)[0].weight else f"{name}:{weight:g}")
        parts += ["staged"] * (not self.test_time and self.plan.staged is not None) + ["tpt"] * self.test_time
        parts += [self.fixed_regulator.name] * (self.regulator is not None)
        return "+".join(parts + ["gpa"] * (self.gaussian("") is not None))


@dataclasses.dataclass(frozen=True)
class Config(Flags):
    """The flags of `experiments.evaluate`; making one raises InputError if flags are impossible or do not fit."""

    def __post_init__(self) -> None:
        _ = self.settings

    @functools.cached_property
    def settings(self) -> Settings:
        """The flags with every default filled in, and what they stand for."""
        return resolve(self)


def resolve(given: Flags) -> Settings:
    """Returns the settings that flags stand for; see `Config`."""
    flags = Flags(**_filled(given))
    require_ranges(Flags, vars(flags))
    _check_values(flags)
    if TEST_TIME in flags.protocol:
        _check_test_time(flags)
    elif flags.preset is not None and presets.PRESETS[flags.preset].use == "tpt":
        raise InputError(f"--preset={flags.preset} is a recipe of --protocol={TEST_TIME}; leave --protocol out")
    elif flags.optimizer == "adamw":
        raise InputError(f"--optimizer=adamw belongs to --protocol={TEST_TIME}; give sgd or adam")
    tails = [protocols.Imbalanced(tau, flags.largest) for tau in flags.tau]
    each = [tails if name == "imbalanced" else [_protocol(name, flags)] for name in flags.protocol]
    settings = Settings(
        **dataclasses.asdict(flags),
        protocols=tuple(itertools.chain.from_iterable(each)),
        tuner_call=None if flags.meta and flags.tuner is None else parse_call(flags.tuner or "coop", "tuner"),
        plan=_plan(flags, terms := _terms(flags.regularizers)),
        fixed_regulator=_regulator(flags),
        baseline_methods=_baselines(flags.baselines),
        terms=terms,
        control_paths=_controls(flags.controls),
        rate_factors=_by_part(flags, "part_rates"),
        warmup=None if flags.part_warmup is None else _by_part(flags, "part_warmup"),
    )
    if not flags.meta:
        _check_tuner(settings, _named("tuner", tuners.make, settings.tuner_call))
    _check_composition(settings)
    return settings


def _protocol(name: str, flags: Flags) -> Protocol:
    protocol = protocols.parse(name)
    return protocol.taking_all() if flags.few_images == "take_all" else protocol


def _filled(given: Flags) -> dict[str, Any]:
    """Returns the value of every flag: as given, or the default of the preset, or the plain default."""
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(Flags)}
    defaults = dict(presets.PLAIN)
    recipe = {} if given.preset is None else presets.flags_of(given.preset)
    if (given.protocol or recipe.get("protocol")) == (TEST_TIME,):
        defaults |= presets.UNLABELED
        if given.optimizer in (None, "adamw"):
            defaults["weight_decay"] = 0.01
    if given.preset is not None:
        if given.tuner is not None:
            values["tuner"] = _preset_tuner(given, recipe["tuner"])
        if given.steps not in (None, presets.DEFAULT_STEPS) and recipe["protocol"] != (TEST_TIME,):
            raise InputError(f"--steps={given.steps}: --preset={given.preset} counts epochs; give --epochs")
        if given.meta:  # the checkpoint has its own
            recipe = {k: v for k, v in recipe.items() if k not in ("tuner", "regulator", "regulation")}
        defaults |= recipe
    filled = {name: defaults.get(name) if value is None else value for name, value in values.items()}
    if given.gram_learning_rate is None and given.gram_rate_factor is None:
        filled["gram_learning_rate"] = filled["learning_rate"]
    return filled


def _preset_tuner(given: Flags, text: str) -> str:
    """Returns the tuner of the preset with the settings that are given."""
    tuner, asked = parse_call(text), parse_call(given.tuner or "", "tuner")
    if asked.name != tuner.name:
        raise InputError(f"--tuner={given.tuner}: --preset={given.preset} uses {tuner.name}; leave --tuner out")
    return str(Call(tuner.name, tuner.settings | asked.settings))


def _check_values(flags: Flags) -> None:
    if flags.gram_learning_rate and flags.gram_rate_factor:
        raise InputError(
            f"--gram_rate_factor={','.join(map(str, flags.gram_rate_factor))} multiplies the meta-learned inner rates, "
            "and --gram_learning_rate replaces them; give one of the two"
        )
    for name in (*_LISTS, *_MAY_BE_EMPTY):
        values = getattr(flags, name)
        if values == () and name not in _MAY_BE_EMPTY:
            raise InputError(f"--{name} is empty; give at least one value")
        if values is not None and len(set(values)) < len(values):
            raise InputError(f"--{name}={','.join(map(str, values))}: give each value once")
    at_least(flags, 1, "shots", "select_shots", "steps", "epochs", "batch_size", "image_batch", "largest", "views")
    at_least(flags, 1, "test_time_views", "test_time_batch")
    at_least(flags, 0, "report_steps", "max_test_images", "class_chunk")
    positive(flags, "learning_rate", "gram_learning_rate", "gram_rate_factor")
    for gate in flags.gates:
        require_number("--gates", gate, least=0)
    require_number("--momentum", flags.momentum, least=0, below=1)
    require_number("--weight_decay", flags.weight_decay, least=0)
    if any(not 0 < value <= 1 for value in flags.tau):
        raise InputError(f"--tau={','.join(map(str, flags.tau))}: every value must be above 0 and at most 1")
    for name, words in (("protocol", protocols.PROTOCOLS), ("methods", PARTS), ("metrics", METRICS)):
        for value in getattr(flags, name) or ():
            require_known(f"--{name}", value, words)
    if both := sorted(set(flags.seeds) & set(flags.select_seeds)):
        raise InputError(f"--seeds and --select_seeds share {both}; settings are selected on draws of their own")
    for name, users in (
        ("domains", ("few_shot", "domain_generalization", TEST_TIME)),
        ("targets", ("cross_dataset",)),
        ("follow_classes", ("cross_dataset",)),
        ("source", protocols.TRANSFER),
    ):
        if getattr(flags, name) and not set(users) & set(flags.protocol):
            raise InputError(f"--{name} needs --protocol={' or '.join(users)}; add one, or leave --{name} out")


def _check_test_time(flags: Flags) -> None:
    """Raises InputError for flags that cannot be combined with test-time tuning."""
    if flags.protocol != (TEST_TIME,):
        raise InputError(
            f"--protocol={','.join(flags.protocol)}: {TEST_TIME} has rates and steps of its own; run it alone, and "
            "compare its results with others by experiments.report"
        )
    if flags.preset is not None and presets.PRESETS[flags.preset].use != "tpt":
        raise InputError(f"--preset={flags.preset} learns from labeled images, and {TEST_TIME} does not")
    for name in ("regularizers", "regulator", *_LABELED):
        if (value := getattr(flags, name)) not in (None, (), "", presets.PLAIN.get(name)):
            raise InputError(f"--{name}={value}: {TEST_TIME} tunes on one test image without labels; leave it out")
    for name in ("save_prompts", "save_features"):
        if getattr(flags, name):
            raise InputError(f"--{name}: {TEST_TIME} has a prompt for every image, and keeps none")
    require_known("--optimizer", flags.optimizer, TEST_TIME_OPTIMIZERS)
    if len(flags.steps) > 1:
        raise InputError(f"--steps={','.join(map(str, flags.steps))}: {TEST_TIME} takes one number of steps")
    if not 0 < flags.test_time_share <= 1 or not select_views(flags.test_time_views, flags.test_time_share):
        raise InputError(
            f"--test_time_share={flags.test_time_share:g} of --test_time_views={flags.test_time_views} is less than "
            "one view, or more than all; give more views, or a share up to 1"
        )


def _terms(text: str) -> tuple[objectives.Term, ...]:
    with explain(f"--regularizers={text}: "):
        objectives.parse(terms := objectives.positive_terms(text))
        return terms


def _plan(flags: Flags, terms: tuple[objectives.Term, ...]) -> TuningPlan | TestTimePlan:
    if TEST_TIME in flags.protocol:
        views, descent = (flags.test_time_views, flags.test_time_share), (flags.optimizer, flags.weight_decay)
        return TestTimePlan(flags.learning_rate[0], flags.steps[0], *views, *descent, flags.test_time_batch)
    names = ("batch_size", "optimizer", "momentum", "weight_decay", "schedule", "augmentation", "views")
    return TuningPlan(
        staged=_staged(flags.loss),
        alternating=flags.regulation == "alternating",
        report_steps=flags.report_steps,
        regularizers=terms,
        **{name: getattr(flags, name) for name in names},
    )


def _staged(text: str) -> StagedLoss | None:
    call = parse_call(text, "loss")
    require_known("--loss", call.name, LOSSES)
    known = StagedLoss._fields if call.name == "dpt" else ()
    for name in call.settings:
        if name not in known:
            raise InputError(f"--loss={text}: {call.name} has no setting {name!r}{nearest(name, known)}")
    if call.name != "dpt":
        return None
    loss = StagedLoss(**call.settings)
    require_int("--loss: guided_epochs", loss.guided_epochs, 0)
    require_number("--loss: class_weight", loss.class_weight, 0)
    return loss


def _regulator(flags: Flags) -> Regulator:
    """Returns the regulator of the flags, which needs no meta-learning; the identity without one."""
    if flags.regulator is None:
        return regulators.identity()
    text = f"--regulator={flags.regulator}"
    if flags.meta:
        raise InputError(
            f"{text} and --meta={flags.meta} both define a gradient transform; drop one of them, and compare two "
            "evaluations by experiments.report"
        )
    call = parse_call(flags.regulator, "regulator")
    # Any number of prototypes shows that there are parameters to learn.
    known = {"prototypes": 1} if call.name == "structured" else {}
    regulator = _named("regulator", regulators.make, Call(call.name, known | call.settings))
    if regulator.name == "identity":
        raise InputError("--regulator=identity changes nothing; leave it out")
    if "reference" in regulator.settings:
        with explain(f"{text}: reference: "):
            objectives.parse(regulator.settings["reference"])
    prompt = {"context": jax.ShapeDtypeStruct((1, 8), jax.numpy.float32)}
    learned = jax.tree.leaves(jax.eval_shape(lambda: regulator.init(jax.random.key(0), prompt)))
    alternating = flags.regulation == "alternating" and regulator.name != "structured"
    if alternating and not learned:
        raise InputError(f"--regulation=alternating: {text} has nothing to learn; leave it out")
    if learned and not alternating:
        remedy = "learn it with experiments.meta_train, and give the checkpoint as --meta"
        if "reference" in regulator.settings:
            remedy = "give --regulation=alternating to learn it along with the prompt"
        raise InputError(f"{text} has parameters that must be learned; {remedy}, or use --regulator=prograd")
    return regulator


def _named(flag: str, make: Callable[..., Any], call: Call) -> Any:
    with explain(f"--{flag}={call}: "):
        return make(call.name, **call.settings)


def _baselines(text: str) -> tuple[BaselineMethod, ...]:
    calls = [parse_call(call, "baselines") for call in split_calls(text)]
    methods = [BaselineMethod(str(call), baseline=_named("baselines", baselines.make, call)) for call in calls]
    if len({method.name for method in methods}) < len(methods):
        raise InputError(f"--baselines={text}: give each baseline once")
    return tuple(methods)


def _controls(controls: tuple[str, ...]) -> dict[str, str]:
    paths: dict[str, str] = {}
    for control in controls:
        name, _, path = control.partition("=")
        if not name or not path or name in (*PARTS, *paths):
            raise InputError(f"--controls={control}: give NAME=PATH, each name once, and none of {', '.join(PARTS)}")
        paths[name] = path
    return paths


def _by_part(flags: Flags, name: str) -> dict[str, Any]:
    """Returns the numbers of a flag such as "visual:5,text:0.5", by part."""
    numbers: dict[str, Any] = {}
    text, kind = getattr(flags, name), int if name == "part_warmup" else float
    for item in split_calls(text):
        part, _, number = (each.strip() for each in item.partition(":"))
        try:
            value = kind(number)
        except ValueError:
            value = math.nan
        if not part or part in numbers or not (value >= 0 if kind is int else 0 < value < math.inf):
            wanted = "a number of epochs, 0 or more" if kind is int else "a positive number"
            raise InputError(f"--{name}={text}: give PART:NUMBER with {wanted}, each part once; found {item!r}")
        numbers[part] = value
    if numbers and name == "part_warmup" and flags.schedule != "warmup_cosine":
        raise InputError(f"--{name}={text}: --schedule={flags.schedule} has no warm-up; use warmup_cosine")
    return numbers


def _check_tuner(settings: Settings, tuner: Tuner) -> None:
    if settings.test_time or settings.plan.staged is None:
        return
    hint = "; use --tuner=dpt(class_specific=True), or --loss=dpt(class_weight=0)" * (tuner.name == "dpt")
    with explain(f"--loss={settings.loss}: ", hint):
        objectives.dpt_loss(tuner, class_weight=settings.plan.staged.class_weight)


def _check_composition(settings: Settings) -> None:
    """Raises InputError for flags that cannot be combined, or would change nothing."""
    named, text = [term.name for term in settings.terms], f"--regularizers={settings.regularizers}"
    for name in objectives.CLASSIFICATION:
        if name in named and "imbalanced" not in settings.protocol:
            raise InputError(
                f"{text}: {name} changes nothing, because all classes have as many images under "
                f"{', '.join(settings.protocol)}; drop it, or add --protocol=imbalanced"
            )
    if settings.aggregation:
        shown = ",".join(map(str, settings.aggregation))
        if len(settings.aggregation) != 2 or not all(map(math.isfinite, settings.aggregation)):
            raise InputError(f"--aggregation={shown}: give two numbers, mean and width in epochs")
        require_number("--aggregation: the width", settings.aggregation[1], above=0)
        if settings.epochs is None and settings.preset is None:
            raise InputError(f"--aggregation={shown} averages over epochs; give --epochs instead of --steps")
    if not settings.test_time and settings.plan.staged is not None:
        if named:
            raise InputError(f"{text} and --loss=dpt: DPT's loss has no regularizers; drop one of them")
        require_one_gradient(settings.fixed_regulator)
    if not settings.test_time and settings.plan.alternating:
        _check_alternating(settings, text if named else "")


def _check_alternating(settings: Settings, regularizers: str) -> None:
    alternating = "--regulation=alternating"
    if settings.regulator is None:
        raise InputError(f"{alternating} learns a regulator along with the prompt; add --regulator=prometar")
    if regularizers:
        raise InputError(
            f"{regularizers} and {alternating}: its loss is the cross-entropy, and regularizers enter by the gradient "
            'that the regulator reads; name them there, --regulator="prometar(reference=...)", or drop them'
        )
    if settings.optimizer != "sgd":
        raise InputError(f"--optimizer={settings.optimizer}: {alternating} takes two steps of sgd; leave it out")
    if settings.batch_size < 2:
        raise InputError(
            f"--batch_size={settings.batch_size}: {alternating} splits a batch by classes; give at least 2"
        )
