"""AxBench: what is read, what is said and how it is rated, against figures worked by hand and computed anew from what is kept."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from axbench_world import CONCEPTS, FACTORS, digests, judge, plan, ran, rate, suite, world
from judging import serving
from serving import clamp, shift
from steerlab.bench.axbench import metrics
from steerlab.bench.axbench.board import Board, board
from steerlab.bench.axbench.data import attacked, fitted, prompted
from steerlab.bench.axbench.latents import Reading, direction_of, latents, reading
from steerlab.bench.axbench.page import page, write
from steerlab.bench.axbench.rating import ModelRater, RuleRater, added, model_rater, step
from steerlab.bench.axbench.run import chosen_factor, run
from steerlab.bench.axbench.steer import legal, seeds
from steerlab.bench.axbench.units import AxPlan
from steerlab.bench.axbench.words import columns_csv, markdown
from steerlab.cli.bench import printed
from steerlab.contrast import Example, Message
from steerlab.edits import Ablate, Adapter, OneSided, Push, Rotate, Shift
from steerlab.errors import ConfigError, DataError, UnsupportedError
from steerlab.evals.stats import bootstrap
from steerlab.evals.unit import ArmPlan
from steerlab.evals.workers import local
from steerlab.judges.base import Score
from steerlab.judges.rule import LexiconJudge
from steerlab.positions import NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.steering import Prompt, Steering
from steerlab.testing import planted, tiny
from steerlab.testing.precision import ONE, SUMMED


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return world(tmp_path_factory.mktemp("axbench"))


@pytest.fixture(scope="module")
def undisturbed(here, tmp_path_factory):
    """A whole run with a judge that never fails: the run, its folder, and what the judge was asked."""
    out = tmp_path_factory.mktemp("undisturbed")
    with serving(rate) as (server, url):
        found = ran(here, out, judge(url, out / "answers.sqlite"))
    return found, out, server


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_direction_of_each_edit():
    v = torch.tensor([1.0, 2.0, 0.0])
    q = torch.eye(3)[:2]
    assert torch.equal(direction_of(Shift(v)), v)
    assert torch.equal(direction_of(OneSided(Shift(v), v, 0.5)), v)
    assert torch.equal(direction_of(Ablate(q[:1])), q[0])
    # a clamp reads along the line between its poles: (3 − 1)·e1 + (1 − 2)·e2
    assert torch.equal(
        direction_of(Push(q, torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0]))), torch.tensor([2.0, -1.0, 0.0])
    )
    generator = torch.Generator().manual_seed(0)
    for edit in (Rotate.random(4, generator), Adapter.random(4, generator), Ablate(torch.eye(4)[:2])):
        with pytest.raises(UnsupportedError, match="no one direction"):
            direction_of(edit)


def test_what_has_no_direction_says_why():
    engine = tiny.engine()
    with pytest.raises(UnsupportedError, match="touches nothing"):
        reading(Steering(prompt=Prompt("Say w1.")))
    with pytest.raises(UnsupportedError, match="2 sites"):
        reading(shift(engine, 1) + shift(engine, 2, site="2"))
    found = reading(clamp(engine, 3))
    assert found.site == Site(1)
    assert found.direction.shape == (engine.width(Site(1)),)


def test_latents_are_the_projections_of_what_the_engine_shows():
    engine = tiny.engine()
    texts = [Example.ask("w1 w2 w3", "w4 w5"), Example.ask("w9", "w8 w7 w6 w5")]
    direction = torch.randn(engine.width(Site(1)), generator=torch.Generator().manual_seed(1))
    found = latents(engine, texts, {"a": Reading(Site(1), direction)}, 100)
    read = engine.capture(texts, [Site(1)], NOT_TEMPLATE)[Site(1)]
    for row, highest in enumerate(found.highest("a")):
        assert highest == pytest.approx(float((read.values[read.row == row] @ direction).max()), abs=ONE)
    assert found.cut == 0


def test_what_is_too_long_is_cut_at_its_end_and_counted():
    engine = tiny.engine()
    draw = torch.Generator().manual_seed(0)
    example = Example.ask(tiny.words(draw, 5), tiny.words(draw, 30))
    whole = len(engine.batch([example]).ids[0])
    assert fitted(engine, example, whole) == (example, 0)
    shorter, cut = fitted(engine, example, 20)
    assert engine.batch([shorter]).ids.shape[1] == 20
    assert example.answer.startswith(shorter.answer)
    assert cut == len(example.answer) - len(shorter.answer)
    assert shorter.messages == example.messages
    tiniest, _ = fitted(engine, example, 8)  # the answer alone isn't enough
    assert engine.batch([tiniest]).ids.shape[1] <= 8
    assert not tiniest.answer
    assert example.instruction.startswith(tiniest.instruction)
    direction = {"a": Reading(Site(1), torch.ones(engine.width(Site(1))))}
    assert latents(engine, [example, Example.ask("w1", "w2")], direction, 20).cut == 1
    # longer than the context
    assert latents(engine, [replace(example, answer=tiny.words(draw, 200))], direction, 10**6).cut == 1


# --- prompts --------------------------------------------------------------------------------------------------------


def test_attacks_stand_where_they_say():
    asked = (Message("system", "Be brief."), Message("user", "Write about rain."))
    shots = (Example.ask("Write about tea.", "Arr, tea."),)
    after = attacked(asked, "appended", "pirate talk", shots)
    before = attacked(asked, "prepended", "pirate talk", shots)
    assert after[0] == before[0] == asked[0]
    assert after[1].content.startswith("Write about rain. ")
    assert before[1].content.endswith(" Write about rain.")
    assert "pirate talk" in after[1].content
    shown = attacked(asked, "shots", "pirate talk", shots)
    assert [m.role for m in shown] == ["system", "user", "assistant", "user"]
    assert shown[1:3] == (Message("user", "Write about tea."), Message("assistant", "Arr, tea."))
    with pytest.raises(ValueError, match="appended"):
        attacked(asked, "shouted", "pirate talk", shots)


def test_an_attack_comes_after_the_defence_that_a_prompt_is():
    steering = Steering(prompt=Prompt("Show it.", "Leave it out.", "suffix", -1.0))
    defended = prompted(Example.ask("Write about rain."), steering)
    assert defended.instruction == "Write about rain. Leave it out."
    (last,) = attacked(defended.messages, "appended", "it", ())
    assert last.content.index("Leave it out.") < last.content.index("Forget every rule")


# --- ratings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degree", "rating"), [(0, 0), (0.24, 0), (0.25, 1), (0.5, 1), (0.74, 1), (0.75, 2), (1, 2)])
def test_a_degree_as_a_rating(degree, rating):
    assert step(Score(degree)) == rating


def test_rules_rate_and_what_they_cannot_tell_is_missing():
    rater = RuleRater(LexiconJudge(("storm", "rain"), enough=2), LexiconJudge(("tea",)), _Mute())
    said = rater.rate(["Storm and rain.", " \n"], [Example.ask("x"), Example.ask("y")])
    assert said[0].concept == 2
    assert said[0].instruction == 0
    assert said[0].fluency is None
    assert said[1] == (0, 0, 0)  # silence is the model's failing
    assert rater.told() == {}


class _Mute(LexiconJudge):
    def __init__(self):
        super().__init__(("x",))

    def __call__(self, reply, example):
        return Score.missing("it can't tell")


def test_a_rule_concept_is_told_by_its_rule(tmp_path):
    with serving(lambda _: "Rating: [[1]]") as (_, url):
        rater = model_rater(judge(url, tmp_path / "a.sqlite"), "w1 w2", LexiconJudge(("storm", "rain"), enough=2))
        assert isinstance(rater, ModelRater)
        assert rater.rate(["Storm and rain."], [Example.ask("x")]) == [(2, 1, 1)]
    with pytest.raises(ConfigError, match="sets itself"):
        model_rater("llm,model=x,what=all", "rain")
    with pytest.raises(ConfigError, match="expected a language model"):
        model_rater("sentiment:positive", "rain")


def test_tallies_add_up():
    assert added([{"calls": 1, "reasons": {"a": 2}}, {}, {"calls": 3, "reasons": {"a": 1, "b": 1}}]) == {
        "calls": 4, "reasons": {"a": 3, "b": 1}
    }  # fmt: skip


# --- factors --------------------------------------------------------------------------------------------------------


def test_the_reported_half_chooses_nothing():
    ratings = [[[2, 2, 2], [2, 2, 2], [0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2]]]
    result = {"factors": [0.5, 1.0], "ratings": ratings}
    assert chosen_factor(result, suppress=False) == 0
    for late in itertools.product([0, 1, 2, None], repeat=2):
        ratings[1][2:] = [[v, v, v] for v in late]
        assert chosen_factor(result, suppress=False) == 0


def test_factors_go_the_way_that_an_arm_acts():
    of = plan()
    engine = tiny.engine()
    both = shift(engine, 1)
    assert legal(of, ArmPlan("diff_means", "diff_means"), both, suppress=False) == list(FACTORS)
    assert legal(of, ArmPlan("diff_means", "diff_means"), both, suppress=True) == [-1.0, -1.5]
    prompt = Steering(prompt=Prompt("Do.", "Don't."))
    assert legal(of, ArmPlan("prompt", "prompt"), prompt, suppress=True) == [-1.0]
    assert legal(of, ArmPlan("prompt", "prompt"), Steering(prompt=Prompt("Do.")), suppress=True) == []
    gone = Steering(tuple(replace(i, edit=Ablate(torch.eye(32)[:1])) for i in both.interventions))
    assert legal(of, ArmPlan("ablation", "ablation"), gone, suppress=False) == []
    assert legal(of, ArmPlan("ablation", "ablation"), gone, suppress=True) == [1.0]
    assert legal(of, ArmPlan("random", "random"), None, suppress=True) == [0.0]


def test_seeds_belong_to_prompts():
    prompts = [Example.ask("a"), Example.ask("b")]
    assert seeds(plan(), "0", prompts) == seeds(plan(tokens=9), "0", prompts)
    assert len({*seeds(plan(), "0", prompts), *seeds(plan(), "1", prompts), *seeds(plan(seed=1), "0", prompts)}) == 6


def test_plans_that_cannot_be():
    with pytest.raises(ConfigError, match="at least 2 prompts"):
        plan(prompts=1)
    with pytest.raises(ConfigError, match="no part 'steer'"):
        plan(parts=("steer",))
    with pytest.raises(ConfigError, match="both parts"):
        plan(parts=("attack",))
    with pytest.raises(ConfigError, match="positive"):
        plan(factors=(0.0,))
    with pytest.raises(ConfigError, match="same name"):
        AxPlan((ArmPlan("a", "pca"), ArmPlan("a", "probe")), ("0",))


# --- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_measures_all_of_it(undisturbed):
    found, _, server = undisturbed
    made = board(found, title="AxBench", meter={})
    assert {line.name for line in made.lines} == {"prompt", "unsteered", "diff_means", "lm_vector"}
    assert made.failed == []
    c = made.counts
    # steering: 1 + 1 + 3 + 3 factors, suppression: 1 + 1 + 2 + 2, by 4 prompts and 2 concepts
    # attacks: 3 kinds on 2 prompts for 3 arms and 2 concepts
    assert c["replies"] == (8 + 6) * 4 * 2 + 3 * 2 * 3 * 2
    assert c["ratings"] == 3 * c["replies"]
    assert c["missing"] == 0
    assert c["texts"] == 2 * (8 + 8 + 3)
    assert c["fits"] == 3 * 2
    assert made.asked["calls"] == server.requests == len(server.messages), "nothing is asked twice"
    assert made.asked["wanted"] >= made.asked["kept"] + made.asked["calls"]
    assert made.asked["cost"] == pytest.approx(server.requests * (100 * 1 + 10 * 2) / 1e6)
    means = made.line("diff_means")
    assert means.concepts["0"]["detected"]["auroc"] == 1.0  # what the planted model was taught, it tells apart
    assert made.line("prompt").figures["auroc"].mean is None
    assert "touches nothing" in made.line("prompt").none


def test_figures_are_those_of_what_is_kept(undisturbed):
    """From the journal's ratings and latents anew, with other code."""
    found, out, _ = undisturbed
    made = board(found, title="AxBench", meter={})
    for arm in ("diff_means", "lm_vector", "unsteered"):
        clusters = []
        for task in CONCEPTS:
            unit = json.loads((out / "units" / f"steer-{found.units.said['steer', arm, task].inputs}.json").read_text())
            score = [[0.0 if 0 in r else 3 / sum(1 / x for x in r) for r in row] for row in unit["ratings"]]
            first = [sum(row[:2]) / 2 for row in score]
            best = first.index(max(first))
            assert made.line(arm).concepts[task]["steer"]["factor"] == unit["factors"][best]
            clusters.append([score[best][2:]])
        assert made.line(arm).figures["score"] == bootstrap(clusters)
    for task in CONCEPTS:
        kept = load_file(out / "latents" / f"{found.units.latents[task].inputs}.safetensors")
        label, row = kept[f"{task}/label"], kept[f"{task}/row"]
        for arm in ("diff_means", "lm_vector"):
            highest = [float(kept[f"{task}/{arm}"][row == k].max()) for k in range(len(label))]
            p, n = ([h for h, which in zip(highest, label, strict=True) if which == k] for k in (1, 0))
            pairs = [(a > b) + 0.5 * (a == b) for a in p for b in n]
            assert made.line(arm).concepts[task]["detected"]["auroc"] == pytest.approx(
                sum(pairs) / len(pairs), abs=SUMMED
            )


