"""How a `Chart` becomes SVG: the frame, the bands below the lines below the marks, and the labels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from .charts_markup import Markup, Value, joined, number, tag
from .charts_parts import Axis, Chart, Mark, Series, Shape, spread
from .charts_style import STANDALONE_CSS

_LABEL_GAP, _LETTER, _WIDEST_LABEL = 11.5, 5.4, 118.0


class _Box(NamedTuple):
    """The plot inside its drawing, and the way from values to coordinates."""

    left: float
    right: float
    top: float
    bottom: float
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.x.at(x, self.left, self.right), self.y.at(y, self.bottom, self.top)

    def holds(self, x: float, y: float) -> bool:
        return self.x.low <= x <= self.x.high and self.y.low <= y <= self.y.high


def drawn(chart: Chart) -> Markup:
    """The chart as an `svg` element, without colours of its own."""
    attributes: dict[str, Value] = {
        "class": "chart",
        "viewBox": f"0 0 {chart.width} {chart.height}",
        "role": "img",
        "aria-label": ". ".join(part for part in (chart.title, chart.description) if part) or "chart",
    }
    return tag("svg", attributes, _content(chart))


def document(charts: Sequence[Chart], columns: int, gap: int, title: str) -> Markup:
    """An SVG file: its own colours, its paper, and the charts in rows."""
    columns = max(1, min(columns, len(charts)))
    wide, high = max((c.width for c in charts), default=1), max((c.height for c in charts), default=1)
    head = 26 if title else 0
    rows = math.ceil(len(charts) / columns)
    width, height = columns * (wide + gap) + gap, rows * (high + gap) + gap + head
    placed = [
        tag("g", {"transform": f"translate({gap + k % columns * (wide + gap)} {gap + head + k // columns * (high + gap)})"},
            _content(chart))
        for k, chart in enumerate(charts)
    ]  # fmt: skip
    attributes: dict[str, Value] = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "chart",
        "viewBox": f"0 0 {width} {height}",
        "width": width,
        "height": height,
        "role": "img",
        "aria-label": title or "; ".join(c.title for c in charts if c.title) or "chart",
    }
    heading = tag("text", {"class": "name", "x": gap, "y": 24, "style": "font-size:14px"}, title) if title else ""
    paper = tag("rect", {"class": "paper", "width": "100%", "height": "100%"})
    return tag("svg", attributes, tag("style", None, Markup(STANDALONE_CSS)), paper, heading, *placed)


def _content(chart: Chart) -> Markup:
    box = _box(chart)
    layers = [_frame(chart, box)]
    layers += [_rule(rule.y, rule.start, rule.end, rule.tone, rule.note, box) for rule in chart.rules]
    layers += [_band(series, box) for series in chart.series if series.band]
    layers += [_line(series, box) for series in chart.series if series.line]
    layers += [_marks(series, box) for series in chart.series]
    layers += [_labels(chart, box)]
    return joined(layers)


def _box(chart: Chart) -> _Box:
    names = [_short(s.label) for s in chart.series if s.label]
    room = max((len(name) * _LETTER for name in names), default=0.0)
    right = chart.width - (room + (20 if chart.aside else 8) if names else 8)
    top = 7 + (15 if chart.title else 0) + (13 if chart.y.label else 0)
    bottom = chart.height - 15 - (13 if chart.x.label else 0)
    widest = max((len(text) for _, text in tick_texts(chart.y)), default=1)
    return _Box(8 + widest * _LETTER, right, top, bottom, chart.x, chart.y)


def tick_texts(axis: Axis) -> list[tuple[float, str]]:
    """The ticks and how they are written: true minus signs, and the unit at the last one."""
    texts = [(tick, f"{tick:g}".replace("-", "−")) for tick in axis.ticks]
    return [*texts[:-1], (texts[-1][0], f"{texts[-1][1]}\u00a0{axis.unit}")] if texts and axis.unit else texts


def _frame(chart: Chart, box: _Box) -> Markup:
    parts: list[Markup] = []
    for tick, text in tick_texts(chart.y):
        _, y = box.at(box.x.low, tick)
        parts.append(tag("line", {"class": "grid", "x1": box.left, "x2": box.right, "y1": y, "y2": y}))
        parts.append(tag("text", {"x": box.left - 4, "y": y + 3.4, "text-anchor": "end"}, text))
    for value in chart.upright:
        x, _ = box.at(value, box.y.low)
        parts.append(tag("line", {"class": "grid", "x1": x, "x2": x, "y1": box.top, "y2": box.bottom}))
    parts.append(tag("line", {"class": "axis", "x1": box.left, "x2": box.right, "y1": box.bottom, "y2": box.bottom}))
    for tick, text in tick_texts(chart.x):
        x, _ = box.at(tick, box.y.low)
        parts.append(tag("line", {"class": "axis", "x1": x, "x2": x, "y1": box.bottom, "y2": box.bottom + 3}))
        parts.append(tag("text", {"x": x, "y": box.bottom + 12.5, "text-anchor": "middle"}, text))
    if chart.title:
        parts.append(tag("text", {"class": "name", "x": 2, "y": 12}, _cut(chart.title, int(chart.width / 6.3))))
    if chart.y.label:
        parts.append(tag("text", {"x": 2, "y": box.top - 8}, chart.y.label))
    if chart.x.label:
        middle = (box.left + box.right) / 2
        parts.append(tag("text", {"x": middle, "y": chart.height - 2.5, "text-anchor": "middle"}, chart.x.label))
    return joined(parts)


def _rule(y: float, start: float, end: float, tone: str, note: str, box: _Box) -> Markup:
    (x1, height), (x2, _) = box.at(start, y), box.at(end, y)
    attributes: dict[str, Value] = {"class": f"rule t-{tone}", "x1": x1, "x2": x2, "y1": height, "y2": height}
    return tag("line", attributes, *_note(note))


def _runs(series: Series) -> list[list[Mark]]:
    """Neighbours that are all there."""
    return [list(run) for there, run in groupby(series.marks, key=lambda m: m.y is not None) if there]


def _band(series: Series, box: _Box) -> Markup:
    parts: list[Markup] = []
    for run in _runs(series):
        bounds = [(m.x, m.low, m.high) for m in run if m.low is not None and m.high is not None]
        if len(bounds) > 1 and series.line:
            edge = [box.at(x, high) for x, _, high in bounds] + [box.at(x, low) for x, low, _ in reversed(bounds)]
            parts.append(tag("path", {"class": f"band t-{series.tone}", "d": _path(edge) + "Z"}))
            continue
        for x, low, high in bounds:
            (at, bottom), (_, top) = box.at(x, low), box.at(x, high)
            parts.append(tag("line", {"class": f"bar t-{series.tone}", "x1": at, "x2": at, "y1": bottom, "y2": top}))
    return joined(parts)


def _line(series: Series, box: _Box) -> Markup:
    style = f"line t-{series.tone}"
    style += " dashed" if series.dashed else " dotted" if series.dotted else ""
    style += " faint" if series.faint else ""
    runs = [[box.at(m.x, m.y) for m in run if m.y is not None] for run in _runs(series)]
    d = "".join(_path(run) for run in runs if len(run) > 1)
    return tag("path", {"class": style, "d": d}) if d else Markup("")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def _marks(series: Series, box: _Box) -> Markup:
    parts: list[Markup] = []
    for mark in series.marks:
        if mark.y is None:
            parts.append(_absent(mark, box))
            continue
        x, y = box.at(mark.x, mark.y)
        if not box.holds(mark.x, mark.y):
            parts.append(_arrow(mark, x, y, box))
        elif series.shape is not None:
            parts.append(_glyph(series, x, y, mark.note))
        if series.ringed:
            parts.append(tag("circle", {"class": "ring", "cx": x, "cy": y, "r": series.size + 2.6}))
    return tag("g", {"class": f"t-{series.tone}"}, *parts) if parts else Markup("")


def _absent(mark: Mark, box: _Box) -> Markup:
    x, _ = box.at(mark.x, box.y.low)
    y, r = box.bottom - 4.5, 2.4
    d = _path([(x - r, y - r), (x + r, y + r)]) + _path([(x - r, y + r), (x + r, y - r)])
    return tag("path", {"class": "lost", "d": d}, *_note(mark.note or "missing"))


def _arrow(mark: Mark, x: float, y: float, box: _Box) -> Markup:
    """Points to where a mark outside the axes is."""
    right, left = mark.x > box.x.high, mark.x < box.x.low
    dx, dy = (1, 0) if right else (-1, 0) if left else (0, -1) if (mark.y or 0.0) > box.y.high else (0, 1)
    a, b = (x - 3 * (dx + dy), y - 3 * (dy + dx)), (x - 3 * (dx - dy), y - 3 * (dy - dx))
    return tag("path", {"class": "lost faint", "d": f"{_path([a, (x, y), b])}", "fill": "none"}, *_note(mark.note))


def _glyph(series: Series, x: float, y: float, note: str) -> Markup:
    style = "hollow" if series.hollow or series.shape in ("plus", "cross") else "dot"
    style += " faint" if series.faint else ""
    if series.shape == "circle":
        return tag("circle", {"class": style, "cx": x, "cy": y, "r": series.size}, *_note(note))
    return tag("path", {"class": style, "d": outline(series.shape or "circle", x, y, series.size)}, *_note(note))


_CORNERS: dict[Shape, tuple[float, ...]] = {  # angles in turns, clockwise from the top; areas look alike at one size
    "square": (0.125, 0.375, 0.625, 0.875),
    "diamond": (0.0, 0.25, 0.5, 0.75),
    "triangle": (0.0, 1 / 3, 2 / 3),
    "down": (0.5, 5 / 6, 1 / 6),
    "pentagon": (0.0, 0.2, 0.4, 0.6, 0.8),
}


def outline(shape: Shape, x: float, y: float, size: float) -> str:
    """The path of a mark other than the circle."""
    r = size * 1.3
    if shape == "plus":
        return _path([(x - r, y), (x + r, y)]) + _path([(x, y - r), (x, y + r)])
    if shape == "cross":
        return _path([(x - size, y - size), (x + size, y + size)]) + _path([(x - size, y + size), (x + size, y - size)])
    if shape == "bar":
        w, h = size * 1.4, size * 0.6
        return _path([(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]) + "Z"
    turns = [2 * math.pi * a for a in _CORNERS.get(shape, tuple(k / 12 for k in range(12)))]
    return _path([(x + r * math.sin(a), y - r * math.cos(a)) for a in turns]) + "Z"


def _labels(chart: Chart, box: _Box) -> Markup:
    named: list[tuple[Series, Mark]] = []
    for series in chart.series:
        there = [m for m in series.marks if m.y is not None]
        if series.label and there:
            named.append((series, there[-1]))
    points = [box.at(mark.x, mark.y or 0.0) for _, mark in named]
    heights = spread([y for _, y in points], _LABEL_GAP, box.top + 2, box.bottom - 2)
    parts: list[Markup] = []
    for (series, _), (x, y), height in zip(named, points, heights, strict=True):
        start = x + 6
        if chart.aside:
            start = box.right + 16
            parts.append(_leader(series, (x, y), (box.right + 5, height)))
        style = f"{'who' if chart.aside else 'of'} t-{series.tone}"
        text = tag("text", {"class": style, "x": start, "y": height + 3.4}, _short(series.label), *_note(series.label))
        parts.append(text)
    return joined(parts)


def _leader(series: Series, mark: tuple[float, float], label: tuple[float, float]) -> Markup:
    line = tag("path", {"class": "leader", "d": _path([mark, label])})
    return tag("g", {"class": f"t-{series.tone}"}, line, _glyph(series, label[0] + 5, label[1], ""))


def _short(text: str) -> str:
    return _cut(text, int(_WIDEST_LABEL / _LETTER))


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def _note(text: str) -> list[Markup]:
    return [tag("title", None, text)] if text else []
