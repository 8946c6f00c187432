"""What a chart is made of: marks, series, axes with nice ticks, and the maths of where things go. `charts` is the face."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

from .charts_style import TONES

Shape = Literal["circle", "square", "diamond", "triangle", "down", "pentagon", "plus", "cross", "bar"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True, slots=True)
class Mark:
    """One value with its interval. `y` None: it is missing. `note` is what the reader gets on pointing at it."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for value in (self.x, self.y, self.low, self.high):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"a mark needs finite numbers, or None for what is missing; got {self}.")


@dataclass(frozen=True, slots=True)
class Series:
    """Marks that belong together, from left to right, with a line through neighbours that are both there.

    `shape` None draws no marks. `label` stands at the last mark that is there. Between marks with an interval lies a
    band; a mark on its own gets a bar.
    """

    marks: Sequence[Mark]
    tone: str = "effect"
    label: str = ""
    line: bool = True
    dashed: bool = False
    dotted: bool = False
    band: bool = True
    shape: Shape | None = "circle"
    hollow: bool = False
    faint: bool = False
    ringed: bool = False
    size: float = 2.2

    def __post_init__(self) -> None:
        _known("tone", self.tone, TONES)
        if self.shape is not None:
            _known("shape", self.shape, SHAPES)


@dataclass(frozen=True, slots=True)
class Rule:
    """A thin level line over a part of the x axis: something to compare with."""

    y: float
    start: float
    end: float
    tone: str = "ref"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """What a chart shows in one direction, where its ticks are, what it is called, and the unit, written at the last tick.

    A mark outside stands at the edge as a small arrow.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an axis goes from a lower to a higher finite number; got {self.low} to {self.high}.")

    @classmethod
    def over(cls, values: Iterable[float], *, label: str = "", count: int = 5, room: float = 0.04) -> Self:
        """An axis over all values, with about `count` ticks and a little room (a share of the range) at both ends."""
        given = list(values) or [0.0, 1.0]
        low, high = min(given), max(given)
        if low == high:
            low, high = low - 0.5, high + 0.5
        space = room * (high - low)
        return cls(low - space, high + space, nice_ticks(low, high, count), label)

    def at(self, value: float, start: float, end: float) -> float:
        """Where a value lies between the coordinates `start` (of `low`) and `end` (of `high`)."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return start + share * (end - start)


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing. `aside` sets the labels in a column at the right, each with its series' mark and a line to it."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    title: str = ""
    description: str = ""
    rules: Sequence[Rule] = ()
    upright: tuple[float, ...] = ()  # x values with a vertical hairline
    width: int = 340
    height: int = 220
    aside: bool = False


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within [low, high]: the finest step with at most `count` of them.

    >>> nice_ticks(0, 100)
    (0.0, 25.0, 50.0, 75.0, 100.0)
    >>> nice_ticks(-2, 2)
    (-2.0, -1.0, 0.0, 1.0, 2.0)
    """
    if not low < high:
        return (float(low),)
    count = max(2, count)
    power = math.floor(math.log10((high - low) / count)) - 1
    steps = [m * 10.0**e for e in range(power, power + 4) for m in (1, 2, 2.5, 5)]
    step = next(s for s in steps if len(_multiples(low, high, s)) <= count)
    decimals = max(0, 2 - math.floor(math.log10(step)))  # 3 · 0.1 isn't 0.3 in binary
    return tuple(round(k * step, decimals) + 0.0 for k in _multiples(low, high, step))


def _multiples(low: float, high: float, step: float) -> range:
    return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as possible (least squares) to the wanted ones, in their order, at least `gap` apart.

    They stay within [low, high] where there is room for all; where there isn't, they are set evenly over it.

    >>> spread([10, 11, 50], 10, 0, 100)
    [5.5, 15.5, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    if len(order) > 1 and gap * (len(order) - 1) > high - low:
        gap = (high - low) / (len(order) - 1)
    # with z_k = y_k − k·gap the demand is that z grows: pool adjacent violators, then clip
    pools: list[tuple[float, int]] = []
    for k, i in enumerate(order):
        pools.append((wanted[i] - k * gap, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (b, m), (a, n) = pools.pop(), pools.pop()
            pools.append(((a * n + b * m) / (n + m), n + m))
    free = [z for z, n in pools for _ in range(n)]
    top = high - gap * (len(order) - 1)
    placed = [0.0] * len(order)
    for k, i in enumerate(order):
        placed[i] = float(max(low, min(free[k], top)) + k * gap)
    return placed


def _known(what: str, given: str, legal: Sequence[str]) -> None:
    if given not in legal:
        raise ValueError(f"no {what} is called {given!r}; there are {', '.join(legal)}.")
