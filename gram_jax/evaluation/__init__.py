"""How results are measured, summarised, stored and shown."""

from gram_jax.evaluation.alternating import AlternatingState, make_alternating
from gram_jax.evaluation.batching import classification_loss, pad_classes, task_context
from gram_jax.evaluation.collapse import (
    class_means,
    duality,
    equiangularity,
    nearest_mean_agreement,
    neural_collapse,
    simplex_distance,
    within_class_variability,
)
from gram_jax.evaluation.draws import batches, epoch_batches, few_shot, few_shot_and_val, long_tail_draw
from gram_jax.evaluation.episodic import Episodic, kept_views, make_episodic, predict_episodic
from gram_jax.evaluation.features import prompted_features
from gram_jax.evaluation.metrics import (
    accuracy,
    calibration_error,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    per_class_accuracy,
)
from gram_jax.evaluation.prediction import predict
from gram_jax.evaluation.probe import linear_probe
from gram_jax.evaluation.results import (
    Comparison,
    Results,
    ResultsError,
    Row,
    compare,
    comparison,
    environment,
    read_results,
    validate,
    write_results,
)
from gram_jax.evaluation.schedules import scheduled_rate
from gram_jax.evaluation.statistics import (
    Summary,
    harmonic_mean,
    harmonic_of_means,
    mean_of_harmonics,
    p_value,
    paired_difference,
    summarize,
)
from gram_jax.evaluation.tables import Table, pivot, to_markdown, to_text, transpose
from gram_jax.evaluation.tuning import (
    Cost,
    Tuned,
    Tuning,
    TuningState,
    make_tuning,
    memory_bytes,
    tune,
)
from gram_jax.evaluation.zero_shot import class_features, image_features

__all__ = [
    "AlternatingState",
    "Comparison",
    "Cost",
    "Episodic",
    "Results",
    "ResultsError",
    "Row",
    "Summary",
    "Table",
    "Tuned",
    "Tuning",
    "TuningState",
    "accuracy",
    "batches",
    "calibration_error",
    "class_features",
    "class_means",
    "classification_loss",
    "compare",
    "comparison",
    "confusion_matrix",
    "duality",
    "environment",
    "epoch_batches",
    "equiangularity",
    "expected_calibration_error",
    "few_shot",
    "few_shot_and_val",
    "harmonic_mean",
    "harmonic_of_means",
    "image_features",
    "kept_views",
    "linear_probe",
    "long_tail_draw",
    "macro_f1",
    "make_alternating",
    "make_episodic",
    "make_tuning",
    "mean_of_harmonics",
    "memory_bytes",
    "nearest_mean_agreement",
    "neural_collapse",
    "p_value",
    "pad_classes",
    "paired_difference",
    "per_class_accuracy",
    "pivot",
    "predict",
    "predict_episodic",
    "prompted_features",
    "read_results",
    "scheduled_rate",
    "simplex_distance",
    "summarize",
    "task_context",
    "to_markdown",
    "to_text",
    "transpose",
    "tune",
    "validate",
    "within_class_variability",
    "write_results",
]
