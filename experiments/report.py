"""Tables and plots from the result files of any number of experiments.

    python -m experiments.report --results=runs/coop,runs/ivlp --workdir=runs/report
    python -m experiments.report --results="runs/*/results.json" --against=coop
    python -m experiments.report --results=runs/low,runs/high --names="low rate,high rate"

Reads the rows of experiments.evaluate and compares the methods: base-to-new, few-shot in the training domain and in
shifted ones, cross-dataset, domain generalization, long tails by head, middle and tail, accuracy along adaptation, each
dataset, and other measured metrics. Differences to the tuner, and to the method of --against, are paired over seeds and
tested. Published numbers are marked; they appear only beside measurements of the same datasets under the same protocol.
Means include only the draws that all methods of a table share. Files of one method under other settings, another clip
or other data are never averaged: each configuration is a line of its own, labeled by --names or by what differs. Notes
below the tables list excluded draws and differences between the files. Writes table.md, .csv and .tex, plots, and
report.html, one page with all of it and a section for each dataset, to the workdir; prints the first tables. Confusion
matrices, calibration and wrong images come from the predictions that experiments.evaluate stores (--save_predictions).
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from gram_jax import reporting
from gram_jax.errors import InputError, require_known
from gram_jax.evaluation import read_results
from gram_jax.io import absolute, is_remote
from gram_jax.reporting.names import ordered

from ._launch import launch, setting

logger = logging.getLogger(__name__)

RESULTS, ROWS = "results.json", "rows.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """The results and the comparisons of a report."""

    results: tuple[str, ...] = setting((), "work directories, files (results.json), or patterns such as runs/*")
    names: tuple[str, ...] = setting((), "a label for each file, for methods of several configurations")
    methods: tuple[str, ...] = setting((), "the compared methods; all methods of the files by default")
    against: str | None = setting(
        None, "a method that every other one is compared with, too; by default zero-shot if no GRAM was measured"
    )
    shots: int | None = setting(None, "shots of the tables by step and by dataset; the largest number by default")

    def __post_init__(self) -> None:
        if not self.results:
            raise InputError("--results is empty: name at least one work directory, e.g. --results=runs/evaluate")


def files_of(texts: Sequence[str]) -> list[epath.Path]:
    """Returns the result files of work directories, folders of them, files and patterns, each once.

    Raises InputError if a text names none.
    """
    files: dict[str, epath.Path] = {}
    for text in texts:
        path = absolute(text)
        found = [path]
        if not path.exists() and not is_remote(text):
            found = _matching(os.fspath(path))
        elif path.is_dir() and not any((path / name).exists() for name in (RESULTS, ROWS)) and not is_remote(text):
            found = [each for each in _matching(f"{glob.escape(os.fspath(path))}/*") if each.is_dir()] or [path]
        if not found:
            raise InputError(f"--results={text}: there is no such file; name a work directory or its {RESULTS}")
        for each in found:
            file = _file_of(each)
            files.setdefault(os.fspath(file) if is_remote(file) else os.path.realpath(file), file)
    return list(files.values())


def _matching(pattern: str) -> list[epath.Path]:
    """Returns the files and the work directories with results that match a pattern."""
    found = [epath.Path(each) for each in sorted(glob.glob(pattern, recursive=True))]
    for each in found:
        if (each / ROWS).exists() and not (each / RESULTS).exists():
            logger.warning("%s has no %s yet: it is left out", each, RESULTS)
    folders = [each for each in found if each.is_dir() and (each / RESULTS).exists()]
    return sorted([*folders, *(each for each in found if each.suffix == ".json" and not each.is_dir())])


def _file_of(path: epath.Path) -> epath.Path:
    """Returns the result file of a work directory, or the file itself."""
    folder = path if path.is_dir() else path.parent
    rows = folder / ROWS
    if path.name == ROWS or (path.is_dir() and not (path / RESULTS).exists()):
        if (folder / RESULTS).exists():
            return folder / RESULTS
        count = rows.read_bytes().count(b"\n") if rows.exists() else 0
        done = f"{ROWS} has {count} units" if count else "nor finished units"
        raise InputError(f"--results={path}: no {RESULTS} in it yet, {done}; run its command again to the end")
    return path / RESULTS if path.is_dir() else path


def run(config: Config, workdir: Any) -> None:
    """Reads the files, writes tables and plots, prints the tables."""
    files = files_of(config.results)
    if config.names and len(config.names) != len(files):
        raise InputError(f"--names={','.join(config.names)}: give one for each of the {len(files)} files of --results")
    results = [read_results(file) for file in files]
    known = ordered(row.method for each in results for row in each.rows)
    for method in config.methods:
        require_known("--methods", method, known)
    rows = (tuple(row for row in each.rows if row.method in (config.methods or known)) for each in results)
    results = [dataclasses.replace(each, rows=kept) for each, kept in zip(results, rows, strict=True)]
    names = [os.path.relpath(file) if not is_remote(file) else os.fspath(file) for file in files]
    settings = {"names": names, "shots": config.shots, "against": config.against, "labels": config.names or None}
    reporting.write_report(results, workdir, show=print, **settings)
    reporting.html_report(results, workdir / "report.html", folders=[file.parent for file in files], **settings)
    print(f"all of it on one page: {workdir / 'report.html'}")


if __name__ == "__main__":
    launch(run, Config)
