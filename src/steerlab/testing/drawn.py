"""Readings of no model: costs drawn from distributions whose true means are known, for `evals.procedure.Procedure`.

So the very steps that write a range can be run a thousand times, and what they call safe be held against the truth
(`benchmarks/calibrate.py --guarantee`, `tests/test_drawn.py`). A prompt is a number u, uniform in (0, 1); what it costs at a
strength is a function of both, and the true mean is that function's mean over a fine grid of u.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..evals.asked import Asked
from ..evals.guarantee import HIGH, LOW, Budget
from ..evals.measure import Effects
from ..evals.procedure import Procedure
from ..evals.results import Direction
from ..evals.signals import Signal

Array = np.ndarray
Costs = Callable[[Array, float], Array]
"""(u of each prompt, strength) → cost of each"""

REACH = 1.3  # the greatest strength
GRID = (np.arange(20_000) + 0.5) / 20_000
NORMAL = np.asarray([NormalDist().inv_cdf(u) for u in GRID])


@dataclass(frozen=True)
class Kind:
    """Costs by name, each drawn by its own prompts, and among how many settings (alike, with prompts of their own) is chosen."""

    name: str
    costs: Mapping[str, Costs]
    settings: int = 1


class Outcome(NamedTuple):
    """Of one calibration: whether a strength that was called safe is truly over a budget, and the range over the oracle's."""

    over: bool
    share: float


def squared(s: float) -> float:
    """The mean cost over the budget: 1 at strength 1."""
    return s * s


def flat(s: float) -> float:
    """Small, and from three quarters on a hundredth over the budget, whatever the strength."""
    return 0.3 if s < 0.75 else 1.01


def bumpy(s: float) -> float:
    """Over the budget in between alone: growth that isn't monotone."""
    return 1.3 if 0.6 < s < 0.9 else 0.2


def items(mean: Callable[[float], float], most: float, both: float) -> Costs:
    """Items that are lost (1) or won (−1): `both` of them change each way, whatever the strength, and the mean is on top."""

    def at(u: Array, s: float) -> Array:
        return (u < both + most * mean(s)).astype(float) - (u > 1 - both)

    return at


def tailed(mean: Callable[[float], float], most: float, sigma: float) -> Costs:
    """Log-normal costs with that σ."""

    def at(u: Array, s: float) -> Array:
        return most * mean(s) * np.exp(sigma * _normal(u) - sigma * sigma / 2)

    return at


def spread(mean: Callable[[float], float], most: float, sd: float) -> Costs:
    """Normal costs: many are less than nothing."""

    def at(u: Array, s: float) -> Array:
        return most * mean(s) + sd * _normal(u)

    return at


def rare(mean: Callable[[float], float], most: float, high: float) -> Costs:
    """The greatest cost on few prompts, hardly any on all others."""

    def at(u: Array, s: float) -> Array:
        return np.where(u < most * mean(s) / high, high, 0.0)

    return at


def _normal(u: Array) -> Array:
    return np.interp(u, GRID, NORMAL)


def kinds(budget: Budget | None = None) -> list[Kind]:
    """The distributions, a cost at a time; the last ones hold all costs at once, and the best of several settings."""
    limits = (budget or Budget()).limits()
    lost, kl, perplexity = (limits[name] for name in ("lost", "kl", "perplexity"))
    found = [
        Kind("few items change", {"lost": items(squared, lost, 0.003)}),
        Kind("items change both ways, sd .37", {"lost": items(squared, lost, 0.06)}),
        Kind("flat beside the budget", {"lost": items(flat, lost, 0.003)}),
        Kind("both ways, flat beside the budget", {"lost": items(flat, lost, 0.06)}),
        Kind("not monotone", {"lost": items(bumpy, lost, 0.003)}),
        Kind("spread", {"kl": tailed(squared, kl, 0.8)}),
        Kind("heavy tail", {"kl": tailed(squared, kl, 1.8)}),
        Kind("rare and large", {"kl": rare(squared, kl, HIGH["kl"])}),
        Kind("flat beside the budget", {"kl": tailed(flat, kl, 0.8)}),
        Kind("not monotone", {"kl": tailed(bumpy, kl, 0.8)}),
        Kind("spread both ways", {"perplexity": spread(squared, perplexity, 0.05)}),
        Kind("wide, both ways", {"perplexity": spread(squared, perplexity, 0.2)}),
        Kind("heavy tail", {"perplexity": tailed(squared, perplexity, 1.8)}),
        Kind("rare and large", {"perplexity": rare(squared, perplexity, HIGH["perplexity"])}),
        Kind("flat beside the budget", {"perplexity": spread(flat, perplexity, 0.05)}),
        Kind("not monotone", {"perplexity": spread(bumpy, perplexity, 0.05)}),
    ]
    every = {
        "kl": tailed(squared, kl, 1.3), "perplexity": spread(squared, perplexity, 0.05), "lost": items(squared, lost, 0.02),
    }  # fmt: skip
    several = [replace(k, name=f"{k.name}, best of 4 settings", settings=4) for k in (found[6], found[10])]
    return [*found, Kind("all at once", every), Kind("all at once, best of 4 settings", every, 4), *several]


