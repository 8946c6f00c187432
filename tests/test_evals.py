"""Measuring: estimates against hand-worked values, units on a real small model, the journal, and what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import steerlab as sl
from steerlab.errors import ConfigError
from steerlab.evals.layers import choose_layer, profile
from steerlab.evals.measure import Amounts, CostMeter, Costs, Effects, _note
from steerlab.evals.results import Results
from steerlab.evals.run import Journal, run
from steerlab.evals.stats import Estimate, bootstrap, median, paired_difference, percentile, wilson
from steerlab.evals.suite import Suite, Task
from steerlab.evals.summarise import asked_items, asked_prompts, estimate, summarise
from steerlab.evals.unit import ArmPlan, Plan, choose, run_unit
from steerlab.judges.base import Score
from steerlab.judges.rule import CorrectJudge
from steerlab.judges.spec import parse_rule
from steerlab.testing import planted
from steerlab.testing.precision import FEW, MANY

SMALL = Amounts(prompts=6, items=8, neutral=3, texts=2, tokens=4)


@dataclass(frozen=True)
class Right(sl.Judge):
    """A reply that begins with the tag `right`; empty replies can't be judged."""

    def __call__(self, reply, example):
        if not reply.strip():
            return Score.missing("empty")
        return Score(float(reply.split()[:3] == example.tags["right"].split()))


@dataclass(frozen=True)
class PlantedSuite(Suite):
    """The planted model: `w0` in the prompt brings one answer, its absence the other."""

    def engine(self):
        return planted.engine()

    def tasks(self):
        return (Task("key", "planted", "planted"), Task("again", "planted", "planted"))

    def contrast(self, task, seed):
        return planted.contrast(16, seed=seed + 1)

    def prompts(self, task, direction, split, n, seed):
        sides = planted.pairs(_generator(seed, split), n)
        return [e.without_answer() for e in sides[1 if direction == "elicit" else 0]]

    def judge(self, task):
        return parse_rule("words:w10,w11,w12")

    def prompt_settings(self, task, seed):
        return {"positive": "w0", "negative": "w3"}

    def items(self, split, n, seed):
        return [replace(e, tags={"right": planted.WITHOUT}) for e in planted.pairs(_generator(seed, split), n)[1]]

    def correct(self):
        return Right()

    def refused(self):
        return parse_rule("words:w10,w11,w12")

    def neutral(self, split, n, seed):
        return planted.pairs(_generator(seed + 7, split), n)[1]

    def texts(self, split, n):
        return ["w1 w2 w3 w4", "w5 w6 w7"][:n]


def _generator(seed, split):

    return torch.Generator().manual_seed(1000 * seed + (1 if split == "dev" else 2))


def plan(**settings) -> Plan:
    arms = (
        ArmPlan("cdas", "cdas", {"site": "1"}),
        ArmPlan("ablation", "ablation", {"site": "1"}),
        ArmPlan("random", "random", {"site": "1"}),
        ArmPlan("prompt", "prompt"),
    )
    return Plan(**{"arms": arms, "tasks": ("key",), "seeds": (0, 1), "dev": SMALL, "test": SMALL, **settings})


# --- estimates --------------------------------------------------------------------------------------------------------------


def test_a_mean_is_over_concepts_then_fits_then_prompts():
    clusters = [[[1.0, 1.0, 1.0, 0.0], [1.0]], [[0.0]]]
    estimate = bootstrap(clusters)
    assert estimate.mean == pytest.approx(((0.75 + 1) / 2 + 0) / 2)
    assert estimate.n == 6
    assert estimate.low <= estimate.mean <= estimate.high


def test_missing_values_are_counted_and_never_zero():
    assert bootstrap([[[1.0, None, None]]]) == Estimate(1.0, 1.0, 1.0, 1, 2)
    assert bootstrap([[[None, None]], [[1.0, 1.0]]]) == Estimate(1.0, 1.0, 1.0, 2, 2)
    assert bootstrap([[[None]]]) == Estimate(None, None, None, 0, 1)
    assert bootstrap([]) == Estimate(None, None, None, 0, 0)
    assert median([]) is None
    assert percentile([], 10) is None


