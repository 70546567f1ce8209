"""What a report shows of results: merged rows, tables and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gram_jax.errors import InputError, require_known
from gram_jax.evaluation.protocols import PROTOCOLS
from gram_jax.evaluation.results import Results, Row
from gram_jax.reporting import plots, protocol_plots, published
from gram_jax.reporting.configurations import merge
from gram_jax.reporting.grid import default_shots, scopes, shots_of
from gram_jax.reporting.names import default_reference, ordered
from gram_jax.reporting.notes import notes
from gram_jax.reporting.sheets import Sheet, sheets

PLOTS = {
    "accuracy_against_shots": plots.accuracy_against_shots,
    "base_new_h": plots.base_new_h,
    "adaptation": plots.adaptation,
    "base_new_along_tuning": plots.base_new_along_tuning,
    "regulation": plots.regulation,
    "transfer": protocol_plots.transfer,
    "long_tails": protocol_plots.long_tails,
}


class Tabulated(NamedTuple):
    """The rows of all files, the tables that are made of them, and the notes below these."""

    rows: list[Row]
    tables: list[Sheet]
    footer: list[str]


def tabulate(
    results: Sequence[Results],
    names: Sequence[str],
    *,
    shots: int | None = None,
    against: str | None = None,
    labels: Sequence[str] | None = None,
) -> Tabulated:
    """Returns what a report shows; see `write_report`, whose arguments these are."""
    rows = merge(results, names, labels)
    _require_measured(rows, names, shots)
    shots = default_shots(rows) if shots is None else shots
    if against is not None:
        require_known("--against", against, ordered(row.method for row in rows))
    against = against or default_reference(row.method for row in rows)
    unlike = {dataset: reason for each in results for dataset, reason in published.unlike(each).items()}
    tables = list(sheets(rows, shots, against, unlike))
    return Tabulated(rows, tables, notes(rows, tables, unlike, results, names))


def _require_measured(rows: Sequence[Row], names: Sequence[str], shots: int | None) -> None:
    measured = {n for scope in scopes(rows) for n in shots_of(rows, scope)}
    if not measured:
        protocols = ", ".join(sorted({row.protocol for row in rows})) or "no rows at all"
        raise InputError(f"no accuracy of {', '.join(PROTOCOLS)} in {', '.join(names)}; found {protocols}")
    if shots is not None and shots not in measured:
        known = ", ".join(str(n) for n in sorted(n for n in measured if n is not None)) or "none"
        raise InputError(f"--shots={shots} was not measured; the files have {known}")
