"""What a calibration calls safe, held against the truth: whole calibrations on drawn costs whose means are known.

The same steps that write a range into a file (`evals.procedure`), a hundred times each; `benchmarks/calibrate.py --guarantee`
runs a thousand of every kind.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from steerlab.evals.asked import Asked
from steerlab.evals.guarantee import HIGH, LOW
from steerlab.testing.drawn import GRID, budget_of, calibrated, kinds, oracle, true_mean

KINDS = {(next(iter(k.costs)), k.name): k for k in kinds() if len(k.costs) == 1}
FEW = Asked(items=600, neutral=64, texts=64, choosing=32)  # too few to certify much: what can't be told isn't safe
SPLITS = 120
MOST = SPLITS * 0.05 + 2.326 * math.sqrt(SPLITS * 0.05 * 0.95)  # a count of chance 1/20 is below in 99 of 100 cases


@pytest.mark.parametrize("asked", [Asked(), FEW], ids=["as many as usual", "few"])
@pytest.mark.parametrize(
    ("cost", "name"),
    [
        ("lost", "items change both ways, sd .37"), ("lost", "flat beside the budget"), ("lost", "not monotone"),
        ("kl", "heavy tail"), ("kl", "rare and large"), ("kl", "heavy tail, best of 4 settings"),
        ("perplexity", "wide, both ways"), ("perplexity", "flat beside the budget"),
    ],
)  # fmt: skip
def test_a_range_is_over_its_budget_in_a_twentieth_of_calibrations_at_most(cost, name, asked):
    kind = KINDS[cost, name]
    best = oracle(kind, budget_of(kind).limits())
    assert sum(calibrated(kind, seed, asked, best=best).over for seed in range(SPLITS)) <= MOST


@pytest.mark.parametrize(
    ("cost", "name", "least"),
    [("lost", "few items change", 0.6), ("kl", "spread", 0.8), ("perplexity", "spread both ways", 0.8)],
)
def test_as_many_as_usual_certify_most_of_what_keeps_the_usual_budget(cost, name, least):
    kind = KINDS[cost, name]
    best = oracle(kind, budget_of(kind).limits())
    assert best == pytest.approx(1.0, abs=0.01)  # the oracle goes in steps of .005
    assert np.mean([calibrated(kind, seed, best=best).share for seed in range(20)]) >= least


@pytest.mark.parametrize("kind", kinds(), ids=lambda k: f"{'+'.join(k.costs)}: {k.name}")
def test_drawn_costs_have_the_means_that_they_are_held_against(kind):
    """By 40,000 draws, within five standard errors; items that change both ways are lost and won, with the sd of their name."""
    u = np.random.default_rng(0).random(40_000)
    for name, costs in kind.costs.items():
        values = np.clip(costs(u, 0.7), LOW[name], HIGH[name])
        assert abs(values.mean() - true_mean(kind, name, 0.7)) <= 5 * values.std() / 200 + 1e-4
    if "sd .37" in kind.name:
        changed = kind.costs["lost"](GRID, 1.0)
        assert changed.std() == pytest.approx(0.37, abs=0.01)  # the name has two digits
        assert set(changed) == {-1.0, 0.0, 1.0}
