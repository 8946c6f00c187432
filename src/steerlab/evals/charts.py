"""Small charts as SVG text, in pure Python: axes with nice ticks, lines with bands, marks, labels beside what they name.

>>> from steerlab.evals.charts import Axis, Chart, Mark, Series, save
>>> effect = Series([Mark(0, 3, 1, 6), Mark(1, 92, 88, 95), Mark(2, None)], label="effect")
>>> chart = Chart(Axis.over([0, 2], label="strength"), Axis(0, 100, (0, 50, 100)), [effect], title="formal")
>>> save(chart, "formal.svg")  # doctest: +SKIP

Colours are CSS variables (`charts_style`), so that one drawing reads on light and on dark paper. A missing value is a
gap in its line and a small × on the floor of the chart, never a zero. It draws; it computes no figures. Not a plotting
library: no log axes, no categories, no animation.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from ..files import write_text
from .charts_draw import document, drawn
from .charts_parts import SHAPES, Axis, Chart, Mark, Rule, Series, Shape, nice_ticks, spread

__all__ = [
    "SHAPES", "Axis", "Chart", "Mark", "Rule", "Series", "Shape", "nice_ticks", "save", "spread", "standalone", "svg",
]  # fmt: skip


def svg(chart: Chart) -> str:
    """One `svg` element for a page that has `charts_style.PALETTE_CSS` and `CHART_CSS`."""
    return drawn(chart).text


def standalone(charts: Chart | Sequence[Chart], *, columns: int = 3, gap: int = 14, title: str = "") -> str:
    """A whole SVG document with its own colours: one chart, or small multiples in rows of `columns`."""
    return document([charts] if isinstance(charts, Chart) else list(charts), columns, gap, title).text + "\n"


def save(charts: Chart | Sequence[Chart], path: str | PathLike[str], *, columns: int = 3, title: str = "") -> Path:
    """Write `standalone` as a file."""
    return write_text(path, standalone(charts, columns=columns, title=title))
