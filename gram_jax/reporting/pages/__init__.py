"""Self-contained HTML pages: a report, a check of data, a hierarchy, predictions."""

from gram_jax.reporting.pages.check import CheckedDataset, check_page
from gram_jax.reporting.pages.hierarchy import hierarchy_page
from gram_jax.reporting.pages.predictions import Predicted, Predictions, predictions_page
from gram_jax.reporting.pages.report import html_report

__all__ = [
    "CheckedDataset",
    "Predicted",
    "Predictions",
    "check_page",
    "hierarchy_page",
    "html_report",
    "predictions_page",
]