def test_wins_are_over_the_prompt_on_the_same_prompts(undisturbed):
    made = board(undisturbed[0], title="AxBench", meter={})
    for line in made.lines:
        if line.name == "prompt":
            assert line.figures["won"].mean is None
            continue
        rates = [
            metrics.winrate(line.concepts[t]["steer"]["score"], made.line("prompt").concepts[t]["steer"]["score"])
            for t in CONCEPTS
        ]
        assert line.figures["won"].mean == pytest.approx(sum(r.win for r in rates) / 2, abs=SUMMED)
        assert line.figures["lost"].mean == pytest.approx(sum(r.loss for r in rates) / 2, abs=SUMMED)
        assert sum(line.figures[k].mean for k in ("won", "lost", "tied")) == pytest.approx(1, abs=SUMMED)


def test_the_same_command_finds_everything_done(here, undisturbed):
    found, out, _ = undisturbed
    before = digests(out)
    again = ran(here, out, found.suite.judged_by)  # nobody is there to judge any more
    assert digests(out) == before
    assert {row.tried for row in again.rows.values()} == {1}


def test_two_workers_find_the_same(here, undisturbed, tmp_path):
    of = replace(undisturbed[0].suite, judged_by="")
    asked = plan(parts=("detection",))
    told = []
    for name, workers in (("one", 1), ("two", 2)):
        with local(of, workers, threads=1) as pool:
            run(of, asked, tmp_path / name, pool)
        told.append(digests(tmp_path / name))
    assert told[0] == told[1]
    assert None not in told[0].values()


