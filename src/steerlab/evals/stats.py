"""Estimates with intervals: a bootstrap over clusters, and what is missing counted beside it.

A figure is a mean over prompts within fits within concepts. Resampling prompts alone would make twenty prompts of one
concept look like twenty concepts, so whole concepts are drawn first, then fits (seeds) within them, then prompts. Items that fits
share are drawn once for all of these (the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

Cluster = Sequence[float | None]  # the prompts of one fit
Clusters = Sequence[Sequence[Cluster]]  # concepts, of fits, of prompts
Sets = Sequence[Sequence[Hashable]]  # the set of items that each concept's fits met


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval, the number of values behind it and how many are missing. None: nothing to average."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    missing: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data; not-a-number never occurs."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n, "missing": self.missing}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(row["mean"], row["low"], row["high"], row["n"], row["missing"])

    def __str__(self) -> str:
        if self.mean is None:
            return f"– ({self.missing} missing)" if self.missing else "–"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is there; None of nothing."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def bootstrap(
    clusters: Clusters, *, draws: int = 1000, seed: int = 0, level: float = 0.95, items: Sets | None = None
) -> Estimate:
    """The mean over concepts of the mean over fits of the mean over prompts, by a hierarchical percentile bootstrap.

    Missing values (None) are left out and counted; a fit or concept without any value is left out whole. With a single
    concept (or fit, or prompt) that level is fixed and only the others are drawn. `items` names the set of items that each fit
    met: the values of fits with one name are of the same items in the same order, and are drawn together.
    """
    missing = sum(v is None for concept in clusters for fit in concept for v in fit)
    kept = _there(clusters)
    n = sum(len(fit) for concept in kept for fit in concept)
    if n == 0:
        return Estimate(None, None, None, 0, missing)
    mean = float(np.mean([np.mean([np.mean(fit) for fit in concept]) for concept in kept]))
    drawn = resampled(clusters, draws=draws, seed=seed, items=items)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high), n, missing)


def resampled(clusters: Clusters, *, draws: int = 1000, seed: int = 0, items: Sets | None = None) -> np.ndarray:
    """The means `[draws]` of the resamples that `bootstrap` takes; not-a-number where there is nothing to average.

    Clusters of equal shape draw alike under one seed, so that arms that were measured on the same prompts stay paired.
    """
    kept = _there(clusters)
    if not kept:
        return np.full(draws, np.nan)
    if items is not None and _shared(items):
        return _together(clusters, items, draws, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    arrays = [[np.asarray(fit) for fit in concept] for concept in kept]
    # each fit's prompt resamples at once: [draws] means per fit, then fits within concepts, then concepts
    per_concept = np.stack([_drawn_concept(concept, draws, rng) for concept in arrays])
    pick = rng.integers(len(arrays), size=(draws, len(arrays)))
    return per_concept[pick, _shuffled(pick.shape, rng)].mean(axis=1)


def _shared(items: Sets) -> bool:
    names = [name for concept in items for name in concept]
    return len(set(names)) < len(names)


def _together(clusters: Clusters, items: Sets, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Resamples in which one draw of items is that of all fits that met them."""
    chosen: dict[Hashable, np.ndarray] = {}
    per_concept: list[np.ndarray] = []
    for concept, names in zip(clusters, items, strict=True):
        means: list[np.ndarray] = []
        for fit, name in zip(concept, names, strict=True):
            values = np.array([math.nan if v is None else float(v) for v in fit])
            if np.isnan(values).all():
                continue
            key = (name, len(values))
            if key not in chosen:
                chosen[key] = rng.integers(len(values), size=(draws, len(values)))
            means.append(_mean_of_known(values[chosen[key]]))
        if means:
            pick = rng.integers(len(means), size=(draws, len(means)))
            per_concept.append(_mean_of_known(np.stack(means)[pick, np.arange(draws)[:, None]]))
    pick = rng.integers(len(per_concept), size=(draws, len(per_concept)))
    return _mean_of_known(np.stack(per_concept)[pick, np.arange(draws)[:, None]])


def _mean_of_known(rows: np.ndarray) -> np.ndarray:
    """Of each row, not-a-number where it holds nothing else."""
    known = ~np.isnan(rows)
    counts = known.sum(axis=1)
    return np.where(counts > 0, np.where(known, rows, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def _there(clusters: Clusters) -> list[list[list[float]]]:
    """The values that are there, without fits and concepts that have none."""
    kept = [[[float(v) for v in fit if v is not None] for fit in concept] for concept in clusters]
    kept = [[fit for fit in concept if fit] for concept in kept]
    return [concept for concept in kept if concept]


def _drawn_concept(fits: Sequence[np.ndarray], draws: int, rng: np.random.Generator) -> np.ndarray:
    per_fit = np.stack([fit[rng.integers(len(fit), size=(draws, len(fit)))].mean(axis=1) for fit in fits])
    pick = rng.integers(len(fits), size=(draws, len(fits)))
    return per_fit[pick, _shuffled(pick.shape, rng)].mean(axis=1)


def _shuffled(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Which draw each slot takes: one drawn twice at the level above is not the same resample below."""
    draws, slots = shape
    return rng.permuted(np.tile(np.arange(draws)[:, None], slots), axis=0)


def paired_difference(
    a: Clusters, b: Clusters, *, draws: int = 1000, seed: int = 0, items: Sets | None = None
) -> Estimate:
    """The mean of a − b prompt by prompt, with its interval. A pair with a missing side is missing. `items`: see `bootstrap`."""
    differences = [
        [
            [None if x is None or y is None else x - y for x, y in zip(fit_a, fit_b, strict=True)]
            for fit_a, fit_b in zip(concept_a, concept_b, strict=True)
        ]
        for concept_a, concept_b in zip(a, b, strict=True)
    ]
    return bootstrap(differences, draws=draws, seed=seed, items=items)


def median(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return float(np.median(values)) if len(values) else None


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (linear between neighbours); None of nothing."""
    return float(np.percentile(values, q)) if len(values) else None


def wilson(successes: int, n: int, *, z: float = 1.959964) -> Estimate:
    """A share with Wilson's interval, which holds at 0 and at n."""
    if n == 0:
        return Estimate(None, None, None, 0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)
