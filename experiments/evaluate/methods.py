"""The methods that `experiments.evaluate` compares: where they start, what regulates them, what is tried."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from gram_jax import artifacts, meta, objectives, regulators, tuners
from gram_jax import tuning as tuning_lib
from gram_jax.clip import Classes, Clip
from gram_jax.errors import InputError, require_known
from gram_jax.evaluation.protocols import TEST_TIME
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner

from .._launch import json_object
from . import learning as _learning
from . import presets as _presets

PARTS = ("zero_shot", "tuner", "gram", "init_only", "regulator_only", "controls")
PHOTO_WORDS = "a photo of a"
RANDOM = ""  # the init text that stands for a random start
# Settings that say no more than where a prompt starts and how many tokens it has, which its shapes tell.
_START = ("init_text", "num_tokens", "num_text")

Start = Callable[[jax.Array, Clip, Classes | None, Any], Any]  # of a key, the clip, classes and the task's context


class Candidate(NamedTuple):
    """One setting of a method: `described` says it in JSON values, the other fields do it.

    Where there are `epochs`, of a dataset's name and a number of shots, they stand for the number of steps.
    """

    start: Start
    learning_rate: Any
    steps: int
    described: dict[str, Any]
    epochs: Callable[[str, int], int] | None = None


class Method(NamedTuple):
    """A way to tune; methods of one regulator share `tuning`, and so its compiled steps.

    `phi` is a function of a key where the regulator is learned along the way. The regulator may read the context of the
    task, or the task's relation to the prototypes `related`, and the start may be structured by it. The loss is one of
    images and labels alone where it is None. At test time `tuning` is `make_test_time_tuning`'s.
    """

    name: str
    tuning: tuning_lib.Tuning
    phi: Any
    reads_context: bool
    structured: bool
    candidates: tuple[Candidate, ...]
    loss: objectives.BatchLoss | None = None
    related: meta.Structure | None = None


class Checkpoint(NamedTuple):
    """A meta checkpoint and the regulator that it was learned with."""

    meta: meta.Meta
    regulator: Regulator
    notes: dict[str, Any]


def choose_tuner(config: Any) -> Tuner:
    """The tuner that the flags ask for; where they leave it open, that of the meta checkpoint."""
    given = json_object("tuner_settings", config.tuner_settings)
    if not config.meta:
        return tuners.make(config.tuner or "coop", **given)
    tuner = _described(config.meta).tuner
    if config.tuner not in (None, tuner.name):
        raise InputError(
            f"--meta={config.meta} was learned with the tuner {tuner.name!r}, not with --tuner={config.tuner}; "
            "leave --tuner out, or give a checkpoint of that tuner"
        )
    asked = tuners.make(tuner.name, **(dict(tuner.settings) | given))
    for name, value in asked.settings.items():
        if value != tuner.settings[name]:
            raise InputError(
                f"--meta={config.meta} was learned with {name}={tuner.settings[name]!r}, and --tuner_settings has "
                f"{value!r}; leave it out"
            )
    return tuner


def composed_of(config: Any) -> tuple[objectives.Term, ...]:
    """Returns the regularizers that the flags name, sorted by name, with weights and settings.

    Raises:
      InputError: a name or setting is unknown, named twice or malformed, or a weight is not a positive number.
    """
    spec = ",".join(config.regularizers or ())
    settings = json_object("regularizer_settings", config.regularizer_settings or "{}")
    for name, value in settings.items():
        if not isinstance(value, dict):
            raise InputError(
                f"--regularizer_settings has {value!r} for {name!r}; give an object, as in "
                '{"npt": {"centered": true}}'
            )
    try:
        named = objectives.positive_terms(spec)
        for name in settings:
            require_known("--regularizer_settings", name, [term.name for term in named])
        named = [term._replace(settings={**term.settings, **settings.get(term.name, {})}) for term in named]
        objectives.parse(named)
    except InputError as error:
        raise InputError(f"--regularizers={spec}: {error}") from error
    return tuple(named)


def chosen_regulator(config: Any) -> Regulator:
    """The regulator that the flags ask for, which needs no learning; without one, the identity.

    Raises:
      InputError: it is unknown, has to be learned, or stands beside a meta checkpoint.
    """
    settings = json_object("regulator_settings", config.regulator_settings or "{}")
    if config.regulator is None:
        if settings:
            raise InputError(f"--regulator_settings={config.regulator_settings} is given without --regulator; name one")
        return regulators.identity()
    if config.meta:
        raise InputError(
            f"--regulator={config.regulator} and --meta={config.meta} both say what becomes of a gradient, and which "
            "comes first is nowhere defined; drop one of them, and put two evaluations side by side with "
            "experiments.report"
        )
    # Any number of prototypes will do to see that they are learned.
    known = {"prototypes": 1} if config.regulator == "structured" else {}
    try:
        regulator = regulators.make(config.regulator, **{**known, **settings})
    except ValueError as error:
        raise InputError(f"--regulator={config.regulator}: {error}") from error
    if "reference" in regulator.settings:
        try:
            objectives.parse(regulator.settings["reference"])
        except InputError as error:
            raise InputError(f"--regulator={config.regulator}: reference: {error}") from error
    if regulator.name == "identity":
        raise InputError("--regulator=identity changes nothing; leave it out")
    some = {"context": jax.ShapeDtypeStruct((1, 8), jax.numpy.float32)}
    alternating = config.regulation == "alternating" and regulator.name != "structured"
    learned = jax.tree.leaves(jax.eval_shape(lambda: regulator.init(jax.random.key(0), some)))
    if alternating and not learned:
        raise InputError(f"--regulation=alternating: --regulator={config.regulator} has nothing to learn; leave it out")
    if learned and not alternating:
        remedy = "learn it with experiments.meta_train, and give the checkpoint as --meta"
        if "reference" in regulator.settings:
            remedy = f"--regularizers={regulator.settings['reference']} adds what it modulates as it is"
            remedy += ", --regulation=alternating learns it along with the prompt"
        raise InputError(
            f"--regulator={config.regulator} has parameters that must be learned, and nothing is known of them here; "
            f"{remedy}, and --regulator=prograd needs no learning"
        )
    return regulator


def aggregation(config: Any, dataset: str) -> tuple[float, float] | None:
    """Mean and width, in epochs, of the bell over the prompts of a dataset; None where the last ones are taken."""
    if config.aggregation is not None or config.preset is None:
        return config.aggregation or None
    return _presets.aggregation(config.preset, dataset)


def composed_name(config: Any, tuner: Tuner) -> str:
    """What is tuned, in rows: "coop+kgcoop", with the weight where it is not the published one, "coop+kgcoop:2"."""
    parts = [tuner.name]
    for name, weight, _ in composed_of(config):
        parts.append(name if weight == objectives.terms(name)[0].weight else f"{name}:{weight:g}")
    parts += ["staged"] * (config.loss == "dpt")
    parts += ["tpt"] * (config.protocol == (TEST_TIME,))
    parts += [config.regulator] * (config.regulator is not None) + ["gpa"] * (aggregation(config, "") is not None)
    return "+".join(parts)


def load_checkpoint(path: str, tuner: Tuner, clip: Clip) -> Checkpoint:
    """A meta checkpoint of this tuner, which may have been learned from other words."""
    own = _described(path).tuner
    if own.name != tuner.name:
        raise InputError(f"{path} was learned with the tuner {own.name!r}, not with {tuner.name!r}")
    found, expected = own.settings, tuner.settings
    for name in sorted((found.keys() | expected.keys()) - set(_START)):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"{path} was learned with a tuner whose {name} is {found.get(name)!r}; here it is "
                f"{expected.get(name)!r}. Compare checkpoints of one tuner"
            )
    loaded = artifacts.load_meta(path, clip)
    return Checkpoint(loaded.meta, loaded.regulator, loaded.notes)


def parse_controls(controls: Sequence[str]) -> dict[str, str]:
    """ "NAME=PATH" texts by name."""
    found = {}
    for control in controls:
        name, _, path = control.partition("=")
        if not name or not path or name in (*PARTS, *found):
            raise InputError(f"--controls={control}: give NAME=PATH, each name once, and none of {', '.join(PARTS)}")
        found[name] = path
    return found


def parts(config: Any, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """The parts to measure: those asked for, or all that are possible and differ from each other."""
    possible = ["zero_shot", "tuner"]
    if checkpoint is not None:
        possible += ["gram"]
        if checkpoint.regulator.name != "identity":
            possible += ["init_only", "regulator_only"]
    if config.controls:
        possible += ["controls"]
    for name in config.methods or ():
        if name not in possible:
            why = "it needs --controls" if name == "controls" else "it needs --meta with a learned regulator"
            raise InputError(f"--methods={name}: {why}; possible here: {', '.join(possible)}")
    return tuple(name for name in possible if name in (config.methods or possible))


def starts(config: Any, tuner: Tuner, clip: Clip) -> dict[str | None, Start]:
    """Where the tuner alone may start, by words; None where it has no words to start from."""
    if "init_text" not in tuner.settings:
        if config.init_text is not None:
            raise InputError(f"--init_text={config.init_text[0]!r}: {tuner.name} does not start from words")
        return {None: _without_context(tuner.init)}
    texts = config.init_text
    if texts is None:
        own = tuner.settings["init_text"]
        # Words that were given for the tuner itself stand; those of a checkpoint are where meta-learning began.
        asked = own is not None and (not config.meta or "init_text" in json.loads(config.tuner_settings))
        texts = (own if asked else PHOTO_WORDS if _fits(tuner, clip, PHOTO_WORDS) else own or RANDOM,)
    return {text: _without_context(_from_words(tuner, text).init) for text in texts}


def build(config: Any, tuner: Tuner, clip: Clip) -> tuple[list[Method], tuple[str, ...], Checkpoint | None]:
    """The tuned methods of a configuration, the parts that they come from, and the meta checkpoint.

    Args:
      config: the flags of `experiments.evaluate`.
      tuner: as `choose_tuner` returns it.
      clip: the clip.

    Returns:
      The methods in the order in which they are measured.
    """
    checkpoint = load_checkpoint(config.meta, tuner, clip) if config.meta else None
    wanted = parts(config, checkpoint)
    learned = [("gram", "", config.meta, checkpoint)] if checkpoint is not None else []
    if "controls" in wanted:
        for name, path in parse_controls(config.controls).items():
            learned.append(("controls", f":{name}", path, load_checkpoint(path, tuner, clip)))
    words = starts(config, tuner, clip)
    some = clip.class_tokens(["a"]) if tuner.settings.get("class_specific") else None
    for text, start in words.items():
        shape = jax.eval_shape(lambda key, start=start: start(key, clip, some, None), jax.random.key(0))
        for _, _, path, found in learned:
            if _shapes(found.meta.prompt) != _shapes(shape):
                raise InputError(
                    f"{path} holds a prompt of shapes {_shapes(found.meta.prompt)}, and the tuner alone, from "
                    f"init_text {text!r}, one of {_shapes(shape)}; give words of as many tokens, or --init_text= for "
                    "a random start"
                )
    named = composed_of(config)
    made: dict[Any, tuple[tuning_lib.Tuning, objectives.BatchLoss | None]] = {}

    def tuning(regulator: Regulator) -> tuple[tuning_lib.Tuning, objectives.BatchLoss | None]:
        key = (regulator.name, regulator.settings)
        if key not in made and config.protocol == (TEST_TIME,):
            made[key] = _episodic(config, tuner, regulator), None
        if key not in made:
            made[key] = _learning.make(config, tuner, regulator, named)
        return made[key]

    # Where a regulator was learned, it stands in for "none" as it is initialized, which is exactly the identity: so all
    # methods run in the same compiled steps.
    plain = checkpoint.regulator if checkpoint is not None else chosen_regulator(config)

    def method(
        name: str, found: Checkpoint | None, regulator: Regulator, phi: Any, from_: dict[str | None, Start]
    ) -> Method:
        rates = _rates(config, found, shape)
        candidates = tuple(
            Candidate(
                start,
                rate,
                steps,
                {"start": "random" if label == RANDOM else label or "the tuner's", **described, **length},
                epochs,
            )
            for (label, start), (described, rate), (length, steps, epochs) in itertools.product(
                from_.items(), rates, _lengths(config)
            )
        )
        related = None
        if "prototypes" in regulator.settings:
            related = (checkpoint if found is None else found).meta.structure
        reads_context = regulator.settings.get("context_dim") is not None or related is not None
        structured = found is not None and from_ is not words and found.meta.offsets is not None
        compiled, loss = tuning(regulator)
        return Method(name, compiled, phi, reads_context, structured, candidates, loss, related)

    family = composed_name(config, tuner)
    _learning.warmup(config, "", shape)  # refuses a part that the prompt has not
    unregulated = functools.partial(plain.init, prompt=shape)
    if config.regulation != "alternating":
        unregulated = unregulated(jax.random.key(0))
    methods = []
    if "tuner" in wanted:
        methods.append(method(family, None, plain, unregulated, words))
    for part, suffix, _, found in learned:
        from_meta: dict[str | None, Start] = {"meta": _learned(found)}
        name = f"{family}+gram"
        if part in wanted:
            methods.append(method(name + suffix, found, found.regulator, found.meta.phi, from_meta))
        if part == "gram" and "init_only" in wanted:
            methods.append(method(f"{name}:init_only", found, plain, unregulated, from_meta))
        if part == "gram" and "regulator_only" in wanted:
            methods.append(method(f"{name}:regulator_only", found, found.regulator, found.meta.phi, words))
    return methods, wanted, checkpoint


def _episodic(config: Any, tuner: Tuner, regulator: Regulator) -> Callable[..., tuning_lib.TestTimeTuning]:
    """Test-time tuning as the flags ask for it."""
    return tuning_lib.make_test_time_tuning(
        tuner,
        regulator,
        share=config.test_time_share,
        steps=config.steps[0],
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
    )


def _without_context(init: Callable[..., Any]) -> Start:
    return lambda key, clip, classes, context: init(key, clip, classes)


def _learned(checkpoint: Checkpoint) -> Start:
    """Where a meta checkpoint starts; without a context, its prompt for all tasks."""

    def start(key: Any, clip: Clip, classes: Any, context: Any) -> Any:
        learned = checkpoint.meta
        return learned.prompt if context is None else jax.device_get(meta.initial_prompt(learned, context))

    return start


def _rates(config: Any, checkpoint: Checkpoint | None, prompt: Any) -> list[tuple[dict[str, float], Any]]:
    """The learning rates to try, each with its description: given ones, or multiples of those that were learned."""
    given = config.learning_rate if checkpoint is None else config.gram_learning_rate
    if given is not None:
        return [({"learning_rate": rate}, _learning.rates(config, rate, prompt)) for rate in given]
    learned = checkpoint.meta.rates
    return [
        ({"rate_factor": factor}, jax.tree.map(lambda rate, factor=factor: rate * factor, learned))
        for factor in config.gram_rate_factor
    ]


def _lengths(config: Any) -> list[tuple[dict[str, Any], int, Callable[[str, int], int] | None]]:
    """The lengths to try: each with its description, in steps or in epochs."""
    if config.epochs is not None:
        return [({"epochs": count}, 0, lambda name, shots, count=count: count) for count in config.epochs]
    if config.preset is not None:
        return [({"epochs": f"those of {config.preset}"}, 0, functools.partial(_presets.epochs, config.preset))]
    return [({"steps": steps}, steps, None) for steps in config.steps]


def _described(path: str) -> artifacts.Description:
    described = artifacts.describe(path)
    if described.kind != artifacts.META:
        raise InputError(f"{path} holds {described.kind!r}, not a meta checkpoint; give one that meta_train wrote")
    return described


def _shapes(prompt: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(prompt)]


def _from_words(tuner: Tuner, text: str) -> Tuner:
    return tuners.make(tuner.name, **{**tuner.settings, "init_text": None if text == RANDOM else text})


def _fits(tuner: Tuner, clip: Clip, text: str) -> bool:
    """Whether words are as many tokens as the tuner's context."""
    settings = tuner.settings
    count = settings.get("num_tokens", settings.get("num_text"))
    if count is None and settings["init_text"] is not None:
        count = clip.tokenize([settings["init_text"]]).shape[1] - 2
    return count in (None, clip.tokenize([text]).shape[1] - 2)
