"""Preference and utility over strength: the odds by hand, curves whose parameters are known, and what a real model says."""

from __future__ import annotations

import math

import numpy as np
import pytest

import steerlab as sl
from steerlab.errors import ConfigError, DataError
from steerlab.evals import decay
from steerlab.evals.decay import Side, fit, foretell, log_odds, odds_of, r_squared, rivals
from steerlab.testing import planted
from steerlab.testing.precision import EXACT, ONE

GRID = tuple(float(m) for m in np.arange(-2, 2.01, 0.25))


def curve(m, slope, height, floor, below, above):
    """The paper's formula, written out."""
    found = []
    for x in m:
        peak, width, power = below if x < 0 else above
        found.append((slope * x + height) * (1 + (x - peak) ** 2 / width) ** -power + floor)
    return np.array(found)


def joined(peak, width, power, other_peak, other_width):
    """The power on the other side that makes D continuous at 0."""
    return power * math.log(1 + peak**2 / width) / math.log(1 + other_peak**2 / other_width)


def test_odds_by_hand():
    nll = np.array([[[1.0, 2.0], [0.5, 3.0]]])
    odds = odds_of([0.0], nll)
    p, n = math.exp(-1.0), math.exp(-2.0)
    assert odds.preference[0] == pytest.approx([1.0, 2.5])
    assert odds.utility[0, 0] == pytest.approx(math.log((p + n) / (1 - p - n)))
    assert odds.clamped == (0,)


def test_preference_turns_with_the_answers_and_utility_does_not():
    nll = np.random.default_rng(0).uniform(0.8, 4, size=(3, 5, 2))
    a, b = odds_of([0, 1, 2], nll), odds_of([0, 1, 2], nll[:, :, ::-1])
    assert np.allclose(a.preference, -b.preference)
    assert np.allclose(a.utility, b.utility)


def test_answers_that_are_all_but_sure_are_counted():
    odds = odds_of([0.0, 1.0], np.array([[[0.1, 0.2], [2.0, 2.0]], [[2.0, 2.0], [2.0, 2.0]]]))
    assert odds.clamped == (1, 0)
    assert np.isfinite(odds.utility).all()
    assert odds.utility[0, 0] == pytest.approx(math.log((math.exp(-0.1) + math.exp(-0.2)) / decay.LEAST))


def test_answers_of_any_length_have_a_utility():
    """exp(−900) is 0 in floating point; the log-odds are still right."""
    odds = odds_of([0.0], np.array([[[900.0, 950.0]]]))
    assert odds.utility[0, 0] == pytest.approx(-900, abs=EXACT) and odds.preference[0, 0] == 50


def test_d_is_one_at_its_peak_and_falls_from_there():
    side = Side(0.5, 2.0, 1.5)
    m = np.linspace(0.5, 4, 50)
    assert side(np.array([0.5]))[0] == 1
    assert (np.diff(side(m)) < 0).all() and (side(m) <= 1).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_curve_of_the_papers_form_is_found_again(seed):
    """Noise of 2 % of the range: R² near 1, the curve near the true one everywhere, continuous at 0."""
    rng = np.random.default_rng(seed)
    peak, width, power = rng.uniform(0.1, 0.4), rng.uniform(1, 3), rng.uniform(0.8, 2)
    other_peak, other_width = -rng.uniform(0.1, 0.4), rng.uniform(1, 3)
    below = (other_peak, other_width, joined(peak, width, power, other_peak, other_width))
    above = (peak, width, power)
    for kind, slope in (("preference", 4.0), ("utility", 0.0)):
        true = curve(GRID, slope, 2.0, -1.0, below, above)
        found = fit(GRID, true + rng.normal(0, 0.02 * np.ptp(true), len(true)), kind)
        assert found.r2 > 0.99
        assert np.abs(found(np.array(GRID)) - true).max() < 0.06 * np.ptp(true)
        # a step of 1e-12 beside 0: continuous, where a gap would be a hundredth and more
        assert abs(float(found(-1e-12) - found(0.0))) < 1e-3


