"""How results are measured, summarised, stored and shown."""

from gram_jax.evaluation.batching import classification_loss, pad_classes, task_context
from gram_jax.evaluation.draws import batches, few_shot
from gram_jax.evaluation.metrics import (
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    per_class_accuracy,
)
from gram_jax.evaluation.probe import linear_probe
from gram_jax.evaluation.results import (
    Comparison,
    Results,
    ResultsError,
    Row,
    compare,
    environment,
    read_results,
    validate,
    write_results,
)
from gram_jax.evaluation.statistics import (
    Summary,
    harmonic_mean,
    harmonic_of_means,
    mean_of_harmonics,
    paired_difference,
    summarize,
)
from gram_jax.evaluation.tables import Table, pivot, to_markdown, to_text, transpose
from gram_jax.evaluation.tuning import (
    Tuned,
    Tuning,
    TuningState,
    make_tuning,
    predict,
    tune,
)
from gram_jax.evaluation.zero_shot import class_features, image_features

__all__ = [
    "Comparison",
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
    "class_features",
    "classification_loss",
    "compare",
    "confusion_matrix",
    "environment",
    "expected_calibration_error",
    "few_shot",
    "harmonic_mean",
    "harmonic_of_means",
    "image_features",
    "linear_probe",
    "macro_f1",
    "make_tuning",
    "mean_of_harmonics",
    "pad_classes",
    "paired_difference",
    "per_class_accuracy",
    "pivot",
    "predict",
    "read_results",
    "summarize",
    "task_context",
    "to_markdown",
    "to_text",
    "transpose",
    "tune",
    "validate",
    "write_results",
]
