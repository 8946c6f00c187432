"""Settings of methods that the shipped laws, which run every method as it comes, don't reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerlab.contrast import Contrast
from steerlab.errors import ConfigError, DataError
from steerlab.methods import interchange
from steerlab.methods.base import method, read_classes
from steerlab.methods.cdas import CDAS
from steerlab.methods.fitting import ran
from steerlab.methods.frozen import Frozen
from steerlab.methods.interchange import both_ways
from steerlab.methods.keep import Keep
from steerlab.methods.objectives import kl
from steerlab.methods.steps import Given
from steerlab.positions import NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.testing import planted
from steerlab.testing.plain import PlainFrozen
from steerlab.testing.precision import MANY, ONE
from steerlab.testing.test_trained import first_step


@pytest.mark.parametrize("rank", [1, 2])
def test_trained_poles_serve_a_lower_divergence_than_factors(rank):
    engine, contrast = planted.engine(), planted.contrast(30)
    settings = {"site": "0", "rank": rank, "epochs": 4, "seed": 0}
    by_factors = CDAS(**settings, poles="factors").fit(engine, contrast)
    trained = CDAS(**settings).fit(engine, contrast)
    served = [s.meta.figures["divergence_served"] for s in (by_factors, trained)]
    assert served[1] < served[0]
    # one mean in batches and whole, in float32: MANY of terms ten times its size
    assert min(trained.meta.figures["divergence"]["held_out"]) == pytest.approx(served[1], rel=1e-3)
    clamp = trained.interventions[0].edit
    assert torch.allclose(clamp.q @ clamp.q.T, torch.eye(rank), atol=ONE)
    again = CDAS(**settings).fit(engine, contrast)
    assert again.digest == trained.digest


def untouched(pairs, **settings):
    """Rows of both ways, without any edit."""
    rows, engine, sites = [row for pair in pairs for row in both_ways(*pair)], planted.engine(), (Site(0),)
    frozen, generator = Frozen(engine, sites, **settings), torch.Generator()
    with torch.no_grad():
        return ran(Given(engine, planted.contrast(1), sites, NOT_TEMPLATE, frozen, [], [], generator, {}), rows)


def test_early_weighs_an_answers_first_tokens_more():
    step = untouched(planted.contrast(3).pairs)
    each = torch.rand(len(step.said.tokens), generator=torch.Generator().manual_seed(0))
    assert float(CDAS(early=0.0)._mean(step, each)) == pytest.approx(float(each.mean()))
    tokens = len(each) // 6  # every planted answer is as long
    weight = (1 / torch.arange(1, tokens + 1)).repeat(6)
    assert float(CDAS(early=1.0)._mean(step, each)) == pytest.approx(float((each * weight).sum() / weight.sum()))
    with pytest.raises(ConfigError, match="early=0"):
        method("pdas", {"early": 0.5})


@pytest.mark.parametrize("where", ["nowhere", "disk"])
def test_a_fit_that_can_keep_nothing_in_memory_is_the_same(where, tmp_path):
    made, engine, contrast = CDAS(site="1", seed=0), planted.engine(), planted.contrast(16)
    kept = made.fit(engine, contrast).interventions[0].edit
    keep = {"nowhere": Keep(memory=0), "disk": Keep(memory=0, disk=2**24, folder=tmp_path)}[where]
    anew = made.fit_many(engine, [contrast], keep=keep)[0].interventions[0].edit
    assert torch.allclose(kept.q, anew.q, atol=MANY)
    assert torch.allclose(kept.positive, anew.positive, atol=1e-3)  # coordinates of size 10: MANY of them
    assert bool(list(tmp_path.glob("*.safetensors"))) == (where == "disk")
    assert not list(tmp_path.glob("*.part"))


def test_a_random_clamp_goes_to_the_class_means():
    engine, contrast = planted.engine(), planted.contrast(8)
    clamp = method("random", {"form": "clamp", "site": "1", "seed": 3}).fit(engine, contrast).interventions[0].edit
    positive, negative = read_classes(engine, contrast, [Site(1)], "last")[Site(1)]
    assert float(clamp.q.norm()) == pytest.approx(1.0)
    assert torch.allclose(clamp.positive, (positive @ clamp.q.T).mean(dim=0), atol=MANY)
    assert torch.allclose(clamp.negative, (negative @ clamp.q.T).mean(dim=0), atol=MANY)


def test_neutral_prompts_are_spared_where_asked():
    engine, contrast = planted.engine(), planted.contrast(24)
    apart = [replace(e, family="elsewhere") for e in contrast.negative[:12]]
    data = replace(contrast, neutral=tuple(apart))

    def disturbed(spare):
        fitted = CDAS(site="0", rank=1, seed=0, spare=spare).fit(engine, data)
        plain, steered = engine.logits(apart), engine.logits(apart, fitted)
        return sum(float(kl(p, s).mean()) for p, s in zip(plain, steered, strict=True))

    assert disturbed(10.0) < 0.7 * disturbed(0.0)
    sides = {
        family: replace(data, neutral=tuple(replace(e, family=family) for e in apart)) for family in (None, "pairs")
    }
    sides["pairs"] = replace(sides["pairs"], negative=tuple(replace(e, family="pairs") for e in data.negative))
    ways = {family: {len(one) for one in CDAS(spare=1.0)._neutral(given)} for family, given in sides.items()}
    assert ways == {None: {2}, "pairs": {1}}, "at both poles, unless pairs of its family tell otherwise"
    with pytest.raises(DataError, match="neutral prompts with answers"):
        CDAS(site="0", spare=1.0).fit(engine, contrast)
    with pytest.raises(ConfigError, match="poles='trained'"):
        CDAS(spare=1.0, poles="factors")


def test_poles_begin_as_far_apart_as_lowers_the_divergence(monkeypatch):
    def begun():
        return CDAS(site="0", rank=1, seed=0, epochs=0).fit(planted.engine(), planted.contrast(24))

    found = begun()
    each = {}
    for reach in interchange.REACHES:
        monkeypatch.setattr(interchange, "REACHES", (reach,))
        each[reach] = begun()
        assert each[reach].meta.figures["reach"] == {"positive": reach, "negative": reach}
    clamps = {reach: fitted.interventions[0].edit for reach, fitted in each.items()}
    near, far = clamps[1.0], clamps[3.0]
    gap = near.positive - near.negative
    assert float(gap) > 0, "the start points from the negative to the positive class"
    assert float(far.positive - near.negative) == pytest.approx(3 * float(gap), rel=MANY)
    assert float(near.positive - far.negative) == pytest.approx(3 * float(gap), rel=MANY)
    served = {reach: fitted.meta.figures["divergence_served"] for reach, fitted in each.items()}
    assert found.meta.figures["divergence_served"] <= 1.1 * min(served.values()), served
    assert max(served.values()) > 1.5 * min(served.values()), "the reach matters here"


def test_answers_are_cut_where_asked():
    positive, negative = planted.contrast(1).pairs[0]
    pair = (replace(positive, answer="w1 w2 w3"), replace(negative, answer="w4 w5"))
    whole, cut, far = (untouched([pair], answer_tokens=n).said for n in (None, 2, 99))
    assert whole.row.tolist() == [0, 0, 0, 0, 1, 1, 1]  # with the end of turn
    assert cut.row.tolist() == [0, 0, 1, 1]
    assert torch.equal(cut.tokens, whole.tokens[[0, 1, 4, 5]])
    assert torch.allclose(cut.scores(), whole.scores()[[0, 1, 4, 5]], atol=ONE)
    assert torch.equal(far.tokens, whole.tokens)
    with pytest.raises(ConfigError, match="answer_tokens"):
        CDAS(answer_tokens=0)


def test_a_start_of_fewer_rows_is_filled_up(tmp_path):
    engine, contrast = planted.engine(), planted.contrast(12)
    shift = method("diff_means", {"site": "0"}).fit(engine, contrast)
    shift.save(tmp_path / "s.safetensors")
    clamp = (
        CDAS(site="0", rank=3, epochs=0, start=str(tmp_path / "s.safetensors"))
        .fit(engine, contrast)
        .interventions[0]
        .edit
    )
    v = shift.interventions[0].edit.v
    assert float(clamp.q[0] @ v / v.norm()) == pytest.approx(1.0, abs=ONE)
    assert torch.allclose(clamp.q @ clamp.q.T, torch.eye(3), atol=ONE)


def test_a_gain_moves_the_poles_apart_and_lowers_the_divergence():
    engine, contrast = planted.engine(), planted.contrast(30)
    settings = {"site": "0", "rank": 1, "start": "paired", "held_out": 0.2, "early": 0.0, "seed": 0}
    plain, none, gained = (
        CDAS(**settings, poles=poles, epochs=epochs).fit(engine, contrast)
        for poles, epochs in (("factors", 0), ("gain", 0), ("gain", 6))
    )
    assert torch.equal(plain.interventions[0].edit.positive, none.interventions[0].edit.positive), "it begins at 1"
    told = gained.meta.figures["divergence"]
    assert min(told["held_out"]) < told["held_out"][0]
    clamp = gained.interventions[0].edit
    means = [clamp.q @ read.mean(dim=0) for read in read_classes(engine, contrast, [Site(0)], "last")[Site(0)]]
    middle = (clamp.positive + clamp.negative) / 2
    assert torch.allclose(middle, (means[0] + means[1]) / 2, atol=MANY), "both poles move alike"
    apart = (clamp.positive - clamp.negative) / (means[0] - means[1])
    gain = (apart + 1) / 2  # each pole is γ times as far from where the other one was
    assert not torch.allclose(gain, torch.ones(1), atol=0.02)  # not equal: fifty times what follows
    # a ratio of differences of float32 means, to three digits
    assert gained.meta.figures["gain"] == pytest.approx(gain.tolist(), rel=1e-3)


@pytest.mark.parametrize("settings", [{"poles": "gain"}, {"poles": "gain", "source": "aligned", "positions": "f2+l2"}])
def test_a_gain_trains_through_the_fast_passes_as_through_plain_ones(settings):
    made, engine, contrast = CDAS(site="0", rank=2, **settings), planted.engine(), planted.contrast(4)
    (fast, ours), (plain, theirs) = (first_step(made, engine, contrast, p) for p in (Frozen, PlainFrozen))
    # ONE of a loss, as a share: ten times less than what a wrong row would change
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm()) and float(b.norm()) > 0


@pytest.mark.parametrize("optimiser", ["tangent", "sphere", "published"])
def test_every_optimiser_finds_the_way_from_a_random_start(optimiser):
    step = {"tangent": 0.08, "sphere": 0.4, "published": 0.08}[optimiser]
    made = CDAS(site="0", rank=1, start="random", poles="factors", optimiser=optimiser, step=step, epochs=6, early=0.0)
    told = made.fit(planted.engine(), planted.contrast(30)).meta.figures["divergence"]
    assert min(told["held_out"]) < 0.8 * told["held_out"][0]


@pytest.mark.parametrize(("name", "learns"), [("cdas", False), ("cdas_free", False), ("kl_das", False), ("das", True)])
def test_one_prompt_with_two_answers_is_refused_by_what_learns_from_prompts_alone(name, learns):
    pairs = planted.contrast(8).pairs
    same = Contrast(
        tuple(p for p, _ in pairs), tuple(replace(p, answer=n.answer) for p, n in pairs), paired=True, concept="w0"
    )
    made = method(name, {"site": "0", "rank": 1, "epochs": 1})
    if learns:
        assert made.fit(planted.engine(), same).interventions
    else:
        with pytest.raises(DataError, match="both prompts are identical in all 8 pairs.*reps"):
            made.fit(planted.engine(), same)
