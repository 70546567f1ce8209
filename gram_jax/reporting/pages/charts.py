"""Charts as SVG whose colors follow the page: curves with intervals, calibration, confusion."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gram_jax.reporting.pages.markup import Markup, element

WIDTH, HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 10, 40
_MOST_CLASSES, _COUNTED, _CELL = 40, 20, 17  # of a confusion matrix; up to so many classes the counts are written
_BINS = 10


class Curve(NamedTuple):
    """A curve of a chart: its name, its color, and for each place a mean with the ends of its interval, in %."""

    name: str
    color: str
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def legend(names: Sequence[tuple[str, str]]) -> Markup:
    """Returns the names of curves beside their colors."""

    def mark(color: str) -> Markup:
        return element(
            "svg", element("rect", width=14, height=4, y=5, rx=2, style=f"fill: {color}"), width=14, height=14
        )

    return element("ul", [element("li", mark(color), name) for name, color in names], class_="legend")


def curves(lines: Sequence[Curve], places: Sequence[Any], title: str) -> Markup:
    """Returns curves over evenly spaced, named places, with bands of their intervals; the axis fits the values."""
    values = [
        value for line in lines for side in (line.means, line.lows, line.highs) for value in side if value == value
    ]
    ticks = _ticks(max(0.0, min(values)), min(100.0, max(values)))
    low, high = ticks[0], ticks[-1]
    step = (WIDTH - _LEFT - _RIGHT - 20) / max(1, len(places) - 1)

    def at(place: int, value: float) -> str:
        value = min(100.0, max(0.0, value))
        return f"{_LEFT + 10 + place * step:.1f},{_y((value - low) / (high - low)):.1f}"

    shapes: list[Markup] = [_axes(ticks, low, high)]
    for place, name in enumerate(places):
        shapes.append(_text(_LEFT + 10 + place * step, HEIGHT - _BOTTOM + 15, name, "middle"))
    for line in lines:
        known = [i for i, value in enumerate(line.means) if value == value]
        band = [at(i, line.highs[i]) for i in known] + [at(i, line.lows[i]) for i in reversed(known)]
        shapes.append(element("polygon", points=" ".join(band), style=f"fill: {line.color}; fill-opacity: 0.14"))
        style = f"fill: none; stroke: {line.color}; stroke-width: 2"
        shapes.append(element("polyline", points=" ".join(at(i, line.means[i]) for i in known), style=style))
        for i in known:
            x, y = at(i, line.means[i]).split(",")
            told = f"{line.name}, {places[i]}: {line.means[i]:.1f} [{line.lows[i]:.1f}, {line.highs[i]:.1f}]"
            shapes.append(element("circle", element("title", told), cx=x, cy=y, r=3, style=f"fill: {line.color}"))
    shapes.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 6, title, "middle", "soft"))
    return _svg(WIDTH, HEIGHT, shapes, title)


def calibration(probability: np.ndarray, right: np.ndarray) -> Markup:
    """Returns the share of right predictions against their probability, in ten bins, with 95 % intervals of Wilson.

    Bars show how many images a bin holds; the diagonal is a calibrated classifier.
    """
    bins = np.clip(np.ceil(probability * _BINS).astype(int) - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    span = WIDTH - _LEFT - _RIGHT
    shapes = [_axes([0, 20, 40, 60, 80, 100], 0, 100)]
    for place, count in enumerate(counts):
        tall = (HEIGHT - _TOP - _BOTTOM) * 0.9 * count / counts.max()
        box = {"x": f"{_LEFT + (place + 0.12) * span / _BINS:.1f}", "y": f"{HEIGHT - _BOTTOM - tall:.1f}"}
        told = element("title", f"{count} images of {10 * place} to {10 * place + 10} %")
        size = {"width": f"{0.76 * span / _BINS:.1f}", "height": f"{tall:.1f}"}
        shapes.append(element("rect", told, **box, **size, class_="bars", fill_opacity="0.28"))
    ends = {"x1": _LEFT, "y1": _y(0.0), "x2": _LEFT + span, "y2": _y(1.0)}
    shapes.append(element("line", **ends, class_="axis", stroke_dasharray="4 4"))
    for place, count in enumerate(counts):
        if count:
            own = bins == place
            x = _LEFT + span * float(probability[own].mean())
            share = float(right[own].mean())
            low, high = wilson(share, int(count))
            told = element(
                "title",
                f"mean probability {100 * probability[own].mean():.0f} %, {100 * share:.0f} % right, {count} images",
            )
            shapes.append(element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{_y(low):.1f}", y2=f"{_y(high):.1f}",
                                  style="stroke: var(--ink); stroke-opacity: 0.55"))  # fmt: skip
            shapes.append(element("circle", told, cx=f"{x:.1f}", cy=f"{_y(share):.1f}", r=3.5, class_="wrong"))
    for percent in (0, 20, 40, 60, 80, 100):
        shapes.append(_text(_LEFT + span * percent / 100, HEIGHT - _BOTTOM + 15, percent, "middle"))
    shapes.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 6, "probability of the predicted class, %", "middle", "soft"))
    return _svg(WIDTH, HEIGHT, shapes, "calibration: share of right predictions, in %, against their probability")


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of a number of trials.

    Example:
      >>> [round(end, 3) for end in wilson(0.5, 10)]
      [0.237, 0.763]

    Reference:
      Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 1927.
    """
    z = 1.959963984540054
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def confusion(counts: np.ndarray, names: Sequence[str]) -> tuple[Markup, int]:
    """Returns a confusion matrix, true classes down and predicted ones across, and how many classes it shows.

    Of more than 40 classes it shows those with the most mistakes. The strength of a color is the share of the row.
    """
    mistakes = counts + counts.T
    chosen = list(range(len(names)))
    if len(names) > _MOST_CLASSES:
        wrong = mistakes.sum(1) - mistakes.diagonal()
        chosen = sorted(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES].tolist())
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    cell = _CELL if len(chosen) > _COUNTED else 26
    shown = [_short(names[i]) for i in chosen]
    edge = 16 + int(6.6 * max(map(len, shown)))
    top = 18 + int(4.9 * max(map(len, shown)))  # names across are tilted
    side = cell * len(chosen)
    shapes = []
    for row, true in enumerate(chosen):
        middle = top + (row + 0.5) * cell + 4
        shapes.append(_text(edge - 5, middle, shown[row], "end"))
        corner = edge + (row + 0.5) * cell + 4, top - 5
        shapes.append(_text(*corner, shown[row], "start", turn=-45))
        for column, predicted in enumerate(chosen):
            if count := int(counts[true, predicted]):
                shapes.append(_count(edge + column * cell, top + row * cell, cell, shares[true, predicted], count,
                                     f"{names[true]} as {names[predicted]}: {count}", true == predicted,
                                     len(chosen) <= _COUNTED))  # fmt: skip
    frame = {"x": edge, "y": top, "width": side, "height": side, "fill": "none", "class_": "axis"}
    width, height = edge + side + top, top + side + 4
    title = "confusion matrix, true classes down, predicted classes across"
    cuts = (f"M{edge},{top + i * cell}h{side}M{edge + i * cell},{top}v{side}" for i in range(1, len(chosen)))
    lines = [element("path", d="".join(cuts), class_="grid", stroke_width="0.5")]
    matrix = _svg(width, height, [*lines, *shapes, element("rect", **frame)], title, fixed=True)
    return element("div", matrix, class_="scroll", tabindex="0"), len(chosen)


