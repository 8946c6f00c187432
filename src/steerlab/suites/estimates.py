"""Intervals of any metric of a table: units are drawn again with all their rows, the same ones for every condition.

A unit is what was drawn by chance: a prompt, an item, a question with all its wordings. A share that is 0 or 1 in every row
has Wilson's interval over the units, since drawing among equal values would give one of no width; whatever else is bounded
has the rule of three there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evals.stats import Estimate, wilson
from .base import Metric, Rows

DRAWS = 400


def units_of(rows: Rows) -> list[str]:
    """The units, each once, in their order."""
    return list(dict.fromkeys(str(r["unit"]) for r in rows))


def estimate(metric: Metric, rows: Rows, plain: Rows, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """A metric with its 95 % interval. `n` counts the rows behind it, `missing` those that could not be judged."""
    mine = metric.rows(rows)
    missing = sum(r.get(metric.column) is None for r in mine) if metric.column else 0
    n = len(mine) - missing
    value = _value(metric, mine, metric.rows(plain))
    if value is None:
        return Estimate(None, None, None, 0, missing)
    if not metric.interval:
        return Estimate(value, None, None, n, missing)
    if metric.share and value in (0.0, 1.0):
        units = len(units_of([r for r in mine if r.get(metric.column) is not None]))
        bound = wilson(int(value * units), units)
        return Estimate(value, bound.low, bound.high, n, missing)
    drawn = drawn_values(metric, rows, plain, draws=draws, seed=seed)
    low, high = _interval(drawn, metric, value, mine)
    return Estimate(value, low, high, n, missing)


def change(metric: Metric, rows: Rows, plain: Rows, *, draws: int = DRAWS, seed: int = 0) -> Estimate | None:
    """A metric less the same of the model as it is, with the interval over the same units; None where that has no meaning."""
    if metric.compares or metric.still or not metric.interval:
        return None
    mine, base = metric.rows(rows), metric.rows(plain)
    a, b = _value(metric, mine, base), _value(metric, base, base)
    if a is None or b is None:
        return None
    column = metric.column
    known = {(r["unit"], r["item"]) for r in base if not column or r.get(column) is not None}
    both = sum((r["unit"], r["item"]) in known for r in mine if not column or r.get(column) is not None)
    drawn = drawn_values(metric, rows, plain, draws=draws, seed=seed)
    plain_drawn = drawn_values(metric, plain, plain, draws=draws, seed=seed, units=units_of(rows))
    low, high = _interval(drawn - plain_drawn, metric, a - b, mine)
    return Estimate(a - b, low, high, both, max(0, len(mine) - both))


def drawn_values(
    metric: Metric, rows: Rows, plain: Rows, *, draws: int, seed: int, units: Sequence[str] | None = None
) -> np.ndarray:
    """The metric of each resample `[draws]`; not-a-number where it had nothing to compute from."""
    names = units_of(rows) if units is None else list(units)
    mine, base = _by_unit(metric.rows(rows), names), _by_unit(metric.rows(plain), names)
    picks = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    found = np.empty(draws)
    for d, pick in enumerate(picks):
        again = [r for k in pick for r in mine[k]]
        value = _value(metric, again, [r for k in pick for r in base[k]] if metric.compares else [])
        found[d] = np.nan if value is None else value
    return found


def _by_unit(rows: Rows, names: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    place = {name: k for k, name in enumerate(names)}
    found: list[list[Mapping[str, Any]]] = [[] for _ in names]
    for row in rows:
        if str(row["unit"]) in place:
            found[place[str(row["unit"])]].append(row)
    return found


def _value(metric: Metric, rows: Rows, plain: Rows) -> float | None:
    if not rows:
        return None
    return metric.of(rows, plain) if metric.compares else metric.of(rows)


def _interval(drawn: np.ndarray, metric: Metric, value: float, rows: Rows) -> tuple[float | None, float | None]:
    """The middle 95 % of the resamples; where no unit differs from another, the rule of three (3/units both ways)."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return None, None
    low, high = (float(v) for v in np.quantile(known, [0.025, 0.975]))
    if low == high and (metric.bounded or metric.share):
        units = len(units_of([r for r in rows if not metric.column or r.get(metric.column) is not None]))
        reach = min(1.0, 3 / max(1, units))
        return max(-1.0, value - reach), min(1.0, value + reach)
    return low, high
