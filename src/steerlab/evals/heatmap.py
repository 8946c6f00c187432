"""A matrix as a picture: SVG text with its own colours, cells shaded by how far they are from nothing, the number in each.

Below nothing is one hue and above it another, and the sign is written too; what can't be told from nothing is set faint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ..files import write_text
from .charts_markup import Markup, joined, tag
from .charts_style import STANDALONE_CSS
from .compose import Interference
from .stats import Estimate

CELL, LETTER, BOLD = 46.0, 6.1, 7.0  # pixels: a cell's width, a letter's, one of a title
STRONGEST = 0.5  # the strongest shade leaves ink readable
HEAT_CSS = (
    ".heat .up{fill:var(--effect)}.heat .down{fill:var(--cost)}.heat .none{fill:var(--wash)}\n"
    ".heat .box{fill:none;stroke:var(--rule);stroke-width:.6}.heat text.v{text-anchor:middle;fill:var(--ink);font-size:11px}\n"
    ".heat text.faint{fill:var(--soft);opacity:1}.heat text.sure{font-weight:600}.heat text.r{text-anchor:end}\n"
    ".heat text.l{fill:var(--ink);font-size:11px}\n"
)


@dataclass(frozen=True)
class Heat:
    """A matrix to draw: what the rows and columns are, cells with intervals (None: nothing there), and what is said of it."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Estimate | None, ...], ...]
    across: str = ""
    down: str = ""
    scale: float = 100.0  # numbers are written times this
    most: float = 1.0  # the strongest shade
    signed: bool = True  # a plus is written before what is above nothing
    note: str = ""


def document(heats: Sequence[Heat], title: str = "") -> str:
    """A whole SVG file, one matrix below the other."""
    head = 30.0 if title else 6.0
    drawn: list[Markup] = []
    wide, at = 0.0, head
    for heat in heats:
        made, width, height = _drawn(heat)
        drawn.append(tag("g", {"transform": f"translate(0 {at:.1f})"}, made))
        wide, at = max(wide, width), at + height + 14
    size = {"width": round(wide), "height": round(at), "viewBox": f"0 0 {round(wide)} {round(at)}"}
    heading = tag("text", {"class": "name", "x": 12, "y": 22, "style": "font-size:14px"}, title) if title else ""
    told = ". ".join([title, *(f"{h.title}: {_words(h)}" for h in heats)])
    return (
        tag(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "chart heat", "role": "img", "aria-label": told, **size},
            tag("style", None, Markup(STANDALONE_CSS + HEAT_CSS)),
            tag("rect", {"class": "paper", "width": "100%", "height": "100%"}), heading, *drawn,
        ).text
        + "\n"
    )  # fmt: skip


def save(found: Interference, path: str | PathLike[str]) -> Path:
    """Write the picture of an interference matrix."""
    names = tuple(p.name for p in found.parts)
    own = tuple((e,) for e in found.solo)
    heats = [
        Heat(
            "What the row does to the effect of the column, acting beside it", names, names, found.change,
            "whose effect", "what acts as well", note="points, of the effect that the column has alone; bold: surely not 0",
        ),
        Heat(
            "What the row alone does on the prompts and to the judge of the column (cross-talk)", names, names, found.cross,
            "whose behaviour", "what acts alone", note="points, against the unsteered model",
        ),
        Heat(
            "Effect alone, and in each composition, on test prompts", names, ("alone, dev", *(w.name for w in found.wholes)),
            tuple((*one, *(w.effects[n] for w in found.wholes)) for n, one in enumerate(own)), "composition", "steering",
            note="percent of replies", signed=False,
        ),
    ]  # fmt: skip
    kept = [h for h in heats if any(c is not None for row in h.cells for c in row)]
    return write_text(path, document(kept, "Steerings together"))


def _drawn(heat: Heat) -> tuple[Markup, float, float]:
    """The matrix with its labels, its width and its height."""
    left = 24 + LETTER * max(len(r) for r in heat.rows)
    longest = max(len(c) for c in heat.columns)
    slant = 0.68 * LETTER * longest + 8
    top = 34 + slant
    bold: list[Markup | str] = [tag("text", {"class": "name", "x": 12, "y": 14}, heat.title)]
    bold.append(tag("text", {"x": left, "y": 29}, f"{heat.across} →   ({heat.down} ↓)"))
    for k, name in enumerate(heat.columns):
        x = left + (k + 0.5) * CELL
        bold.append(tag("text", {"class": "l", "transform": f"translate({x:.1f} {top - 5:.1f}) rotate(-40)"}, name))
    for n, (name, row) in enumerate(zip(heat.rows, heat.cells, strict=True)):
        y = top + n * CELL * 0.62
        bold.append(tag("text", {"class": "l r", "x": left - 6, "y": y + 0.4 * CELL}, name))
        bold += [_cell(heat, cell, name, heat.columns[k], left + k * CELL, y) for k, cell in enumerate(row)]
    height = top + len(heat.rows) * CELL * 0.62
    if heat.note:
        bold.append(tag("text", {"x": left, "y": height + 14}, heat.note))
    width = max(
        left + len(heat.columns) * CELL + slant, 12 + BOLD * len(heat.title), left + LETTER * max(len(heat.note), 40)
    )  # fmt: skip
    return joined(bold), width + 12, height + 16


def _cell(heat: Heat, cell: Estimate | None, row: str, column: str, x: float, y: float) -> Markup:
    box = {"x": x, "y": y, "width": CELL, "height": CELL * 0.62}
    if cell is None or cell.mean is None:
        words = "the same" if row == column else "not measured"
        text = tag("text", {"class": "v faint", "x": x + CELL / 2, "y": y + 0.4 * CELL}, "·" if row == column else "–")
        return tag(
            "g", None, tag("title", None, f"{row}, {column}: {words}"), tag("rect", {"class": "none", **box}), text
        )
    value = heat.scale * cell.mean
    shade = STRONGEST * min(1.0, abs(cell.mean) / heat.most)
    sure = cell.low is not None and cell.high is not None and (cell.low > 0 or cell.high < 0)
    written = f"{value:+.0f}" if heat.signed and round(value) else f"{round(value) + 0}"
    low, high = (None if v is None else heat.scale * v for v in (cell.low, cell.high))
    words = f"{row}, {column}: {value:+.1f}" + ("" if low is None else f" [{low:+.1f}, {high:+.1f}], n={cell.n}")
    kind = {"class": "up" if cell.mean > 0 else "down", "fill-opacity": f"{shade:.2f}"}
    text = tag("text", {"class": f"v {'sure' if sure else 'faint'}", "x": x + CELL / 2, "y": y + 0.4 * CELL}, written)
    return tag(
        "g", None, tag("title", None, words), tag("rect", {**kind, **box}), tag("rect", {"class": "box", **box}), text
    )


def _words(heat: Heat) -> str:
    """The strongest cells in words, for who can't see the picture."""
    found = [
        (cell.mean, row, heat.columns[k])
        for row, cells in zip(heat.rows, heat.cells, strict=True)
        for k, cell in enumerate(cells)
        if cell is not None and cell.mean is not None
    ]
    strongest = sorted(found, key=lambda c: -abs(c[0]))[:3]
    return ", ".join(f"{row} on {column} {heat.scale * value:+.0f}" for value, row, column in strongest)
