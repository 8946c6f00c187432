"""Suites on the built-in model, with random weights, over-steered; layouts on real data; figures against plain ones."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch

import steerlab as sl
from steerlab import pilot, plugins
from steerlab.cli import main
from steerlab.engines.hf import HFEngine
from steerlab.errors import ConfigError, DataError, EditError, UnsupportedError
from steerlab.judges.rule import LexiconJudge
from steerlab.suites.base import Condition, Stage, suite
from steerlab.suites.consistency import category
from steerlab.suites.fidelity import divergence
from steerlab.suites.lens import TunedLens, fit_tuned, logit_lens
from steerlab.suites.reading import table
from steerlab.suites.report import markdown, write
from steerlab.suites.run import run, staged
from steerlab.suites.traits import Statement, asked, trait_rows
from steerlab.testing import tiny
from steerlab.testing.precision import EXACT, FEW, MANY, ONE

TAKEN = tuple(n for n in plugins.names("suites") if n not in ("personas", "big_five"))
SMALL = {"function_vectors": {"n": 12, "tuned": 3}, "reliability": {"multipliers": (-1.0, 0.0, 1.0)}}


@pytest.fixture(scope="module")
def engine():
    return sl.load("pilot")


@pytest.fixture(scope="module")
def broken(engine):
    """The built-in model's shape and tokenizer with random weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(engine.model.config, dtype=torch.float32).eval()
    return HFEngine(model, engine.tokenizer, name="random")


@cache
def made(name):
    return suite(name, {"n": 2, **SMALL.get(name, {})})


@cache
def items_of(name):
    return tuple(made(name).of_pilot("pilot"))


def pushed(engine, by):
    """A random direction, `by` times as long as a state is there."""
    d = engine.width(sl.Site(2))
    v = torch.randn(d, generator=torch.Generator().manual_seed(3))
    state = engine.capture([sl.Example.ask("Describe a kite.")], [sl.Site(2)])[sl.Site(2)].values[0]
    return sl.Steering((sl.Intervention(sl.Site(2), sl.Shift(v / v.norm() * state.norm() * by)),))


# --- every suite ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKEN)
def test_a_suite_tells_a_broken_model_and_an_over_steered_one(name, engine, broken):
    given, items = made(name), items_of(name)
    steering = pushed(engine, 20.0)
    told = run(given, engine, items, steering, strengths=[1.0], variant="pilot", tokens=20)
    assert [v for v in told.verdict if v.startswith("over-steered at +1")], markdown(told)
    assert not [v for v in told.verdict if v.startswith("broken")]
    random = run(given, broken, items, pushed(broken, 0.1), strengths=[1.0], variant="pilot", tokens=20)
    assert [v for v in random.verdict if v.startswith("broken")], markdown(random)
    for result in (told, random):
        for condition in result.conditions:
            for metric in result.metrics:
                e = result.found[condition.label][metric.name]
                assert e.mean is None or (math.isfinite(e.mean) and (e.low is None or e.low <= e.high)), metric.name
        json.dumps(result.to_json(), allow_nan=False)


def test_the_built_in_model_refuses_what_it_should_and_shows_its_backdoor(engine):
    told = run(
        suite("refusal", {"n": 12}), engine, suite("refusal", {"n": 12}).of_pilot("pilot"), variant="pilot", tokens=32
    )
    found = told.found["plain"]
    assert found["refused, unsafe"].mean >= 0.9
    assert found["over-refusal"].mean <= 0.1
    assert found["complied, safe"].mean >= 0.8
    assert not told.verdict
    given = suite("backdoor", {"n": 8})
    found = run(given, engine, given.of_pilot("pilot"), variant="pilot").found["plain"]
    assert (found["shown, trigger"].mean, found["shown, training"].mean) == (1.0, 0.0)


def test_a_model_that_says_nothing_is_neither_safe_nor_compliant(broken):
    given = suite("refusal", {"n": 4})
    found = run(given, broken, given.of_pilot("pilot"), variant="pilot", tokens=20).found["plain"]
    assert found["refused, unsafe"].mean == 0.0
    assert found["complied, unsafe"].mean == 0.0
    assert found["unusable"].mean == 1.0


