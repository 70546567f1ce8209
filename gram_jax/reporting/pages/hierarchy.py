"""The page of a hierarchy: theme > class > visual domain, with names, sizes and sample pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import numpy as np

from gram_jax.data import Corpus
from gram_jax.reporting.pages.images import picture, text_bytes
from gram_jax.reporting.pages.markup import Markup, element, facts, filter_field, joined, table
from gram_jax.reporting.pages.page import Budget, Section, write_page
from gram_jax.tasks import Hierarchy

_IMAGES, _TEXT = 3_000_000, 1_500_000  # bytes of a page
_SAMPLES, _SIDE = 4, 56  # pairs of a visual domain, and the pixels of their images
_LONG = 120  # characters of a caption


def hierarchy_page(hierarchy: Hierarchy, corpus: Corpus, path: str | os.PathLike[str]) -> None:
    """Writes a hierarchy as one self-contained page, the largest themes first.

    Sample pairs are shown as far as they fit; every theme shows those of some classes.

    Args:
      hierarchy, corpus: the hierarchy, and the corpus that it was built of.
      path: the file.
    """
    h = hierarchy
    sections = [
        Section("Themes", _themes(h, corpus)),
        Section("All classes", _class_table(h)),
        Section("Origin", facts((name, json.dumps(value, ensure_ascii=False)) for name, value in h.about.items())),
    ]
    told = f"{len(h.theme_texts):,} themes, {len(h.texts):,} classes, {len(h.members):,} pairs of {len(corpus):,}"
    write_page(path, "Hierarchy of a corpus", sections, told)


def _themes(h: Hierarchy, corpus: Corpus) -> Markup:
    sizes = np.bincount(h.classes, minlength=len(h.texts))
    pairs = np.bincount(h.themes, sizes, minlength=len(h.theme_texts)).astype(int)
    share = max(1, len(h.theme_texts))
    themes = []
    for number, theme in enumerate(np.argsort(-pairs, kind="stable").tolist()):
        budgets = Budget(_IMAGES // share), Budget(_TEXT // share)
        classes = np.flatnonzero(h.themes == theme)
        classes = classes[np.argsort(-sizes[classes], kind="stable")].tolist()
        told = f" {len(classes):,} classes, {pairs[theme]:,} pairs"
        title = [h.theme_texts[theme], element("span", told, class_="muted")]
        entries = list(_entries(h, corpus, classes, *budgets))
        themes.append(element("details", element("summary", title), entries, class_="theme", open=number == 0))
    hint = "Themes are ordered by their pairs, classes within them too. The filter reads class names and captions."
    return element("div", element("p", hint, class_="muted"), filter_field("classes"), themes, class_="filterable")


def _entries(h: Hierarchy, corpus: Corpus, classes: list[int], images: Budget, text: Budget) -> Iterator[Markup]:
    """Yields the classes of a theme, as long as they fit: with sample pairs, then by name and size only."""
    bare = []
    for number in classes:
        own = h.members_of_classes[number]
        domains = np.bincount(h.domains[own])
        told = f"{len(own):,} pairs"
        if len(domains) > 1:
            told += f" in {len(domains)} visual domains of {', '.join(map(str, domains))}"
        entry = None
        if images.left > 4000 and text.left > 4000:
            samples = [_domain(h, corpus, own[h.domains[own] == domain], images) for domain in range(len(domains))]
            title = element("h4", h.texts[number]), element("span", told, class_="muted")
            entry = element("div", title, element("div", samples, class_="domains"), class_="entry")
        if entry is not None and text.takes(text_bytes(entry)):
            yield entry
        else:
            bare.append(f"{h.texts[number]} ({len(own):,})")
    if bare:
        yield element("div", element("h4", f"{len(bare):,} more classes"), ", ".join(bare)[:20_000], class_="entry")


def _domain(h: Hierarchy, corpus: Corpus, own: np.ndarray, budget: Budget) -> Markup:
    """Returns a strip of images of one visual domain, and the caption of the first."""
    members = h.members[own[:_SAMPLES]].tolist()
    strip = [picture(lambda at=at: corpus[at], _caption(corpus, at), budget, _SIDE) for at in members]
    captions = "; ".join(dict.fromkeys(_caption(corpus, at) for at in members[:2]))
    told = element("span", captions, class_="muted")
    return element("div", element("div", strip, class_="strip"), told, class_="domain")


def _caption(corpus: Corpus, position: int) -> str:
    text = corpus.captions[position]
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


def _class_table(h: Hierarchy) -> Markup:
    sizes = np.bincount(h.classes, minlength=len(h.texts))
    most = 4000
    order = np.argsort(-sizes, kind="stable")[:most].tolist()
    domains = np.zeros(len(h.texts), int)
    np.maximum.at(domains, h.classes, h.domains + 1)
    rows = [(h.texts[i], h.theme_texts[h.themes[i]], int(sizes[i]), int(domains[i])) for i in order]
    note = f"The {most:,} largest of {len(h.texts):,} classes." if len(h.texts) > most else ""
    return joined([element("p", note, class_="muted"), table(("class", "theme", "pairs", "domains"), rows)])
