"""The registry of claims, patterns on the built-in model, figures on given weights, receipts."""

from __future__ import annotations

import json

import pytest
import torch

import steerlab as sl
from steerlab.cli import main
from steerlab.contrast import Example
from steerlab.errors import ArtefactError, ConfigError
from steerlab.evals.stats import Estimate
from steerlab.judges.rule import LexiconJudge
from steerlab.methods.base import method
from steerlab.reproduce.claims import UNVERIFIED, claim, receipts, registry, status
from steerlab.reproduce.full import agrees, block_of, chosen, configured, method_of, reachable
from steerlab.reproduce.run import locked, run_small, verdict, write
from steerlab.reproduce.scales import SCALES, per_factor, strength_of
from steerlab.reproduce.small import Compared, Size, _told, arm
from steerlab.testing import planted, tiny
from steerlab.testing.precision import MANY, ONE

TINY = Size(pairs=8, prompts=4, items=13, suite=4, epochs=1, strengths=(1.0,), tokens=12)


def main_exits(words):
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code or 0


def test_every_claim_names_its_source_and_can_be_built():
    claims, arms = registry()
    assert len(claims) >= 20
    for c in claims.values():
        assert c.source.url.startswith("https://")
        assert c.source.where
        assert c.pattern
        factors = c.config.get("factors", [1.0])
        assert c.config.get("scale", "strength") in SCALES
        if c.config.get("method") not in ("cdas", "reft_r1"):  # in its poles; already the largest latent long
            assert ("scale" in c.config) == (len(factors) > 1 or "factor" in c.config)
        for setting in c.figures or {None: 0.0}:
            if "method" in c.config:
                method_of(
                    configured(c.config, setting), block_of(setting)
                )  # a setting that the method lacks would raise
        for part in c.pattern.get("compare", ()):
            assert {part["a"], part.get("more_than", part.get("less_than"))} <= set(arms)
            assert ("more_than" in part) != ("less_than" in part)
    for name in arms:
        arm(name, Size(epochs=1))