def test_the_interval_of_one_fit_is_the_plain_bootstrap_of_its_prompts():
    values = list(np.random.default_rng(0).random(40))
    estimate = bootstrap([[values]], draws=4000)
    half = 1.96 * np.std(values) / np.sqrt(40)
    # fixed draws, no rounding: 4,000 know an end to some 3 %, and a bootstrap of 40 is narrower by 1 %
    assert estimate.high - estimate.mean == pytest.approx(half, rel=0.1)
    assert estimate.mean - estimate.low == pytest.approx(half, rel=0.1)  # as above


def test_prompts_of_one_concept_do_not_look_like_many_concepts():
    rng = np.random.default_rng(0)
    concepts = [[[float(rng.random() < p) for _ in range(50)]] for p in (0.1, 0.9, 0.2, 0.8)]
    nested, flat = bootstrap(concepts), bootstrap([[[v for c in concepts for v in c[0]]]])
    assert nested.high - nested.low > 2 * (flat.high - flat.low)


def test_intervals_cover_the_truth():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        truth = [rng.random() for _ in range(12)]
        sample = [[list((rng.random(30) < p).astype(float))] for p in truth]
        estimate = bootstrap(sample, draws=400)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.85 <= hits / 200 <= 0.99


def test_a_paired_difference_draws_shared_items_once():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 40)
    a, b = [[(hard + rng.normal(0, 0.1, 40)).tolist()] for _ in range(10)], [[[0.0] * 40]] * 10
    own, shared = (paired_difference(a, b, items=items) for items in (None, [["one"]] * 10))
    assert own.mean == shared.mean and own.high - own.low < (shared.high - shared.low) / 2


def test_a_table_draws_what_tasks_share_once():
    """Two tasks that met the same prompts and items have no narrower an interval than one; with their own they would."""
    rng = np.random.default_rng(1)
    values = (rng.random(40) < 0.4).astype(float).tolist()

    def unit(task, name):
        base = {"capability": [name], "refused": []}
        return {
            "task": task,
            "plain": {"test": {"elicit": {"prompts": [name]}}},
            "base": {"test": base},
            "values": values,
        }

    def width(names, of):
        told = estimate([[unit(t, name)] for t, name in enumerate(names)], lambda u: u["values"], of)
        return told.high - told.low

    for of in (asked_items("test"), asked_prompts("test", "elicit")):
        assert width("aaaaaaaa", of) == pytest.approx(width("a", of), rel=0.2)  # of 1,000 draws, in steps of 1/40
        assert width("abcdefgh", of) < width("aaaaaaaa", of) / 2


def test_paired_differences_and_wilson():
    difference = paired_difference([[[1.0, 1.0, None]]], [[[0.0, 1.0, 1.0]]])
    assert (difference.mean, difference.n, difference.missing) == (0.5, 2, 1)
    full = wilson(20, 20)
    assert full.mean == 1.0
    assert full.low == pytest.approx(0.8389, abs=1e-3)  # given to four digits
    assert wilson(0, 0).mean is None


# --- choosing ---------------------------------------------------------------------------------------------------------------


def effects(*joint):
    return Effects(joint=list(joint))


def costs(*lost):
    return Costs(lost=list(lost))


def test_the_best_joint_success_within_the_budget_is_chosen_the_weakest_of_equals():
    found = [effects(0.0, 1.0), effects(1.0, 1.0), effects(1.0, 1.0)]
    assert choose([0.5, 1.0, 2.0], found, [costs(0.0), costs(0.05), costs(0.05)], 0.1) == 1
    assert choose([0.5, 1.0, 2.0], found, [costs(0.0), costs(0.2), costs(0.05)], 0.1) == 2
    assert choose([0.5, 1.0, 2.0], found, [costs(0.5), costs(0.2), costs(0.3)], 0.1) == 1, "all too dear: the cheapest"
    assert choose([0.5, 1.0], [effects(None), effects(None)], [costs(0.0), costs(0.0)], 0.1) is None


