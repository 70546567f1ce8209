"""The page of a check of datasets: what was found and left out, and what the images look like."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gram_jax.data import Dataset
from gram_jax.data.account import Account
from gram_jax.data.dataset import SPLITS
from gram_jax.data.looks import Suspicion
from gram_jax.reporting.pages.images import card, picture
from gram_jax.reporting.pages.markup import Markup, element, facts, filter_field, joined, listed, table
from gram_jax.reporting.pages.page import Budget, Section, write_page

_IMAGES, _TEXT = 3_000_000, 1_000_000  # bytes of a page
_SAMPLES, _SIDE = 6, 72  # images of a class, and their pixels
_GROUPS, _MEMBERS = 40, 12  # of suspicious images


class CheckedDataset(NamedTuple):
    """The result of the check of one dataset.

    Attributes:
      name: the specification that was checked.
      dataset: the dataset; None if it cannot be read.
      problems, notes: what is wrong, and what is unusual.
      suspicious: images to look at, if all were read.
      all_read: whether every image was read.
    """

    name: str
    dataset: Dataset | None
    problems: Sequence[str]
    notes: Sequence[str]
    suspicious: Sequence[Suspicion] = ()
    all_read: bool = False


def check_page(checked: Sequence[CheckedDataset], path: str | os.PathLike[str]) -> None:
    """Writes what a check found as one self-contained page: counts, what was left out, sample and suspicious images.

    Args:
      checked: what was found, a dataset each.
      path: the file.
    """
    share = max(1, len(checked))
    contents = [_section(each, Budget(_IMAGES // share), _TEXT // share) for each in checked]
    sections = [Section(each.name, content, "Datasets") for each, content in zip(checked, contents, strict=True)]
    if len(checked) > 1:
        sections.insert(0, Section("Overview", _overview(checked)))
    problems = sum(len(each.problems) for each in checked)
    found = f"{problems} problem{'s' * (problems != 1)} found" if problems else "no problems found"
    write_page(path, "Check of data" if share > 1 else f"Check of {checked[0].name}", sections, found)


def _overview(checked: Sequence[CheckedDataset]) -> Markup:
    rows = []
    for name, dataset, problems, notes, *_ in checked:
        sizes = ("", "") if dataset is None else (len(dataset.class_names), len(dataset))
        rows.append((name, *sizes, len(problems), len(notes)))
    return table(("dataset", "classes", "images", "problems", "notes"), rows, caption="Datasets")


def _section(checked: CheckedDataset, budget: Budget, text: int) -> Markup:
    dataset = checked.dataset
    problems = [element("h3", "Problems"), listed(checked.problems, "problems")] if checked.problems else []
    notes = [element("h3", "Notes"), listed(checked.notes, "notes")] if checked.notes else []
    if dataset is None:
        return joined([*problems, *notes])
    sizes = [(split, int((dataset.splits == split).sum())) for split in SPLITS]
    numbers = [(len(dataset.class_names), "classes"), *((count, f"{split} images") for split, count in sizes)]
    about = [("Classes and images from", dataset.about.get("source")), ("Split", dataset.about.get("split"))]
    about += [("Template", dataset.template), ("Content hash", element("code", dataset.content_hash))]
    stats = [element("li", element("b", f"{value:,}"), what) for value, what in numbers]
    unread = "" if checked.all_read else "Not all images were read: --read_all also finds equal, dark and broken ones."
    suspicious = [_suspicious(each, dataset, budget) for each in checked.suspicious]
    return joined([
        element("ul", stats, class_="stats"), *problems, *notes, facts(about),
        _left_out(dataset.about), suspicious, element("p", unread, class_="muted") if unread else "",
        element("h3", "Classes"), _classes(dataset, budget, text),
    ])  # fmt: skip


def _left_out(about: Mapping[str, Any]) -> Markup:
    account = about.get("account")
    if not account or not (left_out := Account.from_json(account).left_out):
        return Markup("")
    rows = [(reason, each.count, ", ".join(each.examples)) for reason, each in left_out.items()]
    return table(("reason", "number", "for example"), rows, caption="Left out")


def _suspicious(found: Suspicion, dataset: Dataset, budget: Budget) -> Markup:
    """Returns groups of images side by side, each with its class, its split and its file."""
    entries = []
    for group in found.groups[:_GROUPS]:
        cards = [_labeled(dataset, position, budget) for position in group[:_MEMBERS]]
        if (hidden := len(group) - _MEMBERS) > 0:
            cards.append(element("p", f"and {hidden} more", class_="muted"))
        entries.append(element("div", cards, class_="gallery group"))
    hidden = len(found.groups) - _GROUPS
    rest = element("p", f"{hidden} more of this kind are not shown.", class_="muted") if hidden > 0 else ""
    return joined([element("h3", found.title), element("div", entries, class_="groups"), rest])


def _labeled(dataset: Dataset, position: int, budget: Budget) -> Markup:
    reference = dataset.references[position]
    name = reference if isinstance(reference, str) else f"image {position}"
    image = picture(lambda: dataset[position], name, budget)
    where = f"{dataset.class_names[dataset.labels[position]]}, {dataset.splits[position]}"
    return card(image, [("", where, "")], name=name)


def _classes(dataset: Dataset, budget: Budget, text: int) -> Markup:
    """Returns every class with its numbers of images and the first few of them, as far as they fit."""
    classes = len(dataset.class_names)
    order = np.argsort(dataset.labels, kind="stable")
    starts = np.searchsorted(dataset.labels[order], np.arange(classes + 1))
    samples, entries = _samples(classes, budget), []
    for name, begin, end in zip(dataset.class_names, starts[:-1], starts[1:], strict=True):
        own = order[begin:end]
        counts = [(split, int((dataset.splits[own] == split).sum())) for split in SPLITS]
        told = element("span", ", ".join(f"{split} {count:,}" for split, count in counts if count), class_="muted")
        strip = [picture(lambda at=at: dataset[at], name, budget, _SIDE) for at in own[:samples].tolist()]
        entries.append(element("div", element("h4", name), told, element("div", strip, class_="strip"), class_="entry"))
        if (text := text - len(name) - 200) < 0:
            entries.append(element("p", f"{classes - len(entries)} more classes are not shown.", class_="muted"))
            break
    return element("div", filter_field("classes"), element("div", entries, class_="entries"), class_="filterable")


def _samples(classes: int, budget: Budget) -> int:
    """Returns the number of images of each class, so that all classes have some if possible."""
    return int(np.clip(budget.left / (2500 * classes), 1, _SAMPLES))
