"""The drawing of a report that sets effect against cost: every arm at every strength, and each arm's frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from .charts import SHAPES, Axis, Chart, Mark, Series, Shape
from .charts_markup import Markup
from .charts_style import ARM_TONES
from .report_data import DIRECTIONS, Figures
from .report_figures import figure, panels
from .report_words import JOINT, LOST, lede, note, nothing, section
from .results import Direction


class _Spot(NamedTuple):
    strength: float
    lost: float
    joint: float
    words: str


class _Look(NamedTuple):
    tone: str
    shape: Shape
    hollow: bool


def frontier(figures: Figures) -> Markup:
    """Joint success against capability lost, one mark per arm and strength, one panel per group and direction."""
    heading = "Effect against cost"
    found: list[Markup] = []
    for group, tasks in figures.groups.items():
        for direction in DIRECTIONS:
            chart = frontier_chart(figures, tasks, direction)
            if chart is not None:
                found.append(figure(chart, f"{group} · {direction}", f"mean of {len(tasks)}" if len(tasks) > 1 else ""))
    if not found:
        return section("frontier", heading, nothing("No strength has both joint success and capability measured."))
    text = (
        "Every method at every strength: joint success upwards, capability lost to the right, so that the upper left corner"
        " is best. A line joins the strengths of a method that none of its others beats in both; the rest are faint. The"
        " ringed mark is unit strength, nothing tuned. Hollow marks are the references; an arrow at the edge stands for a mark"
        " far beyond it. Point at a mark for its figures."
    )
    return section("frontier", heading, lede(text), panels(330, found))


def frontier_chart(figures: Figures, tasks: Sequence[str], direction: Direction) -> Chart | None:
    """One panel; None where no arm has both figures."""
    series: list[Series] = []
    told: list[str] = []
    for arm in figures.ordered:
        spots = _spots(figures, arm, tasks, direction)
        if spots:
            unit = 0.0 if arm == figures.reference("unsteered") else float(figures.sign(arm, direction))
            series += _arm_series(spots, unit, figures.label(arm), _look(figures, arm))
            told += [
                f"{figures.label(arm)}: {s.joint:.0f} % for {s.lost:.0f} points" for s in spots if s.strength == unit
            ]
    if not series:
        return None
    x = Axis.over(_worth_showing(series), label="capability lost, points →", count=6, room=0.05)
    y = Axis(-3, 103, (0, 25, 50, 75, 100), "joint success, %")
    words = "Joint success against capability lost, at unit strength; " + ("; ".join(told) or "no values")
    return Chart(x, y, series, "", words, width=360, height=246, aside=True)


def _worth_showing(series: Sequence[Series]) -> list[float]:
    """The costs that the axis covers: a strength that breaks the model must not squeeze all others into a corner."""
    chosen = [m.x for s in series for m in s.marks if not s.faint]
    rest = [m.x for s in series for m in s.marks if s.faint]
    reach = 1.4 * max([10.0, *chosen])
    return [0.0, 10.0, *chosen, *[min(x, reach) for x in rest]]


def _look(figures: Figures, arm: str) -> _Look:
    """Hue and shape of an arm, the same in every panel."""
    if figures.is_reference(arm):
        kinds: dict[str | None, Shape] = {figures.reference("unsteered"): "cross", figures.reference("random"): "down"}
        return _Look("ref", kinds.get(arm, "plus"), True)
    k = [a.name for a in figures.arms if not figures.is_reference(a.name)].index(arm)
    return _Look(ARM_TONES[k % len(ARM_TONES)], SHAPES[(k + k // len(ARM_TONES)) % 6], False)


def _spots(figures: Figures, arm: str, tasks: Sequence[str], direction: Direction) -> list[_Spot]:
    """An arm's strengths with both figures; strength 0 is the unsteered arm's alone."""
    costs = {level.strength: level.estimate for level in figures.lost(arm, tasks)}
    untouched = arm == figures.reference("unsteered")
    spots: list[_Spot] = []
    for level in figures.levels(arm, tasks, direction, lambda p: p.joint):
        lost, joint = costs.get(level.strength), level.estimate.mean
        if (level.strength == 0) != untouched or lost is None or lost.mean is None or joint is None:
            continue
        words = [figures.label(arm), note(JOINT, level.strength, level.estimate), note(LOST, level.strength, lost)]
        spots.append(_Spot(level.strength, 100 * lost.mean, 100 * joint, ". ".join(words)))
    return spots


def undominated(spots: Sequence[tuple[float, float]]) -> list[int]:
    """Which (cost, gain) no other beats in both, from the cheapest on."""
    order = sorted(range(len(spots)), key=lambda i: (spots[i][0], -spots[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or spots[i][1] > spots[kept[-1]][1]:
            kept.append(i)
    return kept


def _arm_series(spots: Sequence[_Spot], unit: float, label: str, look: _Look) -> list[Series]:
    """The frontier's line, the marks beside it, the marks on it, and the mark that carries the name."""
    edge = [spots[i] for i in undominated([(s.lost, s.joint) for s in spots])]
    at_unit = [s for s in spots if s.strength == unit]
    named = at_unit[0] if at_unit else max(spots, key=lambda s: s.joint)

    def series(chosen: Sequence[_Spot]) -> Series:
        found = [Mark(s.lost, s.joint, note=s.words) for s in chosen]
        return Series(found, look.tone, line=False, band=False, shape=look.shape, hollow=look.hollow, size=2.6)

    drawn = [
        replace(series(edge), line=True, shape=None),
        replace(series([s for s in spots if s not in edge and s is not named]), faint=True),
        series([s for s in edge if s is not named]),
        replace(series([named]), label=label, ringed=bool(at_unit) and unit != 0),
    ]
    return [s for s in drawn if s.marks]
