from . import baselines, checks, protocols
from .collapse import (
    class_means,
    duality,
    equiangularity,
    nearest_mean_agreement,
    neural_collapse,
    simplex_distance,
    within_class_variability,
)
from .draws import few_shot, few_shot_and_val, long_tail_draw
from .encoder import Encoder
from .features import averaged_class_features, class_features, image_features, prompted_features
from .methods import BaselineMethod, Candidate, Method, Task, ZeroShot, validation_scores
from .metrics import (
    accuracy,
    calibration_error,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    per_class_accuracy,
)
from .plans import Length, TuningPlan
from .prediction import Predictions, predict, predict_labels
from .protocols import Part, Protocol
from .results import (
    Comparison,
    Results,
    Row,
    compare,
    comparison,
    environment,
    measured_by,
    read_results,
    save_results,
    validate,
    warn_of_versions,
    write_results,
)
from .runner import evaluate, prompt_method
from .scoring import Scorer, make_scorer, zero_shot_scorer
from .statistics import Summary, harmonic_mean, harmonic_of_means, mean_of_harmonics, paired_difference, summarize
from .test_time import TestTimePlan

__all__ = [
    "BaselineMethod",
    "Candidate",
    "Comparison",
    "Encoder",
    "Length",
    "Method",
    "Part",
    "Predictions",
    "Protocol",
    "Results",
    "Row",
    "Scorer",
    "Summary",
    "Task",
    "TestTimePlan",
    "TuningPlan",
    "ZeroShot",
    "accuracy",
    "averaged_class_features",
    "baselines",
    "calibration_error",
    "checks",
    "class_features",
    "class_means",
    "compare",
    "comparison",
    "confusion_matrix",
    "duality",
    "environment",
    "equiangularity",
    "evaluate",
    "expected_calibration_error",
    "few_shot",
    "few_shot_and_val",
    "harmonic_mean",
    "harmonic_of_means",
    "image_features",
    "long_tail_draw",
    "macro_f1",
    "make_scorer",
    "mean_of_harmonics",
    "measured_by",
    "nearest_mean_agreement",
    "neural_collapse",
    "paired_difference",
    "per_class_accuracy",
    "predict",
    "predict_labels",
    "prompt_method",
    "prompted_features",
    "protocols",
    "read_results",
    "save_results",
    "simplex_distance",
    "summarize",
    "validate",
    "validation_scores",
    "warn_of_versions",
    "within_class_variability",
    "write_results",
    "zero_shot_scorer",
]