def test_lost_latents_are_read_again(here, undisturbed):
    found, out, _ = undisturbed
    before, (file,) = digests(out), list((out / "latents").iterdir())
    data = file.read_bytes()
    file.unlink()
    ran(here, out, found.suite.judged_by)
    assert file.read_bytes() == data
    assert digests(out) == before


def test_who_nobody_can_rate_is_said_before_anything_is_fitted(here, tmp_path):
    with pytest.raises(UnsupportedError, match="--judge"):
        ran(here, tmp_path, "")
    assert not list(tmp_path.glob("steerings/*"))
    found = board(ran(here, tmp_path, "", parts=("detection",)), title="AxBench", meter={})
    assert found.line("diff_means").concepts["0"]["detected"]["auroc"] == 1.0
    assert found.line("diff_means").figures["score"].mean is None
    assert "This part was not measured." in page(found)


def test_a_concept_that_is_not_there(here, tmp_path):
    of = suite(here)
    with pytest.raises(ConfigError, match="no concept '7'"), local(of, 1) as pool:
        run(of, replace(plan(parts=("detection",)), tasks=("7",)), tmp_path, pool)


def test_a_fit_that_fails_is_told_and_takes_nothing_with_it(here, tmp_path):
    of = suite(here)
    asked = plan(parts=("detection",))
    sure = ArmPlan("raptor", "raptor", {"pooling": "token", "accuracy": 1.0})
    with local(of, 1) as pool:
        found = run(of, replace(asked, arms=(asked.arms[2], sure)), tmp_path, pool)
    made = board(found, title="", meter={})
    assert {f["unit"] for f in made.failed} == {"fit raptor on 0", "fit raptor on 1"}
    assert "no block's probe is right" in made.failed[0]["reason"]
    assert made.line("raptor").figures["auroc"].mean is None
    assert made.line("diff_means").figures["auroc"].n == 2
    assert "no block&#x27;s probe" in page(made)


