"""The guarantee behind a range: bets at their level, strengths in order, and what a measurement resolves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steerlab.errors import ConfigError
from steerlab.evals.guarantee import HIGH, LOW, Bet, Budget, certified, expected, resolved, safe
from steerlab.testing.precision import MANY


def test_the_first_bet_by_hand():
    """Half the capital stakes edge/(edge² + v), half √(2 ln 20 / (n v)), with v = ((high − low)/8)² before anything has come."""
    bet = Bet(0.1, 0.0, 1.0, horizon=100).add([0.0])
    v, edge = (1 / 8) ** 2, 0.05
    stakes = [min(edge / (edge**2 + v), 0.75 / 0.9), min(math.sqrt(2 * math.log(20) / (100 * v)), 0.75 / 0.9)]
    assert math.exp(bet.best) == pytest.approx(sum(1 + s * 0.1 for s in stakes) / 2)


def test_bets_added_in_lots_are_one_bet():
    costs = np.random.default_rng(0).exponential(0.05, size=200)
    whole, lots = Bet(0.1, 0, 1, horizon=200).add(costs), Bet(0.1, 0, 1, horizon=200)
    for start in range(0, 200, 37):
        lots.add(costs[start : start + 37])
    assert lots.best == pytest.approx(whole.best) and lots.n == whole.n == 200


@pytest.mark.parametrize("name", ["lost", "kl", "perplexity"])
def test_a_cost_at_its_budget_is_certified_in_at_most_a_twentieth_of_cases(name):
    """2,000 draws with the mean exactly at the budget; the bound of the binomial at 98 %."""
    rng = np.random.default_rng(1)
    draws = {
        "lost": lambda: rng.choice([-1.0, 0.0, 1.0], p=[0.01, 0.96, 0.03], size=400),
        "kl": lambda: rng.choice([0.0, 1.0], p=[0.9, 0.1], size=400),
        "perplexity": lambda: rng.uniform(0, 0.1, size=400),
    }
    most = {"lost": 0.02, "kl": 0.1, "perplexity": 0.05}[name]
    wrong = sum(certified(draws[name](), most, LOW[name], HIGH[name]) for _ in range(2000))
    assert wrong <= 2000 * 0.05 + 2.054 * math.sqrt(2000 * 0.05 * 0.95)


def test_a_cost_well_within_is_certified_and_one_beyond_is_not():
    rng = np.random.default_rng(2)
    low = [certified(rng.exponential(0.04, size=192), 0.1, 0, 1) for _ in range(50)]
    high = [certified(rng.exponential(0.15, size=192), 0.1, 0, 1) for _ in range(50)]
    assert np.mean(low) > 0.9 and not any(high)


def test_looking_after_every_lot_keeps_the_level():
    """The bet may be looked at as it goes: that is what stopping early rests on."""
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(500):
        bet = Bet(0.02, -1, 1, horizon=600)
        for _ in range(6):
            if bet.add(rng.choice([0.0, 1.0], p=[0.98, 0.02], size=100)).certain:
                wrong += 1
                break
    assert wrong <= 500 * 0.05 + 2.054 * math.sqrt(500 * 0.05 * 0.95)


def test_strengths_are_certified_from_the_weakest_up_to_the_first_that_is_not():
    rng = np.random.default_rng(4)
    kl = np.stack([rng.exponential(m, size=256) for m in (0.01, 0.3, 0.01)])
    assert safe({"kl": kl}, Budget(None, 0.1, None)) == 1
    lost = np.zeros((3, 2000))
    assert safe({"kl": kl[[0, 2, 2]], "lost": lost}, Budget()) == 3
    with pytest.raises(ConfigError, match="none of the costs"):
        safe({"lost": lost}, Budget(None, 0.1, None))


def test_conformal_risk_control_by_hand():
    """(Σ costs + high) / (n + 1) ≤ budget, to the first strength that fails."""
    costs = np.array([[0.0] * 9, [0.05] * 9, [0.1] * 9, [0.0] * 9])
    assert expected(costs, 0.15, high=1.0) == 2  # 0.1, 0.145, 0.19
    assert expected(costs, 0.09, high=1.0) == 0


def test_what_a_measurement_resolves():
    values = [0.0] * 96 + [1.0] * 4
    told = resolved(values, 0.02, high=1.0)
    sd = np.std(values, ddof=1)
    assert told.mean == pytest.approx(0.04) and told.half == pytest.approx(1.6449 * sd / 10, rel=MANY)
    assert told.needed is None  # twice the budget: no number would do
    within = [0.0] * 800 + [1.0, -1.0] * 100  # items that change both ways
    sd = np.std(within, ddof=1)
    # rounded up to a whole prompt, and quantiles given to four digits
    assert resolved(within, 0.02, high=1.0).needed == pytest.approx(1.3 * ((1.6449 + 0.84) * sd / 0.015) ** 2, abs=2)
    assert resolved([], 0.02, high=1.0).half is None


@pytest.mark.parametrize("name", ["lost", "kl", "perplexity"])
def test_as_many_as_are_needed_certify_what_costs_nothing_and_half_of_the_least_do_not(name):
    """The greatest cost is each cost's own: half a unit for perplexity, so that fewer texts can certify than if it were 1."""
    most = {"lost": 0.02, "kl": 0.1, "perplexity": 0.05}[name]
    few = resolved([0.0], most, HIGH[name]).needed
    assert certified([0.0] * few, most, LOW[name], HIGH[name])
    assert not certified([0.0] * (few // 2 - 1), most, LOW[name], HIGH[name])
    assert few == {"lost": 396, "kl": 76, "perplexity": 76}[name]


def test_giving_up_early_hardly_ever_gives_up_what_could_still_be_certified():
    """No cost that is far over is followed to the end, and none that could still be certified is given up."""
    over = Bet(0.1, 0, 1, horizon=1000).add([0.4, 0.5, 0.3] * 20)
    assert not over.within_reach(200)
    rng, given_up, mistaken = np.random.default_rng(0), 0, 0
    for k in range(400):
        costs, bet = rng.exponential(0.07 if k % 2 else 0.11, size=256), Bet(0.1, 0, 1, horizon=256)
        for start in range(0, 256, 64):
            if not bet.within_reach(256 - start):
                given_up += 1
                mistaken += certified(costs, 0.1, 0, 1)
                break
            bet.add(costs[start : start + 64])
    assert given_up > 100 and mistaken <= 0.02 * 400


def test_a_budget_that_limits_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        Budget(None, None, None)
    with pytest.raises(ConfigError, match="lost is 2"):
        Budget(lost=2.0)
