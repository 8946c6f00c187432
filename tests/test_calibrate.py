"""Calibrating: searches on surfaces whose best is known, directions by hand, and a whole run on a real model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ranged import steering
from steerlab.contrast import Example
from steerlab.edits import Shift
from steerlab.errors import ConfigError
from steerlab.evals.apart import apart
from steerlab.evals.asked import Asked, Setting
from steerlab.evals.calibrate import Measured, calibrate
from steerlab.evals.guarantee import Budget
from steerlab.evals.measure import Amounts, CostMeter, Effects, measure_effects
from steerlab.evals.operating import Row, first, hopeless, safe, side, verdict
from steerlab.evals.procedure import Procedure
from steerlab.evals.search import Point, halving, optuna
from steerlab.evals.signals import Signal, Signals
from steerlab.evals.stats import mean, paired_difference
from steerlab.evals.unit import ArmPlan
from steerlab.methods.base import method
from steerlab.ranges import standing
from steerlab.sites import Site
from steerlab.steering import Steering
from steerlab.testing import planted
from steerlab.testing.drawn import Drawn, Kind
from steerlab.testing.precision import FEW, ONE
from test_evals import PlantedSuite

# --- the search -------------------------------------------------------------------------------------------------------------


@dataclass
class Surface:
    """Arms with a known dose-response: gain 1 − exp(−a·s), strain (s/e)², e the strength where the budget is reached."""

    arms: tuple[tuple[float, float], ...]  # a, e

    def read(self, arm, direction, size, share):
        a, e = self.arms[arm]
        return 1 - math.exp(-a * size), (size / e) ** 2

    def best(self):
        return max(range(len(self.arms)), key=lambda n: 1 - math.exp(-self.arms[n][0] * self.arms[n][1]))


SURFACE = Surface(((0.2, 0.9), (1.5, 0.3), (1.2, 1.7), (0.8, 0.8), (2.0, 0.6), (0.1, 3.0)))


def test_halving_finds_the_best_arm_and_the_edge_of_its_budget():
    found = halving(6, lambda a, d: 3.0, ("elicit", "suppress"), SURFACE.read)
    assert found.order[0] == SURFACE.best() == 2
    for direction in ("elicit", "suppress"):
        assert 0.85 * 1.7 <= found.edges[2, direction].strength <= 1.7
    assert sorted(found.order) == list(range(6))


def test_halving_reads_far_less_than_every_arm_at_every_strength():
    found = halving(6, lambda a, d: 3.0, ("elicit",), SURFACE.read)
    assert found.read < 0.5 * 6 * 8  # eight strengths of each arm on all data


def test_halving_looks_only_where_an_edit_can_act():
    found = halving(2, {(0, "elicit"): 1.0, (1, "elicit"): 0.5}, ("elicit", "suppress"), SURFACE.read)
    assert {d for _, d in found.edges} == {"elicit"}
    assert max(p.strength for p in found.edges[1, "elicit"].points) <= 0.5


def test_an_arm_that_is_over_the_budget_everywhere_has_no_edge():
    found = halving(1, lambda a, d: 3.0, ("elicit",), lambda *_: (1.0, math.inf))
    assert found.edges[0, "elicit"].strength == 0 and found.edges[0, "elicit"].gain == 0


def test_a_gain_beyond_the_budget_counts_for_nothing():
    """The second arm gains most, but only where it costs too much."""

    def read(arm, direction, size, share):
        return (0.5 if arm == 0 else 1.0 * (size > 0.5)), size if arm == 0 else 4 * size

    assert halving(2, lambda a, d: 3.0, ("elicit",), read).order[0] == 0


def test_optuna_finds_it_too_and_says_when_it_is_missing(monkeypatch):
    pytest.importorskip("optuna")
    found = optuna(6, lambda a, d: 3.0, ("elicit",), SURFACE.read, trials=60)
    assert found.order[0] in (2, 4) and found.readings == 60
    again = optuna(6, lambda a, d: 3.0, ("elicit",), SURFACE.read, trials=60)
    assert again.order == found.order  # the seed settles it
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match="steerlab\\[tune\\]"):
        optuna(1, lambda a, d: 3.0, ("elicit",), SURFACE.read)


# --- the range of a direction -----------------------------------------------------------------------------------------------


def effects(share, n=20) -> Effects:
    good = round(share * n)
    values = [1.0] * good + [0.0] * (n - good)
    return Effects(effect=values, joint=values)


def row(strength, joint, lost=0.0, kl=0.01, n=2000) -> Row:
    rng = np.random.default_rng(round(100 * abs(strength)))
    costs = {"lost": (rng.random(n) < lost).astype(float), "kl": rng.exponential(kl, size=256)}
    made = Row(strength, effects(joint), costs=costs)
    for name, values in costs.items():
        made.verdicts[name] = verdict(name, values, LIMITS, len(values), 0.05)
    return made


LIMITS = {"lost": 0.02, "kl": 0.1}


def test_a_planted_dose_response_has_the_range_that_was_planted():
    """Effect rises to 1.2, KL passes its budget between 1.2 and 1.6, capability with it."""
    rows = [row(0.4, 0.2), row(0.8, 0.6, 0.002, 0.02), row(1.2, 0.9, 0.005, 0.05), row(1.6, 1.0, 0.06, 0.2)]
    told = side(1, rows, effects(0.0), LIMITS, 0.05)
    assert told["max_safe"] == 1.2 and told["default"] == 1.2
    # half of the gain of .9: on the line from (0.4, 0.2) to (0.8, 0.6)
    assert told["min_useful"] == pytest.approx(0.4 + 0.4 * (0.45 - 0.2) / 0.4)
    assert told["strengths"][-1]["verdicts"] == {"lost": "broken", "kl": "broken"}
    assert told["unresolved"] == {}


def test_the_weakest_of_equals_is_the_default_and_strengths_keep_their_sign():
    rows = [row(-0.5, 0.8), row(-1.0, 1.0), row(-1.5, 1.0)]
    told = side(-1, rows, effects(0.1), LIMITS, 0.05)
    assert told["default"] == -1.0 and told["max_safe"] == -1.5 and told["min_useful"] < 0


def test_a_strength_above_one_that_breaks_is_never_safe():
    rows = [row(0.5, 0.5), row(1.0, 0.9, kl=0.3), row(1.5, 1.0)]
    assert side(1, rows, effects(0.0), LIMITS, 0.05)["max_safe"] == 0.5


def test_nothing_useful_has_no_default():
    told = side(1, [row(0.5, 0.1), row(1.0, 0.1)], effects(0.1), LIMITS, 0.05)
    assert told["default"] is None and told["min_useful"] is None and told["max_safe"] == 1.0


def test_what_too_few_items_measure_is_unresolved_and_never_safe():
    few = row(1.0, 0.9, lost=0.0, n=40)
    assert few.verdicts == {"lost": "open", "kl": "held"} and not safe(few, LIMITS)
    told = side(1, [few], effects(0.0), LIMITS, 0.05)
    assert told["max_safe"] == 0.0 and told["max_unresolved"] == 1.0 and told["default"] is None
    assert set(told["unresolved"]) == {"lost"}
    assert told["unresolved"]["lost"]["n"] == 40 and told["unresolved"]["lost"]["needed"] > 150


def test_a_cost_in_the_budget_that_nothing_measured_keeps_a_strength_from_being_safe():
    there = row(1.0, 0.9)
    told = side(1, [there], effects(0.0), {**LIMITS, "perplexity": 0.05}, 0.05)
    assert told["max_safe"] == 0.0 and told["max_unresolved"] == 1.0
    assert told["unresolved"]["perplexity"]["n"] == 0


def test_a_perplexity_just_within_its_budget_is_not_safe_whatever_the_number_of_texts():
    """Costs count up to .5: 128 texts could have certified a quarter of the budget, so that a mean of 4.99 % isn't taken."""
    costs = np.full(128, 0.0499)
    there = Row(1.0, effects(1.0), costs={"perplexity": costs})
    there.verdicts["perplexity"] = verdict("perplexity", costs, {"perplexity": 0.05}, 128, 0.05)
    assert there.verdicts["perplexity"] == "open"
    assert side(1, [there], effects(0.0), {"perplexity": 0.05}, 0.05)["max_safe"] == 0.0


