from .alternating import AlternatingState, make_alternating
from .batches import epoch_batches, pad_classes, shuffled_batches
from .loop import Cost, Recipe, Tuned, join, memory_bytes, tune
from .nullspace import Covariances, NullSpaceState, null_space, observe, task_covariances
from .recurrent import Recurrent, tune_in_phases
from .schedules import scheduled_rate
from .step import Tuning, TuningState, classification_loss, make_tuning
from .test_time import TestTimeTuning, make_test_time_tuning, predict_test_time, select_views

__all__ = [
    "AlternatingState",
    "Cost",
    "Covariances",
    "NullSpaceState",
    "Recipe",
    "Recurrent",
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
    "tune_in_phases",
]
