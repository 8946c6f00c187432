"""Is a difference real? Tests, intervals and effect sizes of paired differences over concepts, fits and prompts.

A difference is a mean over concepts of means over fits of means over prompts. What varies by chance, and so what the answer is
about, is the `level`: `concepts` (it holds for concepts like these), `fits` (for further fits on these concepts), or `prompts`
(for these fits, on prompts like these). The units of the level are independent, whatever lies inside them, so their spread alone
gives the standard error, and Student's t the interval. Resampling every level at once, as `stats.bootstrap` does for the
intervals of a report, counts what varies inside twice, and a percentile interval of few units is too narrow: it is no test
(`benchmarks/compare.py` has both by simulation).

Items of a capability test, neutral prompts and texts are often the same for all tasks: tasks and items are then crossed. A
difference that one item brings, it brings to every task, and more tasks don't average it away. `items` names the set that each
fit met; where fits share one, the variance of items is added (two-way random effects: Searle, Casella & McCulloch 1992, ch. 4),
with Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import ConfigError
from .stats import Clusters, Sets

Level = Literal["concepts", "fits", "prompts"]
LEVELS: tuple[Level, ...] = ("concepts", "fits", "prompts")
ENOUGH = 5  # concepts from which on they may stand for others: with fewer, t has less than 4 degrees of freedom


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its interval, its p, and its size in standard deviations of the level's units.

    `standardised` is Hedges' g of the paired differences (None where they don't vary). `better`, `worse` and `same` are shares of
    the pairs. `pairs` were compared, `missing` had a side that could not be judged. `items` are how many items concepts or fits
    share (0: none), whose own variance `error` then holds.
    """

    mean: float
    low: float
    high: float
    p: float
    error: float
    df: float
    level: Level
    units: int
    pairs: int
    missing: int
    standardised: float | None
    better: float
    worse: float
    same: float
    items: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


class _Spread(NamedTuple):
    """A standard error with its degrees of freedom, the units behind it and their standard deviation."""

    error: float
    df: float
    units: int
    deviation: float


def difference(
    clusters: Clusters,
    *,
    level: Level | None = None,
    share: bool = True,
    confidence: float = 0.95,
    items: Sets | None = None,
) -> Difference | None:
    """What paired differences (concepts, of fits, of prompts) say of their mean; None where no pair is there.

    `level` is what is to vary; none: `level_of`. `items` names the set of items that each fit met: the values of fits with one
    name are of the same items in the same order. `share` says that a difference lies between −1 and 1. Where not one unit differs
    from another, t has nothing to go by: the interval then reaches 3/units further both ways (the rule of three), since so many
    units can't exclude more.
    """
    kept = known(clusters)
    if not kept:
        return None
    level = level or level_of(kept)
    flat = [v for concept in kept for fit in concept for v in fit]
    missing = sum(v is None for concept in clusters for fit in concept for v in fit)
    mean = float(np.mean([np.mean([np.mean(fit) for fit in concept]) for concept in kept]))
    spread = _SPREAD[level](kept)
    crossed = [] if items is None else shared_sets(clusters, items, level)
    spread = _with_items(spread, crossed)
    if spread.error > 1e-12 * max(1.0, abs(mean)):
        half = student_quantile((1 + confidence) / 2, spread.df) * spread.error
        p = 2 * student_cdf(-abs(mean) / spread.error, spread.df)
    elif share:
        half = min(1.0, -math.log(1 - confidence) / spread.units)
        p = 1.0 if mean == 0 else min(1.0, 2.0 ** (1 - spread.units))
    else:
        half, p = 0.0, 1.0 if mean == 0 else min(1.0, 2.0 ** (1 - spread.units))
    bound = 1.0 if share else math.inf
    size = None
    if spread.deviation > 1e-12:
        size = mean / spread.deviation * (1 - 3 / (4 * spread.df - 1) if spread.df > 1 else 0.5)
    signs = np.sign(np.round(flat, 12))
    return Difference(
        mean, max(-bound, mean - half), min(bound, mean + half), p, spread.error, spread.df, level, spread.units, len(flat),
        missing, size, float(np.mean(signs > 0)), float(np.mean(signs < 0)), float(np.mean(signs == 0)),
        sum(c.items for c in crossed),
    )  # fmt: skip


