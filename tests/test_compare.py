"""Comparing: the t distribution and tests against worked values, levels, adjustments, power, and what a person reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from steerlab import cli
from steerlab.errors import ConfigError, DataError
from steerlab.evals.compare import Ask, Side, compare, paired, sides
from steerlab.evals.inference import benjamini_hochberg, difference, holm, level_of, student_cdf, student_quantile
from steerlab.evals.power import Components, Design, concepts_needed, power, prompts_needed, smallest
from steerlab.evals.results import Arm, Results, Values
from steerlab.evals.stats import bootstrap
from steerlab.testing.precision import EXACT, MANY, ONE, SUMMED

# --- the t distribution ---------------------------------------------------------------------------------------------------------


def test_student_has_its_closed_forms():
    for t in (-30.0, -2.5, -0.3, 0.0, 0.7, 4.0):
        assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=SUMMED)  # Cauchy
        assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=SUMMED)
        assert student_cdf(t, math.inf) == pytest.approx(
            0.5 * math.erfc(-t / math.sqrt(2)), abs=1e-14
        )  # one call of erfc: fifty eps


@pytest.mark.parametrize(
    ("df", "bound"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1000, 1.96234)]
)
def test_quantiles_are_those_of_the_tables(df, bound):
    assert student_quantile(0.975, df) == pytest.approx(bound, rel=ONE)
    assert student_quantile(0.025, df) == pytest.approx(-bound, rel=ONE)
    assert student_cdf(student_quantile(0.83, df), df) == pytest.approx(0.83, abs=SUMMED)


def test_student_agrees_with_scipy_where_it_is_there():
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 3, 7.5, 25, 400, 1e5):
        for t in (-40.0, -3.0, -1e-3, 0.5, 2.0, 9.0):
            assert student_cdf(t, df) == pytest.approx(
                stats.t.cdf(t, df), rel=EXACT, abs=1e-13
            )  # a continued fraction: some hundred eps
    design, of = Design(10, 3, 24, "concepts"), Components(0.02, 0.01, 0.3)
    for true in (0.0, 0.05, 0.2, 0.4):
        shift, bound = true / design.error(of), stats.t.ppf(0.975, 9)
        exact = stats.nct.sf(bound, 9, shift) + stats.nct.cdf(-bound, 9, shift)
        assert power(true, design, of) == pytest.approx(exact, abs=MANY)


# --- differences ----------------------------------------------------------------------------------------------------------------


def test_a_difference_over_concepts_is_the_paired_t_test_of_their_means():
    units = [0.1, 0.3, -0.05, 0.2, 0.15, 0.0]
    found = difference([[[u - 0.1, u + 0.1], [u]] for u in units])
    mean, deviation = np.mean(units), np.std(units, ddof=1)
    assert found.level == "concepts" and found.df == 5 and found.units == 6 and found.pairs == 18
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx(deviation / math.sqrt(6))
    # the quantile is given to seven digits
    assert found.high - found.mean == pytest.approx(2.570582 * deviation / math.sqrt(6), rel=1e-6)
    assert found.p == pytest.approx(2 * student_cdf(-mean / found.error, 5))
    assert found.standardised == pytest.approx(mean / deviation * (1 - 3 / 19))


def test_the_level_is_the_widest_that_the_numbers_can_speak_for():
    assert level_of([[[1.0]]] * 5) == "concepts"
    assert level_of([[[1.0], [0.0]]] * 4) == "fits"
    assert level_of([[[1.0, 0.0]], [[1.0], [0.0]]]) == "prompts"
    fits = difference([[[0.0, 0.2], [0.4]], [[0.1], [0.3]]])
    assert (fits.level, fits.df, fits.units) == ("fits", 2, 4)
    pooled = (np.var([0.1, 0.4], ddof=1) + np.var([0.1, 0.3], ddof=1)) / 2
    assert fits.error == pytest.approx(math.sqrt(pooled * (0.25 / 2 + 0.25 / 2)))
    with pytest.raises(ConfigError, match="one concept says nothing about others"):
        difference([[[0.1, 0.2], [0.3, 0.1]]], level="concepts")
    with pytest.raises(ConfigError, match="no two fits of a concept"):
        difference([[[0.1, 0.2]]], level="fits")


def test_missing_pairs_are_counted_and_never_zero():
    found = difference([[[1.0, None, 0.0, None]], [[None]], [[1.0, 1.0]]])
    assert (found.pairs, found.missing, found.mean) == (4, 3, 0.75)
    assert difference([[[None]], []]) is None
    assert (found.better, found.worse, found.same) == (0.75, 0.0, 0.25)


def test_pairs_that_never_differ_exclude_no_more_than_their_number_can():
    same = difference([[[0.0] * 30]])
    assert same.p == 1.0 and same.mean == 0 and same.standardised is None
    assert same.high == pytest.approx(0.1, abs=1e-3) and same.low == -same.high  # 3 of 30 to three digits
    always = difference([[[1.0] * 30]])
    # 27 of 30 to three digits; .5 to the 29th is 1.9e-9
    assert always.p < 1e-8 and always.high == 1.0 and always.low == pytest.approx(0.9, abs=1e-3)
    assert difference([[[1.0] * 3]]).p == 0.25, "three of three is no proof"


def test_adjusted_p_are_those_of_worked_cases():
    ps = [0.01, 0.04, 0.03, 0.005]
    assert holm(ps) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(ps) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    rng = np.random.default_rng(0)
    some = rng.random(20).tolist()
    assert all(p <= b <= h for p, b, h in zip(some, benjamini_hochberg(some), holm(some), strict=True))


# --- items that tasks share -----------------------------------------------------------------------------------------------------


def test_shared_items_add_their_own_variance_by_the_two_way_analysis():
    """By hand: mean squares of tasks, items and what is left; var = (MSA + MSB − MSE) / (T·I), Satterthwaite's df."""
    rng = np.random.default_rng(3)
    d = rng.normal(0, 1, (6, 1)) + rng.normal(0, 2, (1, 9)) + rng.normal(0, 1, (6, 9))
    whole, tasks, items = d.mean(), d.mean(axis=1), d.mean(axis=0)
    a = 9 * np.square(tasks - whole).sum() / 5
    b = 6 * np.square(items - whole).sum() / 8
    e = np.square(d - tasks[:, None] - items + whole).sum() / 40
    found = difference([[row] for row in d.tolist()], share=False, items=[["one"]] * 6)
    assert found.error**2 == pytest.approx((a + b - e) / 54)
    assert found.df == pytest.approx((a + b - e) ** 2 / (a * a / 5 + b * b / 8 + e * e / 40))
    assert (found.level, found.items, found.mean) == ("concepts", 9, pytest.approx(whole))
    alone = difference([[row] for row in d.tolist()], share=False)
    assert alone.error**2 == pytest.approx(a / 54) and alone.items == 0
    of = Components.of([[row] for row in d.tolist()], [["one"]] * 6)
    assert (of.items, of.prompts, of.concepts) == tuple(map(pytest.approx, ((b - e) / 6, e, (a - e) / 9)))
    design = Design.of([[row] for row in d.tolist()], "concepts", [["one"]] * 6)
    assert design.error(of) == pytest.approx(found.error)
    assert design.freedom(of) > design.df


