"""HTML by functions: every text is escaped, because only `element` makes markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

_VOID = ("img", "input", "meta", "wbr")
_FILTERED = 8  # tables and lists of at least this many entries have a field to filter them
_INVALID = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # what UTF-8 or HTML cannot hold


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: Any) -> Markup:
    r"""Returns a value as HTML text; markup remains as it is, None is empty.

    Example:
      >>> escape("<b> & \ud800"), escape(element("b", "x"))
      ('&lt;b&gt; &amp; �', '<b>x</b>')
    """
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None else html.escape(_INVALID.sub("\N{REPLACEMENT CHARACTER}", str(value))))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns an element; children are texts, markup or lists of them, attributes of None or False are left out.

    Underscores in the names of attributes stand for hyphens, except a last one, which is dropped.

    Example:
      >>> element("td", "a<b", class_="num", data_v=1.5, hidden=True, title=None)
      '<td class="num" data-v="1.5" hidden>a&lt;b</td>'
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    told = (
        key if value is True else f'{key}="{escape(value)}"'
        for key, value in given.items()
        if value is not None and value is not False
    )
    begin = " ".join([name, *told])
    return Markup(f"<{begin}>" if name in _VOID else f"<{begin}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Markup:
    """Returns texts, markup, and lists of them as one piece of markup."""
    return Markup("".join(joined(each) if isinstance(each, (list, tuple)) else escape(each) for each in children))


class Value(NamedTuple):
    """A cell of a table: what is shown, the number it is sorted by, and whether it is emphasized."""

    shown: Any
    number: float | None = None
    strong: bool = False


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "", key: bool = True) -> Markup:
    """Returns a table that is sorted by a click on a column, with a field that filters its rows if they are many.

    Args:
      header: the titles of the columns.
      rows: texts, which are left-aligned, numbers, or `Value`s, whose numbers are right-aligned.
      caption: the title of the table.
      key: whether the first column names the row.
    """
    if not rows:
        return Markup("")
    numeric = [any(_number(row[i]) is not None for row in rows) for i in range(len(header))]
    titles = [
        element("th", element("button", title, type="button"), scope="col", class_="num" if is_number else None)
        for title, is_number in zip(header, numeric, strict=True)
    ]
    body = [element("tr", [_cell(value, numeric[i], key and i == 0) for i, value in enumerate(row)]) for row in rows]
    content = [element("thead", element("tr", titles)), element("tbody", body)]
    title = [element("h3", caption)] if caption else []
    field = [filter_field(f"rows of {caption or 'the table'}")] if len(rows) >= _FILTERED else []
    whole = element("div", element("table", content, class_="sortable"), class_="scroll", tabindex="0")
    return element("div", title, field, whole, class_="filterable")


def filter_field(what: str) -> Markup:
    """Returns a field whose words hide the rows, or the entries, beside it that lack one of them."""
    field = element("input", type="search", placeholder="Filter", aria_label=f"Filter {what}", class_="filter")
    return element("p", field, element("output", class_="muted"), class_="tools")


def _number(value: Any) -> float | None:
    number = value.number if isinstance(value, Value) else value
    return float(number) if isinstance(number, (int, float)) and not isinstance(number, bool) else None


def _cell(value: Any, numeric: bool, names: bool) -> Markup:
    number = _number(value)
    shown = value.shown if isinstance(value, Value) else f"{value:,}" if isinstance(value, int) else value
    content = element("strong", shown) if isinstance(value, Value) and value.strong else shown
    told = {
        "class_": "num" if numeric else None,
        "data_v": None if number is None or number != number else repr(number),
    }
    return element("th", content, scope="row", **told) if names else element("td", content, **told)


def facts(pairs: Iterable[tuple[Any, Any]]) -> Markup:
    """Returns names with their values; empty values are left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", [], ())]
    return element("dl", [[element("dt", name), element("dd", value)] for name, value in shown])


def listed(texts: Iterable[Any], class_: str | None = None) -> Markup:
    """Returns a list, or nothing without entries."""
    entries = [element("li", each) for each in texts]
    return element("ul", entries, class_=class_) if entries else Markup("")


def folded(title: Any, *content: Any, open: bool = False) -> Markup:
    """Returns content that opens below its title."""
    return element("details", element("summary", title), *content, open=open)


def choices(name: str, views: Sequence[tuple[str, Any]]) -> Markup:
    """Returns views of which one is shown, by a list to choose from; without JavaScript all are shown."""
    if len(views) < 2:
        return joined(content for _, content in views)
    options = [element("option", title, value=i) for i, (title, _) in enumerate(views)]
    chosen = element("label", f"{name} ", element("select", options), class_="chooser")
    parts = [element("div", element("h4", title, class_="nojs"), content, class_="view") for title, content in views]
    return element("div", chosen, parts, class_="views")


def figure(picture: Any, caption: Any, class_: str | None = None) -> Markup:
    """Returns a picture with its caption."""
    return element("figure", picture, element("figcaption", caption), class_=class_)


def path_text(path: str) -> Markup:
    """Returns a path that may be broken after its slashes."""
    first, *others = path.split("/")
    return joined([first, *(["/", element("wbr"), part] for part in others)])
