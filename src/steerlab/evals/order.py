"""Whether two models put the same methods in the same order: Kendall's tau over what each reached, with an interval.

A method's score in a cell (a group of tasks in one direction) is its mean over tasks, fits and prompts. The two models are
resampled on their own, as `stats.bootstrap` does it, all methods of a model by the same draws, and tau is taken anew each
time. A resample adds noise of its own to both orders, so that the interval lies a little nearer to 0 than tau does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .stats import Clusters, Estimate, resampled

Cell = tuple[str, str]  # group, direction
Measured = Mapping[str, Mapping[Cell, Clusters]]  # method -> cell -> its values


class Agreement(NamedTuple):
    """Tau-b over the methods that both models have in all of these cells, and each method's two scores."""

    cells: tuple[Cell, ...]
    tau: Estimate
    scores: dict[str, tuple[float, float]]


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Tau-b: concordant less discordant pairs, over the pairs that aren't tied in the one and in the other.

    None where either order says nothing (all tied).

    >>> kendall([1, 2, 3, 4], [1, 2, 4, 3])
    0.6666666666666666
    """
    found = float(_tau(np.asarray([a], dtype=float), np.asarray([b], dtype=float))[0])
    return None if np.isnan(found) else found


def agreement(a: Measured, b: Measured, cells: Sequence[Cell], *, draws: int = 1000, seed: int = 0) -> Agreement:
    """How far two models agree on the order of the methods that both have in every one of these cells.

    A method's score is its mean over the cells. Tau is None where fewer than two methods are left, or all are tied.
    """
    chosen = [n for n in a if n in b and all(_there(m[n].get(cell)) for m in (a, b) for cell in cells)]
    if len(chosen) < 2 or not cells:
        return Agreement(tuple(cells), Estimate(None, None, None, len(chosen)), {})
    scores = [np.array([np.mean([_mean(m[n][cell]) for cell in cells]) for n in chosen]) for m in (a, b)]
    drawn = [
        np.stack(
            [
                np.mean([resampled(m[n][cell], draws=draws, seed=seed + at) for at, cell in enumerate(cells)], axis=0)
                for n in chosen
            ],
            axis=1,
        )
        for m, seed in ((a, seed), (b, seed + 10_000))
    ]
    tau, taus = kendall(scores[0].tolist(), scores[1].tolist()), _tau(*drawn)
    taus = taus[~np.isnan(taus)]
    low, high = np.quantile(taus, [0.025, 0.975]).tolist() if len(taus) else (None, None)
    known = {n: (float(x), float(y)) for n, x, y in zip(chosen, *scores, strict=True)}
    return Agreement(tuple(cells), Estimate(tau, low, high, len(chosen)), known)


def _tau(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tau-b of each line of `[draws, methods]`; not-a-number where a line is all ties."""
    first, second = np.triu_indices(a.shape[1], 1)
    x, y = (np.sign(_rounded(v[:, first] - v[:, second])) for v in (a, b))
    untied = np.sqrt(np.abs(x).sum(axis=1) * np.abs(y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), untied, out=np.full(len(a), np.nan), where=untied > 0)


def _rounded(v: np.ndarray) -> np.ndarray:
    """Sums in another order aren't a difference."""
    return np.where(np.abs(v) < 1e-9, 0.0, v)


def _there(clusters: Clusters | None) -> bool:
    return clusters is not None and any(v is not None for task in clusters for fit in task for v in fit)


def _mean(clusters: Clusters) -> float:
    per_task = [[np.mean(kept) for fit in task if (kept := [v for v in fit if v is not None])] for task in clusters]
    return float(np.mean([np.mean(fits) for fits in per_task if fits]))