def known(clusters: Clusters) -> list[list[list[float]]]:
    """Without what is missing; fits and concepts that have nothing are left out whole."""
    kept = [[[float(v) for v in fit if v is not None] for fit in concept] for concept in clusters]
    return [concept for concept in ([fit for fit in concept if fit] for concept in kept) if concept]


def level_of(kept: Sequence[Sequence[Sequence[float]]]) -> Level:
    """The widest level that these numbers can speak for.

    Concepts where there are at least five; else further fits on these concepts, where each has at least two; else these fits
    alone.
    """
    if len(kept) >= ENOUGH:
        return "concepts"
    return "fits" if min(map(len, kept)) > 1 else "prompts"


def _over_concepts(kept: Sequence[Sequence[Sequence[float]]]) -> _Spread:
    units = [float(np.mean([np.mean(fit) for fit in concept])) for concept in kept]
    if len(units) < 2:
        raise ConfigError(
            "one concept says nothing about others; compare on the level of fits or prompts, or on more concepts."
        )
    deviation = float(np.std(units, ddof=1))
    return _Spread(deviation / math.sqrt(len(units)), len(units) - 1, len(units), deviation)


def _over_fits(kept: Sequence[Sequence[Sequence[float]]]) -> _Spread:
    return _within(
        [[float(np.mean(fit)) for fit in concept] for concept in kept], [1 / len(kept)] * len(kept), "fits of a concept"
    )


def _over_prompts(kept: Sequence[Sequence[Sequence[float]]]) -> _Spread:
    groups = [list(fit) for concept in kept for fit in concept]
    return _within(groups, [1 / (len(kept) * len(concept)) for concept in kept for _ in concept], "prompts of a fit")


def _within(groups: Sequence[Sequence[float]], weights: Sequence[float], what: str) -> _Spread:
    """The error of a weighted sum of group means. All groups share one variance, so that few units each will do."""
    df = sum(len(g) - 1 for g in groups)
    if df < 1:
        raise ConfigError(
            f"there are no two {what}: nothing tells how they vary. Compare on another level, or measure more."
        )
    pooled = sum((len(g) - 1) * float(np.var(g, ddof=1)) for g in groups if len(g) > 1) / df
    error = math.sqrt(pooled * sum(w * w / len(g) for w, g in zip(weights, groups, strict=True)))
    return _Spread(error, df, sum(map(len, groups)), math.sqrt(pooled))


class SharedSet(NamedTuple):
    """A set of items that several fits met, and what its items' variance adds to the mean's.

    `between` and `within` are mean squares of items and of what is left, `per_item` the fits behind an item, `weight` the share
    of the items' variance over their number that the level's own spread doesn't hold.
    """

    items: int
    between: float
    within: float
    within_df: int
    per_item: float
    weight: float

    @property
    def variance(self) -> float:
        """Of items, by the method of moments; what comes out below 0 is 0."""
        return max(0.0, (self.between - self.within) / self.per_item)


def shared_sets(clusters: Clusters, items: Sets, level: Level) -> list[SharedSet]:
    """The sets of items that more than one fit met."""
    rows: dict[Hashable, list[tuple[int, float, np.ndarray]]] = {}
    there = [
        (n, [(name, fit) for fit, name in zip(concept, names, strict=True) if any(v is not None for v in fit)])
        for n, (concept, names) in enumerate(zip(clusters, items, strict=True))
    ]
    there = [(n, fits) for n, fits in there if fits]
    for n, fits in there:
        for name, fit in fits:
            values = np.array([math.nan if v is None else float(v) for v in fit])
            rows.setdefault((name, len(values)), []).append((n, 1 / (len(there) * len(fits)), values))
    return [found for fits in rows.values() if (found := _shared_set(fits, level)) is not None]


