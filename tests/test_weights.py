"""What the cards of weight methods promise, and planted truths: known maps, plain loops, signs."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

import steerlab as sl
from steerlab.deltas import Delta
from steerlab.errors import ConfigError, SiteError
from steerlab.methods.base import method
from steerlab.methods.fitting import ran
from steerlab.methods.frozen import Frozen
from steerlab.methods.lora import LoRA
from steerlab.methods.sft import SFT
from steerlab.methods.vectors import elicited, likely
from steerlab.methods.weights import at
from steerlab.positions import ALL
from steerlab.testing import planted, tiny
from steerlab.testing.precision import MANY, ONE

DOWN = sl.Site.parse("w:mlp.down_proj@1")


def begun(name, pairs=4, **settings):
    """A method at its start: itself, what it was given, its rows and free parameters."""
    made, engine, contrast = method(name, {"site": str(DOWN), **settings}), planted.engine(), planted.contrast(pairs)
    sites = made.placed(engine)
    given = made.given(engine, contrast, sites, ALL, Frozen(engine, sites))
    rows = made.batch(given.train, torch.Generator().manual_seed(0))
    return made, given, rows, {k: v.clone().requires_grad_() for k, v in made.initial(given).items()}


def changes(steering) -> list[torch.Tensor]:
    return [i.edit.change() for i in steering.interventions]


# --- planted truths -----------------------------------------------------------------------------------------------------


LAST = sl.Site.parse("w:mlp.down_proj@2")


@dataclass(frozen=True)
class Matching(LoRA):
    """LoRA that learns another model's scores instead of answers, so that the right change is known."""

    teacher: ClassVar[dict[sl.Example, torch.Tensor]] = {}

    def loss(self, step, free):
        wanted = torch.cat([self.teacher[row.example] for row in step.rows])
        return (step.said.scores() - wanted).square().mean()


