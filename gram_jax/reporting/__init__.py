"""Tables, plots and pages made from results."""

from gram_jax.reporting.table import Table, pivot, to_markdown, to_text, transpose

__all__ = [
    "Table",
    "pivot",
    "to_markdown",
    "to_text",
    "transpose",
]
