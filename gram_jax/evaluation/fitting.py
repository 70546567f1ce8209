"""One prompt for use: its learning rate is chosen on validation images, then it is tuned on all labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gram_jax.data import Dataset
from gram_jax.evaluation.encoder import Encoder
from gram_jax.evaluation.methods import Candidate, Task, Trial, ZeroShot, validation_scores
from gram_jax.evaluation.protocols import AllShots, Part, Protocol
from gram_jax.evaluation.scoring import prompt_shapes, without_padding
from gram_jax.evaluation.tuned import TunedMethod
from gram_jax.tuners import Prompt


class Fitted(NamedTuple):
    """The result of `fit_prompt`.

    Attributes:
      prompt: the prompt, tuned on all images.
      learning_rate: the chosen rate.
      validation: the validation accuracy of each rate, `{rate: accuracy}`; empty without validation.
    """

    prompt: Prompt
    learning_rate: float
    validation: dict[float, float]


def zero_shot_accuracy(encoder: Encoder, dataset: Dataset) -> float:
    """Returns the zero-shot accuracy on all images of a dataset.

    Args:
      encoder, dataset: the encoder, and the labeled images.
    """
    trial = Trial(encoder, Task(dataset, Protocol(), None, ()), Candidate())
    (predictions,) = ZeroShot("zero_shot").predict(trial, None, [Part("all", None, dataset)])[None]
    assert predictions is not None  # zero-shot classifies every part
    return float(np.mean(predictions.labels[0] == dataset.labels))


def fit_prompt(
    encoder: Encoder,
    dataset: Dataset,
    method: TunedMethod,
    rates: Sequence[float],
    seed: int,
    shown: Callable[[], Any] = lambda: None,
) -> Fitted:
    """Chooses a learning rate on the images of split "val", and tunes a prompt at this rate on all images.

    The smallest of equally good rates wins. Without validation images the middle rate is used.

    Args:
      encoder, dataset: the encoder, and images of the splits "train" and, if any, "val".
      method: the tuner with its plan, from `prompt_method`; its learning rate is not used.
      rates: the candidate learning rates.
      seed: the seed of the initialization and of the order of the images.
      shown: is called after every optimizer step.

    Returns:
      A `Fitted`.
    """
    step = method.compiled.tuning.step

    def counted(*arguments: Any) -> Any:
        shown()
        return step(*arguments)

    compiled = method.compiled._replace(tuning=method.compiled.tuning._replace(step=counted))
    method = dataclasses.replace(method, compiled=compiled)
    of_rate = {
        rate: method.candidates[0]._replace(described={"learning_rate": rate}, learning_rate=rate)
        for rate in sorted(rates)
    }
    protocol, validation = AllShots(), {}
    if len(of_rate) > 1 and np.any(dataset.splits == "val"):
        task = Task(dataset, protocol, 1, (seed,))
        tested = dataclasses.replace(method, candidates=tuple(of_rate.values()))
        validation = dict(zip(of_rate, validation_scores(tested, encoder, [task]), strict=True))
    best = max(validation, key=validation.__getitem__) if validation else list(of_rate)[(len(of_rate) - 1) // 2]
    everything = dataclasses.replace(dataset, splits=np.full(len(dataset), "train"))
    task = Task(everything, protocol, 1, (seed,))
    learned = method.learn(Trial(encoder, task, of_rate[best]))
    method.require_finite(task, learned)
    prompt = jax.tree.map(lambda leaf: leaf[0], learned.prompts[max(learned.prompts)])
    classes = encoder.clip.class_tokens(list(dataset.class_names), "{}") if method.tuner.needs_names else None
    return Fitted(without_padding(prompt, prompt_shapes(method.tuner, encoder.clip, classes)), best, validation)