def test_a_cost_that_could_not_be_judged_is_not_zero():
    found = [effects(1.0), effects(1.0, 1.0)]
    assert choose([1.0, 4.0], found, [costs(0.05), costs(None)], 0.1) == 0
    assert choose([1.0, 4.0], found, [costs(None), costs(None)], 0.1) == 0, "none is known: the weakest"
    assert choose([1.0, 4.0], [effects(0.0), effects(1.0)], [costs(), costs()], 0.1) == 1, "none was asked for"


# --- units ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def units():
    suite = PlantedSuite()
    return [run_unit(suite, plan(), "key", seed, suite.engine()) for seed in (0, 1)]


def test_a_unit_shows_what_was_planted(units):
    cells = units[0]["arms"]["cdas"]["directions"]
    for direction in ("elicit", "suppress"):
        unit = next(c for c in cells[direction]["test"] if abs(c["strength"]) == 1)
        plain = units[0]["plain"]["test"][direction]["effect"]
        assert np.mean(unit["effects"]["effect"]) > np.mean(plain) + 0.5, direction
    assert [c["strength"] for c in cells["elicit"]["dev"]] == [0.5, 1.0, 1.5, 2.0]
    assert [c["strength"] for c in cells["suppress"]["dev"]] == [-0.5, -1.0, -1.5, -2.0]


def test_arms_are_measured_where_they_can_act(units):
    directions = units[0]["arms"]["ablation"]["directions"]
    assert list(directions) == ["suppress"]
    assert [c["strength"] for c in directions["suppress"]["test"]] == [0.5, 1.0]
    prompt = units[0]["arms"]["prompt"]["directions"]
    assert [c["strength"] for c in prompt["elicit"]["test"]] == [1.0]
    assert [c["strength"] for c in prompt["suppress"]["test"]] == [-1.0]


def test_costs_are_against_the_same_items_unsteered(units):
    unit = next(c for c in units[0]["arms"]["cdas"]["directions"]["elicit"]["test"] if c["strength"] == 1.0)
    base, under = units[0]["base"]["test"]["capability"], unit["costs"]
    assert under["lost"] == [b - c for b, c in zip(base, under["capability"], strict=True)]
    assert np.mean(under["lost"]) > 0.5, "the capability items are the plain answers, which this steering replaces"
    assert np.mean(under["refused"]) > 0.5
    assert np.mean(under["kl"]) > 0.5
    assert len(under["perplexity"]) == 2
    suite = PlantedSuite()
    meter = CostMeter(suite, suite.engine(), "test", SMALL, 0)
    nothing = meter.measure([sl.Steering((sl.Intervention(sl.Site(0), sl.Shift(torch.ones(48) * 0 + 1e-9)),))])[0]
    assert nothing.lost == [0.0] * 8
    assert max(nothing.kl) < FEW
    assert nothing.perplexity == pytest.approx([1.0, 1.0], abs=MANY)


def test_summaries_and_their_json(units, tmp_path):
    suite = PlantedSuite()
    results = summarise(suite, plan(), units, suite.engine(), run="r", title="t", meter={})
    path = results.save(tmp_path / "results.json")
    assert Results.load(path) == results
    odd = replace(results, title="half a pair: \ud83d")  # a file of the user's may hold it
    assert Results.load(odd.save(tmp_path / "odd.json")) == odd
    arms = {(row.arm, row.direction, row.setting) for row in results.table}
    assert ("unsteered", "elicit", "unit") in arms
    assert ("ablation", "suppress", "tuned") in arms
    assert ("ablation", "elicit", "unit") not in arms
    row = next(r for r in results.table if (r.arm, r.direction, r.setting) == ("cdas", "elicit", "unit"))
    by_hand = []
    for unit in units:
        cell = next(c for c in unit["arms"]["cdas"]["directions"]["elicit"]["test"] if c["strength"] == 1.0)
        by_hand.append(np.mean(cell["effects"]["effect"]))
    assert row.effect.mean == pytest.approx(np.mean(by_hand))
    assert row.worst == pytest.approx(min(by_hand))
    assert {s.arm for s in results.samples} == {"cdas", "ablation", "random", "prompt"}
    assert "NaN" not in path.read_text()


