"""The report of results as one page: tables, plots, a section for each dataset, and where the numbers come from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gram_jax.data import Dataset, load_datasets
from gram_jax.data.readers import coop
from gram_jax.errors import InputError
from gram_jax.evaluation.results import Results, Row
from gram_jax.reporting.pages import charts
from gram_jax.reporting.pages.datasets import Source, dataset_section
from gram_jax.reporting.pages.markup import Markup, Value, element, facts, figure, folded, joined, listed, table
from gram_jax.reporting.pages.page import Budget, Section, write_page
from gram_jax.reporting.sheets import DIFFERENCES, Cell, Sheet
from gram_jax.reporting.tabulation import PLOTS, tabulate

logger = logging.getLogger(__name__)

NAME = "report.html"
_IMAGES, _TEXT, _PLOTS = 2_400_000, 1_100_000, 900_000  # bytes of a page
_SCREEN = 28  # lines of tables of the overview
_LONG = 300  # characters of a setting that is folded

_PLOT_TITLES = {
    "accuracy_against_shots": "Accuracy against shots",
    "base_new_h": "Base and new classes",
    "adaptation": "Accuracy along tuning",
    "base_new_along_tuning": "Base and new classes along tuning",
    "regulation": "What the regulator does",
    "transfer": "Other datasets and domains",
    "long_tails": "Long tails",
}


def html_report(
    results: Sequence[Results],
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    folders: Sequence[str | os.PathLike[str] | None] | None = None,
    shots: int | None = None,
    against: str | None = None,
    labels: Sequence[str] | None = None,
    datasets: Mapping[str, Dataset] | None = None,
) -> None:
    """Writes results as one self-contained page of less than 5 MB.

    It shows the tables and notes of `write_report`; the plots that `write_report` wrote beside it; for each dataset its
    accuracies, tuning curves and, from stored predictions, confusion matrix, worst and best classes, calibration and
    wrong images; and the configuration, versions and command of each file.

    Args:
      results: results of any number of runs.
      path: the file, usually "report.html".
      names, shots, against, labels: as for `write_report`.
      folders: the work directory of each result, with stored predictions; None for none.
      datasets: opened datasets by name; others are opened by the configuration, if images of them are to be shown.

    Raises:
      InputError: there is nothing to show, or `against` was not measured.
    """
    names = list(names or (f"results {i + 1}" for i in range(len(results))))
    places = [None if each is None else os.fspath(each) for each in folders or [None] * len(results)]
    rows, tables, footer = tabulate(results, names, shots=shots, against=against, labels=labels)
    several = len(results) > 1
    sources = [
        Source(each, folder, name * several)
        for each, folder, name in zip(results, places, labels or names, strict=True)
    ]
    plots = _plots(epath.Path(path).parent)
    first, others = _divided(tables)
    sections = [Section("Overview", _overview(first, footer))]
    sections += [Section("More tables", list(map(_table, others)))] if others else []
    sections += [Section("Plots", plots)] if plots else []
    sections += [Section("Configuration", _configurations(sources, names))]
    sections += _datasets(rows, sources, dict(datasets or {}))
    write_page(path, "Report", sections, _subtitle(rows))


def _subtitle(rows: Sequence[Row]) -> str:
    counts = [
        len({value for row in rows if (value := getattr(row, name)) is not None})
        for name in ("method", "dataset", "seed")
    ]
    return ", ".join(
        f"{n} {what}{'s' * (n != 1)}" for n, what in zip(counts, ("method", "dataset", "seed"), strict=True) if n
    )


def _divided(tables: Sequence[Sheet]) -> tuple[list[Sheet], list[Sheet]]:
    """Returns the tables of the overview, which are the first ones and the differences, and the others."""
    lines = np.cumsum([3 + len(sheet.rows) for sheet in tables])
    few = max(1, int((lines <= _SCREEN).sum()))
    chosen = [i < few or sheet.title == DIFFERENCES for i, sheet in enumerate(tables)]
    first, others = (
        [sheet for sheet, own in zip(tables, chosen, strict=True) if own is wanted] for wanted in (True, False)
    )
    return first, others


def _overview(tables: Sequence[Sheet], footer: Sequence[str]) -> Markup:
    notes = listed(map(_emphasized, footer), "fine")
    return joined([*map(_table, tables), element("h3", "How to read the numbers"), notes])


def _emphasized(text: str) -> Markup:
    """Returns a note whose text between two pairs of asterisks is strong."""
    parts = text.split("**")
    return joined(element("strong", part) if i % 2 else part for i, part in enumerate(parts))


def _table(sheet: Sheet) -> Markup:
    body = [[name, *map(_cell, cells)] for name, cells in zip(sheet.labels, sheet.rows, strict=True)]
    return table(sheet.header, body, caption=sheet.title)


def _cell(cell: Cell) -> Any:
    """Returns a number, whose interval is aligned apart from it, or a text."""
    text = str(cell)
    if cell.summary is None:
        return _number(text)
    mean, _, interval = text.partition(" ")
    shown = Markup(mean + element("span", interval, class_=None if cell.signed else "pm") if not cell.signed else text)
    return Value(shown, 100 * cell.summary.mean, cell.significant)


def _number(text: str) -> Any:
    """Returns a text that begins with a number as a cell that is sorted by it."""
    try:
        return Value(text, float(text.removeprefix("< ").split(" ")[0]))
    except ValueError:
        return text


def _plots(folder: epath.Path) -> list[Markup]:
    """Returns the plots in a folder that fit on the page."""
    found: list[Markup] = []
    budget = Budget(_PLOTS)
    for name in PLOTS:
        file = folder / f"{name}.svg"
        if not file.exists():
            continue
        title = _PLOT_TITLES.get(name, name)
        plot = charts.adapted(file.read_text(), len(found))
        if not budget.takes(len(plot)):
            plot = element("p", f"Too large for this page: {file.name}", class_="muted")
        found.append(joined([element("h3", title), figure(element("div", plot, class_="scroll"), "", "plot")]))
    return found


def _configurations(sources: Sequence[Source], names: Sequence[str]) -> list[Markup]:
    return [
        folded(element("strong", name), *_configuration(source), open=number == 0)
        for number, (source, name) in enumerate(zip(sources, names, strict=True))
    ]


def _configuration(source: Source) -> list[Markup]:
    """Returns the command, the versions and all settings of a file."""
    config, environment = dict(source.results.config), dict(source.results.environment)
    command = environment.pop("command", None)
    if command and source.folder is not None:
        command += f" --workdir={source.folder}"
    versions = environment.pop("packages", None)
    versions = versions if isinstance(versions, Mapping) else {}
    device = environment.pop("device", None)
    device = device if isinstance(device, Mapping) else {}
    told = [
        ("Folder", source.folder),
        ("Code", environment.get("git")),
        ("Weights of the clip", environment.get("weights")),
    ]
    told += [("Python", environment.get("python")), ("Device", ", ".join(f"{k} {v}" for k, v in device.items()))]
    parts = [element("h3", "Command"), element("pre", command or "not stored in this file")]
    parts += [element("h3", "Versions and device"), facts([*told, *versions.items()])]
    rows = [(name, _setting(value)) for name, value in sorted(config.items()) if name != "datasets"]
    parts += [table(("setting", "value"), rows, caption="Settings")]
    rows = [
        (name, _setting(value))
        for name, value in sorted(environment.items())
        if name not in ("git", "weights", "python")
    ]
    return [*parts, table(("entry", "value"), rows, caption="Hashes of data and code")]


def _setting(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) <= _LONG:
        return element("code", text)
    indented = json.dumps(value, ensure_ascii=False, default=str, indent=1)[:20_000]
    return folded(f"{len(text):,} characters", element("pre", indented))


def _datasets(rows: Sequence[Row], sources: Sequence[Source], opened: dict[str, Dataset]) -> list[Section]:
    """Returns a section for each dataset that was tuned on; all have an equal share of the page."""
    names = list(dict.fromkeys(row.dataset for row in rows if row.metric == "accuracy"))
    sections, failed = [], {}
    share = max(1, len(names))

    def images(name: str) -> Dataset | str:
        if name not in opened and name not in failed:
            failed[name] = _open(name, sources, opened)
        return opened.get(name) or failed[name]

    for name in names:
        budgets = Budget(_IMAGES // share), Budget(_TEXT // share)
        sections.append(Section(name, dataset_section(name, rows, sources, images, *budgets), "Datasets"))
    return sections


def _open(name: str, sources: Sequence[Source], opened: dict[str, Dataset]) -> str:
    """Opens the datasets of the file that measured one; returns why it has none to show, or ""."""
    for source in sources:
        config, expected = source.results.config, source.results.environment.get("splits")
        if not isinstance(expected, Mapping) or name not in expected:
            continue
        texts = [text for key in ("dataset", "source", "targets") for text in config.get(key) or ()]
        try:
            settings = {"seed": config.get("dataset_seed", 0), "gray_range": config.get("gray_range")}
            for dataset in load_datasets(coop.expand(texts), **settings).values():
                if dataset.content_hash == expected.get(dataset.name):
                    opened.setdefault(dataset.name, dataset)
                elif dataset.name == name:
                    return "they have changed since"
        except (InputError, OSError, TypeError, ValueError) as error:
            return str(error)
        if name not in opened:
            return "this domain is not among the datasets of the command"
        return ""
    return "no file tells where they are"