def test_enough_items_that_tell_nothing_are_not_safe():
    """A cost at its budget, with items enough to certify a free steering, isn't certified and doesn't count."""
    rng = np.random.default_rng(5)
    lost = np.zeros(2000)
    lost[rng.permutation(2000)[:38]] = 1.0
    there = Row(1.0, effects(1.0), costs={"lost": lost}, verdicts={"lost": verdict("lost", lost, LIMITS, 2000, 0.05)})
    assert there.verdicts["lost"] == "open" and not safe(there, {"lost": 0.02})
    assert side(1, [there], effects(0.0), {"lost": 0.02}, 0.05)["max_safe"] == 0.0


def test_a_strength_that_has_lost_too_much_is_given_up():
    bad = Row(1.0, effects(1.0), seen={"lost": np.array([1.0] * 20 + [0.0] * 80)})
    fine = Row(1.0, effects(1.0), costs={"lost": np.array([1.0] * 3 + [0.0] * 97)})
    assert hopeless(bad, LIMITS) and not hopeless(fine, LIMITS)


def test_where_a_curve_first_reaches():
    assert first([0, 1, 2], [0, 0.2, 1.0], 0.6) == pytest.approx(1.5)
    assert first([0, 1, 2], [0, 0.8, 0.5], 0.4) == pytest.approx(0.5)
    assert first([0, 1], [0, 0.1], 0.5) == 1