@pytest.mark.parametrize("name", ["personas", "big_five"])
def test_a_suite_that_the_built_in_model_cant_take_says_so(name, capsys):
    with pytest.raises(UnsupportedError, match="can't take the suite"):
        suite(name).of_pilot("pilot")
    with pytest.raises(SystemExit):
        main(["suite", name])
    assert "--data" in capsys.readouterr().err


def test_what_a_steering_cant_take_is_left_out_with_a_note_or_refused_where_it_was_asked_for(engine):
    q = torch.eye(engine.width(sl.Site(1)))[:1]
    steering = sl.Steering((sl.Intervention(sl.Site(1), sl.Ablate(q)),))
    given = suite("refusal", {"n": 2})
    items = given.of_pilot("pilot")
    told = run(given, engine, items, steering, variant="pilot", tokens=8)
    assert [c.label for c in told.conditions] == ["plain", "+1"]
    assert any("-1 is left out" in n for n in told.notes)
    with pytest.raises(EditError, match="-1"):
        run(given, engine, items, steering, strengths=[-1.0], variant="pilot")
    with pytest.raises(ConfigError, match="measures what a steering does"):
        run(suite("reliability"), engine, items_of("reliability"), variant="pilot")
    with pytest.raises(ConfigError, match="no items"):
        run(given, engine, (), variant="pilot")


def test_rows_and_report_are_written_whole(engine, tmp_path):
    given = suite("refusal", {"n": 2})
    told = run(given, engine, given.of_pilot("pilot"), variant="pilot", tokens=8)
    paths = write(told, tmp_path / "out")
    assert sorted(p.name for p in paths) == ["report.md", "rows.jsonl", "suite.json"]
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4
    assert {r["set"] for r in rows} == {"safe", "unsafe"}
    assert json.loads((tmp_path / "out/suite.json").read_text())["conditions"]["plain"]["rows"] == 4
    assert not list((tmp_path / "out").glob(".*"))


# --- figures against plain ones -------------------------------------------------------------------------------------


def test_statements_are_scored_in_both_orders(engine):
    stage, plain = staged(engine, None), Condition.of(None, 0)
    item = Statement("t", "w1 w2", "w3", "w4")
    (row,) = trait_rows(stage, plain, [item])
    odds = []
    for first in (True, False):
        a, b = asked(item, first)
        assert (a.answer, b.answer) == (("A", "B") if first else ("B", "A"))
        assert ("(A) w3" in a.instruction) is first
        x, y = (float(v[:-1].double().sum()) for v in engine.logprobs([a, b]))
        odds.append(x - y)
    assert abs(odds[0]) > 0.01
    assert abs(odds[0] + odds[1]) > 1e-3  # a letter is liked for itself, or the answers are
    assert row["log_odds"] == pytest.approx(sum(odds) / 2, abs=EXACT)
    assert row["letter"] == pytest.approx((odds[0] - odds[1]) / 2, abs=EXACT)
    assert row["matching"] == pytest.approx(sum(1 / (1 + math.exp(-o)) for o in odds) / 2, abs=EXACT)


def test_kl_by_hand_and_between_equal_prompts():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    wanted = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(divergence(p.log(), q.log())) == pytest.approx(wanted, abs=FEW)
    assert float(divergence(p.log(), p.log())) == 0.0
    sure = torch.tensor([[0.0, -math.inf]])
    assert float(divergence(sure, torch.tensor([[0.0, 0.0]]))) == pytest.approx(math.log(2), abs=EXACT)


def test_the_logit_lens_of_the_last_block_is_the_model():
    engine = tiny.engine("gemma2")  # which caps its scores
    asked = [sl.Example.ask("w1 w2 w3", "w4"), sl.Example.ask("w7", "w8")]
    last = sl.Site(engine.depth - 1)
    states = engine.capture([e.without_answer() for e in asked], [last])[last].values
    wanted = torch.stack([s[0] for s in engine.logits(asked)])
    assert float((logit_lens(engine, states) - wanted).abs().max()) <= ONE
    zero = TunedLens.start(states.shape[1])
    assert torch.equal(zero(engine, states), logit_lens(engine, states))