def test_items_of_ones_own_leave_everything_as_it_was():
    rng = np.random.default_rng(4)
    values = rng.normal(0, 1, (6, 2, 8)).tolist()
    own = [[(task, seed) for seed in range(2)] for task in range(6)]
    for level in ("concepts", "fits", "prompts"):
        assert difference(values, share=False, level=level, items=own) == difference(values, share=False, level=level)
    assert Components.of(values, own) == Components.of(values)
    assert bootstrap(values, items=own) == bootstrap(values)


@pytest.mark.parametrize(("tasks", "fits", "level"), [(8, 1, "concepts"), (3, 2, "fits"), (2, 1, "prompts")])
def test_intervals_hold_the_truth_where_tasks_share_items(tasks, fits, level):
    """95 % of 400, within three standard errors (3.3 points); as if each had its own, far fewer."""
    rng, names, hits = np.random.default_rng(5), [list(range(fits))] * tasks, {"shared": 0, "own": 0}
    for _ in range(400):
        task = rng.normal(0, 0.05 * (level == "concepts"), (tasks, 1, 1))
        fit = rng.normal(0, 0.02 * (level == "fits"), (tasks, fits, 1))
        d = (task + fit + rng.normal(0, 0.5, (1, fits, 60)) + rng.normal(0, 0.3, (tasks, fits, 60))).tolist()
        for name, items in (("shared", names), ("own", None)):
            found = difference(d, share=False, level=level, items=items)
            hits[name] += found.low <= 0 <= found.high
    assert hits["shared"] >= 400 * 0.95 - 3 * math.sqrt(400 * 0.95 * 0.05)
    assert hits["own"] < 400 * 0.93


