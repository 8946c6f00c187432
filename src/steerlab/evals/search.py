"""Which setting, and how strong: over cheap signals alone, the settings that can't win dropped on the way.

A setting (a layer, positions, a rank) is an arm; at each strength in each direction it has a gain and a strain (the cost
nearest to its budget, 1 = at it). What is looked for is the arm with the most gain at strain ≤ 1, and where that is.

`halving` reads every arm on a small share of the data, keeps the better half, and reads those on more (successive halving,
arXiv 1502.07943). Within an arm it needs few readings: costs grow about with the square of strength, so the strength where
strain is 1 is found in two or three steps. `optuna` gives the same choice to Optuna's multi-objective sampler (gain up, strain
down), which knows nothing of all that; `benchmarks/calibrate.py --search` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ConfigError
from .results import Direction

SHARES = (0.25, 0.5, 1.0)
CLOSE = (0.8, 1.0)  # a strain that is near enough to 1
WEAKEST = 0.02


class Point(NamedTuple):
    """A reading: the gain (None: can't be told), and the strain."""

    strength: float
    gain: float | None
    strain: float


Read = Callable[[int, Direction, float, float], tuple[float | None, float]]
"""(arm, direction, size of the strength, share of the data) → gain and strain."""

Reaches = Mapping[tuple[int, Direction], float] | Callable[[int, Direction], float]


@dataclass
class Edge:
    """What is known of an arm in a direction: its readings on the largest share so far."""

    points: list[Point] = field(default_factory=list[Point])

    @property
    def within(self) -> list[Point]:
        """The readings whose strain is within the budget."""
        return [p for p in self.points if p.strain <= 1]

    @property
    def strength(self) -> float:
        """The strongest that keeps the cheap budget; 0 where none does."""
        return max((p.strength for p in self.within), default=0.0)

    @property
    def gain(self) -> float:
        """The best gain that keeps it, and never less than that of leaving the model alone."""
        return max((p.gain for p in self.within if p.gain is not None), default=0.0)


@dataclass(frozen=True)
class Found:
    """The arms from the best on, each direction's edge of those that were read to the end, and how much was read.

    `read` counts readings by the share of the data that they used.
    """

    order: tuple[int, ...]
    edges: Mapping[tuple[int, Direction], Edge]
    read: float
    readings: int

    def score(self, arm: int) -> float:
        """Mean gain over directions."""
        mine = [edge.gain for (a, _), edge in self.edges.items() if a == arm]
        return sum(mine) / len(mine) if mine else 0.0


class _Counted:
    """Reads, and counts what it read."""

    def __init__(self, read: Read) -> None:
        self._read, self.total, self.times = read, 0.0, 0

    def __call__(self, arm: int, direction: Direction, size: float, share: float) -> Point:
        gain, strain = self._read(arm, direction, size, share)
        self.total += share
        self.times += 1
        return Point(size, gain, strain if math.isfinite(strain) else math.inf)


def halving(
    arms: int,
    reaches: Reaches,
    directions: Sequence[Direction],
    read: Read,
    *,
    shares: Sequence[float] = SHARES,
    keep: int = 1,
    steps: int = 4,
) -> Found:
    """The arms in order, by halving them on growing shares of the data; at least `keep` are read to the end.

    `reaches` is the greatest strength of an arm in a direction (0: it can't act in it).
    """
    reach = _reach(reaches)
    counted, edges = _Counted(read), dict[tuple[int, Direction], Edge]()
    alive, order = list(range(arms)), list[int]()
    rungs = list(shares) if arms > keep else [shares[-1]]
    for rung, share in enumerate(rungs):
        for arm in alive:
            for direction in directions:
                if (most := reach(arm, direction)) > 0:
                    before = edges.get((arm, direction))
                    edges[arm, direction] = _edge(counted, arm, direction, share, most, before, steps)
        ranked = sorted(alive, key=lambda a: (-_score(edges, a), a))
        left = len(ranked) if rung == len(rungs) - 1 else max(keep, math.ceil(len(ranked) / 2))
        order = ranked[left:] + order
        alive = ranked[:left]
    return Found((*alive, *order), edges, counted.total, counted.times)


def _reach(reaches: Reaches) -> Callable[[int, Direction], float]:
    if not isinstance(reaches, Mapping):
        return reaches

    def known(arm: int, direction: Direction) -> float:
        return reaches.get((arm, direction), 0.0)

    return known


def _edge(
    read: _Counted, arm: int, direction: Direction, share: float, most: float, before: Edge | None, steps: int
) -> Edge:
    """The strength where strain reaches 1, from where it was thought to be."""
    size = min(most, 1.0 if before is None else before.strength or _weakest(before))
    low, high = 0.0, math.inf  # strengths within, and beyond
    edge = Edge()
    for _ in range(steps):
        point = read(arm, direction, size, share)
        edge.points.append(point)
        if point.strain <= 1:
            low = max(low, size)
        else:
            high = min(high, size)
        if CLOSE[0] <= point.strain <= CLOSE[1] or (size == most and point.strain <= 1):
            break
        # costs grow about with the square; aim at the middle of what is near enough
        aimed = size * math.sqrt(0.9 / max(point.strain, 0.05)) if math.isfinite(point.strain) else size / 4
        if low and math.isfinite(high):
            aimed = min(max(aimed, low + 0.1 * (high - low)), high - 0.1 * (high - low))
        aimed = min(max(aimed, size / 5), size * 3, most)
        if aimed < WEAKEST * min(1.0, most) or abs(aimed - size) < 1e-3 * size:
            break
        size = aimed
    return edge


def _weakest(edge: Edge) -> float:
    return max(min((p.strength for p in edge.points), default=1.0) / 2, WEAKEST)


def _score(edges: Mapping[tuple[int, Direction], Edge], arm: int) -> float:
    mine = [edge.gain for (a, _), edge in edges.items() if a == arm]
    return sum(mine) / len(mine) if mine else 0.0


def optuna(
    arms: int,
    reaches: Reaches,
    directions: Sequence[Direction],
    read: Read,
    *,
    trials: int = 40,
    seed: int = 0,
) -> Found:
    """The same question to Optuna: each trial is an arm with a strength for each direction, read on all data.

    Raises `ConfigError` without the extra `tune`.
    """
    try:
        import optuna as library
    except ImportError as problem:
        raise ConfigError(
            "the search by Optuna needs it; install steerlab[tune], or take --search halving."
        ) from problem
    reach = _reach(reaches)
    library.logging.set_verbosity(library.logging.WARNING)
    sampler = library.samplers.TPESampler(seed=seed, n_startup_trials=max(5, trials // 4))
    study = library.create_study(directions=["maximize", "minimize"], sampler=sampler)
    counted, edges = _Counted(read), dict[tuple[int, Direction], Edge]()
    for _ in range(trials):
        trial = study.ask()
        arm = trial.suggest_categorical("arm", list(range(arms)))
        points: list[Point] = []
        for direction in directions:
            share = trial.suggest_float(f"strength {direction}", WEAKEST, 1.0)
            if (most := reach(arm, direction)) > 0:
                points.append(counted(arm, direction, share * most, 1.0))
                edges.setdefault((arm, direction), Edge()).points.append(points[-1])
        gain = sum(p.gain or 0.0 for p in points) / max(1, len(points))
        strain = max((min(p.strain, 1e6) for p in points), default=0.0)
        trial.set_constraint("strain", strain - 1)
        study.tell(trial, [gain, strain])
    order = sorted(range(arms), key=lambda a: (-_score(edges, a), a))
    return Found(tuple(order), edges, counted.total, counted.times)
