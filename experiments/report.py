"""Tables and plots from the result files of any number of experiments.

    python -m experiments.report --results=runs/coop/results.json,runs/ivlp/results.json --workdir=runs/report
    python -m experiments.report --results=runs/coop/results.json,runs/maple/results.json --against=coop

Reads the rows of experiments.evaluate and compares the methods: base-to-new, few-shot in the training domain and in
shifted ones, cross-dataset, domain generalization, long tails by head, middle and tail, accuracy along adaptation, each
dataset, and other measured metrics. Differences to the tuner, and to the method of --against, are paired over seeds and
tested. Published numbers are marked; they appear only beside measurements of the same datasets under the same protocol.
Means include only the draws that all methods of a table share. Notes below the tables list excluded draws and
differences between the files. Writes table.md, table.csv and plots to the workdir and prints the tables.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gram_jax import reporting
from gram_jax.errors import InputError, require_known
from gram_jax.evaluation import read_results
from gram_jax.reporting.names import ordered

from ._launch import launch, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """The results and the comparisons of a report."""

    results: tuple[str, ...] = setting((), "result files (results.json)")
    methods: tuple[str, ...] = setting((), "the compared methods; all methods of the files by default")
    against: str | None = setting(
        None, "a method that every other one is compared with, too; by default zero-shot if no GRAM was measured"
    )
    shots: int | None = setting(None, "shots of the tables by step and by dataset; the largest number by default")

    def __post_init__(self) -> None:
        if not self.results:
            raise InputError("--results is empty: name at least one result file, e.g. --results=runs/coop/results.json")
        for file in self.results:
            if self.results.count(file) > 1:
                raise InputError(f"--results names {file} twice; name each file once")


def run(config: Config, workdir: Any) -> None:
    """Reads the files, writes tables and plots, prints the tables."""
    results = [read_results(file) for file in config.results]
    known = ordered(row.method for each in results for row in each.rows)
    for method in config.methods:
        require_known("--methods", method, known)
    chosen = config.methods or known
    if config.against is not None:
        require_known("--against", config.against, chosen)
    rows = (tuple(row for row in each.rows if row.method in chosen) for each in results)
    results = [dataclasses.replace(each, rows=kept) for each, kept in zip(results, rows, strict=True)]
    settings = {"names": config.results, "shots": config.shots, "against": config.against}
    reporting.write_report(results, workdir, show=print, **settings)


if __name__ == "__main__":
    launch(run, Config)