def test_missing_values_leave_the_rest_of_an_item():
    rng = np.random.default_rng(6)
    d = (rng.normal(0, 1, (1, 30)) + rng.normal(0, 0.5, (7, 30))).tolist()
    gaps = [[None if (t + i) % 6 == 0 else v for i, v in enumerate(row)] for t, row in enumerate(d)]
    whole, some = (difference([[r] for r in rows], share=False, items=[[0]] * 7) for rows in (d, gaps))
    assert some.missing == 35 and some.items == 30
    assert some.error == pytest.approx(whole.error, rel=0.25)  # a sixth is missing: fixed draws, no rounding
    assert some.error > 2 * difference([[r] for r in gaps], share=False).error


def test_more_tasks_dont_help_where_items_vary():
    of = Components(0.0001, 0.0, 0.01, 0.2)
    design = Design(10, 1, 100, "concepts", 1)
    assert concepts_needed(0.05, design, of) is None
    n = prompts_needed(0.05, design, of)
    assert n is not None and power(0.05, replace(design, prompts=n), of) >= 0.8
    assert n == pytest.approx(
        0.2 * (1.96 + 0.8416) ** 2 / 0.05**2, rel=0.1
    )  # the normal's formula, without tasks and the rest


def test_a_bootstrap_draws_shared_items_once():
    rng = np.random.default_rng(7)
    d = (rng.normal(0, 1, (1, 50)) + rng.normal(0, 0.1, (20, 50))).tolist()
    shared, own = (bootstrap([[row] for row in d], items=items) for items in ([["x"]] * 20, None))
    assert shared.mean == pytest.approx(own.mean) and shared.n == own.n == 1000
    half = 1.96 * np.mean(d, axis=0).std() / math.sqrt(50)
    assert (shared.high - shared.low) / 2 == pytest.approx(half, rel=0.15)  # fixed draws: a thousand know an end to 5 %
    assert own.high - own.low < (shared.high - shared.low) / 2


# --- power ----------------------------------------------------------------------------------------------------------------------


def test_components_of_planted_variances_are_found():
    rng = np.random.default_rng(0)
    grown = []
    for _ in range(200):
        concept = rng.normal(0, 0.3)
        fits = concept + rng.normal(0, 0.2, 6)
        grown.append([(f + rng.normal(0, 0.5, 20)).tolist() for f in fits])
    of = Components.of(grown)
    # fixed draws, no rounding: 5 standard errors, sqrt(2 / 22,800) of it each
    assert of.prompts == pytest.approx(0.25, rel=0.05)
    # fixed draws, as above: 1,000 degrees of freedom and a share of the prompts
    assert of.fits == pytest.approx(0.04, rel=0.15)
    assert of.concepts == pytest.approx(0.09, rel=0.25)  # fixed draws: 2.5 standard errors, sqrt(2 / 200) of it each
    with pytest.raises(ConfigError, match="no fit has two prompts"):
        Components.of([[[1.0]], [[0.0]]])


