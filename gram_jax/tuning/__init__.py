"""Tuning prompts on labeled images, and on single unlabeled images at test time."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
from gram_jax.tuning.alternating import AlternatingState, make_alternating
from gram_jax.tuning.batches import epoch_batches, pad_classes, shuffled_batches
from gram_jax.tuning.loop import Cost, Recipe, Tuned, join, memory_bytes, tune
from gram_jax.tuning.null_space import (
    Covariances,
    NullSpaceState,
    null_space,
    observe,
    task_covariances,
)
from gram_jax.tuning.schedules import scheduled_rate
from gram_jax.tuning.step import Tuning, TuningState, classification_loss, make_tuning
from gram_jax.tuning.test_time import TestTimeTuning, make_test_time_tuning, predict_test_time, select_views

__all__ = [
    "AlternatingState",
    "Cost",
    "Covariances",
    "NullSpaceState",
    "Recipe",
    "TestTimeTuning",
    "Tuned",
    "Tuning",
    "TuningState",
    "classification_loss",
    "epoch_batches",
    "join",
    "make_alternating",
    "make_test_time_tuning",
    "make_tuning",
    "memory_bytes",
    "null_space",
    "observe",
    "pad_classes",
    "predict_test_time",
    "scheduled_rate",
    "select_views",
    "shuffled_batches",
    "task_covariances",
    "tune",
]