class Drawn:
    """The readings of one calibration (`procedure.Readings`), with prompts drawn from a seed."""

    def __init__(self, kind: Kind, asked: Asked, seed: int) -> None:
        self.kind, self.settings = kind, kind.settings
        rng = np.random.default_rng(seed)
        self._amounts = {"lost": asked.items, "kl": asked.neutral, "perplexity": asked.texts}
        chosen = {"lost": asked.lot, "kl": asked.choosing, "perplexity": asked.choosing}
        self._choose = [{name: rng.random(chosen[name]) for name in kind.costs} for _ in range(kind.settings)]
        self._certify = [{name: rng.random(self._amounts[name]) for name in kind.costs} for _ in range(kind.settings)]
        self._gains = 1 + 0.05 * rng.standard_normal(kind.settings)

    def reach(self, arm: int, direction: Direction) -> float:
        """As far as every setting goes."""
        return REACH

    def sign(self, arm: int, direction: Direction) -> float:
        """Up."""
        return 1.0

    def whole(self, arm: int) -> bool:
        """No prompts."""
        return False

    def signal(self, arm: int, direction: Direction, strength: float, share: float) -> Signal:
        """The gain grows to 1; costs are of the prompts that are chosen by."""
        gain = float(self._gains[arm] * min(1.0, strength))
        part = {name: u[: max(4, math.ceil(share * len(u)))] for name, u in self._choose[arm].items()}
        costs = {name: self.kind.costs[name](u, strength) for name, u in part.items()}
        return Signal(gain, costs.get("kl", np.zeros(0)), costs.get("perplexity", np.zeros(0)))

    def effects(self, arm: int, direction: Direction, strengths: Sequence[float]) -> list[Effects]:
        """So many replies of 24 that succeed."""
        return [_effects(min(1.0, s) * self._gains[arm]) for s in strengths]

    def plain(self, direction: Direction) -> Effects:
        """None succeeds."""
        return _effects(0.0)

    def seen(self, arm: int, strength: float) -> Array:
        """Of the items that are chosen by."""
        return self.kind.costs["lost"](self._choose[arm]["lost"], strength)

    def amount(self, name: str, arm: int) -> int:
        """As many as were asked for."""
        return self._amounts[name]

    def costs(self, name: str, arm: int, strength: float, start: int, stop: int) -> Array:
        """Of the prompts that certify."""
        return self.kind.costs[name](self._certify[arm][name][start:stop], strength)


def _effects(share: float, n: int = 24) -> Effects:
    good = round(min(1.0, max(0.0, share)) * n)
    values: list[float | None] = [float(k < good) for k in range(n)]
    return Effects(effect=values, joint=list(values))


def true_mean(kind: Kind, name: str, strength: float) -> float:
    """Of a cost as a guarantee counts it: held between the least and the greatest."""
    return float(np.clip(kind.costs[name](GRID, strength), LOW[name], HIGH[name]).mean())


def oracle(kind: Kind, limits: Mapping[str, float]) -> float:
    """The strongest strength up to which every cost's true mean keeps its budget."""
    best = 0.0
    for s in np.arange(0.005, REACH + 1e-9, 0.005):
        if any(true_mean(kind, name, float(s)) > most for name, most in limits.items()):
            break
        best = float(s)
    return best


def budget_of(kind: Kind) -> Budget:
    """The usual limits of the costs that a kind has."""
    return Budget(**{name: most if name in kind.costs else None for name, most in Budget().limits().items()})


def calibrated(kind: Kind, seed: int, asked: Asked | None = None, *, best: float | None = None) -> Outcome:
    """One calibration of a kind, from the search to the range. `best` is the oracle's range, where it is known already."""
    budget = budget_of(kind)
    asked = replace(asked or Asked(), budget=budget, directions=("elicit",), seed=seed)
    run = Procedure(asked, Drawn(kind, asked, seed), budget)
    arm, rows = run.settled(run.final(run.searched()))
    top = run.sides(arm, rows)["elicit"]["max_safe"]
    called = [row.strength for row in rows["elicit"] if row.strength <= top]
    over = any(true_mean(kind, name, s) > most for s in called for name, most in budget.limits().items())
    return Outcome(over, top / (oracle(kind, budget.limits()) if best is None else best))
