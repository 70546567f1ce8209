"""Test-time tuning as a method: a prompt for each test image, tuned on unlabeled views of that image alone (TPT).

A regulator and a structured initialization read, for each image, the mean frozen feature of its own views and the mean
text of the classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import meta
from gram_jax.data import Dataset
from gram_jax.errors import InputError, require_int, require_number
from gram_jax.evaluation.encoder import Encoder
from gram_jax.evaluation.methods import PredictionsByStep, PromptMethod, Trial
from gram_jax.evaluation.prediction import Predictions, summarize_logits
from gram_jax.evaluation.protocols import Part
from gram_jax.evaluation.references import regulator_contexts
from gram_jax.regulators import Regulator
from gram_jax.tuners import Tuner
from gram_jax.tuning import make_test_time_tuning, predict_test_time, select_views


@dataclasses.dataclass(frozen=True)
class TestTimePlan:
    """The settings of tuning a prompt on one test image.

    Attributes:
      views: views of an image, the unaugmented image included.
      share: the share of the views that is tuned on: the most confident ones.
      steps, optimizer, weight_decay: as in `tuning.make_test_time_tuning`.
      batch_size: images that are tuned on side by side.
    """

    __test__ = False  # not a test, whatever its name

    learning_rate: float = 0.005
    steps: int = 1
    views: int = 64
    share: float = 0.1
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    batch_size: int = 16

    def __post_init__(self) -> None:
        require_number("learning_rate", self.learning_rate, above=0)
        for name in ("steps", "views", "batch_size"):
            require_int(name, getattr(self, name))
        if not 0 < self.share <= 1 or not select_views(self.views, self.share):
            raise InputError(
                f"share={self.share:g} of views={self.views}: it is less than one view, or more than all; give more "
                "views, or a share up to 1"
            )

    def compile(self, tuner: Tuner, regulator: Regulator) -> Callable[..., Any]:
        """Returns test-time tuning of a tuner under a regulator, which is compiled when it is first called."""
        descent: dict[str, Any] = {"optimizer": self.optimizer, "weight_decay": self.weight_decay}
        return make_test_time_tuning(tuner, regulator, share=self.share, steps=self.steps, **descent)


class TestTimeMethod(PromptMethod):
    """A prompt that is tuned on each test image; `plan` is a `TestTimePlan`, and the seeds are those of the views."""

    __test__ = False

    def predict(self, trial: Trial, learned: Any, parts: Sequence[Part]) -> PredictionsByStep:
        """Returns the predictions before and after tuning; one run for each seed of the views."""
        by_step: dict[int | None, list[Predictions]] = {0: [], self.plan.steps: []}
        for part in parts:
            runs = [self._run(trial, part.dataset, seed) for seed in trial.task.seeds]
            for step, logits in zip(by_step, zip(*runs, strict=True), strict=True):
                by_step[step].append(summarize_logits(np.stack(logits)))
        return by_step

    def _run(self, trial: Trial, dataset: Dataset, seed: int) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of all images before and after tuning, `[images, classes]`, for one seed of the views."""
        encoder, _, candidate = trial
        classes, valid = encoder.classes(self.tuner, dataset.class_names, dataset.template)
        contexts = None
        if self.needs_context:
            text = jnp.asarray(encoder.texts(dataset.class_names))
            features = (encoder.test_view_features(dataset, i, seed, self.plan.views) for i in range(len(dataset)))
            contexts = np.stack([meta.task_context(encoder.clip, jnp.asarray(own), text) for own in features])

        def initial(context: Any) -> Any:
            return candidate.initialize(jax.random.key(seed), encoder.clip, classes, context)

        prompt = initial(None)
        phi = self.initial_phi(prompt)
        if self.structured and contexts is not None:
            prompt = jax.tree.map(lambda *leaves: np.stack(leaves), *map(initial, contexts))
        batch = {
            "classes": classes,
            "valid": valid,
            "views": _Views(encoder, self.tuner, dataset, seed, self.plan.views),
            "context": regulator_contexts(self.regulator, self.structure, contexts),
        }
        arguments = prompt, phi, encoder.clip, batch, candidate.learning_rate
        tuned = predict_test_time(self.compiled, *arguments, own=self.structured, batch_size=self.plan.batch_size)
        if not np.all(np.isfinite(tuned.losses)) or not np.all(np.isfinite(tuned.logits)):
            raise InputError(
                f"test-time tuning of {self.name} on {dataset.name} is not finite at the views of seed {seed}; lower "
                "its learning rate"
            )
        return tuned.initial_logits, tuned.logits


class _Views:
    """The views of every image of a dataset in the form that the tuner requires, made when they are sliced."""

    def __init__(self, encoder: Encoder, tuner: Tuner, dataset: Dataset, seed: int, count: int):
        self._encoder, self._tuner, self._dataset, self._drawn = encoder, tuner, dataset, (seed, count)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, chunk: slice) -> np.ndarray:
        encoder, places = self._encoder, [(self._dataset, at) for at in range(len(self))[chunk]]
        if not self._tuner.needs_pixels:
            return np.stack([encoder.test_view_features(*place, *self._drawn) for place in places])
        stacks = []
        for place in places:
            make = functools.partial(encoder.test_views, *place, *self._drawn)
            stacks.append(encoder.keep(*place, f"views {self._drawn}", make))
        return encoder.clip.transform.normalize(np.stack(stacks))