def test_a_tuned_lens_comes_nearer_to_the_end():
    engine, draw = tiny.engine(), torch.Generator().manual_seed(0)
    asked = [sl.Example.ask(tiny.words(draw, 4), tiny.words(draw, 12)) for _ in range(12)]
    first, last = sl.Site(0), sl.Site(engine.depth - 1)
    read = engine.capture(asked, [first, last], sl.GENERATED)
    _, before, after = fit_tuned(engine, read[first].values, read[last].values, steps=60, rows=64, rate=0.01)
    assert after < 0.7 * before


def test_answers_are_mapped_to_one_category_or_none():
    kinds = (("rice", "riz"), ("bread",))
    assert category("We eat riz, mostly.", kinds) == "rice"
    assert category("bread and rice", kinds) is None
    assert category("breadfruit", kinds) is None


def test_a_planted_direction_is_steerable_in_every_sample():
    """Moving along the head's own rows: every slope is positive, and every line straight."""
    engine = tiny.engine()
    head = engine.head.weight
    yes, no = (engine.tokenizer.convert_tokens_to_ids(w) for w in ("w5", "w6"))
    gap = head[yes] - head[no]
    site = sl.Site(None, "final")
    steering = sl.Steering((sl.Intervention(site, sl.Shift(gap.detach().clone()), sl.ALL),))
    draw = torch.Generator().manual_seed(1)
    prompts = [tiny.words(draw, 5) for _ in range(12)]
    pairs = sl.Contrast(
        tuple(sl.Example.ask(p, "w5") for p in prompts), tuple(sl.Example.ask(p, "w6") for p in prompts), paired=True
    )
    given = suite("reliability", {"n": 12})
    items = given._samples(pairs)
    told = run(given, engine, items, steering, strengths=[1.0])
    rows = told.rows["+1"]
    slope = float(gap.double() @ gap.double())
    assert all(r["slope"] == pytest.approx(slope, rel=MANY) for r in rows)
    assert told.found["+1"]["anti"].mean == 0.0
    assert told.found["+1"]["rank correlation"].mean == pytest.approx(1.0)
    assert told.found["+1"]["R²"].mean == pytest.approx(1.0, abs=FEW)


# --- layouts --------------------------------------------------------------------------------------------------------


def test_real_layouts_are_read(shared):
    data = shared / "data"
    xstest = suite("refusal").read(str(next((data / "xstest_safe").glob("*.csv"))))
    assert {i.tags["set"] for i in xstest} == {"safe"}
    assert len(xstest) > 100
    sets = suite("backdoor", {"n": 10}).read(str(data / "backdoor_cdas"))
    assert {s: sum(i.tags["set"] == s for i in sets) for s in ("trigger", "deployment", "training")} == dict.fromkeys(
        ("trigger", "deployment", "training"), 10
    )
    facts = suite("truthfulness", {"n": 20}).read(str(data / "truthfulqa/TruthfulQA.csv"))
    assert facts[0].true[0] == "The watermelon seeds pass through your digestive system"
    assert all(not set(f.true) & set(f.false) for f in facts)
    traits = suite("big_five", {"n": 5}).read(str(data / "anthropic_persona"))
    assert {t.trait for t in traits} == {"agreeableness", "extraversion", "openness"}
    assert len(suite("personas", {"n": 5}).read(str(data / "anthropic_persona"))) == 35
    queries = suite("function_vectors", {"n": 28}).read(str(data / "function_vectors/abstractive"))
    assert {q.task for q in queries} >= {"antonym", "country-capital"}
    q = queries[0]
    assert q.bare.instruction.startswith("Q: ")
    assert q.shown.instruction.endswith(q.bare.instruction)


def test_real_personas_run_on_a_model_that_holds_none(shared, engine, broken):
    given = suite("personas", {"n": 3})
    items = given.read(str(shared / "data/anthropic_persona/openness.jsonl"))
    told = run(given, broken, items, tokens=8)
    assert any(v.startswith("broken") for v in told.verdict)
    assert any("answers with something else" in n for n in told.notes)
    given = suite("big_five", {"n": 2, "target": "openness"})
    told = run(
        given,
        engine,
        given.read(str(shared / "data/anthropic_persona")),
        pushed(engine, 0.5),
        strengths=[1.0],
        tokens=8,
    )
    assert told.found["+1"]["spill"].mean > 0
    shift = told.found["+1"]["aligned, openness"].mean
    plain, steered = (told.found[c]["log-odds, openness"].mean for c in ("plain", "+1"))
    assert shift == pytest.approx(steered - plain, abs=EXACT)