def test_power_rises_from_alpha_and_what_is_needed_is_the_fewest():
    of, design = Components(0.0, 0.001, 0.3), Design(10, 3, 24, "concepts")
    assert power(0.0, design, of) == pytest.approx(0.05, abs=MANY)
    rising = [power(d, design, of) for d in (0.0, 0.02, 0.05, 0.1, 0.2)]
    assert rising == sorted(rising) and rising[-1] > 0.99
    n = prompts_needed(0.05, design, of)
    assert power(0.05, replace(design, prompts=n), of) >= 0.8 > power(0.05, replace(design, prompts=n - 1), of)
    least = smallest(replace(design, prompts=n), of)
    # whole prompts: one more or less moves the smallest difference by about a hundredth
    assert least == pytest.approx(0.05, rel=0.02) and least <= 0.05
    assert prompts_needed(0.05, design, Components(0.1, 0.0, 0.3)) is None, (
        "concepts vary too much for any number of prompts"
    )
    wide = concepts_needed(0.05, design, Components(0.1, 0.0, 0.3))
    assert 300 < wide < 400
    assert smallest(Design(1, 1, 1, "prompts"), of) is None


# --- from files -----------------------------------------------------------------------------------------------------------------


def results(*, arms, tasks=6, seeds=2, n=30, seed=0, group="concepts") -> Results:
    """Made-up values: `arms` maps a name to its share of successes; all arms meet the same prompts."""
    rng = np.random.default_rng(seed)
    values = []
    for t in range(tasks):
        for s in range(seeds):
            hard = rng.random(n)
            for name, share in arms.items():
                joint = [None if u < 0.02 else float(u < share) for u in hard * 0.7 + rng.random(n) * 0.3]
                for direction in ("elicit", "suppress"):
                    for setting in ("unit", "tuned"):
                        told = {"joint": joint, "lost": (rng.random(n) < 0.1).astype(float).tolist()}
                        values.append(Values(f"t{t}", name, direction, setting, s, 1.0, f"p{t}{s}", f"i{t}{s}", told))
    return Results(
        run="r", created="", title="", model={}, config={}, tasks=[{"name": f"t{t}", "group": group} for t in range(tasks)],
        arms=[Arm("unsteered", "unsteered"), *(Arm(a, a) for a in arms)], strengths=[1.0], points=[], costs=[], table=[],
        values=values,
    )  # fmt: skip


def both(**settings):
    found = results(arms={"good": 0.8, "bad": 0.3}, **settings)
    return Side(found, "good", "good"), Side(found, "bad", "bad")


def test_the_sentence_says_who_is_better_by_how_much_and_what_it_holds_for():
    good, bad = both()
    answers = compare(good, [bad])
    assert [(a.measure, a.direction) for a in answers] == [
        (m, d) for d in ("elicit", "suppress") for m in ("joint", "lost")
    ]
    first = answers[0]
    assert first.verdict == "better" and first.questions == 4 and first.adjusted >= first.found.p
    assert first.sentence.startswith("good is better than bad at eliciting: joint success is ")
    for part in (" points higher (95% interval ", "p < .001 by Holm over 4 questions", "6 tasks × 2 fits × ", "pairs not judged",
                 "It holds for tasks like these."):  # fmt: skip
        assert part in first.sentence
    cost = answers[1]
    assert cost.verdict == "not told apart" and "can't be told apart at eliciting: capability lost is" in cost.sentence
    assert "to see 5.0 points it takes" in cost.plan or "within its reach" in cost.plan
    back = compare(bad, [good])[0]
    assert back.verdict == "worse" and back.found.mean == -first.found.mean and back.found.p == first.found.p


