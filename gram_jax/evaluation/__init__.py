"""Protocols, metrics, statistics and results."""

from gram_jax.evaluation.collapse import (
    class_means,
    duality,
    equiangularity,
    nearest_mean_agreement,
    neural_collapse,
    simplex_distance,
    within_class_variability,
)
from gram_jax.evaluation.draws import few_shot, few_shot_and_val, long_tail_draw
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
    Row,
    compare,
    comparison,
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
from gram_jax.evaluation.zero_shot import class_features, image_features

__all__ = [
    "Comparison",
    "Results",
    "Row",
    "Summary",
    "accuracy",
    "calibration_error",
    "class_features",
    "class_means",
    "compare",
    "comparison",
    "confusion_matrix",
    "duality",
    "environment",
    "equiangularity",
    "expected_calibration_error",
    "few_shot",
    "few_shot_and_val",
    "harmonic_mean",
    "harmonic_of_means",
    "image_features",
    "linear_probe",
    "long_tail_draw",
    "macro_f1",
    "mean_of_harmonics",
    "nearest_mean_agreement",
    "neural_collapse",
    "paired_difference",
    "per_class_accuracy",
    "predict",
    "prompted_features",
    "read_results",
    "simplex_distance",
    "summarize",
    "validate",
    "within_class_variability",
    "write_results",
]