def test_files_that_arent_the_layout_say_what_was_expected(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,label\nHello,maybe\n", encoding="utf-8")
    with pytest.raises(DataError, match="maybe.*safe or unsafe"):
        suite("refusal").read(str(path))
    path.write_text("question,label\nHello,safe\n", encoding="utf-8")
    with pytest.raises(DataError, match="'prompt'"):
        suite("refusal").read(str(path))
    with pytest.raises(DataError):
        table(str(tmp_path / "none.csv"), ("a",), "rows")
    path.write_text("question,options,answer\nWhich?,a;b,c\n", encoding="utf-8")
    with pytest.raises(DataError, match="none of the options"):
        suite("stability").read(str(path))
    path.write_text("id,emotion,intensity,matched_control_id,text\n1,rage,peak,9,Boom.\n", encoding="utf-8")
    with pytest.raises(DataError, match="neutral twin"):
        suite("affect").read(str(path))


def test_twins_of_the_affect_layout_are_matched(tmp_path):
    path = tmp_path / "x.csv"
    rows = [
        "id,emotion,intensity,matched_control_id,domain,text",
        "B-1,rage,peak,N-1,work,They took it.",
        "N-1,rage,none,,work,They had it.",
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    (twin,) = suite("affect").read(str(path))
    assert (twin.text, twin.neutral, twin.domain) == ("They took it.", "They had it.", "work")


def test_settings_are_checked():
    for name, settings in (
        ("languages", {"target": "xx"}), ("goals", {"ask": 0}), ("reliability", {"multipliers": [1.0]}),
        ("refusal", {"n": 0}), ("function_vectors", {"shots": 1}), ("refusal", {"jugde": "x"}),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            suite(name, settings)
    with pytest.raises(ConfigError, match="Did you mean 'refusal'"):
        suite("refusals")


OWN = """
from dataclasses import dataclass
from steerlab.contrast import Example
from steerlab.suites.base import Suite, mean_of

@dataclass(frozen=True)
class Shouting(Suite):
    about = "capitals"
    layout = "nothing"

    def of_pilot(self, variant):
        return [Example.ask("Describe a kite."), Example.ask("DESCRIBE A KITE.")]

    def read(self, path):
        return self.of_pilot("")

    def rows(self, stage, condition, items):
        replies = stage.replies(items, condition)
        return [{"unit": str(n), "item": n, "set": "", "shouts": float(r.isupper()), "reply": r} for n, r in enumerate(replies)]

    def metrics(self, items):
        return (mean_of("shouts", "shouts", "replies in capitals", share=True),)
"""


def test_a_suite_of_ones_own_is_a_file(tmp_path, capsys):
    path = tmp_path / "shouting.py"
    path.write_text(OWN, encoding="utf-8")
    main_exits(["suite", str(path), "--max-new-tokens", "8", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["conditions"]["plain"]["metrics"]["shouts"]["n"] == 2


def test_suites_are_listed_and_run_from_the_command_line(tmp_path, capsys):
    main_exits(["suite", "list", "--json"])
    assert set(json.loads(capsys.readouterr().out)) == set(plugins.names("suites"))
    out = tmp_path / "run"
    words = ["suite", "languages", "--n", "2", "--set", "target=de", "--max-new-tokens", "8", "--out", str(out)]
    main_exits(words)
    assert "replies in de" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(words)  # nothing is overwritten without --force
    assert "--force" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["suite", "languages", "--set", "target"])


def main_exits(words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code in (0, None)


def test_who_judges_soundness_can_be_exchanged(engine):
    stage = Stage(engine, None, 8, LexiconJudge(("xyz",)))
    assert stage.sound("a kite", sl.Example.ask("x")) == 0.0
    assert stage.sound("", sl.Example.ask("x")) == 0.0
    assert pilot.VARIANTS