def test_the_sentence_says_that_tasks_share_what_was_drawn(tmp_path):
    """From a folder as a run leaves it; items of one's own give the sentence without it, and a narrower interval."""
    rng, n = np.random.default_rng(8), 200
    made = results(arms={"a": 0.5, "b": 0.5}, seeds=1, n=n)
    hurt = {arm: rng.random(n) < share for arm, share in (("a", 0.1), ("b", 0.15))}  # by item, alike for every task

    def noisy(arm):
        return np.where(rng.random(n) < 0.02, ~hurt[arm], hurt[arm]).astype(float).tolist()

    own = replace(made, values=[replace(v, measures={m: noisy(v.arm) for m in ("joint", "lost")}) for v in made.values])
    shared = replace(own, values=[replace(v, prompts=f"p{v.seed}", items=f"i{v.seed}") for v in own.values])
    answers = {}
    for name, kind in (("own", own), ("shared", shared)):
        (tmp_path / name).mkdir()
        kind.save(tmp_path / name / "results.json")
        a, b = (s for s in sides([tmp_path / name]) if s.arm != "unsteered")
        for measure in ("joint", "lost"):
            answers[name, measure] = compare(a, [b], Ask(measures=(measure,), directions=("elicit",)))[0]
    assert answers["own", "lost"].sentence.endswith("It holds for tasks like these.")
    for measure, drawn in (("joint", "prompts"), ("lost", "items")):
        alone, crossed = answers["own", measure], answers["shared", measure]
        assert crossed.sentence.endswith(f"tasks share their {drawn}, which count as drawn once.")
        assert f"It holds for tasks and {drawn} like these" in crossed.sentence
        assert crossed.found.mean == alone.found.mean and crossed.found.items == n and alone.found.items == 0
        assert crossed.found.error > 2 * alone.found.error
        assert crossed.design.sets == 1 and crossed.of is not None and crossed.of.items > crossed.of.concepts


def test_less_of_a_cost_is_better():
    found = results(arms={"a": 0.5, "b": 0.5})
    dear = [replace(v, measures={**v.measures, "lost": [1.0] * 30}) if v.arm == "b" else v for v in found.values]
    a, b = (Side(replace(found, values=dear), n, n) for n in "ab")
    assert compare(a, [b], Ask(measures=("lost",)))[0].verdict == "better"
    assert compare(b, [a], Ask(measures=("lost",)))[0].verdict == "worse"


def test_the_unsteered_model_stands_beside_every_setting():
    found = results(arms={"unsteered": 0.1, "good": 0.8})
    kept = [v for v in found.values if not (v.arm == "unsteered" and v.setting == "tuned")]
    found = replace(found, values=kept)
    told = compare(Side(found, "good", "good"), [Side(found, "unsteered", "unsteered")], Ask(measures=("joint",)))
    assert {a.verdict for a in told} == {"better"}


def test_arms_that_met_other_prompts_are_refused():
    one, other = results(arms={"a": 0.5}), results(arms={"b": 0.5})
    moved = replace(other, values=[replace(v, prompts="others") for v in other.values])
    with pytest.raises(DataError, match="met other prompts on 't0' with seed 0"):
        compare(Side(one, "a", "a"), [Side(moved, "b", "b")], Ask(measures=("joint",)))
    assert compare(Side(one, "a", "a"), [Side(moved, "b", "b")], Ask(measures=("lost",))), "items are the same"
    with pytest.raises(DataError, match="no values in common"):
        compare(Side(one, "a", "a"), [Side(replace(other, values=[]), "b", "b")])
    with pytest.raises(ConfigError, match=r"no measure 'joints'. Did you mean 'joint'"):
        Ask(measures=("joints",))
    with pytest.raises(ConfigError, match="only a to compare"):
        compare(Side(one, "a", "a"), [])