def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    suite, asked = PlantedSuite(), plan(seeds=(0, 1))
    whole = run(suite, asked, tmp_path / "a")
    calls = []
    import steerlab.evals.run as module

    real = module.run_unit

    def dies(*given):
        calls.append(given[2:4])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "run_unit", dies)
    with pytest.raises(KeyboardInterrupt):
        run(suite, asked, tmp_path / "b")
    again = run(suite, asked, tmp_path / "b")
    assert calls == [("key", 0), ("key", 1), ("key", 1)], "what was done is not done again"
    for a, b in zip(whole, again, strict=True):
        assert _without_times(a) == _without_times(b)


def test_a_damaged_unit_is_done_again_and_another_plan_starts_afresh(tmp_path):
    suite, asked = PlantedSuite(), plan(seeds=(0,))
    journal = Journal(tmp_path / "units", suite, asked)
    first = run(suite, asked, tmp_path)
    path = journal.path("key", 0)
    path.write_text(path.read_text()[:100])
    assert _without_times(run(suite, asked, tmp_path)[0]) == _without_times(first[0])
    other = Journal(tmp_path / "units", suite, replace(asked, budget=0.5))
    assert other.key != journal.key
    assert Journal(tmp_path / "units", suite, replace(asked, seeds=(0, 1, 2))).key == journal.key


def test_a_unit_is_measured_anew_when_what_it_rests_on_has_changed(tmp_path, monkeypatch):
    suite, file = PlantedSuite(), tmp_path / "x.safetensors"
    asked = plan(arms=(ArmPlan("cdas", "cdas"), ArmPlan("saved", file=str(file))))
    keys = []
    for strength in (1.0, 2.0):
        sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(strength * torch.ones(48))),)).save(file)
        keys.append(Journal(tmp_path, suite, asked).key)
        keys.append(Journal(tmp_path, suite, asked).key)
    monkeypatch.setattr("steerlab.evals.run.method", lambda *_: sl.method("das", {"rank": 2}))
    keys.append(Journal(tmp_path, suite, asked).key)  # as if a default had changed
    monkeypatch.setattr("steerlab.evals.run.code_digest", lambda: "of another version")
    keys.append(Journal(tmp_path, suite, asked).key)
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert len(set(keys)) == 4


def test_a_saved_steering_acts_the_way_its_method_does(tmp_path):
    suite, file = PlantedSuite(), tmp_path / "x.safetensors"
    sl.method("ablation", {"site": "1"}).fit(suite.engine(), suite.contrast("key", 0)).save(file)
    asked = plan(arms=(ArmPlan("saved", file=str(file)), ArmPlan("ablation", "ablation", {"site": "1"})))
    arms = run_unit(suite, asked, "key", 0, suite.engine())["arms"]
    assert arms["saved"]["directions"] == arms["ablation"]["directions"]
    assert list(arms["saved"]["directions"]) == ["suppress"]
    with pytest.raises(ConfigError, match="give a method to profile layers"):
        run(suite, asked, tmp_path, layers=(0, 1))


def test_silence_is_neither_success_nor_a_right_answer():
    into, prompt = Effects(), sl.Example.ask("w1", "w2")
    judge = parse_rule("words:w9")
    _note(into, " ", prompt, (judge, None, None), [judge(" ", prompt), None, None], "suppress")
    assert (into.effect, into.joint) == ([None], [0.0])
    assert CorrectJudge()("", prompt).value == 0.0


