"""The steps of a calibration, whatever is measured: search on signals, replies of the settings in the final, the budget.

What is read comes from `Readings`: of a model (`calibrate.Measured`), or of drawn costs whose true means are known, by which
`benchmarks/calibrate.py --guarantee` counts how often what these steps call safe is over its budget.

Settings and strengths are chosen by signals, replies and `seen` costs alone; `costs` certify, read once the strengths stand.
So for one setting and direction the first strength that is truly over a budget is fixed before anything is tested, and the
chance that it is called safe is at most the level. Of several settings in the final any may be taken, so they share the level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError
from .asked import Asked
from .guarantee import HIGH, LOW, Bet, Budget
from .measure import Effects
from .operating import Row, hopeless, judged, safe, side
from .results import Direction
from .search import Found, halving, optuna
from .signals import COSTS, Signal, clipped
from .stats import mean

Rows = Mapping[Direction, Sequence[Row]]  # the strengths of a setting that were measured, weakest first
MARGIN = (
    0.1  # of joint success: what another setting has to promise beyond what is certified, before it is certified, too
)
LOT = 64  # costs of a forward pass that are read at a time


class Readings(Protocol):
    """What a calibration reads, of settings by number and strengths with their sign."""

    @property
    def settings(self) -> int:
        """How many settings there are to choose from."""
        ...

    def reach(self, arm: int, direction: Direction) -> float:
        """The greatest strength that a setting takes in a direction; 0 where it has none."""
        ...

    def sign(self, arm: int, direction: Direction) -> float:
        """Of the strengths of a direction."""
        ...

    def whole(self, arm: int) -> bool:
        """Whether a setting is there or isn't (a prompt), so that strength 1 is all there is to try."""
        ...

    def signal(self, arm: int, direction: Direction, strength: float, share: float) -> Signal:
        """The signals, on a share of what is chosen by."""
        ...

    def effects(self, arm: int, direction: Direction, strengths: Sequence[float]) -> list[Effects]:
        """Of replies at each strength."""
        ...

    def plain(self, direction: Direction) -> Effects:
        """Of replies without steering."""
        ...

    def seen(self, arm: int, strength: float) -> np.ndarray:
        """Whether each item that is chosen by was lost (1), won (−1), or neither."""
        ...

    def amount(self, name: str, arm: int) -> int:
        """How many prompts can certify a cost."""
        ...

    def costs(self, name: str, arm: int, strength: float, start: int, stop: int) -> np.ndarray:
        """A cost of some of the prompts that certify it."""
        ...


