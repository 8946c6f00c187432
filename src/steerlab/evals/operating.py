"""The operating range of one direction, from strengths that were measured: verdicts on costs, and the three strengths.

`max_safe` is the strongest of the strengths that are safe together with all weaker ones; `default` the safe one with the best
joint success, where that is surely more than without steering; `min_useful` where half of that gain is reached, between
neighbours linearly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .guarantee import HIGH, LOW, Bet, resolved
from .measure import Effects
from .stats import mean, paired_difference

Verdict = Literal["held", "open", "broken"]  # certified; within the budget as far as it goes; over it


@dataclass
class Row:
    """A strength as it was measured on dev: effects, costs by name, and whether each keeps its budget."""

    strength: float
    effects: Effects
    costs: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    verdicts: dict[str, Verdict] = field(default_factory=dict[str, Verdict])

    @property
    def joint(self) -> float | None:
        """Joint success."""
        return mean(self.effects.joint)

    def cost(self, name: str) -> float | None:
        """The mean of a cost; None where it wasn't measured."""
        values = self.costs.get(name)
        return None if values is None or not len(values) else float(values.mean())

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        told: dict[str, Any] = {"strength": rounded(self.strength), "effect": rounded(mean(self.effects.effect))}
        told |= {"joint": rounded(self.joint), **{name: rounded(self.cost(name)) for name in self.costs}}
        return told | {"n": {name: len(v) for name, v in self.costs.items()}, "verdicts": dict(self.verdicts)}


def verdict(name: str, values: np.ndarray, limits: Mapping[str, float], horizon: int, delta: float) -> Verdict:
    """What the costs say of their budget; `horizon` is how many there will be at most."""
    bet = Bet(limits[name], LOW[name], HIGH[name], delta=delta, horizon=max(1, horizon)).add(values)
    return "held" if bet.certain else "open" if len(values) and float(values.mean()) <= limits[name] else "broken"


def kept(row: Row, name: str, limits: Mapping[str, float], delta: float) -> bool:
    """Whether a cost counts as within its budget: certified, or within where there are too few to certify anything."""
    found = row.verdicts.get(name)
    return found == "held" or (found == "open" and too_few(row.costs[name], limits[name], delta))


def too_few(values: np.ndarray, most: float, delta: float) -> bool:
    """Whether even a steering that costs a quarter of the budget could hardly have been certified with as many."""
    return len(values) < resolved(values, most, delta=delta).needed


def hopeless(row: Row, limits: Mapping[str, float]) -> bool:
    """Whether a cost's mean is beyond its budget by more than chance would have it."""
    for name, values in row.costs.items():
        if name in limits and len(values) > 1:
            error = float(values.std(ddof=1)) / math.sqrt(len(values))
            if float(values.mean()) - 2 * error > limits[name]:
                return True
    return False


def side(sign: int, rows: Sequence[Row], plain: Effects, limits: Mapping[str, float], delta: float) -> dict[str, Any]:
    """A direction of a range as plain data; `rows` from the weakest strength up, `plain` is the model without steering."""
    safe: list[Row] = []
    for row in rows:
        if set(row.verdicts) < set(limits) & set(row.costs) or not row.verdicts:
            break
        if not all(kept(row, name, limits, delta) for name in row.verdicts):
            break
        safe.append(row)
    told: dict[str, Any] = {"sign": sign, "min_useful": None, "default": None, "max_safe": 0.0, "unresolved": {}}
    if safe:
        top = safe[-1]
        told["max_safe"] = top.strength
        told["unresolved"] = {
            name: resolved(top.costs[name], limits[name], delta=delta).to_json()
            for name, found in top.verdicts.items()
            if found == "open"
        }
        told |= _useful(safe, plain)
    return {**told, "strengths": [row.to_json() for row in rows]}


def _useful(safe: Sequence[Row], plain: Effects) -> dict[str, Any]:
    """The default and the weakest useful strength; nothing where nothing is surely better than no steering."""
    judged, base = [r for r in safe if r.joint is not None], mean(plain.joint)
    if not judged or base is None:
        return {}
    best = max(judged, key=lambda r: (r.joint or 0.0, -abs(r.strength)))
    gained = paired_difference([[best.effects.joint]], [[plain.joint]])
    if gained.low is None or gained.low <= 0:
        return {}
    sizes, gains = [0.0], [0.0]
    for row in judged:
        sizes.append(abs(row.strength))
        gains.append((row.joint or 0.0) - base)
    half = math.copysign(first(sizes, gains, ((best.joint or 0.0) - base) / 2), best.strength)
    return {
        "default": best.strength, "min_useful": rounded(half), "joint": rounded(best.joint), "unsteered": rounded(base),
    }  # fmt: skip


def first(sizes: Sequence[float], values: Sequence[float], wanted: float) -> float:
    """Where values, joined by lines, first reach what is wanted."""
    for k in range(1, len(sizes)):
        if values[k] >= wanted - 1e-12:
            rise = values[k] - values[k - 1]
            share = 1.0 if rise <= 0 else min(1.0, max(0.0, (wanted - values[k - 1]) / rise))
            return sizes[k - 1] + share * (sizes[k] - sizes[k - 1])
    return sizes[-1]


def rounded(value: float | None) -> float | None:
    """A figure as files keep it."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
