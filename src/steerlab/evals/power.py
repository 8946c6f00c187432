"""How much must be measured to see a difference: power from the variance of concepts, fits and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ConfigError
from .inference import ENOUGH, Level, known, shared_sets, student_quantile
from .stats import Clusters, Sets

MOST = 100_000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)


@dataclass(frozen=True, slots=True)
class Components:
    """The variance of a paired difference between concepts, between fits of a concept, and between prompts of a fit.

    `items` is that between items which fits share; `prompts` is then what is left.
    """

    concepts: float
    fits: float
    prompts: float
    items: float = 0.0

    @classmethod
    def of(cls, clusters: Clusters, items: Sets | None = None) -> Components:
        """By the method of moments (nested analysis of variance); what comes out below 0 is 0.

        `items` names the sets that fits met (`inference.difference`).

        A level with one unit only has no variance of its own: it stands as 0 and its part lies in the one below. Raises
        `ConfigError` where not even prompts vary within a fit because each has one.
        """
        kept = known(clusters)
        fits = [fit for concept in kept for fit in concept]
        within = _pooled(fits)
        if within is None:
            raise ConfigError("no fit has two prompts that were judged; measure more before asking how many it takes.")
        crossed = [] if items is None else shared_sets(clusters, items, "prompts")
        weights = sum(c.within_df for c in crossed)
        of_items = sum(c.variance * c.within_df for c in crossed) / weights if weights else 0.0
        per_fit = _harmonic([len(fit) for fit in fits])
        left = max(0.0, within - of_items)
        apart = within if _one_each(items) else left  # fits that share items don't differ in these
        between = _pooled([[float(np.mean(fit)) for fit in concept] for concept in kept])
        of_fits = 0.0 if between is None else max(0.0, between - apart / per_fit)
        each = _harmonic([len(concept) for concept in kept])
        means = [float(np.mean([np.mean(fit) for fit in concept])) for concept in kept]
        whole = 0.0 if len(means) < 2 else float(np.var(means, ddof=1))
        return cls(max(0.0, whole - of_fits / each - left / (each * per_fit)), of_fits, left, of_items)


def _one_each(items: Sets | None) -> bool:
    """Whether the fits of each concept met different items."""
    return items is None or all(len(set(names)) == len(names) for names in items)


def _pooled(groups: Sequence[Sequence[float]]) -> float | None:
    df = sum(len(g) - 1 for g in groups)
    return None if df == 0 else sum((len(g) - 1) * float(np.var(g, ddof=1)) for g in groups if len(g) > 1) / df


def _harmonic(counts: Sequence[int]) -> float:
    return len(counts) / sum(1 / n for n in counts)


@dataclass(frozen=True, slots=True)
class Design:
    """How much is measured: concepts, fits of each, prompts of each fit; and the level on which it is compared.

    `sets` of items are shared by the fits, each as large as a fit's prompts (0: every fit has its own).
    """

    concepts: int
    fits: int
    prompts: int
    level: Level
    sets: int = 0

    @classmethod
    def of(cls, clusters: Clusters, level: Level, items: Sets | None = None) -> Design:
        """What was measured, its middle sizes."""
        kept = known(clusters)
        fits = [len(fit) for concept in kept for fit in concept]
        sets = 0 if items is None else len(shared_sets(clusters, items, level))
        return cls(len(kept), round(_harmonic([len(c) for c in kept])), round(_harmonic(fits)), level, sets)

    def error(self, of: Components) -> float:
        """The standard error of the mean difference."""
        return math.sqrt(self._own(of) + self._shared(of))

    def _own(self, of: Components) -> float:
        inside = of.prompts / (self.concepts * self.fits * self.prompts)
        if self.level != "prompts":
            inside += of.fits / (self.concepts * self.fits)
        if self.level == "concepts":
            inside += of.concepts / self.concepts
        return inside

    def _shared(self, of: Components) -> float:
        return of.items / (self.sets * self.prompts) if self.sets else 0.0

    def freedom(self, of: Components) -> float:
        """Degrees of freedom of Student's t; Satterthwaite's where items are shared."""
        own, shared = self._own(of), self._shared(of)
        if shared == 0 or self.df < 1 or self.prompts < 2:
            return self.df
        return (own + shared) ** 2 / (own**2 / self.df + shared**2 / (self.sets * (self.prompts - 1)))

    @property
    def df(self) -> int:
        """Of Student's t where no items are shared."""
        if self.level == "concepts":
            return self.concepts - 1
        return self.concepts * (self.fits - 1 if self.level == "fits" else self.fits * (self.prompts - 1))


def power(true: float, design: Design, of: Components, *, alpha: float = 0.05) -> float:
    """The chance that a true difference is told (two-sided p < alpha): that of a noncentral t to lie beyond the bounds."""
    error, df = design.error(of), design.freedom(of)
    if df < 1:
        return 0.0
    if error == 0:
        return float(true != 0)
    bound, shift = student_quantile(1 - alpha / 2, df), true / error
    # T = (Z + shift) / sqrt(V / df): over the density of x = sqrt(V / df), Z is normal
    low, high = max(0.0, 1 - 9 / math.sqrt(2 * df)), 1 + 9 / math.sqrt(2 * df)
    x = low + (high - low) * (_NODES + 1) / 2
    density = (df - 1) * np.log(x) - df * x * x / 2
    weight = _WEIGHTS * np.exp(density - density.max())
    beyond = np.array([_normal(shift - bound * v) + _normal(-shift - bound * v) for v in x.tolist()])
    return float((beyond * weight).sum() / weight.sum())


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def prompts_needed(
    true: float, design: Design, of: Components, *, wanted: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The fewest prompts a fit that see a true difference; None where no number does (concepts or fits vary too much)."""
    return _fewest(lambda n: power(true, replace(design, prompts=n), of, alpha=alpha) >= wanted, 2)


def concepts_needed(
    true: float, design: Design, of: Components, *, wanted: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The fewest concepts that see a true difference with as many fits and prompts each."""
    wide = replace(design, level="concepts")
    return _fewest(lambda n: power(true, replace(wide, concepts=n), of, alpha=alpha) >= wanted, ENOUGH)


def smallest(design: Design, of: Components, *, wanted: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true difference that the design sees; None where it has no degree of freedom."""
    if design.df < 1:
        return None
    low, high = 0.0, max(design.error(of), 1e-9)
    while power(high, design, of, alpha=alpha) < wanted:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, design, of, alpha=alpha) >= wanted else (middle, high)
    return high


def _fewest(does: Callable[[int], bool], least: int) -> int | None:
    high = least
    while not does(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2 if high > least else least
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if does(middle) else (middle + 1, high)
    return high
