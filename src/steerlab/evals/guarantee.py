"""The strongest strength whose mean cost stays within a budget, with a guarantee from finitely many prompts.

Costs are per prompt (a question lost, nats of KL, a share of perplexity). For one strength the null "the mean cost is the
budget or more" is tested by betting against it (Waudby-Smith and Ramdas, arXiv 2010.09686): the capital

    K_t = Π_{i ≤ t} (1 + b_i (budget − x_i)),   b_i set from x_1 … x_{i−1},   0 ≤ b_i ≤ c / (high − budget)

is a non-negative supermartingale under the null, so the chance that it ever reaches 1/δ is at most δ (Ville), whatever the
distribution and however long one looks: measuring may stop as soon as the case is clear. Strengths are tested from the
weakest up, each cost for itself, until the first that isn't certified (fixed sequence, "Learn then Test", arXiv 2110.01052):
then the chance that a strength is called safe which isn't, is at most δ. `expected` is the plain conformal risk control
(arXiv 2208.02814), which keeps the budget on average over calibrations and takes costs to grow with strength.

Both suppose that the prompts to come are drawn like those that were measured; costs above `high` count as `high`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError

Array = np.ndarray
HIGH = {"lost": 1.0, "kl": 1.0, "perplexity": 0.5}  # what a cost counts at most: an item, nats, a share
LOW = {"lost": -1.0, "kl": 0.0, "perplexity": -0.5}
DELTA = 0.05
BOLD = 0.75  # of the greatest bet that can't lose everything


@dataclass(frozen=True, slots=True)
class Budget:
    """What a steering may cost on average: a share of capability items, nats of KL a token, a share of perplexity.

    None: that cost has no limit.
    """

    lost: float | None = 0.02
    kl: float | None = 0.1
    perplexity: float | None = 0.05

    def __post_init__(self) -> None:
        for name, most in self.limits().items():
            if not 0 < most < HIGH[name]:
                raise ConfigError(
                    f"the budget of {name} is {most}; expected more than 0 and less than {HIGH[name]:g}, or none."
                )
        if not self.limits():
            raise ConfigError("a budget limits at least one of lost, kl and perplexity; none is given.")

    def limits(self) -> dict[str, float]:
        """The costs that have a limit."""
        return {
            name: v
            for name, v in (("lost", self.lost), ("kl", self.kl), ("perplexity", self.perplexity))
            if v is not None
        }

    def told(self) -> str:
        """In words."""
        words = {"lost": "capability −{:g} points", "kl": "KL ≤ {:g} nats", "perplexity": "perplexity +{:g} %"}
        size = {"lost": 100, "kl": 1, "perplexity": 100}
        return ", ".join(words[n].format(round(size[n] * v, 6)) for n, v in self.limits().items())


class Bet:
    """The capital of betting that the mean of costs in [low, high] is below a budget; costs are added as they come."""

    def __init__(self, most: float, low: float, high: float, *, delta: float = DELTA, horizon: int = 500) -> None:
        self.most, self.low, self.high, self.delta, self.horizon = most, low, high, delta, horizon
        self._logs, self.best = np.zeros(2), 0.0  # of the two capitals now, and of their mean at its highest
        self._n, self._sum, self._squares = 0, 0.0, 0.0
        self._spread = ((high - low) / 8) ** 2  # supposed before anything has come

    def add(self, costs: Sequence[float] | Array) -> Bet:
        """Bet on these one after the other; returns itself."""
        x = np.clip(np.asarray(costs, dtype=float), self.low, self.high)
        if not len(x):
            return self
        sums, squares = self._sum + np.cumsum(x), self._squares + np.cumsum(x * x)
        before = (np.concatenate([[self._sum], sums[:-1]]), np.concatenate([[self._squares], squares[:-1]]))
        stakes = self._stakes(self._n + np.arange(len(x)), *before)
        logs = self._logs[:, None] + np.cumsum(np.log1p(stakes * (self.most - x)), axis=1)
        self._logs, self.best = logs[:, -1], max(self.best, float(np.logaddexp(*logs).max()) - math.log(2))
        self._n, self._sum, self._squares = self._n + len(x), float(sums[-1]), float(squares[-1])
        return self

    def _stakes(self, n: Array, sums: Array, squares: Array) -> Array:
        """Two ways to stake, half of the capital on each `[2, n]`, by what came before.

        edge / (edge² + variance) makes capital grow fastest where the edge is known, √(2 ln(1/δ) / (horizon · variance)) is
        best for a mean close to the budget when the horizon's costs are all there.
        """
        mean = (self.most / 2 + sums) / (n + 1)  # as if one cost of half the budget had come before
        variance = np.maximum((self._spread + squares) / (n + 1) - (sums / (n + 1)) ** 2, 1e-6)
        edge = np.maximum(self.most - mean, 0.0)
        bold = edge / (edge * edge + variance)
        steady = np.sqrt(2 * math.log(1 / self.delta) / (self.horizon * variance))
        return np.minimum(np.stack([bold, steady]), BOLD / (self.high - self.most))

    def within_reach(self, left: int) -> bool:
        """Whether `left` costs more could still make the case, were they lower than those so far by two standard errors.

        Giving up early costs power alone, never the level.
        """
        if self.certain or self._n < 2:
            return True
        mean = self._sum / self._n
        variance = max(self._squares / self._n - mean * mean, 1e-6)
        edge = max(self.most - mean + 2 * math.sqrt(variance / self._n), 0.0)
        stake = min(edge / (edge * edge + variance), BOLD / (self.high - self.most))
        growth = stake * edge - stake * stake * (variance + edge * edge) / 2
        return float(np.logaddexp.reduce(self._logs)) - math.log(2) + left * max(growth, 0.0) >= math.log(
            1 / self.delta
        )

    @property
    def certain(self) -> bool:
        """Whether the mean is below the budget, at level δ."""
        return self.best >= math.log(1 / self.delta)

    @property
    def n(self) -> int:
        """Costs so far."""
        return self._n

    @property
    def mean(self) -> float | None:
        """Their mean (held within [low, high])."""
        return self._sum / self._n if self._n else None


def certified(costs: Sequence[float] | Array, most: float, low: float, high: float, *, delta: float = DELTA) -> bool:
    """Whether the mean cost is below the budget, at level δ. The costs come in an order that has nothing to do with them."""
    return Bet(most, low, high, delta=delta, horizon=len(costs)).add(costs).certain


def safe(costs: Mapping[str, Array], budget: Budget, *, delta: float = DELTA, seed: int = 0) -> int:
    """How many strengths, of those given from the weakest up, are certified for every cost that has a limit.

    `costs` are `[strengths, prompts]` by name. The chance that one of them is over a budget is at most δ.
    """
    limits = {n: m for n, m in budget.limits().items() if n in costs}
    if not limits:
        raise ConfigError(f"none of the costs {sorted(costs)} has a limit in the budget ({budget.told()}).")
    rng = np.random.default_rng(seed)
    order = {name: rng.permutation(costs[name].shape[1]) for name in limits}
    strengths = min(len(costs[n]) for n in limits)
    for k in range(strengths):
        for name, most in limits.items():
            if not certified(costs[name][k][order[name]], most, LOW[name], HIGH[name], delta=delta):
                return k
    return strengths


def expected(costs: Array, most: float, high: float) -> int:
    """How many strengths, from the weakest up, conformal risk control allows: n/(n+1)·mean + high/(n+1) ≤ budget.

    `costs` `[strengths, prompts]` are taken to grow with strength. On average over calibrations the cost of the next prompt
    is within the budget; a single calibration may be over it nearly every second time.
    """
    n = costs.shape[1]
    bounds = (np.clip(costs, None, high).sum(axis=1) + high) / (n + 1)
    over = np.flatnonzero(bounds > most)
    return int(over[0]) if len(over) else len(costs)


class Resolved(NamedTuple):
    """What a measurement can tell: the cost, the half-width of its 90 % interval, how many there were and the budget takes.

    `needed` is None where the mean is at nine tenths of the budget or more: no number that anybody would measure settles it.
    """

    mean: float | None
    half: float | None
    n: int
    needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"mean": _short(self.mean), "half": _short(self.half), "n": self.n, "needed": self.needed}


def resolved(costs: Sequence[float] | Array, most: float, high: float, *, delta: float = DELTA) -> Resolved:
    """How finely a mean is known (one-sided at level δ), and how many such prompts it takes to certify it.

    With as many, a mean such as was seen (a quarter of the budget at least) is certified in about four cases of five:
    1.3 ((z_δ + 0.84) sd / (budget − mean))², the 1.3 being the price of betting over knowing the variance; twice as many as
    where nothing is ever lost at least. Costs count up to `high`.
    """
    values = np.minimum(np.asarray(costs, dtype=float), high)
    n, z = len(values), _z(delta)
    least = 2 * math.ceil(math.log(1 / delta) / math.log1p(BOLD * most / (high - most)))
    if n < 2:
        return Resolved(float(values.mean()) if n else None, None, n, least)
    mean, spread = float(values.mean()), max(float(values.std(ddof=1)), high / n)
    edge = most - max(mean, most / 4)
    needed = None if edge < most / 10 else max(least, math.ceil(1.3 * ((z + 0.84) * spread / edge) ** 2))
    return Resolved(mean, z * spread / math.sqrt(n), n, needed)


def _z(delta: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - delta)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