def _shared_set(fits: Sequence[tuple[int, float, np.ndarray]], level: Level) -> SharedSet | None:
    values = np.stack([row for _, _, row in fits])
    counts = (~np.isnan(values)).sum(axis=0)
    values, counts = values[:, counts > 0], counts[counts > 0]
    n, pairs = len(counts), int(counts.sum())
    within_df = pairs - n - (len(fits) - 1)
    if len(fits) < 2 or n < 2 or within_df < 1:
        return None
    off = values - np.nanmean(values, axis=1, keepdims=True)
    means = np.nanmean(off, axis=0)
    of_concepts: dict[int, list[float]] = {}
    for concept, weight, _ in fits:
        of_concepts.setdefault(concept, []).append(weight)
    counted = {
        "prompts": sum(w * w for weights in of_concepts.values() for w in weights),
        "fits": 0.0 if max(map(len, of_concepts.values())) > 1 else sum(w * w for _, w, _ in fits),
        "concepts": sum(sum(weights) ** 2 for weights in of_concepts.values()) if len(of_concepts) == 1 else 0.0,
    }[level]
    return SharedSet(
        n,
        float((counts * means**2).sum()) / (n - 1),
        float(np.nansum((off - means) ** 2)) / within_df,
        within_df,
        (pairs - float((counts**2).sum()) / pairs) / (n - 1),
        max(0.0, sum(w for _, w, _ in fits) ** 2 - counted),
    )


def _with_items(spread: _Spread, crossed: Sequence[SharedSet]) -> _Spread:
    """The spread with what shared items add, and Satterthwaite's degrees of freedom."""
    own = spread.error**2
    added = [(c, c.weight / c.items) for c in crossed if c.variance > 0 and c.weight > 0]
    whole = own + sum(c.variance * k for c, k in added)
    if whole == own:
        return spread
    parts = own**2 / spread.df + sum(
        (k * c.between / c.per_item) ** 2 / (c.items - 1) + (k * c.within / c.per_item) ** 2 / c.within_df
        for c, k in added
    )
    return spread._replace(error=math.sqrt(whole), df=whole**2 / parts)


_SPREAD = {"concepts": _over_concepts, "fits": _over_fits, "prompts": _over_prompts}


def holm(ps: Sequence[float]) -> list[float]:
    """P values adjusted so that the chance of any false claim among them stays below the level (Holm 1979)."""
    order = np.argsort(ps, kind="stable")
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, n in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[n]))
        adjusted[n] = highest
    return adjusted


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """P values adjusted so that the expected share of false claims among the claims stays below the level."""
    order = np.argsort(ps, kind="stable")[::-1]
    adjusted, lowest = [0.0] * len(ps), 1.0
    for rank, n in enumerate(order.tolist()):
        lowest = min(lowest, len(ps) / (len(ps) - rank) * ps[n])
        adjusted[n] = lowest
    return adjusted


def student_cdf(t: float, df: float) -> float:
    """P(T ≤ t) of Student's t, by the regularised incomplete beta function."""
    if math.isinf(df):
        return 0.5 * math.erfc(-t / math.sqrt(2))
    tail = 0.5 * _beta(df / (df + t * t), df / 2, 0.5)
    return tail if t < 0 else 1 - tail


@cache
def student_quantile(p: float, df: float) -> float:
    """The t below which lies the share p."""
    if not 0 < p < 1:
        raise ValueError(f"a quantile is asked at {p}; expected a share between 0 and 1.")
    if p < 0.5:
        return -student_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while student_cdf(high, df) < p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < p else (low, middle)
        if high - low < 1e-13 * max(1.0, high):
            break
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function by its continued fraction (Lentz's way)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    found = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (_or(1 + term * d, tiny))
            c = _or(1 + term / c, tiny)
            found *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * found / a


def _or(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