def test_r2_is_that_of_the_residuals():
    y = np.array([0.0, 1.0, 2.0, 1.0, 0.5, 0.1])
    found = fit([-1, -0.5, 0, 0.5, 1, 1.5], y, "utility")
    left = y - found(np.array(found.strengths))
    assert found.residuals == pytest.approx(tuple(left), abs=EXACT)
    assert found.r2 == pytest.approx(1 - (left @ left) / np.square(y - y.mean()).sum())
    assert r_squared(y, y) == 1 and r_squared(y, np.full_like(y, y.mean())) == 0


def test_noise_is_not_explained():
    """Values that have nothing to do with strength: the form is not so free that it explains them."""
    found = [fit(GRID, np.random.default_rng(seed).normal(size=len(GRID)), "utility").r2 for seed in range(5)]
    assert float(np.mean(found)) < 0.6


def test_one_side_alone():
    """A method that takes strengths from 0 to 1 alone."""
    m = np.linspace(0, 1, 9)
    true = curve(m, 3.0, 1.0, 0.0, (0, 1, 1), (0.2, 0.8, 1.0))
    found = fit(m, true, "preference")
    assert found.r2 > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_a_few_points_foretell_the_rest(seed):
    """Where preference is reached, and what utility it costs there, from 7 of 17 points of a curve with noise."""
    rng = np.random.default_rng(seed)
    below, above = (0.0, 2.5, 1.2), (0.0, 2.0, 1.0)
    preference = curve(GRID, 3.0, 0.5, -1.0, below, above)
    utility = curve(GRID, 0.0, 4.0, -2.0, below, above)

    def with_items(mean):
        noise = rng.normal(0, 0.02, (len(GRID), 8))
        return mean[:, None] + noise

    odds = decay.Odds(GRID, with_items(preference), with_items(utility), (0,) * len(GRID))
    told = foretell(odds, (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0))
    assert told.preference_r2 > 0.97 and told.utility_r2 > 0.97
    # fixed draws, no rounding: what a curve through points with noise is good for
    assert told.strength == pytest.approx(told.reached, abs=0.08)
    assert told.utility_there == pytest.approx(told.cost, abs=0.1)  # as above, in nats
    assert at(told.strength, preference) == pytest.approx(told.wanted, abs=0.1)  # as above


def at(m, values):
    return float(np.interp(m, GRID, values))


def test_plateau():
    """β = 4, floor 0: D falls below .95 where (1 + m²/2) = 1/.95."""
    found = fit(GRID, curve(GRID, 0.0, 4.0, 0.0, (0, 2, 1), (0, 2, 1)), "utility")
    edge = math.sqrt(2 * (1 / 0.95 - 1))
    low, high = found.plateau()
    # a least-squares fit of six numbers, searched; no rounding
    assert (low, high) == (pytest.approx(-edge, abs=0.03), pytest.approx(edge, abs=0.03))


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(ConfigError, match="at least five"):
        fit([0, 1, 2], [0, 1, 2], "utility")
    odds = odds_of(GRID, np.random.default_rng(0).uniform(1, 2, (len(GRID), 2, 2)))
    with pytest.raises(ConfigError, match="left over"):
        foretell(odds, GRID)
    unpaired = sl.Contrast(planted.contrast(4).positive, planted.contrast(4).negative, paired=False)
    with pytest.raises(DataError, match="no pairs"):
        rivals(unpaired)


def test_a_real_steering_moves_preference():
    """The planted model says one answer where `w0` is, another where it isn't; a difference of means turns that."""
    engine, data = planted.engine(), planted.contrast(16, seed=1)
    steering = sl.method("diff_means").fit(engine, data)
    odds = log_odds(engine, rivals(data)[:6], steering, [-1.0, 0.0, 1.0])
    assert odds.preference.shape == (3, 6)
    low, plain, high = odds.mean("preference")
    assert low <= plain < high
    direct = engine.logprobs([rivals(data)[0][0]])[0].mean() - engine.logprobs([rivals(data)[0][1]])[0].mean()
    by_token = log_odds(engine, rivals(data)[:1], steering, [0.0], per="token")
    assert by_token.preference[0, 0] == pytest.approx(float(direct), abs=ONE)
    assert sum(odds.clamped) == 0  # whole answers' probabilities never add up to 1
