"""The formulas of the suites against cases worked by hand, to 1e-9."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steerlab.suites import measures as m
from steerlab.suites.base import Metric, mean, mean_of, values
from steerlab.suites.big_five import shifts
from steerlab.suites.entanglement import _beyond, _effect, _entangled
from steerlab.suites.estimates import change, estimate
from steerlab.suites.languages import score
from steerlab.suites.refusal import told_apart
from steerlab.suites.reliability import ratio_to
from steerlab.testing.precision import EXACT


def near(a, b):
    assert a == pytest.approx(b, abs=EXACT)


# --- one formula at a time ------------------------------------------------------------------------------------------


def test_harmonic_mean():
    near(m.harmonic(0.5, 0.25), 1 / 3)
    near(m.harmonic(0.7, 0.7), 0.7)
    assert m.harmonic(0.9, 0.0) == 0.0
    assert m.harmonic(None, 0.5) is None


def test_auroc_counts_ties_half():
    near(m.auroc([3, 2, 1], [2, 0]), (2 + 1.5 + 1) / 6)
    near(m.auroc([1, 1], [1, 1, 1]), 0.5)
    assert m.auroc([1.0], []) is None


def test_mc1_and_mc2():
    true, false = [math.log(0.2), math.log(0.1)], [math.log(0.15), math.log(0.05)]
    assert m.mc1(true, false) == 1.0
    assert m.mc1([math.log(0.1), math.log(0.9)], [math.log(0.15)]) == 0.0  # another true answer doesn't count
    assert m.mc1([-1.0], [-1.0]) == 0.0
    near(m.mc2(true, false), 0.3 / 0.5)
    near(m.mc2([-1000.0], [-1000.0]), 0.5)


def test_slopes_are_recovered_with_residual_and_ranks():
    told = m.line([-1, 0, 1], [-1, 0, 4])  # slope 5/2, mean 1, residuals 0.5, -1, 0.5
    near(told.slope, 2.5)
    near(told.intercept, 1.0)
    near(told.residual, 1.5)
    near(told.r2, 1 - 1.5 / 14)
    near(told.rho, 1.0)
    flat = m.line([-1, 0, 1], [2, 2, 2])
    assert (flat.slope, flat.r2, flat.rho) == (0.0, None, None)
    near(m.line([-1, 0, 1], [-1 + 7, 7, 4 + 7]).slope, 2.5)  # a constant changes nothing
    near(m.line([0, 1, 2, 3], [1, 1, 0, 2]).rho, 0.316227766016838)  # tied ranks 2.5, 2.5, 1, 4: 1.5/sqrt(5 * 4.5)


@pytest.mark.parametrize(
    ("reached", "miscalibration", "side"),
    [
        ((1.0, 0.0), 0.0, 0.0),  # there
        ((0.0, 0.0), 1.0, 0.0),  # not moved
        ((2.0, 0.0), 1.0, 0.0),  # twice as far
        ((-1.0, 0.0), 2.0, 0.0),  # the other way
        ((0.0, 1.0), 1.0, 1 / 1.0001),  # aside alone
        ((1.0, 1.0), 0.0, 1 / (math.sqrt(2) + 1e-4)),  # there, and as far aside
    ],
)
def test_movement_in_goal_space(reached, miscalibration, side):
    told = m.moved((0.0, 0.0), (1.0, 0.0), reached)
    near(told.miscalibration, miscalibration)
    near(told.side_effects, side)
    near(told.along, reached[0])
    near(told.error, math.dist((1.0, 0.0), reached))


def test_movement_doesnt_depend_on_the_axes():
    generator = np.random.default_rng(0)
    z0, z, zh = generator.random((3, 4))
    turn, _ = np.linalg.qr(generator.standard_normal((4, 4)))
    a, b = m.moved(z0, z, zh), m.moved(turn @ z0, turn @ z, turn @ zh)
    assert a == pytest.approx(b, abs=EXACT)
    assert m.moved((0.5,), (0.5,), (0.7,)) is None


def test_fleiss_kappa_by_hand():
    # two items of three raters: aab, bbb. P = (1/3, 1), p = (2/6, 4/6)
    near(m.fleiss(["aab", "bbb"]), ((1 / 3 + 1) / 2 - (4 / 36 + 16 / 36)) / (1 - 20 / 36))
    assert m.fleiss(["aaa", "aaa"]) == 1.0
    assert m.fleiss([["a"]]) is None


def test_singleton_kappa_by_hand():
    # ten items of eight raters, nothing but hallucinations: chance is 80 · (1/80)²
    chance = 1 / 80
    near(m.fleiss_singleton([[None] * 8] * 10), -chance / (1 - chance))
    # nine hallucinated items and one agreed one: a shared category would say 1.0
    items = [[None] * 8] * 9 + [["a"] * 8]
    chance = 72 / 80**2 + (8 / 80) ** 2
    near(m.fleiss_singleton(items), (0.1 - chance) / (1 - chance))
    near(m.fleiss([[c or "none" for c in item] for item in items]), 1.0)
    assert m.fleiss_singleton(["aab", "bbb"]) == m.fleiss(["aab", "bbb"])


def test_agreeing_answers_that_become_hallucinations_lower_kappa_s():
    whole = [["a", "a", "a"], ["b", "b", "b"], ["a", "a", "b"]]
    assert m.fleiss_singleton([[None, "a", "a"], *whole[1:]]) < m.fleiss_singleton(whole)


def test_presentation_by_position_is_found_and_content_isnt():
    first = [[0, 2]] * 20  # what stands first: another option in the other order
    assert m.presentation_p(first) < 0.001  # a probability that is to be small, no rounding
    assert m.presentation_p([[1, 1]] * 12) == 1.0
    rng = np.random.default_rng(1)
    told = [m.presentation_p(rng.integers(3, size=(20, 2)).tolist(), draws=200, seed=s) for s in range(200)]
    assert sum(p <= 0.05 for p in told) <= 20  # 5 % of 200, within the binomial 99.9 % bound


def test_effectiveness_and_entanglement_by_hand():
    near(m.effectiveness({"a": (0.5, 0.75), "b": (0.2, 0.2)}), 0.25)
    near(m.effectiveness({"a": (0.3, 1.0)}), 1.0)
    near(m.effectiveness({"a": (1.0, 0.9)}), -0.1)  # a perfect set has nothing to gain
    near(m.entanglement({"a": (0.5, 0.7), "b": (0.5, 0.3)}), 0.2)
    assert m.entanglement({"a": (0.4, 0.4)}) == 0.0
    assert m.entanglement({}) is None
    # mean 0.5, variance 1/3 over 4 pairs: 0.25 − 1/12
    near(m.entanglement_beyond_noise({"a": [1, 1, 0, 0]}), math.sqrt(0.25 - 1 / 12))
    assert m.entanglement_beyond_noise({"a": [1, -1, 1, -1]}) == 0.0


def test_traits_are_purified_of_all_others_at_once():
    v, removed = m.purified([1.0, 1.0, 1.0], [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    near(v, [0.0, 0.0, 1.0])
    near(removed, 2 / 3)
    near(m.purified([0.0, 2.0], [[3.0, 0.0]])[0], [0.0, 2.0])
    again, _ = m.purified([1.0, 1.0, 1.0], [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    near(again, v)  # the order doesn't matter
    assert m.purified([1.0], []) == ([1.0], 0.0)


def test_trait_stability_by_hand():
    # shifts 1 and 3: mean 2, standard deviation 1, so 2 / 1.5; others moved 0.2 and −0.4
    near(m.trait_stability([1.0, 3.0], [0.2, -0.4]), 2 / 1.5 - 0.3)
    assert m.trait_stability([2.0, 2.0], []) == 2.0
    assert m.trait_stability([2.0, 2.1], [0.0]) > m.trait_stability([0.1, 4.0], [0.0])


# --- figures of a table ---------------------------------------------------------------------------------------------


def rows_of(**columns):
    n = len(next(iter(columns.values())))
    return [{"unit": f"u{i}", "item": i, **{k: v[i] for k, v in columns.items()}} for i in range(n)]


def test_means_leave_out_what_is_missing_and_count_it():
    rows = rows_of(set=["a", "a", "a", "b"], x=[1.0, None, 0.0, 1.0])
    told = estimate(mean_of("x", "x", "", where={"set": "a"}), rows, rows)
    assert (told.mean, told.n, told.missing) == (0.5, 2, 1)
    assert estimate(mean_of("x", "x", "", where={"set": "c"}), rows, rows).mean is None


def test_a_share_of_nothing_has_an_interval_all_the_same():
    rows = rows_of(set=["a"] * 20, x=[0.0] * 20)
    told = estimate(mean_of("x", "x", "", share=True), rows, rows)
    z = 1.959964
    near(told.high, (z * z / 20) / (1 + z * z / 20))
    assert told.mean == told.low == 0.0


def test_changes_are_paired_by_unit():
    plain, rows = rows_of(x=[0.0, 1.0, 0.5, 0.25]), rows_of(x=[0.5, 1.5, 1.0, 0.75])
    told = change(mean_of("x", "x", ""), rows, plain)
    near(
        (told.mean, told.low, told.high), (0.5, 0.5, 0.5)
    )  # each moved by the same, so that drawing again can't differ
    apart = estimate(mean_of("x", "x", ""), rows, plain)
    assert apart.high - apart.low > 0.3


def test_rows_of_one_unit_are_drawn_together():
    rows = [
        {"unit": f"u{i // 10}", "item": i, "x": float(i >= 20)} for i in range(40)
    ]  # four units, all of one value each
    told = estimate(mean_of("x", "x", ""), rows, rows)
    assert (told.low, told.high) == (0.0, 1.0)
    alone = [{**r, "unit": str(i)} for i, r in enumerate(rows)]
    assert estimate(mean_of("x", "x", ""), alone, alone).low > 0.3


def test_a_test_statistic_has_no_interval():
    rows = rows_of(x=[1.0, 2.0])
    told = estimate(Metric("p", "", lambda r: mean(values(r, "x")), interval=False), rows, rows)
    assert (told.mean, told.low, told.high) == (1.5, None, None)


def test_suites_own_figures_by_hand():
    refused = rows_of(set=["unsafe", "unsafe", "safe", "safe"], refused=[1.0, 1.0, 0.0, 1.0])
    near(told_apart(refused), 0.5)
    forced = rows_of(forced=[1.0, 0.0, 1.0, 1.0], relevant=[1.0, 1.0, 0.0, 0.0])
    near(score(forced), 2 * 0.75 * 0.5 / 1.25)
    near(mean([m.harmonic(r["forced"], r["relevant"]) for r in forced]), 0.25)  # item by item it is far lower
    slopes = rows_of(set=["id", "id", "asked for"], slope=[2.0, 4.0, 1.5])
    near(ratio_to("asked for")(slopes), 0.5)
    before, after = (
        rows_of(set=["o", "o", "c"], log_odds=[0.0, 1.0, 2.0]),
        rows_of(set=["o", "o", "c"], log_odds=[1.0, 4.0, 1.5]),
    )
    near(shifts(after, before, "o"), [1.0, 3.0])
    near(shifts(after, before, "c"), [-0.5])


def test_entanglement_of_tables_by_hand():
    plain = rows_of(set=["t", "t", "a", "a", "b", "b"], right=[0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    rows = rows_of(set=["t", "t", "a", "a", "b", "b"], right=[1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    near(_effect(["t"])(rows, plain), 1.0)
    near(_entangled(["a", "b"])(rows, plain), 0.5)
    near(_entangled(["a", "b"], -1)(rows, plain), math.sqrt(0.125))
    near(_entangled(["a", "b"], 1)(rows, plain), math.sqrt(0.125))
    # differences 0, −1 and 1, 0: each mean square 0.25 less variance 0.5 over 2
    near(_beyond(["a", "b"])(rows, plain), 0.0)


def test_anti_steerable_share_of_known_slopes():
    slopes = [m.line([-1, 0, 1], [-s, 0, s]).slope for s in (1, -1, 2, -0.1)]
    near(slopes, [1, -1, 2, -0.1])
    near(mean([float(s < 0) for s in slopes]), 0.5)
