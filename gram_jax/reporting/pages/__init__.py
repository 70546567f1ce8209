"""Self-contained HTML pages: a report, a check of data, a hierarchy, predictions."""

from gram_jax.reporting.pages.report import html_report

__all__ = ["html_report"]
