"""The figures of a report, found quickly: points and costs by arm and task, means over tasks, and who did best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from .results import Arm, Cost, Direction, Point, Results, Row
from .stats import Estimate

REFERENCES = ("unsteered", "random", "prompt")
DIRECTIONS: tuple[Direction, ...] = ("elicit", "suppress")
NOTHING = Estimate(None, None, None, 0)
_NORMAL_95 = 1.959964
NO_LOSS = Estimate(0.0, None, None, 0)


class Level(NamedTuple):
    """A mean over tasks at one strength; `there` of the `of` tasks have a value."""

    strength: float
    estimate: Estimate
    there: int
    of: int


class Cell(NamedTuple):
    """What a line of the table is about."""

    group: str
    direction: Direction


class Standing(NamedTuple):
    """An arm's mean over the cells of the table."""

    arm: str
    joint: float
    lost: float | None
    cells: int


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over tasks; n and what is missing are summed. One task keeps its interval.

    The interval is a bootstrap over tasks in which each drawn task varies as its own interval says (as a normal), so that
    two tasks that happen to agree don't look certain.
    """
    return _averaged(tuple(estimates))


@lru_cache(maxsize=8192)  # the same mean is drawn as a curve, told in a table and set against its cost
def _averaged(estimates: tuple[Estimate, ...]) -> Estimate:
    there = [e for e in estimates if e.mean is not None]
    n, missing = sum(e.n for e in estimates), sum(e.missing for e in estimates)
    if len(there) <= 1:
        kept = there[0] if there else NOTHING
        return Estimate(kept.mean, kept.low, kept.high, n, missing)
    means = np.array([e.mean for e in there])
    lows = np.array([e.mean if e.low is None else e.low for e in there])
    highs = np.array([e.mean if e.high is None else e.high for e in there])
    rng = np.random.default_rng(0)
    pick = rng.integers(len(there), size=(1000, len(there)))
    drawn = (means[pick] + (highs - lows)[pick] / (2 * _NORMAL_95) * rng.standard_normal(pick.shape)).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975]).clip(lows.min(), highs.max())  # a share stays one
    return Estimate(float(means.mean()), float(low), float(high), n, missing)


@dataclass(frozen=True)
class Figures:
    """A view of `Results`. Everything in it is of one split: test where there is one."""

    results: Results

    @cached_property
    def split(self) -> str:
        """The split that the report shows."""
        splits = sorted({p.split for p in self.results.points} | {c.split for c in self.results.costs})
        return "test" if "test" in splits or not splits else splits[-1]

    @cached_property
    def arms(self) -> list[Arm]:
        """All arms; those that occur in figures alone are named by their key."""
        known = {arm.name: arm for arm in self.results.arms}
        parts = (self.results.points, self.results.costs, self.results.table, self.results.layers, self.results.samples)
        for part in parts:
            for item in part:
                known.setdefault(item.arm, Arm(item.arm, item.arm))
        return list(known.values())

    @cached_property
    def _labels(self) -> dict[str, str]:
        return {arm.name: arm.label or arm.name for arm in self.arms}

    def label(self, arm: str) -> str:
        """What a reader sees instead of the arm's key."""
        return self._labels.get(arm, arm)

    def is_reference(self, arm: str) -> bool:
        """Whether it is there to compare with: unsteered, random or prompt."""
        return arm in self._references

    @cached_property
    def _references(self) -> dict[str, str]:
        named = {arm.name: str(arm.method.get("name", arm.method.get("method", arm.name))) for arm in self.arms}
        return {name: name if name in REFERENCES else of for name, of in named.items() if {name, of} & set(REFERENCES)}

    def reference(self, kind: str) -> str | None:
        """The first arm that is this reference."""
        return next((arm for arm, of in self._references.items() if of == kind), None)

    @cached_property
    def ordered(self) -> list[str]:
        """Methods, the best first, then the references."""
        best = [standing.arm for standing in self.standings]
        methods = [arm.name for arm in self.arms if not self.is_reference(arm.name)]
        references = [arm for kind in REFERENCES for arm, of in self._references.items() if of == kind]
        return sorted(methods, key=lambda a: best.index(a) if a in best else len(best)) + references

    @cached_property
    def compared(self) -> list[str]:
        """The same without those that have a profile of layers alone: a sweep compares a method's layers as arms of their own."""
        named = {arm.name for arm in self.results.arms}
        parts = (self.results.points, self.results.costs, self.results.table, self.results.samples)
        measured = {item.arm for part in parts for item in part}
        return [arm for arm in self.ordered if arm in named | measured]

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The tasks of each group, in the order of the configuration."""
        groups: dict[str, list[str]] = {}
        known = {str(task["name"]): str(task.get("group") or "tasks") for task in self.results.tasks}
        for part in (self.results.points, self.results.costs, self.results.layers):
            for item in part:
                known.setdefault(item.task, "tasks")
        for task, group in known.items():
            groups.setdefault(group, []).append(task)
        return groups

    @cached_property
    def _points(self) -> dict[tuple[str, str, Direction], dict[float, Point]]:
        found: dict[tuple[str, str, Direction], dict[float, Point]] = {}
        for point in self.results.points:
            if point.split == self.split:
                found.setdefault((point.arm, point.task, point.direction), {})[point.strength] = point
        return found

    @cached_property
    def _costs(self) -> dict[tuple[str, str], dict[float, Cost]]:
        found: dict[tuple[str, str], dict[float, Cost]] = {}
        for cost in self.results.costs:
            if cost.split == self.split:
                found.setdefault((cost.arm, cost.task), {})[cost.strength] = cost
        return found

    @cached_property
    def _signs(self) -> dict[tuple[str, Direction], int]:
        """On which side of 0 an arm acts in a direction: a one-sided edit suppresses at positive strengths."""
        signs: dict[tuple[str, Direction], int] = {}
        for arm, _, direction in self._points:
            wanted = 1 if direction == "elicit" else -1
            of_arm = [s for (a, _, d), at in self._points.items() if (a, d) == (arm, direction) for s in at]
            signs[arm, direction] = wanted if any(s * wanted > 0 for s in of_arm) else -wanted
        return signs

    def sign(self, arm: str, direction: Direction) -> int:
        """+1 or −1: the side of the strength axis on which an arm acts in this direction."""
        return self._signs.get((arm, direction), 1 if direction == "elicit" else -1)

    def levels(
        self, arm: str, tasks: Sequence[str], direction: Direction, of: Callable[[Point], Estimate]
    ) -> list[Level]:
        """A measure of the replies by strength, on the side where the arm acts.

        It begins at 0, where every arm is the unsteered model: where it has no figures of its own there, it has those.
        """
        sign = self.sign(arm, direction)
        by_task: list[dict[float, Estimate]] = []
        for task in tasks:
            own = {s: of(p) for s, p in self._points.get((arm, task, direction), {}).items() if s * sign >= 0}
            plain = self._points.get((self.reference("unsteered") or "", task, direction), {})
            if own and 0.0 not in own and 0.0 in plain:
                own[0.0] = of(plain[0.0])
            by_task.append(own)
        return _levels(by_task)

    def lost(self, arm: str, tasks: Sequence[str]) -> list[Level]:
        """Capability lost by strength; at 0 nothing is lost, by its definition."""
        found: list[dict[float, Estimate]] = []
        for task in tasks:
            own = {s: c.lost for s, c in self._costs.get((arm, task), {}).items()}
            if own or arm == self.reference("unsteered"):
                own.setdefault(0.0, NO_LOSS)
            found.append(own)
        return _levels(found)

    @cached_property
    def strengths(self) -> list[float]:
        """Every strength at which something was measured, 0 included."""
        measured = {s for at in self._points.values() for s in at} | {s for at in self._costs.values() for s in at}
        return sorted(measured | {0.0}) if measured else []

    def unsteered(self, arm: str, tasks: Sequence[str], direction: Direction) -> float | None:
        """The effect with nothing steered: of the unsteered arm, or else of this one at strength 0."""
        for name in (self.reference("unsteered"), arm):
            levels = self.levels(name, tasks, direction, lambda p: p.effect) if name else []
            level = next((v.estimate.mean for v in levels if v.strength == 0), None)
            if level is not None:
                return level
        return None

    @cached_property
    def cells(self) -> list[Cell]:
        """Groups and directions of the table, in its order."""
        return list(dict.fromkeys(Cell(row.group, row.direction) for row in self.results.table))

    def row(self, arm: str, cell: Cell, setting: str) -> Row | None:
        """A line of the table."""
        return self._rows.get((arm, cell, setting))

    @cached_property
    def _rows(self) -> dict[tuple[str, Cell, str], Row]:
        return {(row.arm, Cell(row.group, row.direction), row.setting): row for row in self.results.table}

    @cached_property
    def setting(self) -> str:
        """The setting by which methods are ranked: tuned, where any was."""
        return "tuned" if any(row.setting == "tuned" for row in self.results.table) else "unit"

    @cached_property
    def standings(self) -> list[Standing]:
        """Methods by mean joint success over the cells; those that weren't measured everywhere come after the others."""
        methods = [arm.name for arm in self.arms if not self.is_reference(arm.name)]
        found = [s for s in (self.standing(arm, self.setting) for arm in methods) if s is not None]
        return sorted(found, key=lambda s: (-s.cells, -s.joint))

    def standing(self, arm: str, setting: str) -> Standing | None:
        """An arm's mean over its cells; None where nothing was judged. A reference without this setting is at unit."""
        rows = [self.row(arm, cell, setting) for cell in self.cells]
        if self.is_reference(arm) and not any(rows):
            rows = [self.row(arm, cell, "unit") for cell in self.cells]
        joint = [row.joint.mean for row in rows if row is not None and row.joint.mean is not None]
        lost = [row.lost.mean for row in rows if row is not None and row.lost.mean is not None]
        if not joint:
            return None
        return Standing(arm, sum(joint) / len(joint), sum(lost) / len(lost) if lost else None, len(joint))

    def seen(self, cell: Cell, arm: str) -> Row | None:
        """An arm's line in the ranking setting, or at unit strength where that is all there is."""
        return self.row(arm, cell, self.setting) or self.row(arm, cell, "unit")

    def contest(self, cell: Cell) -> list[Row]:
        """The methods' lines of a cell in the ranking setting, by joint success."""
        rows = [row for row in self.results.table if (row.group, row.direction) == cell and row.setting == self.setting]
        judged = [r for r in rows if not self.is_reference(r.arm) and r.joint.mean is not None]
        return sorted(judged, key=lambda r: -(r.joint.mean or 0.0))


def _levels(by_task: Sequence[dict[float, Estimate]]) -> list[Level]:
    strengths = sorted({s for at in by_task for s in at})
    return [_level(s, [at[s] for at in by_task if s in at], len(by_task)) for s in strengths]


def _level(strength: float, estimates: Sequence[Estimate], of: int) -> Level:
    return Level(strength, average(estimates), sum(e.mean is not None for e in estimates), of)


def judged(estimates: Iterable[Estimate]) -> tuple[int, int]:
    """How many values were judged, and how many could not be."""
    kept = list(estimates)
    return sum(e.n for e in kept), sum(e.missing for e in kept)
