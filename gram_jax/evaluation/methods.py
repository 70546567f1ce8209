"""Methods: what is compared on a dataset. A method learns from labeled images and predicts the classes of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gram_jax import meta
from gram_jax.choices import GATES
from gram_jax.data import Dataset
from gram_jax.evaluation.baselines import VIEW_SCALE, Baseline
from gram_jax.evaluation.encoder import PHOTO, Encoder
from gram_jax.evaluation.plans import Length
from gram_jax.evaluation.prediction import Predictions, summarize_logits
from gram_jax.evaluation.protocols import Part, Protocol, without_test
from gram_jax.evaluation.references import reads_context
from gram_jax.evaluation.statistics import harmonic_mean
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner

# By number of optimizer steps (None for methods that take none), the predictions on every part; None for a part that
# the method cannot classify.
PredictionsByStep = Mapping[int | None, Sequence[Predictions | None]]


class Candidate(NamedTuple):
    """One setting of a method; a method with several is selected on validation images.

    Attributes:
      described: the setting, JSON values.
      initialize: `initialize(key, clip, classes, context) -> prompt`; the prompt is None for methods without prompts.
      learning_rate: one number, or a number for each leaf of a prompt.
      length: `length(dataset name, shots) -> Length`.
    """

    described: Mapping[str, Any] = {}
    initialize: Callable[..., Any] = lambda key, clip, classes, context: None
    learning_rate: Any = None
    length: Callable[[str, int | None], Length] = lambda name, shots: Length()


class Task(NamedTuple):
    """The draws of all seeds from one dataset under one protocol, which a method learns from.

    Make it with `task_of`, which leaves out the test images. `shots` is None if there are no labeled images.
    """

    dataset: Dataset
    protocol: Protocol
    shots: int | None
    seeds: tuple[int, ...]

    def supports(self) -> list[Dataset]:
        """Returns the labeled images of each run."""
        assert self.shots is not None, f"{self.protocol.name} provides no labeled images"
        return [self.protocol.support(self.dataset, self.shots, seed) for seed in self.seeds]


def task_of(dataset: Dataset, protocol: Protocol, shots: int | None, seeds: Sequence[int]) -> Task:
    """Returns a task whose dataset holds no test image."""
    return Task(without_test(dataset), protocol, shots, tuple(seeds))


class Trial(NamedTuple):
    """One setting of a method on one task, with the encoder that reads its images."""

    encoder: Encoder
    task: Task
    candidate: Candidate


@dataclasses.dataclass(frozen=True)
class Method:
    """A method by its name in rows, with candidate settings; subclasses define `learn` and `predict`."""

    name: str
    candidates: tuple[Candidate, ...] = (Candidate(),)

    @property
    def has_runs(self) -> bool:
        """Whether there is one run per seed; otherwise a result depends on no seed and no labeled image."""
        return True

    def learn(self, trial: Trial, report: Sequence[int] = (), measure_cost: bool = False) -> Any:
        """Returns whatever is learned from the labeled images of a task.

        `report` lists optimizer steps after which predictions are wanted besides the last one; `measure_cost` asks for
        time and memory of a step.
        """

    def predict(self, trial: Trial, learned: Any, parts: Sequence[Part]) -> PredictionsByStep:
        """Returns what every run predicts on each part."""
        raise NotImplementedError

    def shared_runs(self) -> list[list[int]]:
        """Returns the candidates in groups; the run of a group's first candidate has those of the others within it."""
        return [[index] for index in range(len(self.candidates))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """A method that tunes prompts; see `prompt_method`.

    Attributes:
      compiled: the compiled functions from `plan.compile(tuner, regulator)`; methods may share them.
      phi: parameters of the regulator; None if it has none, or if they are learned along with the prompt.
      structure: the prototypes of a regulator that reads the relation to them.
      structured: whether the initialization depends on the task.
      gates: weights of the offset of a structured initialization; the one that fits the labeled images best is used.
    """

    tuner: Tuner
    plan: Any
    compiled: Any
    regulator: Regulator
    phi: Any = None
    structure: meta.Structure | None = None
    structured: bool = False
    gates: tuple[float, ...] = GATES

    @property
    def needs_context(self) -> bool:
        """Whether the initialization or the regulator reads the context of a task."""
        return self.structured or reads_context(self.regulator)

    def initial_phi(self, prompt: Any, key: jax.Array | None = None) -> Any:
        """Returns the parameters that the regulator begins with: learned ones, or those that change nothing."""
        if self.phi is not None:
            return self.phi
        return self.regulator.init(jax.random.key(0) if key is None else key, prompt)


@dataclasses.dataclass(frozen=True)
class ZeroShot(Method):
    """The frozen clip under one template; None stands for each dataset's own template."""

    template: str | None = PHOTO

    @property
    def has_runs(self) -> bool:
        return False

    def predict(self, trial: Trial, learned: Any, parts: Sequence[Part]) -> PredictionsByStep:
        predictions = []
        for part in parts:
            texts = trial.encoder.texts(part.dataset.class_names, self.template or part.dataset.template)
            cosines = (trial.encoder.features(part.dataset) @ texts.T)[None]
            scaled = summarize_logits(cosines * np.exp(trial.encoder.clip.params["logit_scale"]))
            predictions.append(scaled._replace(labels=cosines.argmax(-1)))  # scaling may round to ties
        return {None: predictions}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineMethod(Method):
    """A baseline, fitted to the draw of each seed; its min(shots, 4) validation images per class choose settings.

    A baseline that reads labels classifies the classes that it was fitted to; parts with other classes are left out.
    """

    baseline: Baseline

    @property
    def has_runs(self) -> bool:
        return self.baseline.needs_labels

    def learn(self, trial: Trial, report: Sequence[int] = (), measure_cost: bool = False) -> Any:
        if not self.has_runs:
            return None
        (encoder, task, _), states, baseline = trial, [], self.baseline
        baseline = baseline.of_dataset(task.dataset.name) if baseline.of_dataset else baseline
        for seed, support in zip(task.seeds, task.supports(), strict=True):
            names, labeled = support.class_names, (encoder.features(support), support.labels)
            further: dict[str, Any] = {"validation": None}
            if baseline.needs_validation and task.shots is not None:
                drawn = task.protocol.validation(task.dataset, task.shots, seed)
                further["validation"] = encoder.features(drawn), drawn.labels
            if baseline.views:
                further["views"] = encoder.augmented_features(support, baseline.views, seed, VIEW_SCALE)
            states.append(baseline.fit(encoder.clip, names, *labeled, **further))
        return names, states

    def predict(self, trial: Trial, learned: Any, parts: Sequence[Part]) -> PredictionsByStep:
        return {None: [self._predict_part(trial.encoder, learned, part.dataset) for part in parts]}

    def _predict_part(self, encoder: Encoder, learned: Any, dataset: Dataset) -> Predictions | None:
        names = dataset.class_names
        fitted, states = learned or (names, [self.baseline.fit(encoder.clip, names, None, None)])
        if (columns := _columns(fitted, names)) is None:
            return None
        features = encoder.features(dataset)
        logits = np.stack([np.asarray(self.baseline.apply(state, encoder.clip, features)) for state in states])
        return summarize_logits(logits[..., columns])


def validation_scores(method: Method, encoder: Encoder, tasks: Sequence[Task], limit: int = 0) -> list[float]:
    """Returns the validation score of every candidate of a method; no test image is read.

    A score is the accuracy, or H of base and new classes, averaged over tasks and seeds.

    Args:
      method, encoder: what is scored, and what reads and encodes the images.
      tasks: what is learned from, with seeds that are used for nothing else.
      limit: the most validation images per class; 0 for all.
    """
    scores: list[list[float]] = [[] for _ in method.candidates]
    for task in tasks:
        parts = task.protocol.parts(task.dataset, "val", limit=limit)
        for group in method.shared_runs():
            steps = {i: method.candidates[i].length(task.dataset.name, task.shots).steps for i in group}
            trial = Trial(encoder, task, method.candidates[group[0]])
            learned = method.learn(trial, [step for step in steps.values() if step is not None])
            predicted = method.predict(trial, learned, parts)
            for i, step in steps.items():
                at_step = predicted[max(predicted, key=lambda each: each or 0) if step not in predicted else step]
                accuracies = []
                for own, part in zip(at_step, parts, strict=True):
                    assert own is not None, f"{method.name} cannot classify {part.split}"
                    accuracies.append(np.mean(own.labels == part.dataset.labels, axis=1))
                score = accuracies[0] if len(accuracies) == 1 else harmonic_mean(*accuracies)
                scores[i].append(float(np.mean(score)))
    return [float(np.mean(each)) for each in scores]


def _columns(fitted: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Returns the places of class names among those that were fitted to; None if one of them is missing."""
    if tuple(fitted) == tuple(names):
        return list(range(len(names)))
    places = {name: place for place, name in enumerate(fitted)}
    if len(places) < len(fitted) or not set(names) <= set(fitted):
        return None
    return [places[name] for name in names]