def test_the_list_has_every_claim_with_source_figures_and_what_is_known_here(tmp_path, capsys):
    assert main_exits(["reproduce", "--list", "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    claims, _ = registry()
    assert [r["claim"] for r in rows] == list(claims)
    assert all("https://" in r["source"] for r in rows)
    assert {f["here"] for r in rows for f in r["figures"].values()} == {UNVERIFIED}
    assert main_exits(["reproduce", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.count("unverified here") >= len(claims)


def test_a_receipt_on_the_real_weights_ends_unverified(tmp_path):
    c = claim("cdas-refusal")
    setting = "llama-3.1-8b-instruct layer 12"
    receipt = {
        "kind": "steerlab claim", "claim": c.name, "scale": "full", "setting": setting, "verdict": "within the tolerance",
        "reached": {"mean": 0.9},
    }  # fmt: skip
    write(receipt, tmp_path)
    assert status(c, setting, receipts(tmp_path)) == "reached 0.900: within the tolerance"
    assert status(c, "phi-3.5-mini-instruct layer 16", receipts(tmp_path)) == UNVERIFIED
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtefactError, match="no receipt"):
        receipts(tmp_path)


def test_a_figure_agrees_within_its_tolerance_or_its_interval():
    assert agrees(Estimate(0.60, 0.5, 0.7, 9), 0.631, 0.08) == "within the tolerance"
    assert agrees(Estimate(0.50, 0.3, 0.7, 9), 0.8, 0.08) == "below it"
    assert agrees(Estimate(0.50, 0.2, 0.75, 9), 0.8, 0.08) == "the interval reaches it"
    assert agrees(Estimate(0.95, 0.9, 0.99, 9), 0.5, 0.08) == "above it"
    assert agrees(Estimate(None, None, None, 0), 0.5, 0.08) == "nothing could be measured"


def test_a_pattern_is_held_reversed_or_not_told_apart():
    up, down, flat = Estimate(0.3, 0.1, 0.5, 9), Estimate(-0.3, -0.5, -0.1, 9), Estimate(0.1, -0.1, 0.3, 9)
    assert [_told(e, 1)[0] for e in (up, down, flat)] == ["held", "reversed", "not told apart"]
    assert [_told(e, -1)[0] for e in (up, down, flat)] == ["reversed", "held", "not told apart"]
    parts = {e: Compared("", e, flat) for e in ("held", "reversed", "not told apart")}
    assert verdict([parts["held"]]) == "held"
    assert verdict([parts["held"], parts["not told apart"]]) == "not told apart"
    assert verdict([parts["held"], parts["reversed"]]) == "reversed"
    assert verdict([]) == "nothing to see at this scale"


def test_the_factor_is_chosen_on_one_half_and_told_of_the_other():
    """The prompt arm is judged by a word that only the steered prompt holds; factors outside the domain are left out."""
    engine = tiny.engine()
    prompts = [Example.ask(f"w{n}") for n in range(4)]
    steering = sl.Steering(prompt=sl.Prompt("w20 w21"))
    config = {"factors": [1.0, 2.0], "tokens": 4, "temperature": 0.0}
    words = {r.text for r in engine.generate(prompts, steering, sl.Sampling(4))}
    judge = LexiconJudge(tuple(w for t in words for w in t.split()) or ("w1",), enough=1)
    told = chosen(engine, steering, prompts, judge, config, 0, [1.0, 2.0])
    assert told == [2.0, 2.0]
    with pytest.raises(ConfigError, match="no factor of the claim"):
        chosen(engine, steering, prompts, judge, config, 0, [3.0])


def test_a_factor_is_what_the_paper_multiplies():
    """A trained vector in the lengths that it was trained at; a direction that is read in the largest latent of the texts, 50
    where none is above 0; by hand, from activations."""
    engine, data = planted.engine(), planted.contrast()
    reps = method("reps", {"site": "1", "epochs": 1, "factors": (4.0, 10.0, 16.0)})
    assert per_factor("trained", reps, reps.fit(engine, data), engine, data) == 1 / 10
    way = method("diff_means", {"site": "1", "pooling": "token"})
    made = way.fit(engine, data)
    v = next(iter(made.interventions)).edit.v
    read = engine.capture([*data.positive, *data.negative], [sl.Site(1)], sl.NOT_TEMPLATE)[sl.Site(1)].values
    most = float((read @ (v / v.norm())).max())
    assert most > 0
    strength = per_factor("latent", way, made, engine, data)
    assert strength * float(v.norm()) == pytest.approx(most, rel=ONE)
    below = sl.Steering([sl.Intervention(sl.Site(1), sl.Shift(-v * 1e3))])
    highest = float((read @ (-v / v.norm())).max())
    wanted = highest if highest > 0 else 50.0
    assert per_factor("latent", way, below, engine, data) * float(v.norm()) * 1e3 == pytest.approx(wanted, rel=ONE)
    assert per_factor("strength", way, made, engine, data) == 1.0
    with pytest.raises(ConfigError, match="'trained' for DiffMeans"):
        per_factor("trained", way, made, engine, data)


def test_factors_reach_the_model_in_their_scale():
    engine = tiny.engine()
    prompts, asked = [Example.ask(f"w{n}") for n in range(2)], []

    class Watching:
        def scores(self, replies, examples):
            return LexiconJudge(("w1",), enough=1).scores(replies, examples)

    class Steered(sl.Steering):
        def scaled(self, k):
            asked.append(k)
            return super().scaled(k)

    steering = Steered([sl.Intervention(sl.Site(1), sl.Shift(torch.ones(engine.width(sl.Site(1)))))])
    chosen(engine, steering, prompts, Watching(), {"tokens": 2, "temperature": 0.0}, 0, [0.2, 0.5])
    assert asked == pytest.approx([0.2, 0.5])


PUBLISHED = {  # learning rate, batch, epochs, and the largest factor: the authors' configs, a file a model
    ("axbench-cdas", "gemma-2-2b-it layer 10"): (0.04, 8, 18, 14),
    ("axbench-cdas", "gemma-2-2b-it layer 20"): (0.04, 8, 18, 14),
    ("axbench-cdas", "gemma-2-9b-it layer 20"): (0.06, 6, 18, 7),
    ("axbench-cdas", "gemma-2-9b-it layer 31"): (0.06, 6, 18, 7),
    ("cdas-refusal", "phi-3.5-mini-instruct layer 16"): (0.02, 16, 20, None),
    ("cdas-refusal", "llama-3.1-8b-instruct layer 12"): (0.08, 16, 50, None),
    ("cdas-refusal-kl", "llama-3.1-70b-instruct layer 32"): (0.08, 16, 50, None),
    ("reps-refusal", "phi-3.5-mini-instruct layer 16"): (0.04, 8, 8, -1.6),
    ("reps-refusal", "llama-3.1-8b-instruct layer 12"): (0.04, 8, 8, -1.3),
    ("reps-refusal", "llama-3.1-70b-instruct layer 32"): (0.04, 8, 8, -1.4),
}


@pytest.mark.parametrize(("name", "setting"), PUBLISHED)
def test_locked_settings_are_the_papers_for_each_model(name, setting):
    rate, batch, epochs, factor = PUBLISHED[name, setting]
    config = configured(claim(name).config, setting)
    made = method_of(config, block_of(setting))
    assert (made.step, made.batch_size, made.epochs) == (rate, batch, epochs)
    assert made.site == setting.split()[-1]
    if factor is not None:
        assert max(config.get("factors", [config.get("factor")])) == factor


def test_a_locked_factor_edits_an_activation_as_the_papers_formula_does():
    """CDAS, eq. 3: h + (m·a − w·h)w; RePS by addition in suppression: h + (α − b)v for α < 0; AxBench: h + f·max_act·u."""
    engine, data, h = planted.engine(), planted.contrast(), torch.randn(48, generator=torch.Generator().manual_seed(0))
    cdas = method(
        "cdas", {"site": "1", "epochs": 1, "rank": 1, "start": "random", "poles": "factors", "source": "last"}
    )
    steering = cdas.fit(engine, data)
    (clamp,) = (i.edit for i in steering.interventions)
    factors = configured(claim("axbench-cdas").config, "gemma-2-2b-it layer 10")["factors"]
    reached = {m: s for m in factors for s in reachable([m], "pole", cdas, steering, engine, data)}
    assert reached[1] == 1 and len(reached) >= 2
    for m, s in reached.items():
        w, a = clamp.q[0], clamp.positive[0]
        torch.testing.assert_close(clamp(h, s), h + (m * a - w @ h) * w, rtol=MANY, atol=MANY)
    reps = method("reps", {"site": "1", "epochs": 2})
    trained = reps.fit(engine, data)
    (edit,) = (i.edit for i in trained.interventions)
    v, b = edit.v / reps.unit, edit.offset * reps.unit
    for setting in claim("reps-refusal").figures:
        factor = configured(claim("reps-refusal").config, setting)["factor"]
        s = strength_of(factor, "trained", reps, trained, engine, data)
        torch.testing.assert_close(edit(h, s), h + (factor - b) * v, rtol=MANY, atol=MANY)


@pytest.mark.parametrize("name", ["reps-refusal", "cdas-refusal-kl", "caa-monotone"])
def test_patterns_run_end_to_end_on_the_built_in_model(name, tmp_path):
    c, engine = claim(name), sl.load("pilot")
    receipt = run_small(c, engine, TINY, "pilot")
    assert receipt["verdict"] in ("held", "reversed", "not told apart")
    assert receipt["locked"] == locked(c)
    assert all(p["words"] and p["difference"]["n"] > 0 for p in receipt["pattern"])
    path = write(receipt, tmp_path)
    assert json.loads(path.read_text(encoding="utf-8"))["claim"] == name
    assert not list(tmp_path.glob(".*"))
    assert status(c, next(iter(c.figures), None), receipts(tmp_path)) == UNVERIFIED  # the small scale verifies nothing


def test_what_a_claim_needs_is_said(capsys):
    assert main_exits(["reproduce", "cdas-refusl"]) == 2
    assert "Did you mean 'cdas-refusal" in capsys.readouterr().err
    assert main_exits(["reproduce", "axbench-reps", "--scale", "full"]) == 2
    assert "--setting" in capsys.readouterr().err
    assert main_exits(["reproduce", "cdas-refusal", "--model", "somewhere", "--scale", "pilot"]) == 2
    assert "--scale full" in capsys.readouterr().err
    assert main_exits(["reproduce", "axbench-cdas-unit", "--scale", "full"]) == 2
    assert "--data" in capsys.readouterr().err
