"""The leaderboard's drawings: reading against writing, and what becomes of replies as the factor grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...evals.charts import SHAPES, Axis, Chart, Mark, Series
from ...evals.charts_markup import Markup, joined
from ...evals.charts_style import ARM_TONES
from ...evals.report_figures import figure, panels
from ...evals.report_words import lede, section
from ...evals.stats import Estimate
from .board import DETECTION, STEERING, Board
from .words import text_of


def plane(board: Board) -> Markup:
    """Detection against steering: one mark for each method that has both."""
    both = [
        line
        for line in board.lines
        if line.figures["auroc"].mean is not None and line.figures["score"].mean is not None
    ]
    if not both:
        return joined([])
    series: list[Series] = []
    for k, line in enumerate(both):
        score, auroc = line.figures["score"], line.figures["auroc"]
        words = f"{line.label}: AUROC {text_of(DETECTION[0], auroc)}, score {text_of(STEERING[0], score)}"
        tone = "ref" if line.reference else ARM_TONES[k % len(ARM_TONES)]
        mark = Mark(auroc.mean or 0.0, score.mean, score.low, score.high, words)
        series.append(
            Series([mark], tone, line.label, line=False, shape=SHAPES[k % 6], hollow=line.reference, size=3.0)
        )
    lowest = min(line.figures["auroc"].mean or 0.0 for line in both)
    x = Axis(
        min(0.45, lowest - 0.05),
        1.02,
        tuple(t for t in (0.25, 0.5, 0.75, 1.0) if t >= min(0.45, lowest - 0.05)),
        "detection: AUROC →",
    )
    top = max(0.5, *((line.figures["score"].high or 0.0) for line in both))
    y = Axis(-0.04, min(2.04, top + 0.06), tuple(t / 4 for t in range(9) if t / 4 <= top + 0.06), "steering score")
    chart = Chart(
        x, y, series, "", "Steering score against detection, a mark for each method", width=520, height=300, aside=True
    )
    words = (
        "What reads a concept best need not write it best. To the right: tells texts with the concept from others; upwards: makes"
        " the model write it. The bars are 95 % intervals of the steering score."
    )
    return section("plane", "Reading and writing", lede(words), panels(520, [figure(chart)]))


def curves(board: Board) -> Markup:
    """Each method's ratings over the factors."""
    drawn: list[Markup] = []
    for line in board.lines:
        rows = [row for row in line.curve if row["factor"] > 0]
        if len(rows) < 2:
            continue

        of = [
            Series(_marks(rows, "score"), "effect", "score", size=1.8),
            Series(_marks(rows, "concept"), "c3", "concept", dotted=True, band=False, shape=None),
            Series(_marks(rows, "fluency"), "cost", "fluency", dashed=True, band=False, shape=None),
        ]
        top = max(float(row["factor"]) for row in rows)
        ticks = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0) if top > 2 else (0.0, 0.5, 1.0, 1.5, 2.0)
        x = Axis(0, top * 1.02, tuple(t for t in ticks if t <= top), "factor →")
        words = f"{line.label}: ratings over factors"
        chart = Chart(x, Axis(0, 2.04, (0, 1, 2)), of, "", words, upright=(1.0,), width=250, height=168)
        drawn.append(figure(chart, line.label))
    if not drawn:
        return joined([])
    words = (
        "The factor says how strongly a method steers. With it the concept grows, until the language breaks; the score, which"
        " needs both, is usually highest in between. Factor 1 (the thin upright line) is the effect as fitted. Means over all"
        " concepts and prompts, the score with its 95 % interval."
    )
    return section("curves", "How strongly?", lede(words), panels(230, drawn))


def _marks(rows: Sequence[Mapping[str, Any]], key: str) -> list[Mark]:
    found: list[Mark] = []
    for row in rows:
        e = Estimate.from_json(row[key])
        words = f"{key} at {row['factor']:g}: {text_of(STEERING[0], e)}"
        found.append(Mark(float(row["factor"]), e.mean, e.low, e.high, words))
    return found
