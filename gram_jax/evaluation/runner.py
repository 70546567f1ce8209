"""The runner: a tuner, a baseline or any method, evaluated on a dataset under a protocol, as rows of results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gram_jax import meta, regulators
from gram_jax.clip import Clip
from gram_jax.data import Dataset, load_dataset
from gram_jax.errors import InputError, require_known, require_seeds
from gram_jax.evaluation import measures
from gram_jax.evaluation.baselines import Baseline
from gram_jax.evaluation.checks import require_usable
from gram_jax.evaluation.encoder import Encoder
from gram_jax.evaluation.methods import (
    BaselineMethod,
    Candidate,
    Method,
    PredictionsByStep,
    PromptMethod,
    Task,
    Trial,
    task_of,
)
from gram_jax.evaluation.plans import TuningPlan
from gram_jax.evaluation.protocols import Part, Protocol, parse
from gram_jax.evaluation.results import Row
from gram_jax.evaluation.test_time import TestTimeMethod, TestTimePlan
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner
from gram_jax.tuning import Tuned


def evaluate(  # long: what is tuned, on what, and what is measured
    clip: Clip | Encoder,
    method: Tuner | Baseline | Method,
    dataset: Dataset | str,
    protocol: Protocol | str = "few_shot",
    shots: int = 16,
    seeds: Sequence[int] = (1, 2, 3),
    targets: Sequence[Dataset | str] = (),
    split: str = "test",
    metrics: Sequence[str] = (),
    **plan: Any,
) -> list[Row]:
    """Evaluates one method on one dataset, whose images are encoded once; no seed's numbers depend on other seeds.

    Args:
      clip: the clip; or an `Encoder` of it, so that several calls share encoded images.
      method: a tuner of the library or of your own; a baseline; or a method, e.g. from `prompt_method`.
      dataset: the dataset, or a text for `gram_jax.data.load_dataset`.
      protocol: one of `protocols.PROTOCOLS`, "imbalanced:0.25" for a long tail, or a protocol of your own.
      shots: labeled images per class; of the largest class, for a long tail.
      seeds: the seeds of the draws; each is a run.
      targets: what is tested besides the dataset: other datasets (cross_dataset) or shifted versions.
      split: the images that are predicted: "test"; or "val", to choose something.
      metrics: what is measured besides accuracy after the last step, see `choices.METRICS`.
      plan: the fields of `TuningPlan`, or of `TestTimePlan` for the protocol "test_time"; only for tuners.

    Returns:
      One row for each seed, class list, metric and reported step.

    Example:
      >>> from gram_jax import tuners
      >>> from gram_jax.testing import tiny_clip
      >>> clip = tiny_clip(text_layers=1, text_context_length=40)
      >>> rows = evaluate(clip, tuners.coop(), "glyphs:chess", "base_to_new", shots=1, seeds=(1,), steps=2)
      >>> [(row.method, row.split, row.metric, row.step) for row in rows]
      [('coop', 'base', 'accuracy', 2), ('coop', 'new', 'accuracy', 2)]
    """
    require_seeds("seeds", seeds)
    encoder = clip if isinstance(clip, Encoder) else Encoder(clip)
    dataset, *others = (load_dataset(each) if isinstance(each, str) else each for each in (dataset, *targets))
    protocol = parse(protocol)
    if bool(others) > bool(protocol.elsewhere):
        raise InputError(f"targets={', '.join(each.name for each in others)}: {protocol.name} tests no other dataset")
    if protocol.transfer and not others:
        raise InputError(f"{protocol.name} tests other datasets than it tunes on; give some as targets")
    method = as_method(method, protocol, plan)
    require_compatible(method, protocol)
    if len(method.candidates) > 1:
        raise InputError(f"{method.name} has {len(method.candidates)} candidate settings; keep one of its candidates")
    for each in (dataset, *others):
        require_usable(each, split)
        encoder.add(each)
    task = task_of(dataset, protocol, shots if protocol.takes_labels else None, seeds)
    parts = protocol.parts(dataset, split, protocol.targets(others))
    report = method.plan.report_steps if isinstance(method, TunedMethod) else ()
    trial = Trial(encoder, task, method.candidates[0])
    learned = method.learn(trial, report, measures.asks_for_cost(metrics))
    if isinstance(method, TunedMethod):
        method.require_finite(task, learned)
    predicted = method.predict(trial, learned, parts)
    return method_rows(method, task, learned, predicted, parts, metrics)


def method_rows(
    method: Method,
    task: Task,
    learned: Any,
    predicted: PredictionsByStep,
    parts: Sequence[Part],
    metrics: Sequence[str] = (),
) -> list[Row]:
    """Returns the rows of what a method learned and predicted, step after step, and those of the cost if measured.

    The metrics besides accuracy are measured after the last step.
    """
    shots, seeds = (task.shots, task.seeds) if method.has_runs else (None, (None,))
    name = task.dataset.name
    rows: list[Row] = []
    for step, predictions in predicted.items():
        wanted = measures.asked_for(metrics if step == last_step(predicted) else ())
        measured = zip(parts, predictions, strict=True)
        rows += measures.rows(method.name, task.protocol, name, measured, wanted, shots, seeds, step)
    if isinstance(learned, Tuned):
        rows += measures.cost_rows(method.name, task.protocol, name, learned, shots, parts[0].split)
    return rows


def last_step(predicted: PredictionsByStep) -> int | None:
    """Returns the last step that predictions were made at; None for methods that take no steps."""
    return max(predicted, key=lambda step: step or 0)


def prompt_method(
    tuner: Tuner,
    plan: TuningPlan | TestTimePlan | None = None,
    *,
    regulator: Regulator | None = None,
    learned: meta.Meta | None = None,
    name: str | None = None,
) -> PromptMethod:
    """Returns a tuner as a method, with or without a meta-learned initialization and regulator.

    Args:
      tuner, plan: the tuner, and how prompts are tuned; None for `TuningPlan()`.
      regulator: the regulator, if any. If its parameters are learned, `learned` holds them.
      learned: the meta-learned initialization, regulator and step sizes; None to tune from `tuner.init` at the learning
        rate of the plan.
      name: the name in rows; None for one that is composed, such as "coop+gram".

    Example:
      >>> from gram_jax import tuners
      >>> prompt_method(tuners.coop(), TuningPlan(steps=5)).name
      'coop'
    """
    plan = TuningPlan() if plan is None else plan
    regulator = regulators.identity() if regulator is None else regulator
    if learned is None:
        candidate = Candidate({"learning_rate": plan.learning_rate}, without_context(tuner.init), plan.learning_rate)
    else:
        candidate = Candidate({"rate_factor": 1.0}, meta_initialization(learned), learned.rates)
    if isinstance(plan, TuningPlan):
        length = plan.length
        candidate = candidate._replace(length=lambda name, shots: length)
    return (TunedMethod if isinstance(plan, TuningPlan) else TestTimeMethod)(
        name or tuner.name + "+tpt" * isinstance(plan, TestTimePlan) + "+gram" * (learned is not None),
        (candidate,),
        tuner=tuner,
        plan=plan,
        compiled=plan.compile(tuner, regulator),
        regulator=regulator,
        phi=None if learned is None else learned.phi,
        structure=None if learned is None else learned.structure,
        structured=learned is not None and learned.offsets is not None,
    )


def without_context(init: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an initialization that reads no context: `initialize(key, clip, classes, context)`."""
    return lambda key, clip, classes, context: init(key, clip, classes)


