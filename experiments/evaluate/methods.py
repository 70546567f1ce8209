"""The methods that `experiments.evaluate` compares: a tuner with its initializations, regulators and candidates."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax

from gram_jax import artifacts, tuners
from gram_jax.artifacts import LoadedMeta
from gram_jax.clip import Clip
from gram_jax.errors import InputError
from gram_jax.evaluation import Candidate, Method, ZeroShot
from gram_jax.evaluation.methods import PromptMethod
from gram_jax.evaluation.plans import Length, by_part
from gram_jax.evaluation.runner import meta_initialization, without_context
from gram_jax.evaluation.test_time import TestTimeMethod
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner

from .settings import Settings

PHOTO_WORDS = "a photo of a"
RANDOM = ""  # the init text that stands for random values
RANDOM_START, TUNERS_START = "random", "the tuner's"  # in the descriptions of candidates
# Settings of the initialization and of the number of tokens, which the shapes of a prompt show.
INITIAL = ("init_text", "num_tokens", "num_text")

Initializations = dict[str | None, Callable[..., Any]]  # by words; None for a tuner that has no words


def choose_tuner(settings: Settings) -> Tuner:
    """Returns the tuner of the flags; without one, that of the meta checkpoint."""
    call = settings.tuner_call
    if not settings.meta:
        return tuners.make(call.name, **call.settings)
    tuner = artifacts.describe(settings.meta).tuner
    if call is None:
        return tuner
    if call.name != tuner.name:
        raise InputError(
            f"--tuner={settings.tuner}: --meta={settings.meta} was learned with the tuner {tuner.name!r}; leave "
            "--tuner out, or give a checkpoint of that tuner"
        )
    for name, value in tuners.make(tuner.name, **(dict(tuner.settings) | call.settings)).settings.items():
        if value != tuner.settings[name]:
            raise InputError(
                f"--tuner={settings.tuner}: --meta={settings.meta} was learned with {name}={tuner.settings[name]!r}; "
                "leave the setting out"
            )
    return tuner


def build(settings: Settings, tuner: Tuner, clip: Clip) -> tuple[list[Method], LoadedMeta | None]:
    """Returns the methods in the order in which they are measured, and the meta checkpoint."""
    checkpoint = load_checkpoint(settings.meta, tuner, clip) if settings.meta else None
    wanted, paths = _wanted(settings, checkpoint), settings.control_paths
    controls = {name: load_checkpoint(path, tuner, clip) for name, path in paths.items() if "controls" in wanted}
    family = _Family(settings, tuner, clip, checkpoint)
    for name, control in controls.items():
        family.require_shapes(paths[name], control)
    # For each part, its methods: the end of the name, the learned initialization and the learned regulator.
    parts: dict[str, list[tuple[str, LoadedMeta | None, LoadedMeta | None]]] = {
        "tuner": [("", None, None)],
        "gram": [("+gram", checkpoint, checkpoint)],
        "init_only": [("+gram:init_only", checkpoint, None)],
        "regulator_only": [("+gram:regulator_only", None, checkpoint)],
        "controls": [(f"+gram:{name}", control, control) for name, control in controls.items()],
    }
    tuned = [family.method(*method) for part, methods in parts.items() if part in wanted for method in methods]
    fixed = [ZeroShot("zero_shot"), ZeroShot("zero_shot:own", template=None)] if "zero_shot" in wanted else []
    without, with_labels = ([m for m in settings.baseline_methods if m.has_runs is runs] for runs in (False, True))
    return [*fixed, *without, *tuned, *with_labels], checkpoint


def load_checkpoint(path: str, tuner: Tuner, clip: Clip) -> LoadedMeta:
    """Returns a meta checkpoint of a tuner, which may have been learned from other words."""
    loaded = artifacts.load_meta(path, clip)
    own, expected = (dict(each.settings) | {"tuner": each.name} for each in (loaded.tuner, tuner))
    for name in sorted((own.keys() | expected.keys()) - set(INITIAL), key=lambda name: (name != "tuner", name)):
        if own.get(name) != expected.get(name):
            raise InputError(
                f"{path} was learned with {name}={own.get(name)!r}, not {expected.get(name)!r}; compare checkpoints of "
                "one tuner"
            )
    return loaded


class _Family:
    """The methods of one tuner, which share compiled steps.

    If a regulator was learned, methods without regulation use it as it is initialized, which is exactly the identity:
    so all methods run in the same compiled steps.
    """

    def __init__(self, settings: Settings, tuner: Tuner, clip: Clip, checkpoint: LoadedMeta | None):
        self.settings, self.tuner, self.checkpoint = settings, tuner, checkpoint
        self.plain = settings.fixed_regulator if checkpoint is None else checkpoint.regulator
        self.words = initializations(settings, tuner, clip)
        some = clip.class_tokens(["a"]) if tuner.settings.get("class_specific") else None
        self.shapes = {
            text: jax.eval_shape(lambda key, own=own: own(key, clip, some, None), jax.random.key(0))
            for text, own in self.words.items()
        }
        self.shape = next(reversed(self.shapes.values()))
        if checkpoint is not None:
            self.require_shapes(settings.meta, checkpoint)
        if not settings.test_time:  # refuses parts that the prompt does not have
            by_part("part_warmup", settings.length("", 1, steps=1).warmup, 1, self.shape)
        self._made: dict[Any, Any] = {}

    def require_shapes(self, path: str, control: LoadedMeta) -> None:
        """Raises InputError unless the prompt of a checkpoint has the shapes of every initialization from words."""
        shapes = _shapes(control.meta.prompt)
        for text, shape in self.shapes.items():
            if shapes != _shapes(shape):
                raise InputError(
                    f"{path} holds a prompt of shapes {shapes}, but init_text {text!r} makes one of {_shapes(shape)}; "
                    "give words of as many tokens, or --init_text= for random values"
                )

    def method(self, role: str, initial: LoadedMeta | None = None, regulated: LoadedMeta | None = None) -> PromptMethod:
        """Returns a method with a learned initialization, a learned regulator, both or none."""
        regulator = self.plain if regulated is None else regulated.regulator
        learned = initial or regulated
        structure = (learned or self.checkpoint).meta.structure if "prototypes" in regulator.settings else None
        return (TestTimeMethod if self.settings.test_time else TunedMethod)(
            self.settings.family(self.tuner.name) + role,
            tuple(self._candidates(initial, learned)),
            tuner=self.tuner,
            plan=self.settings.plan,
            compiled=self._compiled(regulator),
            regulator=regulator,
            phi=None if regulated is None else regulated.meta.phi,
            structure=structure,
            structured=initial is not None and initial.meta.offsets is not None,
            gates=self.settings.gates,
        )

    def _compiled(self, regulator: Regulator) -> Any:
        if (key := (regulator.name, regulator.settings)) not in self._made:
            self._made[key] = self.settings.plan.compile(self.tuner, regulator)
        return self._made[key]

    def _candidates(self, initial: LoadedMeta | None, learned: LoadedMeta | None) -> Any:
        """Yields every combination of initialization, learning rate and length."""
        begins = self.words if initial is None else {"meta": meta_initialization(initial.meta)}
        each = itertools.product(begins.items(), self._rates(learned), _lengths(self.settings))
        for (text, begin), (described, rate), (length, of_length) in each:
            shown = {"start": RANDOM_START if text == RANDOM else text or TUNERS_START, **described, **length}
            yield Candidate(shown, begin, rate, of_length)

    def _rates(self, learned: LoadedMeta | None) -> list[tuple[dict[str, float], Any]]:
        """Returns the learning rates to try with their descriptions: given ones, or multiples of learned ones."""
        settings = self.settings
        given = settings.learning_rate if learned is None else settings.gram_learning_rate
        if given is not None:
            factors = settings.rate_factors
            scaled = [by_part("part_rates", factors, 1, self.shape, rate) if factors else rate for rate in given]
            return [({"learning_rate": rate}, own) for rate, own in zip(given, scaled, strict=True)]
        multiples = {factor: functools.partial(operator.mul, factor) for factor in settings.gram_rate_factor}
        return [({"rate_factor": at}, jax.tree.map(by, learned.meta.rates)) for at, by in multiples.items()]


def initializations(settings: Settings, tuner: Tuner, clip: Clip) -> Initializations:
    """Returns the initializations of the tuner alone, by words."""
    if "init_text" not in tuner.settings:
        if settings.init_text is not None:
            raise InputError(f"--init_text={settings.init_text[0]!r}: {tuner.name} is not initialized from words")
        return {None: without_context(tuner.init)}
    texts = settings.init_text
    if texts is None:
        own = tuner.settings["init_text"]
        # Words that were given with the tuner count; those of a checkpoint are where meta-learning began.
        asked = settings.tuner_call is not None and "init_text" in settings.tuner_call.settings
        given = own is not None and (not settings.meta or asked)
        texts = (own if given else PHOTO_WORDS if _fits(tuner, clip, PHOTO_WORDS) else own or RANDOM,)
    return {
        text: without_context(tuners.make(tuner.name, **{**tuner.settings, "init_text": text or None}).init)
        for text in texts
    }


def _wanted(settings: Settings, checkpoint: LoadedMeta | None) -> tuple[str, ...]:
    """Returns the parts to measure: those asked for, or all that are possible and differ from each other."""
    possible = ["zero_shot", "tuner"] + ["gram"] * (checkpoint is not None)
    if checkpoint is not None and checkpoint.regulator.name != "identity":
        possible += ["init_only", "regulator_only"]
    possible += ["controls"] * bool(settings.control_paths)
    for name in settings.methods or ():
        if name not in possible:
            why = "it needs --controls" if name == "controls" else "it needs --meta with a learned regulator"
            raise InputError(f"--methods={name}: {why}; possible here: {', '.join(possible)}")
    return tuple(name for name in possible if name in (settings.methods or possible))


def _lengths(settings: Settings) -> list[tuple[dict[str, Any], Callable[[str, int], Length]]]:
    """Returns the lengths to try, each with its description, in steps or in epochs."""
    if settings.epochs is not None:
        return [({"epochs": count}, functools.partial(settings.length, epochs=count)) for count in settings.epochs]
    if settings.preset is not None:
        return [({"epochs": f"those of {settings.preset}"}, settings.length)]
    return [({"steps": steps}, functools.partial(settings.length, steps=steps)) for steps in settings.steps]


def _shapes(prompt: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(prompt)]


def _fits(tuner: Tuner, clip: Clip, text: str) -> bool:
    """Returns whether words are as many tokens as the tuner's context."""
    words, count = tuner.settings["init_text"], tuner.settings.get("num_tokens", tuner.settings.get("num_text"))
    if count is None and words is not None:
        count = clip.tokenize([words]).shape[1] - 2
    return count in (None, clip.tokenize([text]).shape[1] - 2)