class Procedure:
    """One calibration, step by step: `searched`, `final`, `settled`, `sides`. `budget` limits what can be measured."""

    def __init__(self, asked: Asked, readings: Readings, budget: Budget) -> None:
        self.asked, self.readings, self.budget = asked, readings, budget
        self.limits = budget.limits()
        self.level = asked.delta

    # --- signals ----------------------------------------------------------------------------------------------------

    def searched(self) -> Found:
        """The settings in order, with where each reaches the budget."""
        readings = self.readings

        def read(arm: int, direction: Direction, size: float, share: float) -> tuple[float | None, float]:
            if readings.whole(arm) and size < 1:
                return None, math.inf
            signal = readings.signal(arm, direction, readings.sign(arm, direction) * size, share)
            return signal.gain, signal.strain(self.budget)

        asked, arms = self.asked, readings.settings
        if asked.search == "optuna":
            found = optuna(arms, readings.reach, asked.directions, read, trials=asked.trials, seed=asked.seed)
        else:
            found = halving(arms, readings.reach, asked.directions, read, keep=min(asked.finalists, arms))
        if not found.edges:
            raise ConfigError(f"nothing can act in {' or '.join(asked.directions)}.")
        return found

    # --- replies ----------------------------------------------------------------------------------------------------

    def final(self, found: Found) -> list[tuple[int, Rows]]:
        """The settings that got replies, the one that does best first, with what was measured of each."""
        alive = [a for a in found.order if any(key[0] == a for key in found.edges)]
        if any(p.gain is not None for edge in found.edges.values() for p in edge.points):
            alive = alive[: self.asked.finalists]  # without pairs the signals can't tell settings apart
        measured = {arm: self._measured(arm, found) for arm in alive}
        return sorted(measured.items(), key=lambda one: (-self._promised(one[1]), alive.index(one[0])))

    def _measured(self, arm: int, found: Found) -> dict[Direction, list[Row]]:
        rows: dict[Direction, list[Row]] = {}
        for direction in self.asked.directions:
            edge = found.edges.get((arm, direction))
            if edge is None:
                continue
            known = any(p.gain is not None for p in edge.points)
            if not edge.strength or (known and edge.gain < self.asked.least):
                rows[direction] = []  # nothing that the signals see lies within the budget
                continue
            sizes = self._sizes(arm, direction, edge.strength)
            effects = self.readings.effects(arm, direction, sizes)
            rows[direction] = [Row(s, e) for s, e in zip(sizes, effects, strict=True)]
            if "lost" in self.limits:
                for row in rows[direction]:
                    row.seen["lost"] = self.readings.seen(arm, row.strength)
        return rows

    def _sizes(self, arm: int, direction: Direction, edge: float) -> list[float]:
        """Strengths with their sign, the weakest first."""
        sign = self.readings.sign(arm, direction)
        if self.readings.whole(arm):
            return [sign]
        return [sign * float(f"{share * edge:.3g}") for share in sorted(self.asked.points)]

    def _promised(self, rows: Rows) -> float:
        """What a setting seems to bring: mean over directions of the most joint success, beyond the unsteered, among strengths
        that haven't surely lost too much."""
        gains = [
            max((self._gained(d, r.joint) for r in found if not hopeless(r, self.limits)), default=0.0)
            for d, found in rows.items()
        ]
        return sum(gains) / len(gains) if gains else 0.0

    def _gained(self, direction: Direction, joint: float | None) -> float:
        return max(0.0, (joint or 0.0) - (mean(self.readings.plain(direction).joint) or 0.0))

    # --- the budget -------------------------------------------------------------------------------------------------

    def settled(self, finalists: Sequence[tuple[int, Rows]]) -> tuple[int, Rows]:
        """The setting that is worth most once its strengths are certified.

        The first is certified; another one only where it promises surely more than the best so far has kept. As the better of
        them is taken, each is held to its share of the level.
        """
        self.level = self.asked.delta / max(1, len(finalists))
        best: tuple[int, Rows] | None = None
        worth = -math.inf
        for arm, rows in finalists:
            if best is not None and self._promised(rows) <= worth + MARGIN:
                break  # they come in order: no later one promises more
            self.certify(arm, rows)
            if (kept := self._worth(arm, rows)) > worth:
                best, worth = (arm, rows), kept
        assert best is not None
        return best

    def _worth(self, arm: int, rows: Rows) -> float:
        """The same of what is certified: a direction without a default brings nothing."""
        gains = [
            self._gained(d, told["joint"]) if told["default"] else 0.0 for d, told in self.sides(arm, rows).items()
        ]
        return sum(gains) / len(gains) if gains else 0.0

    def certify(self, arm: int, rows: Rows) -> None:
        """Every strength's verdict on every cost, from the weakest up until one isn't safe."""
        for found in rows.values():
            for row in found:
                cheap = [self._settle(arm, row, name) for name in COSTS if name in self.limits]
                if all(cheap) and "lost" in self.limits:
                    self._settle(arm, row, "lost")
                if not safe(row, self.limits):
                    break

    def _settle(self, arm: int, row: Row, name: str) -> bool:
        """A cost lot by lot, until the case is clear either way; whether it is certified."""
        most, there = self.limits[name], self.readings.amount(name, arm)
        bet = Bet(most, LOW[name], HIGH[name], delta=self.level, horizon=max(1, there))
        row.costs[name] = np.zeros(0)
        while bet.n < there and not bet.certain and bet.within_reach(there - bet.n):
            stop = min(there, bet.n + (self.asked.lot if name == "lost" else LOT))
            more = clipped(name, self.readings.costs(name, arm, row.strength, bet.n, stop))
            row.costs[name] = np.concatenate([row.costs[name], more])
            bet.add(more)
            if len(more) < 1 or hopeless(row, {name: most}):
                break
        row.verdicts[name] = "broken" if hopeless(row, {name: most}) and not bet.certain else judged(bet, most)
        return row.verdicts[name] == "held"

    # --- the range --------------------------------------------------------------------------------------------------

    def sides(self, arm: int, rows: Rows) -> dict[Direction, dict[str, Any]]:
        """Each direction's range as plain data."""
        return {
            d: side(
                int(self.readings.sign(arm, d)),
                of,
                self.readings.plain(d) if of else Effects(),
                self.limits,
                self.level,
            )
            for d, of in rows.items()
        }