def _count(x: float, y: float, cell: int, share: float, count: int, told: str, right: bool, written: bool) -> Markup:
    opacity = f"{0.12 + 0.88 * share:.2f}"
    kind = "right" if right else "wrong"
    box = element("rect", element("title", told), x=x + 0.5, y=y + 0.5, width=cell - 1, height=cell - 1, class_=kind,
                  fill_opacity=opacity)  # fmt: skip
    if not written:
        return box
    return Markup(box + _text(x + cell / 2, y + cell / 2 + 4, count, "middle", "on" if share > 0.6 else None))


def adapted(svg: str, number: int) -> Markup:
    """Returns a plot of matplotlib in the colors of the page, without header, its identifiers numbered."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{number}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"fill: #ffffff(?=[;\"])", "fill: none", text)
    for color, name in (("#000000", "ink"), ("#6b6b6b", "muted"), ("#dddddd", "line")):
        text = text.replace(f" {color}", f" var(--{name})")
    return Markup(text)


def _ticks(low: float, high: float) -> list[float]:
    """Returns at most seven round percentages around all values, at least two points apart: noise stays small."""
    low = min(low, high - 2) if high > 2 else low
    for step in (0.5, 1, 2, 5, 10, 20):
        first, last = max(0, math.floor(low / step)), min(round(100 / step), math.ceil(high / step))
        if last - first <= 6:
            break
    return [step * number for number in range(min(first, last - 1), last + 1)]


def _y(share: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - share)


def _axes(ticks: Sequence[float], low: float, high: float) -> Markup:
    shapes = []
    for tick in ticks:
        y = f"{_y((tick - low) / (high - low)):.1f}"
        shapes.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        shapes.append(_text(_LEFT - 6, float(y) + 4, f"{tick:g}", "end"))
    return Markup("".join(shapes))


def _text(x: float, y: float, text: Any, anchor: str, class_: str | None = None, turn: int = 0) -> Markup:
    x, y = round(x, 1), round(y, 1)
    turned = f"rotate({turn} {x:g} {y:g})" if turn else None
    return element("text", text, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, class_=class_, transform=turned)


def _short(name: str, letters: int = 24) -> str:
    """Returns a name without its middle if it is long: long names often differ at their ends."""
    return name if len(name) <= letters else f"{name[: letters // 2]}…{name[-letters // 2 + 1 :]}"


def _svg(width: float, height: float, shapes: Sequence[Any], title: str, fixed: bool = False) -> Markup:
    size = {"width": width, "height": height} if fixed else {}
    return element("svg", shapes, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, **size)
