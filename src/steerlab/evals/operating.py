"""The operating range of one direction, from strengths that were measured: verdicts on costs, and what follows of them.

A strength is safe if every cost that has a limit is certified at it and at all weaker ones that were measured. `max_safe` is the
strongest of these; `max_unresolved` the strongest up to which no cost was seen to be over, though some aren't certified;
`default` the safe one with the best joint success, where that is surely more than without steering; `min_useful` where half of
that gain is reached, between neighbours linearly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from .guarantee import HIGH, LOW, Bet, resolved
from .measure import Effects
from .stats import mean, paired_difference

Verdict = Literal["held", "open", "broken"]  # certified; not seen to be over, and not certified; over


@dataclass
class Row:
    """A strength as it was measured on dev: effects, costs by name, and whether each keeps its budget.

    `seen` are costs of the prompts that settings and strengths are chosen by; they certify nothing.
    """

    strength: float
    effects: Effects
    seen: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    costs: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    verdicts: dict[str, Verdict] = field(default_factory=dict[str, Verdict])

    @property
    def joint(self) -> float | None:
        """Joint success."""
        return mean(self.effects.joint)

    def cost(self, name: str) -> float | None:
        """The mean of a cost, of those that certify where there are any; None where it wasn't measured."""
        return _mean(self.costs.get(name, self.seen.get(name)))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        told: dict[str, Any] = {"strength": rounded(self.strength), "effect": rounded(mean(self.effects.effect))}
        known = {**self.seen, **self.costs}
        told |= {"joint": rounded(self.joint), **{name: rounded(_mean(values)) for name, values in known.items()}}
        return told | {"n": {name: len(v) for name, v in known.items()}, "verdicts": dict(self.verdicts)}


def verdict(name: str, values: np.ndarray, limits: Mapping[str, float], horizon: int, delta: float) -> Verdict:
    """What the costs say of their budget; `horizon` is how many there will be at most."""
    bet = Bet(limits[name], LOW[name], HIGH[name], delta=delta, horizon=max(1, horizon)).add(values)
    return judged(bet, limits[name])


def judged(bet: Bet, most: float) -> Verdict:
    """The verdict of a bet as it stands."""
    return "held" if bet.certain else "open" if bet.mean is None or bet.mean <= most else "broken"


def safe(row: Row, limits: Collection[str]) -> bool:
    """Whether every cost that has a limit is certified. What wasn't measured, or on too little, isn't."""
    return bool(limits) and all(row.verdicts.get(name) == "held" for name in limits)


def hopeless(row: Row, limits: Mapping[str, float]) -> bool:
    """Whether a cost's mean is beyond its budget by more than chance would have it."""
    for name, values in (*row.costs.items(), *row.seen.items()):
        if name in limits and len(values) > 1:
            error = float(values.std(ddof=1)) / math.sqrt(len(values))
            if float(values.mean()) - 2 * error > limits[name]:
                return True
    return False


def side(sign: int, rows: Sequence[Row], plain: Effects, limits: Mapping[str, float], delta: float) -> dict[str, Any]:
    """A direction of a range as plain data; `rows` from the weakest strength up, `plain` is the model without steering."""
    known = list(takewhile(lambda row: safe(row, limits), rows))
    beyond = list(
        takewhile(lambda row: bool(row.verdicts) and "broken" not in row.verdicts.values(), rows[len(known) :])
    )
    top = known[-1].strength if known else 0.0
    told: dict[str, Any] = {
        "sign": sign, "min_useful": None, "default": None, "max_safe": top,
        "max_unresolved": beyond[-1].strength if beyond else top, "unresolved": {},
    }  # fmt: skip
    if beyond:
        told["unresolved"] = {
            name: resolved(beyond[0].costs.get(name, ()), most, HIGH[name], delta=delta).to_json()
            for name, most in limits.items()
            if beyond[0].verdicts.get(name) != "held"
        }
    if known:
        told |= _useful(known, plain)
    return {**told, "strengths": [row.to_json() for row in rows]}


def _useful(known: Sequence[Row], plain: Effects) -> dict[str, Any]:
    """The default and the weakest useful strength; nothing where nothing is surely better than no steering."""
    judged, base = [r for r in known if r.joint is not None], mean(plain.joint)
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


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None or not len(values) else float(values.mean())


def rounded(value: float | None) -> float | None:
    """A figure as files keep it."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
