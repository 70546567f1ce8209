"""Writes the tables of the documentation from the committed measurements in docs/results.

    python docs/tables.py

A page marks a table by `<!-- table: NAME -->` and `<!-- end -->`; this script replaces the lines between them by
docs/results/NAME.csv. `tests/unit/test_docs.py` checks that every page is up to date.

The long form has the columns of `LONG`: one value per line, with the 95 % interval of a difference; `clear` is 1 if the
interval leaves out 0 (before rounding), and such a value is printed in bold. A file with the columns of `MEASURED`
holds measurements of methods, named as in results.json. Each metric is shown after the last step and, in a second
column, after the first one. Its values are numbers, which are averaged if there is one for each seed, or texts, as they
are printed. Every other file is a table as it is printed. The tables of `FROM_LIBRARY` are facts of the library.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parent
LONG = ["row", "column", "value", "low", "high", "clear"]
MEASURED = ["protocol", "dataset", "method", "shots", "seeds", "step", "metric", "value"]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"^\**[-+]?\d")


def pages() -> list[Path]:
    """Returns every Markdown page of the documentation, and the README."""
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def read(name: str) -> list[list[str]]:
    """Returns the cells of a table, the header first."""
    if name in FROM_LIBRARY:
        return FROM_LIBRARY[name]()
    with (DOCS / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    if header == MEASURED:
        return along_tuning(lines)
    return pivot(lines) if header == LONG else [header, *lines]


def glyph_datasets() -> list[list[str]]:
    """Returns name, classes, template and unseen typefaces of the labeled datasets of the glyph benchmark."""
    from gram_jax.data import glyphs

    lines = []
    for name in glyphs.NAMES:
        dataset = glyphs.catalog(name)
        unseen = [domain for domain in glyphs.unseen_domains(dataset) if domain in glyphs.FACES]
        lines.append([name, str(len(dataset.class_names)), dataset.template, ", ".join(unseen)])
    return [["dataset", "classes", "template", "unseen typefaces"], *lines]


def published_datasets() -> list[list[str]]:
    """Returns the facts about the published datasets."""
    from gram_jax.data.readers.coop_datasets import DATASETS

    lines = [["name", "folder", "classes", "train / val / test", "template"]]
    for each in DATASETS.values():
        classes, *sizes = (f"{count:,}" if count else "-" for count in each.counts)
        lines.append([each.name, each.folder, classes, " / ".join(sizes), each.template])
    return lines


FROM_LIBRARY = {"glyph_datasets": glyph_datasets, "published_datasets": published_datasets}


def pivot(lines: list[list[str]]) -> list[list[str]]:
    """Returns the table of the long form: rows and columns in the order in which they first appear."""
    cells = {}
    for row, column, value, low, high, clear in lines:
        text = f"{value} [{low}, {high}]" if low else value
        cells[row, column] = f"**{text}**" if clear == "1" else text
    rows, columns = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    return [["", *columns], *([row, *(cells.get((row, column), "") for column in columns)] for row in rows)]


def along_tuning(lines: list[list[str]]) -> list[list[str]]:
    """Returns the table of measurements: a row for each combination of the fields that vary."""
    import pandas as pd

    from gram_jax.reporting import label

    frame = pd.DataFrame(lines, columns=MEASURED).astype({"step": int})
    frame["method"] = frame["method"].map(label)
    shown = [name for name in MEASURED[:4] if name == "method" or frame[name].nunique() > 1]
    first, last = frame["step"].min(), frame["step"].max()
    frame = frame[frame["step"].isin((first, last))]
    early = frame["metric"] + f", {first} steps"
    frame = frame.assign(column=frame["metric"].where(frame["step"] == last, early))
    both = [(metric, f"{metric}, {first} steps") for metric in frame["metric"].unique()]
    columns = [column for pair in both for column in pair if column in set(frame["column"])]
    wide = frame.pivot_table(index=shown, columns="column", values="value", aggfunc=_cell, sort=False, fill_value="")
    return [shown + columns, *wide[columns].reset_index().to_numpy().tolist()]


def _cell(values: Sequence[str]) -> str:
    """Returns a text as it is, or the mean of several numbers with its 95 % interval."""
    from gram_jax.evaluation import summarize
    from gram_jax.reporting.tables import format_summary

    texts = list(values)
    return texts[0] if len(texts) == 1 else format_summary(summarize([float(text) for text in texts]))


def markdown(cells: list[list[str]]) -> str:
    """Returns a Markdown table; columns of numbers are aligned to the right."""
    numeric = [all(NUMBER.match(cell) or not cell for cell in column[1:]) for column in zip(*cells, strict=True)]
    rule = ["--:" if right else ":--" for right in numeric]
    lines = (cells[0], rule, *cells[1:])
    return "".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) + "\n" for line in lines)


def rendered(page: str) -> str:
    """Returns a page with its marked tables written again."""
    return MARKED.sub(lambda match: f"{match[1]}{markdown(read(match[2]))}{match[3]}", page)


if __name__ == "__main__":
    for path in pages():
        before = path.read_text(encoding="utf-8")
        if (after := rendered(before)) != before:
            path.write_text(after, encoding="utf-8")
