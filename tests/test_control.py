"""Descend and re_control, Network and giants: planted truths and the properties that the papers' cards ask for."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from steerlab.contrast import Contrast, Example
from steerlab.controls import Network
from steerlab.edits import ACTIVATIONS, SLOPES, Descend, Shift
from steerlab.engines.hf import HFEngine
from steerlab.errors import ArtefactError, ConfigError, DataError, EditError
from steerlab.methods.base import method
from steerlab.methods.re_control import ReControl, returns, scores_of, towards
from steerlab.positions import DECODING, LAST_PROMPT, NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import planted, tiny
from steerlab.testing.precision import FEW, MANY, ONE


def drawn(seed: int = 0, width: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((9, width), (5,), (1,), (5, width), (5,))
    return tuple(torch.randn(size, generator=generator) for size in sizes)


# --- Descend -------------------------------------------------------------------------------------------------------------


def test_one_newton_step_reaches_a_linear_target_by_the_shortest_way():
    h, _, offset, hidden, _ = drawn()
    w = hidden[0]
    edit = Descend(w, offset, target=3.0, steps=1, rule="newton")
    torch.testing.assert_close(edit(h), h + ((3.0 - h @ w - offset) / (w @ w))[:, None] * w, rtol=ONE, atol=ONE)
    torch.testing.assert_close(edit.value(edit(h)), torch.full((9, 1), 3.0), rtol=ONE, atol=ONE)
    half = edit.value(edit(h, 0.5))
    torch.testing.assert_close(half, (edit.value(h) + 3.0) / 2, rtol=ONE, atol=ONE)


def test_a_gradient_step_shrinks_a_linear_residual_by_its_closed_form():
    w, offset = torch.tensor([0.6, 0.8]), torch.tensor([0.0])
    h = torch.tensor([[0.2, 0.1]])  # V = 0.2, within ½ of the target, where the loss is quadratic
    edit = Descend(w, offset, target=0.0, steps=3, step=0.1)
    assert float(edit.value(edit(h))) == pytest.approx(0.2 * (1 - 0.1 / 0.5) ** 3, rel=ONE)
    up = Descend(w, offset, steps=30, step=1.0)  # RE-Control: V grows by step·‖w‖² a step
    assert float(up.value(up(h))) == pytest.approx(0.2 + 30, rel=ONE)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_slopes_are_the_derivatives(activation):
    assert set(SLOPES) == set(ACTIVATIONS)
    h, readout, offset, hidden, bias = drawn(1)
    h.requires_grad_(True)
    edit = Descend(readout, offset, hidden, bias, activation)
    value, slope = edit._scored(h)
    torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), h)[0], rtol=ONE, atol=FEW)


@pytest.mark.parametrize("rule", ["gradient", "adam", "newton"])
@pytest.mark.parametrize("target", [-2.0, 0.3, 4.0])
def test_the_score_is_never_farther_from_its_target_and_stays_where_it_is_there(rule, target):
    h, readout, offset, hidden, bias = drawn(2)
    edit = Descend(readout, offset, hidden, bias, "silu", target, 40, 0.2, rule)
    with torch.no_grad():
        before, after = ((edit.value(x) - target).abs() for x in (h, edit(h)))
    assert bool((after <= before).all())
    assert float(after.mean()) < 0.7 * float(before.mean())
    there = replace(edit, target=float(edit.value(h[:1])))
    assert torch.equal(there(h[:1]), h[:1])


@pytest.mark.parametrize("rule", ["gradient", "adam", "newton"])
def test_rows_never_mix_also_when_some_have_stopped(rule):
    h, readout, offset, hidden, bias = drawn(3)
    edit = Descend(readout, offset, hidden, bias, "tanh", 0.5, 200, 0.05, rule)
    together = edit(h)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(edit(h[order]), together[order], rtol=ONE, atol=ONE)
    for row in range(9):
        torch.testing.assert_close(edit(h[row]), together[row], rtol=ONE, atol=ONE)


def test_what_descend_refuses_says_why():
    _, readout, offset, hidden, bias = drawn()
    with pytest.raises(EditError, match="newton"):
        Descend(readout, offset, hidden, bias, rule="newton")
    with pytest.raises(EditError, match=r"readout \[5\]"):
        Descend(readout, offset, hidden)
    with pytest.raises(EditError, match="'relu'"):
        Descend(readout, offset, hidden, bias, "relo")
    with pytest.raises(EditError, match="steps=0"):
        Descend(readout, offset, hidden, bias, steps=0)


# --- re_control ------------------------------------------------------------------------------------------------------------


def test_lambda_returns_at_their_ends_and_between():
    value, lengths, score = (
        torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 0.0]]),
        torch.tensor([3, 2]),
        torch.tensor([4.0, 1.0]),
    )
    assert torch.equal(returns(value, lengths, score, 1.0)[0], torch.full((3,), 4.0))
    assert returns(value, lengths, score, 0.0).tolist()[0] == [2.0, 3.0, 4.0]
    assert returns(value, lengths, score, 0.0)[1, :2].tolist() == [6.0, 1.0]
    second = 0.5 * 3 + 0.5 * 4
    assert returns(value, lengths, score, 0.5)[0].tolist() == pytest.approx([0.5 * 2 + 0.5 * second, second, 4.0])


def scored(n: int = 24) -> Contrast:
    contrast = planted.contrast(n)
    sides = [
        tuple(replace(e, score=s) for e in side) for side, s in ((contrast.positive, 4.0), (contrast.negative, 0.0))
    ]
    return replace(contrast, positive=sides[0], negative=sides[1])


def test_every_intensity_that_is_asked_for_is_what_the_network_then_reads():
    engine = planted.engine()
    settings = {"site": "0", "hidden": 0, "rate": 0.01, "rule": "newton", "steps": 1}
    positive, negative = planted.pairs(torch.Generator().manual_seed(3), 5)
    fitted = method("re_control", {**settings, "target": 4.0}).fit(engine, scored())
    assert towards(fitted, 4.0).digest == fitted.digest
    with pytest.raises(EditError, match="Shift"):
        towards(controlled(tiny.engine(), 1.0), 2.0)
    for target in (0.0, 1.5, 4.0):
        steering = towards(fitted, target)
        told = steering.meta.figures["value"]["resid@0"]
        assert told["off"] < 0.65 * told["spread"]
        net = steering.interventions[0].edit
        assert isinstance(net, Descend)
        ends = {}
        for name, side, under in (("plain", positive, None), ("steered", negative, steering)):
            read = engine.capture(side, [Site(0)], DECODING, under)[Site(0)]
            ends[name] = net.value(read.values)[:, 0]
        assert ends["plain"].median() > 2.5
        # the steps end once the value is within a thousandth
        torch.testing.assert_close(ends["steered"], torch.full_like(ends["steered"], target), rtol=0, atol=1e-3)


def test_a_higher_target_makes_the_answer_of_higher_score_likelier():
    engine = planted.engine()
    settings = {"site": "0", "hidden": 0, "rate": 0.01, "rule": "newton", "steps": 1}
    _, negative = planted.pairs(torch.Generator().manual_seed(3), 8)
    wanted = [replace(e, answer=planted.WITH) for e in negative]
    liking, steering = [], method("re_control", {**settings, "target": 0.0}).fit(engine, scored())
    for target in (0.0, 4.0, 8.0):
        under = towards(steering, target)
        liking.append(float(torch.stack([lp[0] for lp in engine.logprobs(wanted, under)]).mean()))
    assert liking[0] < liking[1] < liking[2]


def test_scores_are_the_datas_or_the_classes_and_what_is_missing_says_so():
    assert scores_of(planted.contrast(3)).tolist() == [1.0] * 3 + [0.0] * 3
    assert scores_of(scored(3)).tolist() == [4.0] * 3 + [0.0] * 3
    mixed = scored(3)
    with pytest.raises(DataError, match="3 of 6 examples have a score"):
        scores_of(replace(mixed, negative=planted.contrast(3).negative))
    with pytest.raises(DataError, match="identical score"):
        scores_of(replace(mixed, negative=tuple(replace(e, score=4.0) for e in mixed.negative)))
    with pytest.raises(ConfigError, match="lam"):
        ReControl(lam=2)
    assert ReControl.pre_control(3).rule == "adam"


# --- Network ------------------------------------------------------------------------------------------------------------------


def controlled(engine: HFEngine, act: float, n: int = 2, **settings) -> Steering:
    """A shift of the last `n` blocks, each as strongly as one network says; `act` is its first output, whatever it reads."""
    width, sites = engine.width(Site(0)), [Site(engine.depth - n + k) for k in range(n)]
    out = torch.zeros(1 + n, 3)
    parts = (torch.randn(3, width, generator=torch.Generator().manual_seed(0)), torch.zeros(3), out)
    offset = torch.tensor([act, *range(n)]).float()
    made = [
        Intervention(
            site, Shift(torch.full((width,), 0.5)), DECODING,
            Network(sites[0], *(t.clone() for t in parts), offset.clone(), output=k + 1, **settings),
        )
        for k, site in enumerate(sites)
    ]  # fmt: skip
    return Steering(tuple(made))


@pytest.mark.parametrize(("act", "expected"), [(-1.0, 0), (0.0, 0), (1.0, 2)])
def test_as_many_layers_change_as_have_a_weight(act, expected):
    engine = tiny.engine()
    prompts = [Example.ask("w1 w2 w3", "w4"), Example.ask("w5 w6", "w7 w8")]
    steering, sites = controlled(engine, act), [Site(1), Site(2)]
    changed = 0
    for n, site in enumerate(sites):
        alone = replace(steering, interventions=(steering.interventions[n],))
        a, b = (engine.capture(prompts, [site], LAST_PROMPT, s)[site].values for s in (alone, None))
        level = (
            0.5
            * max(0.0, 2 * float(torch.sigmoid(torch.tensor(act))) - 1)
            * float(torch.sigmoid(torch.tensor(float(n))))
        )
        torch.testing.assert_close(a - b, torch.full_like(a, level), rtol=MANY, atol=ONE)
        changed += not torch.equal(a, b)
    assert changed == expected


def test_a_file_holds_a_shared_network_once(tmp_path):
    from safetensors import safe_open

    steering = controlled(tiny.engine(), 1.0)
    steering.save(tmp_path / "n.safetensors")
    with safe_open(tmp_path / "n.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert sum("control" in name for name in names) == 4
    again = Steering.load(tmp_path / "n.safetensors")
    assert again.digest == steering.digest
    assert [i.control.output for i in again.interventions] == [1, 2]
    other = controlled(tiny.engine(), 2.0)
    (steering + other).save(tmp_path / "both.safetensors")
    for a, b in zip(
        Steering.load(tmp_path / "both.safetensors").interventions, (steering + other).interventions, strict=True
    ):
        assert torch.equal(a.control.offset, b.control.offset)


def test_decided_ahead_it_acts_at_every_token_and_reads_any_site():
    engine = tiny.engine()
    prompts = [Example.ask(f"w{n} w{n + 1} w{n + 2}", "w9 w8") for n in range(6)]
    drawn_, read = Network.random(Site(2), 32, torch.Generator().manual_seed(1)), [e.without_answer() for e in prompts]
    read = engine.capture(read, [Site(2)])[Site(2)].values
    undecided = torch.tensor([float(drawn_.outputs(read)[:, 0].median()), 0.0, 0.0])
    made = replace(drawn_, offset=drawn_.offset - undecided, held=True)
    ahead = replace(made, held=False, ahead=True)
    edit = Shift(torch.full((32,), 0.8))
    with pytest.raises(EditError, match="reads"):
        Intervention(Site(0), edit, DECODING, made)
    with pytest.raises(EditError, match="last prompt token"):
        Intervention(Site(2), edit, NOT_TEMPLATE, made)
    with pytest.raises(EditError, match="held or decides ahead"):
        replace(made, ahead=True)
    expected = [Steering((Intervention(Site(0), edit, NOT_TEMPLATE, ahead.decided(h)),)) for h in read]
    strengths = [s.interventions[0].control.most[0] for s in expected]
    assert min(strengths) == 0 < max(strengths)
    under = Steering((Intervention(Site(0), edit, NOT_TEMPLATE, ahead),))
    for a, b in zip(engine.logits(prompts, under), engine.logits(prompts, expected), strict=True):
        assert torch.equal(a, b)


def test_a_network_of_the_wrong_shape_is_refused():
    made = Network.random(Site(0), 4, torch.Generator().manual_seed(0))
    with pytest.raises(EditError, match=r"\[k, d\]"):
        replace(made, bias=torch.zeros(2))
    with pytest.raises(EditError, match="expected 1 to 2"):
        replace(made, output=0)
    with pytest.raises(EditError, match="NaN"):
        replace(made, offset=torch.tensor([float("nan"), 0, 0]))
    with pytest.raises(ArtefactError, match="Network"):
        from steerlab import artefact, controls

        artefact.restore({"kind": "Netwrok"}, {}, controls.kinds())


# --- giants -------------------------------------------------------------------------------------------------------------------


def half_dead() -> HFEngine:
    """The planted model with an MLP whose output is cut off: what its neurons do changes nothing."""
    model = copy.deepcopy(planted.engine().model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    return HFEngine(model, tiny.tokenizer(), name="half dead")


def test_the_controller_finds_which_of_two_layers_matters():
    settings = {**method("giants").small, "site": "resid@0,neurons@1", "epochs": 40}
    weights = method("giants", settings).fit(half_dead(), planted.contrast(24)).meta.figures["weights"]
    assert weights["resid@0"] > weights["neurons@1"] + 0.2, weights
    assert abs(weights["neurons@1"] - 0.5) < 0.1, "nothing but the regulariser pulls at it"


def test_the_controller_tells_the_classes_apart_on_prompts_that_it_has_not_seen():
    engine = planted.engine()
    steering = method("giants", {**method("giants").small, "site": "0,1"}).fit(engine, planted.contrast(40))
    controls = [i.control for i in steering.interventions]
    assert [c.output for c in controls] == [1, 2]
    assert controls[0].out.shape[0] == 3
    positive, negative = planted.pairs(torch.Generator().manual_seed(99), 40)
    act = []
    for side in (positive, negative):
        read = engine.capture([e.without_answer() for e in side], [Site(0)])[Site(0)].values
        act.append(controls[0].outputs(read)[:, 0])
    auc = float((act[0][:, None] > act[1][None]).float().mean())
    assert auc > 0.99, auc
    assert steering.domain == (float("-inf"), float("inf"))


def test_what_giants_refuses_says_why():
    engine = planted.engine()
    with pytest.raises(ConfigError, match="ahead=True"):
        method("giants", {"site": "0", "reads": "1"}).fit(engine, planted.contrast(8))
    with pytest.raises(ConfigError, match="decoding"):
        method("giants", {"site": "0", "positions": "not_template"}).fit(engine, planted.contrast(8))
    settings = {
        **method("giants").small,
        "site": "0",
        "reads": "1",
        "positions": "not_template",
        "ahead": True,
        "epochs": 1,
    }
    made = method("giants", settings).fit(engine, planted.contrast(8))
    assert made.ahead


def test_show_says_what_they_do():
    from pathlib import Path

    from steerlab.cli.show import described

    steps = Descend(torch.ones(32), torch.zeros(1), target=3.0, rule="newton", steps=2)
    steering = controlled(tiny.engine(), 1.0) + Steering((Intervention(Site(2), steps, DECODING),))
    said = str(described(steering, Path("x")))
    assert "2 steps (newton, 1) that bring a value network's scores to 3" in said
    assert "its output 2 (decided at the last prompt token)" in said