def test_what_only_one_arm_has_is_left_out_and_said():
    good, bad = both()
    less = replace(bad.results, values=[v for v in bad.results.values if not (v.arm == "bad" and v.task == "t3")])
    clusters, notes, _ = paired(good, Side(less, "bad", "bad"), "elicit", "joint", Ask())
    assert len(clusters) == 5 and "t3" in notes[0]
    assert len(paired(good, bad, "elicit", "joint", Ask(tasks=("t1",))).clusters) == 1
    assert not paired(good, bad, "elicit", "joint", Ask(groups=("refusal",))).clusters


def test_values_survive_the_file_and_the_command_line_tells_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    found = results(arms={"good": 0.8, "bad": 0.3, "other": 0.3})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found.save(tmp_path / name / "results.json")
    assert Results.load(tmp_path / "one" / "results.json") == found

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(["compare", *words])
        told = capsys.readouterr()
        return end.value.code or 0, told.out, told.err

    code, out, _ = run(str(tmp_path / "one"), "--measure", "joint", "--direction", "elicit")
    assert code == 0 and "good is better than bad at eliciting" in out and "good is better than other" in out
    code, out, _ = run(f"{tmp_path}/one:bad", f"{tmp_path}/two/results.json:bad", "--json", "--measure", "joint")
    rows = json.loads(out)
    assert [(r["a"], r["b"], r["verdict"]) for r in rows] == [("one:bad", "two:bad", "not told apart")] * 2
    assert rows[0]["p"] == 1.0 and rows[0]["mean"] == 0
    assert run(f"{tmp_path}/one:goood", f"{tmp_path}/two")[0] == 2
    code, _, err = run(str(tmp_path / "one"), "--arm", "good", "--arm", "bat")
    assert code == 2 and "Did you mean 'bad'?" in err
    code, _, err = run(str(tmp_path / "three"))
    assert code == 2 and "there is no run" in err


def test_a_file_of_an_older_run_loads_and_has_no_values(tmp_path):
    found = results(arms={"a": 0.5, "b": 0.5})
    found.save(tmp_path / "results.json")
    row = json.loads((tmp_path / "results.json").read_text())
    del row["values"]
    (tmp_path / "results.json").write_text(json.dumps(row))
    old = sides([tmp_path / "results.json"])
    with pytest.raises(DataError, match="older version"):
        compare(old[0], old[1:])


def test_a_real_evaluation_can_be_compared(tmp_path):
    from steerlab.evals.run import run as evaluated
    from steerlab.evals.summarise import summarise
    from steerlab.evals.unit import ArmPlan
    from test_evals import PlantedSuite, plan

    arms = (ArmPlan("diff_means", "diff_means", {"site": "0"}), ArmPlan("random", "random", {"site": "0"}))
    suite, asked = PlantedSuite(), plan(arms=arms, strengths=(1.0,), curves=False)
    units = evaluated(suite, asked, tmp_path)
    found = summarise(suite, asked, units, suite.engine(), run="r", title="t", meter={})
    by_arm = {s.arm: s for s in (Side(found, a.name, a.name) for a in found.arms)}
    answers = compare(by_arm["diff_means"], [by_arm["random"], by_arm["unsteered"]], Ask(measures=("degree", "kl")))
    eliciting = {(a.b, a.measure): a.found for a in answers if a.direction == "elicit"}
    told = {r.arm: r for r in found.table if r.direction == "elicit" and r.setting == "unit"}
    assert told["diff_means"].degree.mean > told["random"].degree.mean
    for name in ("random", "unsteered"):
        assert eliciting[name, "degree"].mean == pytest.approx(told["diff_means"].degree.mean - told[name].degree.mean)
    assert eliciting["random", "kl"].mean == pytest.approx(told["diff_means"].kl.mean - told["random"].kl.mean)
    assert ("unsteered", "kl") not in eliciting, "it has no distance to itself"