def meta_initialization(learned: meta.Meta) -> Callable[..., Any]:
    """Returns the meta-learned initialization; without a context, its prompt for all tasks."""

    def initialize(key: jax.Array, clip: Clip, classes: Any, context: Any) -> Any:
        return learned.prompt if context is None else jax.device_get(meta.initial_prompt(learned, context))

    return initialize


def as_method(method: Tuner | Baseline | Method, protocol: Protocol, plan: Mapping[str, Any]) -> Method:
    """Returns a tuner or a baseline as a method; `plan` holds the fields of the plan of a tuner."""
    if not isinstance(method, Tuner):
        if plan:
            raise InputError(f"{', '.join(plan)}: only tuners have these settings; put them into the method")
        return BaselineMethod(method.name, baseline=method) if isinstance(method, Baseline) else method
    kind = TuningPlan if protocol.takes_labels else TestTimePlan
    known = [field.name for field in dataclasses.fields(kind)]
    for name in plan:
        require_known("setting", name, known)
    return prompt_method(method, kind(**plan))


def require_compatible(method: Method, protocol: Protocol) -> None:
    """Raises InputError if a method cannot be evaluated under a protocol."""
    if not protocol.takes_labels and method.has_runs and not isinstance(method, TestTimeMethod):
        raise InputError(f"{method.name} learns from labeled images, which {protocol.name} does not provide")
    if not isinstance(method, PromptMethod):
        return
    if protocol.takes_labels and isinstance(method, TestTimeMethod):
        raise InputError(f"{method.name} is tuned on test images; use test_time instead of {protocol.name}")
    if method.tuner.settings.get("class_specific") and (protocol.has_new or protocol.transfer):
        raise InputError(
            f"a class-specific prompt of {method.tuner.name} has no parameters for the new classes of {protocol.name}; "
            "use few_shot"
        )
