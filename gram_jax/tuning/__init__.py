"""Tuning prompts on labeled images, and on single unlabeled images at test time."""

from gram_jax.tuning.alternating import AlternatingState, make_alternating
from gram_jax.tuning.batches import batches, epoch_batches
from gram_jax.tuning.batching import classification_loss, pad_classes
from gram_jax.tuning.schedules import scheduled_rate
from gram_jax.tuning.step import Cost, Tuned, Tuning, TuningState, make_tuning, memory_bytes, tune
from gram_jax.tuning.test_time import Episodic, kept_views, make_episodic, predict_episodic

__all__ = [
    "AlternatingState",
    "Cost",
    "Episodic",
    "Tuned",
    "Tuning",
    "TuningState",
    "batches",
    "classification_loss",
    "epoch_batches",
    "kept_views",
    "make_alternating",
    "make_episodic",
    "make_tuning",
    "memory_bytes",
    "pad_classes",
    "predict_episodic",
    "scheduled_rate",
    "tune",
]
