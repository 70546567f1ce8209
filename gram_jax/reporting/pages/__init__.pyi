from .check import CheckedDataset, check_page
from .hierarchy import hierarchy_page
from .predictions import MOST_IMAGES, Predicted, Predictions, predictions_page
from .report import html_report

__all__ = [
    "MOST_IMAGES",
    "CheckedDataset",
    "Predicted",
    "Predictions",
    "check_page",
    "hierarchy_page",
    "html_report",
    "predictions_page",
]
