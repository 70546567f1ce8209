"""What a method predicts, image by image: confusion, calibration, classes, and the wrong images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gram_jax.data import Dataset
from gram_jax.errors import InputError
from gram_jax.evaluation import confusion_matrix, measures
from gram_jax.evaluation.metrics import calibration_error, per_class_accuracy
from gram_jax.evaluation.results import Results, Row
from gram_jax.evaluation.stored import Stored, read_predictions, require_belongs
from gram_jax.io import absolute
from gram_jax.reporting.grid import column_title
from gram_jax.reporting.names import label, ordered
from gram_jax.reporting.pages import charts
from gram_jax.reporting.pages.images import absent, card, picture
from gram_jax.reporting.pages.markup import Markup, Value, element, figure, joined, table
from gram_jax.reporting.pages.page import Budget

_WRONG, _PER_PAIR = 24, 3  # images of a gallery, and of one mistake in it
_ROWS, _BEST = 60, 15  # classes of a table; of more classes, the worst, and so many of the best
_CALIBRATION = (
    "Calibration. Dots: share of right predictions in %, with 95 % intervals. On the dashed line, a classifier is as "
    "certain as it is right. Bars: number of images."
)


class Source(NamedTuple):
    """A result file: its content, its folder (None for results in memory), and a label if there are several."""

    results: Results
    folder: str | None
    label: str = ""


class Shown(NamedTuple):
    """Predictions to show: their title, the file they belong to, and what they are."""

    title: str
    stored: Stored


def stored_for(name: str, sources: Sequence[Source]) -> tuple[list[Shown], list[str]]:
    """Returns the stored predictions for a dataset, tuned methods first, and what is wrong with other files."""
    found: list[tuple[tuple, Shown]] = []
    problems: list[str] = []
    files = Counter(method for source in sources for method in {row.method for row in source.results.rows})
    for source in sources:
        rows = [row for row in source.results.rows if row.dataset == name and row.metric == "accuracy"]
        units: dict[tuple, list[Row]] = {}
        for row in rows:
            units.setdefault((row.method, row.protocol, row.shots), []).append(row)
        methods = ordered(row.method for row in rows)
        for (method, protocol, shots), own in units.items() if source.folder is not None else ():
            file = f"{measures.file_name((method, name, protocol, shots))}.npz"
            for each in _read(absolute(source.folder or "") / "predictions" / file, own, problems):
                title = [label(method), column_title(protocol, each.split, shots), each.domain]
                title += [source.label] * (files[method] > 1)
                order = each.domain is not None, shots is None, -(shots or 0), -methods.index(method), each.split
                found.append((order, Shown(", ".join(filter(None, title)), each)))
    return [shown for _, shown in sorted(found, key=lambda pair: pair[0])], problems


def _read(path: epath.Path, rows: Sequence[Row], problems: list[str]) -> list[Stored]:
    """Returns the predictions in a file, if they are those that the rows of a unit were measured on."""
    if not path.exists():
        return []
    try:
        require_belongs(stored := read_predictions(path), rows, path)
    except (InputError, OSError) as error:
        problems.append(str(error))
        return []
    return stored


def view(stored: Stored, images: Any, budget: Budget) -> Markup:
    """Returns what one method does on one set of images."""
    names, right = stored.class_names, stored.labels == stored.predicted
    counts = np.asarray(confusion_matrix(stored.predicted, stored.labels, len(names)))
    error = float(calibration_error(stored.probability.astype(np.float32), right))
    low, high = charts.wilson(stored.accuracy, len(right))
    numbers = [
        (f"{100 * stored.accuracy:.1f} %", f"right, of {len(right):,} images"),
        (f"{100 * low:.1f} to {100 * high:.1f} %", "95 % interval over images (Wilson)"),
        (f"{100 * float(stored.probability.mean()):.1f} %", "mean probability of the predicted class"),
        (f"{100 * error:.1f} %", "expected calibration error, 15 bins"),
    ]
    matrix, shown = charts.confusion(counts, names)
    which = f" The {shown} classes with the most mistakes, of {len(names)}." if shown < len(names) else ""
    seed = "" if stored.seed is None else f" One run, seed {stored.seed}."
    caption = "Confusion matrix. True classes down, predicted classes across; the color is the share of the row."
    curve = figure(charts.calibration(stored.probability, right), _CALIBRATION)
    pictures = element("div", figure(matrix, caption + which + seed), curve, class_="pair")
    return joined(
        [
            element("ul", [element("li", element("b", value), what) for value, what in numbers], class_="stats"),
            pictures,
            element("h4", "Wrong images, the most certain first"),
            _gallery(stored, images, budget),
            _classes(counts, names),
        ]
    )


def _classes(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """Returns a table of the classes, worst first."""
    shares, totals = per_class_accuracy(counts), counts.sum(1)
    order = [i for i in np.argsort(shares, kind="stable") if totals[i]]
    rows = []
    for i in order if len(order) <= _ROWS else [*order[: _ROWS - _BEST], *order[-_BEST:]]:
        wrong = counts[i].copy()
        wrong[i] = 0
        worst = int(wrong.argmax())
        mistaken = f"{names[worst]} ({wrong[worst]})" if wrong[worst] else ""
        low, high = charts.wilson(float(shares[i]), int(totals[i]))
        interval = Value(f"{100 * low:.0f} to {100 * high:.0f}", 100 * low)
        rows.append(
            (names[i], int(totals[i]), Value(f"{100 * shares[i]:.1f}", 100 * float(shares[i])), interval, mistaken)
        )
    header = ("class", "images", "right, %", "95 % interval, %", "most often taken for")
    title = "Worst and best classes" if len(order) > _ROWS else "Classes, worst first"
    note = element("p", f"The {_ROWS - _BEST} worst and {_BEST} best of {len(order)} classes.", class_="muted")
    return joined([table(header, rows, caption=title), note if len(order) > _ROWS else ""])


def _gallery(stored: Stored, images: Any, budget: Budget) -> Markup:
    wrong = np.flatnonzero(stored.labels != stored.predicted)
    if not len(wrong):
        return element("p", "None.", class_="muted")
    dataset = images if isinstance(images, Dataset) else None
    places = {} if dataset is None else {json.dumps(reference): i for i, reference in enumerate(dataset.references)}
    cards = []
    chosen = list(_most_certain(stored, wrong))[:_WRONG]
    for i in chosen:
        reference = str(stored.references[i])
        name = _name(reference)
        if dataset is None:
            image = ""
        elif (place := places.get(reference)) is None:
            image = absent("not in the dataset any more")
        else:
            image = picture(lambda place=place: dataset[place], name, budget)
        true, predicted = (stored.class_names[each[i]] for each in (stored.labels, stored.predicted))
        lines = [("is", true, "yes"), ("taken for", predicted, "no")]
        lines = [("is", true, "yes"), ("taken for", predicted, "no")]
        cards.append(card(image, lines, float(stored.probability[i]), name=name))
    told = f"{len(chosen)} of {len(wrong):,} wrong images, at most {_PER_PAIR} of each mistake."
    if dataset is None:
        told += f" The images cannot be shown: {images}."
    return joined([element("p", told, class_="muted"), element("div", cards, class_="gallery")])


def _most_certain(stored: Stored, wrong: np.ndarray) -> Iterator[int]:
    """Yields wrong images, the most certain first, a few of each mistake."""
    counts: dict[tuple[int, int], int] = {}
    for i in wrong[np.argsort(-stored.probability[wrong], kind="stable")]:
        pair = int(stored.labels[i]), int(stored.predicted[i])
        counts[pair] = counts.get(pair, 0) + 1
        if counts[pair] <= _PER_PAIR:
            yield int(i)


def _name(reference: str) -> str:
    """Returns the file name of a reference; "" for an image without one."""
    value = json.loads(reference)
    return os.path.basename(value) if isinstance(value, str) else ""