# --- a real model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taught(PlantedSuite):
    """The planted model with held-out pairs and more items."""

    def held_out(self, task, split, n, seed):
        sides = planted.pairs(torch.Generator().manual_seed(seed + 77), n)
        return list(zip(*sides, strict=True))

    def texts(self, split, n):
        return [f"w{1 + k % 30} w{2 + k % 29} w{3 + k % 7} w{4 + k % 3}" for k in range(n)]


SMALL = Asked(
    prompts=8, items=60, lot=20, neutral=32, texts=32, choosing=8, pairs=6, tokens=4, most=2.0, points=(0.5, 0.95),
    budget=Budget(lost=0.3, kl=0.9, perplexity=0.4),
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    return ArmPlan("diff_means", "diff_means", {"site": "1"})


def test_signals_are_zero_without_steering_and_one_where_asked(fitted):
    engine = planted.engine()
    read = Signals(Taught(), engine, "key", "dev", pairs=6, neutral=4, texts=2, seed=0)
    nothing = read.read(steering(None, Shift(torch.zeros(engine.width(Site(1))))), "elicit")
    assert nothing.gain == pytest.approx(0, abs=ONE) and float(np.abs(nothing.kl).max()) < FEW
    assert np.allclose(nothing.perplexity, 0, atol=ONE)
    # the greatest of five costs of two passes that are equal, each as a share of its budget: MANY / .1
    assert nothing.strain(Budget()) == pytest.approx(0, abs=1e-3)
    wild = read.read(steering(None, Shift(100 * torch.randn(engine.width(Site(1))))), "elicit")
    assert wild.strain(Budget()) > 1
    assert Signal(None, np.array([math.inf]), np.zeros(0)).strain(Budget()) == math.inf


def test_a_whole_calibration_ends_in_a_file(fitted, tmp_path):
    found = calibrate(Taught(), "key", fitted, SMALL, settings=[Setting({"site": "0"}), Setting({"site": "1"})])
    told = found.steering.meta.range
    assert set(told["directions"]) == {"elicit", "suppress"} and told["budget"]["kl"] == 0.9
    measured = told["measured"]
    assert measured["model"] == "planted" and measured["n"]["items"] == 60 and measured["search"]["fits"] == 2
    for direction, one in told["directions"].items():
        assert one["sign"] == (1 if direction == "elicit" else -1)
        if one["default"] is not None:
            assert abs(one["min_useful"]) <= abs(one["default"]) <= abs(one["max_safe"])
            assert standing(told, one["default"]).state == "inside"
    found.steering.save(tmp_path / "c.safetensors")
    assert Steering.load(tmp_path / "c.safetensors").meta.range["measured"]["digest"] == measured["digest"]
    again = calibrate(Taught(), "key", fitted, SMALL, settings=[Setting({"site": "0"}), Setting({"site": "1"})])
    assert again.steering.meta.range == told  # seeds settle everything


@dataclass
class Two(Drawn):
    """Two settings whose certifying items are lost as often as `lost` says."""

    def __init__(self, asked, lost):
        super().__init__(Kind("two", {"lost": lambda u, s: np.zeros(len(u))}, settings=2), asked, 0)
        self.lost = lost

    def costs(self, name, arm, strength, start, stop):
        return (np.arange(start, stop) % 10 < 10 * self.lost[arm]).astype(float)


def test_another_setting_is_certified_where_the_best_one_cannot_keep_what_it_promised():
    """Rows as they stand after replies: the first setting has more effect, but loses as much as the budget allows."""
    budget = Budget(lost=0.3, kl=None, perplexity=None)
    asked = replace(SMALL, directions=("elicit",), budget=budget, items=200)

    def settled(first_loses):
        run = Procedure(asked, Two(asked, (first_loses, 0.0)), budget)
        finalists = [
            (n, {"elicit": [Row(1.0, effects(joint, 24), seen={"lost": np.zeros(20)})]})
            for n, joint in ((0, 1), (1, 0.9))
        ]
        chosen = run.settled(finalists)[0]
        assert run.level == asked.delta / 2  # the better of two is taken, and each is held to half of the level
        return chosen, [bool(rows["elicit"][0].verdicts) for _, rows in finalists]

    assert settled(0.3) == (1, [True, True])  # no safe strength: the second is asked, and is worth more
    assert settled(0.0) == (0, [True, False])  # safe: the second, which promises less, is never measured on


def test_what_is_chosen_by_never_certifies(fitted):
    """Prompts of pairs are neutral prompts here, too, as for a file without neutral prompts of its own."""

    @dataclass(frozen=True)
    class Shared(Taught):
        def neutral(self, split, n, seed):
            return [e for pair in self.held_out("key", split, 40, seed) for e in pair][:n]

        def texts(self, split, n):
            return [f"w{k % 30} w{k % 29} w{k % 7}" for k in range(n)]

    asked = replace(SMALL, neutral=20, texts=20, choosing=8, finalists=1)
    read = Measured(Shared(), "key", fitted, asked, [Setting({"site": "0"}), Setting({"site": "1"})], planted.engine())
    pairs = {e.instruction for pair in read.signals.pairs for e in pair}
    certify = {e.instruction for e in read.certifying.neutral}
    assert len(pairs) > 4 and len(read.signals.neutral) == 8 and len(certify) == 20
    assert not certify & (pairs | {e.instruction for e in read.signals.neutral})
    assert not {e.instruction for e in read.items.certify} & {e.instruction for e in read.items.choose}
    assert not set(read.certifying.texts) & set(read.signals.texts) and len(read.certifying.texts) == 20


def test_things_set_apart_are_all_there_and_in_one_part():
    choose, certify = apart([f"t{k}" for k in range(100)], 10, 90, seed=3)
    assert len(choose) == 10 and sorted([*choose, *certify]) == sorted(f"t{k}" for k in range(100))
    assert [len(part) for part in apart(["a", "b", "c", "d"], 10, 9, seed=0)] == [1, 3]  # a quarter chooses, at most
    assert [len(part) for part in apart(["a"], 10, 9, seed=0)] == [1, 0]
    choose, certify = apart(["a", "b", "a", "c", "b", "d"] * 2, 3, 99, seed=1, used={"a"})
    assert "a" not in certify and set(choose) == {"a"} and set(certify) == {"b", "c", "d"}


def test_items_that_cannot_be_judged_count_as_lost(fitted):
    @dataclass(frozen=True)
    class Mute(Taught):
        def items(self, split, n, seed):
            return [replace(Example.ask(e.instruction), tags={"right": "w1"}) for e in super().items(split, n, seed)]

        def correct(self):
            from steerlab.judges.base import Judge, Score

            class Never(Judge):
                def __call__(self, reply, example):
                    return Score.missing("never")

            return Never()

    found = calibrate(
        Mute(), "key", fitted, replace(SMALL, directions=("elicit",), budget=Budget(lost=0.3, kl=None, perplexity=None))
    )
    (one,) = found.steering.meta.range["directions"].values()
    assert one["max_safe"] == 0.0 and one["default"] is None


def test_a_budget_that_the_suite_cannot_measure_is_refused_before_anything_is_fitted(fitted):
    with pytest.raises(ConfigError, match="perplexity.*--perplexity 0"):
        calibrate(Taught(), "key", fitted, replace(SMALL, texts=0, budget=Budget(None, 0.9, 0.1)))
    only = Budget(None, None, 0.1)
    with pytest.raises(ConfigError, match="limits nothing that can be measured"):
        calibrate(Taught(), "key", fitted, replace(SMALL, texts=0, budget=only, optional=("perplexity",)))


def test_usual_limits_of_what_cannot_be_measured_are_no_part_of_the_budget(fitted):
    told = calibrate(Taught(), "key", fitted, replace(SMALL, items=0, texts=0, budget=None)).steering.meta.range
    assert told["budget"] == {"lost": None, "kl": 0.1, "perplexity": None}
    assert told["measured"]["unmeasured"] == ["lost", "perplexity"]


def test_points_are_of_a_strength():
    assert Point(1.0, None, 2.0).gain is None
    with pytest.raises(ConfigError, match="points"):
        Asked(points=(0.5, 1.5))


def test_it_chooses_as_well_as_a_full_grid_for_a_fifth_of_its_replies(fitted):
    """Six settings at seven strengths both ways, all of dev each, against the search; both chosen on dev, told on test."""
    suite, engine, budget = Taught(), planted.engine(), SMALL.budget
    settings = [
        Setting({"site": site, "positions": where})
        for site in ("0", "1")
        for where in ("not_template", "decoding", "generated")
    ]
    sizes, directions = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0), (("elicit", 1.0), ("suppress", -1.0))
    amounts = Amounts(SMALL.prompts, SMALL.items, SMALL.neutral, SMALL.texts, SMALL.tokens)
    meter, best, steerings = CostMeter(suite, engine, "dev", amounts, 0), {}, []
    for n, setting in enumerate(settings):
        steerings.append(method("diff_means", {"site": "1", **setting.settings}).fit(engine, suite.contrast("key", 0)))
        for direction, sign in directions:
            under = [steerings[-1].scaled(sign * s) for s in sizes]
            effects = measure_effects(suite, engine, "key", direction, "dev", under, amounts, 0)
            for s, e, c in zip(sizes, effects, meter.measure(under), strict=True):
                paid = {"lost": mean(c.lost), "kl": mean(c.kl), "perplexity": mean(c.perplexity) - 1}
                if all(paid[k] <= v for k, v in budget.limits().items()):
                    best[n, direction] = max(best.get((n, direction), (-1.0, 0.0)), (mean(e.joint), sign * s))
    score = {n: sum(best.get((n, d), (0.0, 0.0))[0] for d, _ in directions) for n in range(len(settings))}
    won = max(score, key=score.get)
    grid_replies = len(settings) * len(directions) * len(sizes) * (SMALL.prompts + SMALL.items)

    found = calibrate(suite, "key", fitted, SMALL, settings=settings, fitted=steerings)
    assert found.ledger.replies <= grid_replies / 5 and found.ledger.fits == 0
    test = Amounts(24, 60, 16, 2, 4)
    costs = CostMeter(suite, engine, "test", test, 0)
    for direction, _ in directions:
        told = found.steering.meta.range["directions"][direction]
        ours = found.steering.scaled(told["default"]) if told["default"] else None
        theirs = steerings[won].scaled(best[won, direction][1])
        mine, other = (
            measure_effects(suite, engine, "key", direction, "test", [u], test, 0)[0].joint for u in (ours, theirs)
        )
        apart = paired_difference([[mine]], [[other]])
        assert apart.high >= 0, (direction, told, best[won, direction], apart)
        if told["max_safe"]:
            (paid,) = costs.measure([found.steering.scaled(told["max_safe"])])
            assert mean(paid.kl) <= budget.kl and mean(paid.lost) <= budget.lost