def test_a_planted_low_rank_change_is_recovered():
    engine, generator = tiny.engine("llama"), torch.Generator().manual_seed(0)
    true = Delta(torch.randn(32, 2, generator=generator) / 4, torch.randn(2, 48, generator=generator) / 4)
    taught = sl.Steering((sl.Intervention(LAST, true, ALL),))
    sides = [
        tuple(sl.Example.ask(tiny.words(generator, 3), tiny.words(generator, 10)) for _ in range(16)) for _ in range(2)
    ]
    data = sl.Contrast(*sides, paired=True, concept="a map")
    examples = [elicited(pair) for pair in data.pairs]
    Matching.teacher.update(zip(examples, engine.logits(examples, taught), strict=True))
    steering = Matching(site=str(LAST), rank=2, alpha=2.0, step=0.2, epochs=80, batch_size=16).fit(engine, data)
    losses, (found,) = steering.meta.figures["loss"], steering.interventions
    assert losses[-1] < 1e-3 * losses[0]
    read = engine.capture(sides[1], [sl.Site(2, "neurons")], ALL)[sl.Site(2, "neurons")].values
    wanted, off = true.added(read), found.edit.added(read) - true.added(read)  # on prompts that were never trained
    assert float(off.norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize("name", ["lora", "sft"])
def test_it_is_the_plain_loop_on_a_model_of_its_own(name):
    """An independent loop: the weight itself is a parameter, whole passes, all scores, torch's own AdamW."""
    engine, contrast, epochs, size, step = planted.engine(), planted.contrast(10), 3, 4, 1e-3
    settings = {"site": str(DOWN), "epochs": epochs, "batch_size": size, "step": step}
    made = method(name, settings | ({"rank": 2, "alpha": 4.0} if name == "lora" else {}))
    (ours,) = changes(made.fit(engine, contrast))

    model = copy.deepcopy(engine.model)
    layer = model.model.layers[1].mlp.down_proj
    base = layer.weight.detach().clone()
    if name == "lora":
        _, _, _, start = begun("lora", 10, rank=2, alpha=4.0)
        leaves = [start[f"{side} {DOWN}"].detach().clone().requires_grad_() for side in ("left", "right")]
        layer.weight.requires_grad_(False)
    else:
        leaves = [layer.weight.requires_grad_()]
    adam = torch.optim.AdamW(leaves, lr=step, weight_decay=0.0)
    orders, steps, done = torch.Generator().manual_seed(0), math.ceil(10 / size) * epochs, 0
    for _ in range(epochs):
        order = torch.randperm(10, generator=orders).tolist()
        for at_ in range(0, 10, size):
            batch = engine.batch([elicited(contrast.pairs[i]) for i in order[at_ : at_ + size]])
            if name == "lora":
                changed = {"model.layers.1.mlp.down_proj.weight": base + 2.0 * leaves[0] @ leaves[1]}
                given = {"attention_mask": batch.attention, "position_ids": batch.position.clamp(min=0)}
                logits = torch.func.functional_call(model, changed, (batch.ids,), given, tie_weights=False).logits
            else:
                logits = model(
                    batch.ids, attention_mask=batch.attention, position_ids=batch.position.clamp(min=0)
                ).logits
            loss = cross_entropy(logits[batch.predicts], torch.roll(batch.ids, -1, dims=1)[batch.predicts])
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            adam.param_groups[0]["lr"] = step * (1 - done / steps)
            adam.step()
            done += 1
    theirs = 2.0 * leaves[0] @ leaves[1] if name == "lora" else layer.weight - base
    theirs = theirs.detach()
    assert float(theirs.norm()) > 0.01
    # a hundred steps of Adam in float32, carried on from step to step; the change itself is .01 and more
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


# --- preference vectors -------------------------------------------------------------------------------------------------


def test_dpo_begins_at_ln_2_twice_and_its_two_first_gradients_are_opposite():
    made, given, rows, free = begun("preference_vector")
    loss = made.loss(ran(given, rows, made.touching(rows, free, given)), free)
    assert float(loss.detach()) == pytest.approx(2 * math.log(2), abs=ONE)
    plus, minus = torch.autograd.grad(loss, [free[f"left {side} {DOWN}"] for side in "+-"])
    assert float(plus.norm()) > 0
    torch.testing.assert_close(plus, -minus, rtol=MANY, atol=1e-7)  # gradients of 1e-3: MANY of them


def test_a_step_against_dpos_gradient_prefers_the_concepts_answer():
    made, given, rows, free = begun("preference_vector")
    before = ran(given, rows, made.touching(rows, free, given))
    loss = made.loss(before, free)
    names = [f"left {side} {DOWN}" for side in "+-"]
    moved = dict(free)
    for name, g in zip(names, torch.autograd.grad(loss, [free[n] for n in names]), strict=True):
        moved[name] = free[name] - 0.5 * g / g.norm()
    after = ran(given, rows, made.touching(rows, moved, given))
    margins = {
        (side, when): float((likely(s.only(f"{side} yes").said) - likely(s.only(f"{side} no").said)).mean().detach())
        for when, s in (("before", before), ("after", after))
        for side in "+-"
    }
    assert margins["+", "after"] > margins["+", "before"] + 0.01
    assert margins["-", "after"] < margins["-", "before"] - 0.01


def test_the_dpo_loss_is_its_definition():
    made, given, rows, free = begun("preference_vector", beta=0.7)
    moved = {k: v + 0.05 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1)) for k, v in free.items()}
    step = ran(given, rows, made.touching(rows, moved, given))
    engine, found = planted.engine(), []
    for side, wins in (("+", "yes"), ("-", "no")):
        delta = made.side(at(moved, DOWN), side)
        steering = sl.Steering((sl.Intervention(DOWN, delta, ALL),))
        totals = {}
        for name in ("yes", "no"):
            mine = [row.example for row in rows if row.tag == f"{side} {name}"]
            with_, without = (engine.logprobs(mine, s) for s in (steering, None))
            totals[name] = torch.tensor([float(a.sum() - b.sum()) for a, b in zip(with_, without, strict=True)])
        loses = "no" if wins == "yes" else "yes"
        found.append(-logsigmoid(0.7 * (totals[wins] - totals[loses])).mean())
    assert float(made.loss(step, moved).detach()) == pytest.approx(float(found[0] + found[1]), rel=MANY)


@pytest.mark.parametrize("rank", [0, 3])
def test_the_vector_is_the_difference_of_products_and_two_sided(rank):
    made, _, _, free = begun("preference_vector", rank=rank)
    moved = {
        k: v.detach() + 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1)) for k, v in free.items()
    }
    mine = at(moved, DOWN)
    phi = made.change(mine)
    torch.testing.assert_close(phi.change(), made.side(mine, "+").change() - made.side(mine, "-").change())
    assert phi.low_rank == (2 * rank or None)
    steering = sl.Steering((sl.Intervention(DOWN, phi, ALL),))
    x = torch.randn(5, 48)
    torch.testing.assert_close(phi.added(x, 0.3) + phi.added(x, 0.5), phi.added(x, 0.8), rtol=MANY, atol=ONE)
    torch.testing.assert_close(phi.opposite().added(x, 0.5), phi.added(x, -0.5))
    assert steering.scaled(-1.5).interventions[0].control.value == -1.5


