"""A whole page: one file with its style, its program and its pictures, which reads nothing from a network."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from gram_jax import __version__  # type: ignore[attr-defined]  # its stub lists lazy names only
from gram_jax.io import write_file
from gram_jax.reporting.pages.markup import Markup, element, joined

MOST_BYTES = 5 * 10**6  # of any page
# Nothing is loaded, whatever a name in the data may contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'"


class Section(NamedTuple):
    """A part of a page that is shown by itself: its title, its content, and the heading of its group in the menu."""

    title: str
    content: Any
    group: str = ""


class Budget:
    """Bytes that may still be used.

    Example:
      >>> budget = Budget(10)
      >>> budget.takes(8), budget.takes(8)
      (True, False)
    """

    def __init__(self, size: int):
        self.left = size

    def takes(self, size: int) -> bool:
        """Uses some bytes and returns True, or returns False if too few are left."""
        if size > self.left:
            return False
        self.left -= size
        return True


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section], subtitle: Any = "") -> None:
    """Writes a page whose sections are chosen from a menu.

    Args:
      path: the file.
      title, subtitle: the heading of the page, and the line below it.
      sections: the parts, of which the first is shown first.
    """
    write_file(path, page(title, sections, subtitle))


def page(title: str, sections: Sequence[Section], subtitle: Any = "") -> str:
    """Returns a page as text, see `write_page`."""
    menu, group = [], ""
    for number, section in enumerate(sections):
        if section.group != group:
            menu.append(element("h2", group := section.group))
        menu.append(element("a", section.title, href=f"#s{number}"))
    parts = [
        element("section", element("h2", each.title), each.content, id=f"s{number}")
        for number, each in enumerate(sections)
    ]
    toggle = element("button", "Dark", type="button", id="theme", aria_label="Light or dark")
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_asset("page.css"))),
    ]
    heading = element("div", element("h1", title), element("p", subtitle, class_="muted"))
    body = [
        element("header", heading, toggle),
        element("div", element("nav", menu, aria_label="Sections") if len(sections) > 1 else "", element("main", parts),
                class_="layout"),
        element("footer", f"gram_jax {__version__}"),
        element("script", Markup(_asset("page.js"))),
    ]  # fmt: skip
    document = element("html", element("head", head), element("body", joined(body)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


@functools.cache
def _asset(name: str) -> str:
    return resources.files("gram_jax").joinpath("assets", "pages", name).read_text("utf-8")