# --- the layout -----------------------------------------------------------------------------------------------------


def test_pairs_are_the_published_ones_or_the_models_own(here, tmp_path):
    from steerlab.bench.axbench.folder import own_answers

    of = suite(here)
    paired = of.contrast("0", 0)
    assert all(p.answer == planted.WITH and q.answer == planted.WITHOUT for p, q in paired.pairs)
    assert all(q.instruction in p.instruction and CONCEPTS["0"][0] in p.instruction for p, q in paired.pairs)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("train_data.parquet", "latent_eval_data.parquet"):
        (alone / name).write_bytes((here / "data" / name).read_bytes())
    bare = replace(of, path=str(alone))
    unpaired = bare.contrast("0", 0)
    assert not unpaired.paired
    assert {e.answer for e in unpaired.negative} == {planted.WITHOUT}
    engine = bare.engine()
    made = own_answers(engine, unpaired, 6)
    said = engine.generate([q.without_answer() for q in made.negative])
    assert [q.answer for q in made.negative] == [r.text.strip() for r in said]


def test_a_broken_layout_is_told(tmp_path):
    of = suite(tmp_path)
    with pytest.raises(DataError, match=r"no train_data\.parquet"):
        of.tasks()


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_nothing_in_it_acts(undisturbed, tmp_path):
    made = board(undisturbed[0], title="<script>alert(1)</script>", meter={"seconds": 1.0})
    made.samples[0]["text"] = "</div><script>alert(2)</script>\x1b[31m"
    made.concepts[0]["words"] = "<img src=x onerror=alert(3)>"
    text = page(made)
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r'(?:src|href)="(?!\./)', text), "nothing is fetched from anywhere"
    assert "url(" not in text
    assert "default-src &#x27;none&#x27;" in text
    paths = write(made, tmp_path)
    assert [p.name for p in paths] == ["leaderboard.html", "leaderboard.json", "leaderboard.md", "leaderboard.csv"]
    again = Board.load(tmp_path / "leaderboard.json")
    assert page(again) == text
    assert markdown(again) == markdown(made)