def test_workers_find_the_same_as_one_process(tmp_path):
    suite, asked = PlantedSuite(), plan(tasks=("key", "again"), seeds=(0,))
    alone, together = run(suite, asked, tmp_path / "a"), run(suite, asked, tmp_path / "b", workers=2)
    assert [u["task"] for u in together] == ["key", "again"]
    for a, b in zip(alone, together, strict=True):
        assert _without_times(a) == _without_times(b)


def test_an_arm_served_one_sided_shares_its_fit():
    suite, settings = PlantedSuite(), {"site": "1"}
    arms = (
        ArmPlan("cdas", "cdas", settings),
        ArmPlan("push", one_sided_of="cdas"),
        ArmPlan("fitted", "cdas", {**settings, "one_sided": True}),
    )
    told = run_unit(suite, plan(arms=arms), "key", 0, suite.engine())["arms"]
    assert told["push"]["directions"] == told["fitted"]["directions"]
    assert told["push"]["digest"] == told["fitted"]["digest"] != told["cdas"]["digest"]


def test_a_layer_is_chosen_on_dev(tmp_path):
    suite = PlantedSuite()
    asked = plan(seeds=(0,), arms=(ArmPlan("cdas", "cdas"),))
    units = run(suite, asked, tmp_path, layers=(0, 1))
    best, scores = choose_layer(units, 1.0)
    assert set(scores) == {0, 1}
    assert scores[best].mean == max(s.mean for s in scores.values())
    rows = profile(asked, units)
    assert {(r.layer, r.direction) for r in rows} == {(0, "elicit"), (0, "suppress"), (1, "elicit"), (1, "suppress")}


def test_a_layer_is_chosen_at_its_best_strength():
    def unit(layer_cells):
        return {"task": "t", "seed": 0, "layers": {str(n): {"elicit": cells} for n, cells in layer_cells.items()}}

    def cell(strength, joint, lost):
        return {"strength": strength, "effects": {"joint": [joint]}, "costs": {"lost": lost}}

    found = unit({0: [cell(0.5, 0.7, [0.0]), cell(1.0, 0.2, [0.0])], 1: [cell(0.5, 0.1, [0.0]), cell(1.0, 0.5, [0.0])],
                  2: [cell(1.0, 1.0, [0.9])], 3: [cell(1.0, 1.0, [None])]})  # fmt: skip
    best, scores = choose_layer([found], 0.1)
    assert best == 0
    assert choose_layer([found], 0.1, uncounted=[("t", "elicit")])[0] == 2
    assert {n: None if e.mean is None else round(e.mean, 3) for n, e in scores.items()} == {
        0: 0.7,
        1: 0.5,
        2: 0.2,
        3: None,
    }


def test_impossible_plans_are_refused():
    with pytest.raises(ConfigError, match="same name"):
        plan(arms=(ArmPlan("a", "cdas"), ArmPlan("a", "das")))
    with pytest.raises(ConfigError, match="positive sizes"):
        plan(strengths=(-1.0,))
    with pytest.raises(ConfigError, match="a method, a file or another arm"):
        ArmPlan("x")
    with pytest.raises(ConfigError, match="stands before"):
        plan(arms=(ArmPlan("push", one_sided_of="cdas"), ArmPlan("cdas", "cdas")))
    with pytest.raises(ConfigError, match="no task 'kye'.*'key'"):
        run(PlantedSuite(), plan(tasks=("kye",)), "nowhere")
    assert plan(strengths=(0.5, 2.0)).strengths == (0.5, 1.0, 2.0), "unit strength is always there"


def _without_times(unit):
    text = json.dumps(unit, sort_keys=True)
    import re

    return re.sub(r'"(seconds|peak_mib)": [\d.]+', "", text)
