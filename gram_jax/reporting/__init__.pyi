from . import pages
from .configurations import merge
from .grid import comparisons
from .names import default_reference, label
from .pages import html_report
from .report import write_report
from .tables import Table, pivot, to_latex, to_markdown, to_text, transpose

__all__ = [
    "Table",
    "comparisons",
    "default_reference",
    "html_report",
    "label",
    "merge",
    "pages",
    "pivot",
    "to_latex",
    "to_markdown",
    "to_text",
    "transpose",
    "write_report",
]
