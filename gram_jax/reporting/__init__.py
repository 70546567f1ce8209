"""Tables, plots and reports made from results."""

from gram_jax.reporting.configurations import merge
from gram_jax.reporting.grid import comparisons
from gram_jax.reporting.names import default_reference, label
from gram_jax.reporting.report import write_report
from gram_jax.reporting.tables import Table, pivot, to_latex, to_markdown, to_text, transpose

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