@pytest.mark.parametrize("name", ["preference_vector", "preference_vector_sft"])
def test_labels_swapped_give_minus_the_vector_and_the_log_odds_rise_with_strength(name):
    engine, contrast = planted.engine(), planted.contrast(12)
    made = method(name, {**type(method(name)).small, "step": 5e-3, "site": str(DOWN), "epochs": 2})
    there, back = made.fit(engine, contrast), made.fit(engine, contrast.swapped())
    (a,), (b,) = changes(there), changes(back)
    # two fits in float32 from mirrored starts, carried on from step to step
    assert float((a + b).norm() / a.norm()) < 1e-3
    positive, negative = planted.pairs(torch.Generator().manual_seed(9), 8)
    asked = [e.without_answer() for e in (*positive, *negative)]
    odds = []
    for strength in (-1.0, -0.5, 0.0, 0.5, 1.0):
        yes, no = (
            torch.stack(
                [lp.sum() for lp in engine.logprobs([replace(e, answer=w) for e in asked], there.scaled(strength))]
            )
            for w in (planted.WITH, planted.WITHOUT)
        )
        odds.append(float((yes - no).mean()))
    assert odds == sorted(odds)
    assert odds[-1] - odds[0] > 1
    twice = there + there.scaled(-1)
    for x, y in zip(engine.logits(asked[:2], twice), engine.logits(asked[:2]), strict=True):
        torch.testing.assert_close(x, y, rtol=MANY, atol=MANY)


# --- settings -----------------------------------------------------------------------------------------------------------


def test_matrices_and_blocks_are_chosen_by_name_by_what_they_read_and_by_site():
    engine = tiny.engine("llama")

    def placed(name="sft", **settings):
        return [str(s) for s in method(name, settings).placed(engine)]

    assert len(placed()) == 7 * 3
    assert placed(site="1", matrices="heads,neurons") == ["w:self_attn.o_proj@1", "w:mlp.down_proj@1"]
    assert placed(site="2,1", matrices="down_proj") == ["w:mlp.down_proj@1", "w:mlp.down_proj@2"]
    assert placed(site="w:mlp.up_proj@2,w:self_attn.q_proj@0") == ["w:self_attn.q_proj@0", "w:mlp.up_proj@2"]
    assert placed("lora") == [f"w:self_attn.o_proj@{n}" for n in (0, 1, 2)]
    with pytest.raises(ConfigError, match="Did you mean 'mlp.down_proj'"):
        placed(matrices="mlp.down_prj")
    with pytest.raises(SiteError, match="is an activation"):
        placed(site="heads@1")
    with pytest.raises(ConfigError, match="expected 'all'"):
        SFT(positions="prompt")
    with pytest.raises(ConfigError, match="from 1 to 16"):
        method("lora", {"rank": 40, "site": "1", "matrices": "k_proj"}).fit(engine, planted.contrast(4))


def test_the_best_iterate_is_kept_and_what_was_trained_is_told():
    steering = SFT(site="1", step=0.5, epochs=3, held_out=0.3).fit(planted.engine(), planted.contrast(12))
    figures = steering.meta.figures
    curve = figures["held_out"]["loss"]
    assert len(curve) == 4
    norms = figures["norm"]
    assert set(norms) == {str(i.site) for i in steering.interventions}
    assert figures["trained_numbers"] == sum(i.edit.full.numel() for i in steering.interventions)
    if min(curve) == curve[0]:  # a step of that size makes it worse: the start is kept
        assert set(norms.values()) == {0.0}
    else:
        assert min(norms.values()) > 0


def test_show_tells_a_change_of_weights(tmp_path, capsys):
    from steerlab.cli import main

    path = tmp_path / "pv.safetensors"
    delta = Delta(torch.ones(48, 2), torch.ones(2, 48), symmetric=True)
    sl.Steering((sl.Intervention(DOWN, delta, ALL),)).save(path)
    assert sl.Steering.load(path).interventions[0].edit.symmetric
    with pytest.raises(SystemExit) as ended:
        main(["show", str(path), "--json"])
    assert not ended.value.code
    told = capsys.readouterr().out
    for word in ("change weights [48, 48]", "rank 2", "both ways", str(DOWN)):
        assert word in " ".join(told.split())