def test_equals_share_a_rank(undisturbed):
    made = board(undisturbed[0], title="AxBench", meter={})
    contest = [line for line in made.lines if not line.reference]
    assert len(contest) > 1
    for line in contest:
        line.figures["score"] = replace(line.figures["score"], mean=0.5)
    ranks = re.findall(r'class="rank">(\d+)<', page(made).partition("Steering away")[0])
    assert ranks == ["1"] * len(contest)


def test_the_leaderboards_columns(undisturbed):
    made = board(undisturbed[0], title="AxBench", meter={})
    rows = [line.split(",") for line in columns_csv(made).splitlines()]
    assert rows[0][0] == "Method"
    assert rows[0][2] == "Avg"
    means = {row[0]: row for row in rows[1:]}
    score = made.line("diff_means").figures["score"].mean
    assert means["diff_means"][1] == means["diff_means"][2] == f"{score:.3f}"
    table = markdown(made)
    assert "## Steering" in table
    assert "## Detection" in table


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_terminal_of_any_width_shows_whose_figures_they_are(undisturbed, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    made = board(undisturbed[0], title="AxBench", meter={})
    printed(made)
    text = capsys.readouterr().out
    assert "…" not in text
    for line in made.lines:
        assert f" {line.label} " in text
        assert f"{line.figures['score'].mean:.2f} [" in text
    assert width == 80 or ("won" in text) == (width == 160)
