"""What the cards of the learned methods promise, beyond the laws that hold for all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from steerlab.edits import Adapter, Push
from steerlab.errors import ConfigError, DataError
from steerlab.methods.base import method, read_classes
from steerlab.methods.fitting import ran
from steerlab.methods.frozen import Frozen
from steerlab.methods.keep import Keep
from steerlab.methods.linear_act import quantiles, transport
from steerlab.methods.raptor import Raptor
from steerlab.methods.reft import frame
from steerlab.positions import Positions
from steerlab.sites import Site
from steerlab.testing import planted
from steerlab.testing.precision import MANY, ONE, SUMMED


def begun(name, pairs=4, **settings):
    """A trained method at its start: itself, what it was given, its rows and free parameters."""
    made, engine, contrast = method(name, {"site": "0", **settings}), planted.engine(), planted.contrast(pairs)
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    frozen = Frozen(engine, sites, pool=made.pools(sites, positions))
    given = made.given(engine, contrast, sites, positions, frozen)
    rows = made.batch(given.train, torch.Generator().manual_seed(0))
    return made, given, rows, {k: v.clone().requires_grad_() for k, v in made.initial(given).items()}


def value(tensor) -> float:
    return float(tensor.detach())


def loss_of(made, given, rows, free):
    return made.loss(ran(given, rows, made.touching(rows, free, given)), free)


def test_bipo_begins_at_ln_2_and_its_first_gradient_knows_no_sign():
    made, given, rows, free = begun("bipo")
    gradients = []
    for sign in (1.0, -1.0):
        turned = [row._replace(strength=sign) for row in rows]
        loss = loss_of(made, given, turned, free)
        assert value(loss) == pytest.approx(math.log(2), abs=ONE)
        gradients.append(torch.autograd.grad(loss, free["v"])[0])
    assert torch.allclose(
        *gradients, rtol=MANY, atol=1e-6
    )  # gradients as small as a hundredth: ONE of them beside 1e-4
    assert float(gradients[0].norm()) > 0


def test_reps_takes_the_direction_out_where_it_is_there_and_draws_one_factor_for_a_pair():
    made, given, rows, free = begun("reps", factors=(1.0, 2.0, 3.0))
    by_tag = [[row.strength for row in rows if row.tag == tag] for tag in ("", "+loses", "null", "null+loses")]
    assert by_tag[0] == by_tag[1]
    assert len(set(by_tag[0])) > 1
    assert set(by_tag[2] + by_tag[3]) == {0.0}
    null = [row for row in rows if row.tag == "null"]
    put = made.touching(null, free, given)[Site(0)]
    batch = given.frozen.batch([row.example for row in null])
    h = torch.randn(len(null), batch.ids.shape[1], 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out, v = put(h, torch.arange(len(null)), batch), free["v"][0]
    touched, over = batch.mask(given.positions), h @ v > 0
    assert torch.equal(out[~(touched & over)], h[~(touched & over)])
    assert value((out[touched & over] @ v).abs().max()) < ONE


def test_split_is_the_language_model_loss_where_only_that_is_weighed():
    _, given, rows, free = begun("split", utility=0.0, hinge=0.0)
    split = method("split", {"site": "0", "utility": 0.0, "hinge": 0.0})
    step = ran(given, rows, split.touching(rows, free, given))
    alone = step.only("")
    each = alone.said.by_row(-torch.log_softmax(alone.said.scores(), -1).gather(1, alone.said.tokens[:, None])[:, 0])
    assert value(split.loss(step, free)) == pytest.approx(value((each / alone.said.lengths).mean()), rel=MANY)
    easy = method("split", {"site": "0", "margin": -100.0, "hinge": 4.0})
    plain = method("split", {"site": "0", "hinge": 0.0})
    assert value(easy.loss(step, free)) == pytest.approx(value(plain.loss(step, free)))


def test_prosv_knows_only_the_product_and_touches_each_prompt_token_once():
    made, given, rows, free = begun("prosv", factor_begins=0.1)
    other = {"v": free["v"].detach() / 3, "factor": free["factor"].detach() * 3}
    assert value(loss_of(made, given, rows, free)) == pytest.approx(value(loss_of(made, given, rows, other)), rel=ONE)
    factor, v = torch.autograd.grad(loss_of(made, given, rows, free), [free["factor"], free["v"]])
    # two sums of float32 gradients that cancel to a tenth: MANY of each
    assert value(free["factor"] * factor) == pytest.approx(value((free["v"] * v).sum()), rel=1e-3)
    batch = given.frozen.batch([rows[0].example])
    touched = batch.mask(Positions.parse("p2+s2"))[0].nonzero()[:, 0].tolist()
    length = int(batch.prompt_length[0])
    assert touched == [0, 1, length - 2, length - 1]
    assert int(batch.mask(Positions.parse("p99+s99")).sum()) == length


@pytest.mark.parametrize("name", ["loreft", "cdas_reft"])
def test_loreft_sets_its_coordinates_and_nothing_else(name):
    made, given, _, free = begun(name)
    with torch.no_grad():
        edit, r = made.edits(free, given)[0], frame(free["r"][0])
        h = torch.randn(7, 48, generator=torch.Generator().manual_seed(3))
        out = edit(h)
    assert torch.allclose(r @ r.T, torch.eye(len(r)), atol=ONE)
    assert torch.allclose(out @ r.T, h @ free["w"][0].T + free["b"][0], atol=MANY)
    assert torch.allclose(out - out @ r.T @ r, h - h @ r.T @ r, atol=MANY)


def test_d_reft_without_spread_is_loreft_and_its_noise_stays_in_its_rows():
    made, given, rows, free = begun("d_reft")
    batch = given.frozen.batch([row.example for row in rows])
    h = torch.randn(len(rows), batch.ids.shape[1], 48, generator=torch.Generator().manual_seed(1))
    mask = batch.mask(given.positions)
    with torch.no_grad():
        mean = torch.where(mask[..., None], made.edits(free, given)[0](h), h)
        quiet = {**free, "b_spread": torch.full_like(free["b_spread"], -99.0)}
        noisy, still = (
            made.touching(rows, f, given)[Site(0)](h, torch.arange(len(rows)), batch) for f in (free, quiet)
        )
        r = frame(free["r"][0])
    assert torch.allclose(still, mean, atol=1e-2), "σ is at least e^−7"  # noise of e^-7 = 9e-4, a dozen deviations
    assert float((noisy - mean).abs().max()) > 0.02
    assert torch.allclose((noisy - mean) - (noisy - mean) @ r.T @ r, torch.zeros_like(h), atol=MANY)
    loud = replace(made, seed=1)
    assert loud.fit(given.engine, given.contrast).digest == loud.fit(given.engine, given.contrast).digest


def test_steerling_begins_at_the_model_and_linear_adapters_have_a_normal_form():
    made, given, _, free = begun("steerling", pairs=3)
    h = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(made.edits(free, given)[0](h), h)
    down, up = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    assert Adapter(down, up, "silu").affine(1.0) is None
    assert torch.allclose(Adapter(down, up, "linear").affine(0.5)(h[:, :8]), Adapter(down, up, "linear")(h[:, :8], 0.5))
    with pytest.raises(ConfigError, match="silu"):
        method("steerling", {"activation": "sil"})


def test_raptor_moves_a_token_to_exactly_the_probability_and_leaves_a_sure_one_alone():
    engine, contrast, goal = planted.engine(), planted.contrast(16), 0.9
    steering = Raptor(site="1", probability=goal, grid=8).fit(engine, contrast)
    (push,) = (i.edit for i in steering.interventions)
    assert isinstance(push, Push)
    positive, negative = read_classes(engine, contrast, [Site(1)], "last")[Site(1)]
    middle = (push.positive + push.negative) / 2
    slope = math.log(goal / (1 - goal)) / float(push.positive - middle)

    def sure(h):
        return torch.sigmoid(slope * (h @ push.q[0] - middle))

    assert float((sure(positive) > 0.5).float().mean()) > 0.9
    assert float((sure(negative) < 0.5).float().mean()) > 0.9
    assert torch.allclose(sure(push(negative)), torch.maximum(sure(negative), torch.tensor(goal)), atol=MANY)
    already = positive[sure(positive) > goal]
    assert torch.allclose(push(already), already, atol=ONE)
    with pytest.raises(ConfigError, match="probability"):
        Raptor(probability=0.2)


def test_raptor_stays_near_the_activations_where_every_ridge_tells_the_classes_apart():
    draw = torch.Generator().manual_seed(0)
    there = torch.zeros(24)
    there[0] = 40.0
    positive, negative = (torch.randn(48, 24, generator=draw) + side * there for side in (1, -1))
    push, accuracy = Raptor()._solve(positive, negative)
    gap = float((positive.mean(0) - negative.mean(0)) @ push.q[0])
    assert accuracy == 1.0
    # with the strongest ridge of those that are right: more than 5
    assert float(push.positive - push.negative) < 2 * gap


def test_linear_transport_recovers_a_planted_map():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    a, c = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1, 1.5]).double(), torch.arange(6).double()
    y = (x * a + c)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    for how in ("linear", "gaussian"):
        scale, shift = transport(x, y, how)
        assert torch.allclose(scale, a)
        assert torch.allclose(shift, c)
    scale, shift = transport(x, x, "linear")
    assert torch.allclose(scale, torch.ones(6).double())
    assert torch.allclose(shift, torch.zeros(6).double(), atol=SUMMED)
    assert transport(x, torch.randn(40, 6).double(), "linear")[0].min() >= 0
    assert torch.allclose(quantiles(x, 79)[::2], x.sort(dim=0).values)


def test_lineas_with_a_great_penalty_changes_nothing():
    engine, contrast = planted.engine(), planted.contrast(6)
    for settings in ({"l1": 1e6}, {"group": 1e6}):
        steering = method("lineas", {"site": "0", "steps": 3, **settings}).fit(engine, contrast)
        edit = steering.interventions[0].edit
        assert torch.equal(edit.bias, torch.zeros(48))
        assert torch.equal(edit.diag, torch.zeros(48))
        assert steering.meta.figures["dimensions"] == {"resid@0": 0}
    free = method("lineas", {"site": "0", "steps": 60, "step": 0.02}).fit(engine, contrast)
    losses = free.meta.figures["loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_identical_classes_are_told():
    with pytest.raises(DataError, match="identical"):
        method("lm_vector", {"site": "0"}).fit(
            planted.engine(), replace(planted.contrast(4), negative=planted.contrast(4).positive)
        )


def test_a_cache_is_bounded_survives_a_killed_writer_and_is_shared(tmp_path):
    one, other = (Keep(memory=0, disk=4000, folder=tmp_path) for _ in range(2))
    (tmp_path / "cut.part").write_bytes(b"half of a file")
    (tmp_path / "cut.safetensors").write_bytes(b"half of a file")
    one.put({"a": torch.arange(100.0)})
    assert torch.equal(other.get("a"), torch.arange(100.0))
    assert "b" not in other
    for n in range(20):
        one.put({f"more {n}": torch.full((100,), float(n))})
    assert sum(p.stat().st_size for p in tmp_path.glob("*")) <= 4000
    assert torch.equal(Keep(memory=0, disk=4000, folder=tmp_path).get("more 19"), torch.full((100,), 19.0))
    one.put({"too much": torch.zeros(2000)})
    assert "too much" not in one
    with pytest.raises(ConfigError, match="folder"):
        Keep(disk=1)


def test_a_cache_that_can_not_be_written_is_gone_without(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from steerlab.methods import keep as module

    def full(*_args):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    keep = Keep(memory=0, disk=2**20, folder=tmp_path)
    keep.put({"a": torch.zeros(3)})
    assert "a" not in keep
    assert not list(tmp_path.iterdir())


def test_a_soft_capped_head_is_found_although_small_scores_look_the_same_without():
    from steerlab.testing import tiny

    engine = tiny.engine("gemma2")
    cap = engine.model.config.final_logit_softcapping
    assert cap
    assert engine.head.softcap == cap
    assert tiny.engine("llama").head.softcap is None
