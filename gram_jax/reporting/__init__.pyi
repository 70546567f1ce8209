from .configurations import merge
from .grid import comparisons
from .names import default_reference, label
from .report import write_report
from .tables import Table, pivot, to_latex, to_markdown, to_text, transpose

__all__ = [
    "Table",
    "comparisons",
    "default_reference",
    "label",
    "merge",
    "pivot",
    "to_latex",
    "to_markdown",
    "to_text",
    "transpose",
    "write_report",
]
