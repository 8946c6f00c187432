"""The laws of weight edits: every kind as a function on a matrix, and run by the engine on thirteen architectures.

Their definition is a model whose matrices were really changed, W + s·ΔW; an engine may run them as it likes.
"""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab import artefact, edits
from steerlab.contrast import Example
from steerlab.controls import Gate
from steerlab.deltas import Delta, WeightEdit
from steerlab.edits import Clamp, Shift
from steerlab.engines.base import Sampling, Start
from steerlab.engines.hf import HFEngine
from steerlab.errors import EditError, SiteError, UnsupportedError
from steerlab.positions import ALL, NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny
from steerlab.testing.precision import MANY, ONE
from steerlab.testing.test_methods import state_of

TOLERANCE = 1e-5
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(2, 7)
GREEDY = Sampling(max_new_tokens=10)


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(tiny.ARCHITECTURES))


def drawn(kind: str, height: int, width: int, seed: int) -> tuple[WeightEdit, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return edits.kinds("weights")[kind].random(width, generator, height), generator


def inside(edit: WeightEdit, unit: float) -> float:
    return 2.5 * unit if edit.two_sided else abs(unit)


# --- a function on a matrix ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(height=SIZES, width=SIZES, seed=SEEDS, unit=st.floats(-1, 1))
@settings(max_examples=15, deadline=None)
def test_0_is_the_identity_and_shape_dtype_and_argument_are_kept(weight_kind, dtype, height, width, seed, unit):
    edit, generator = drawn(weight_kind, height, width, seed)
    weight = torch.randn(height, width, generator=generator).to(dtype)
    before = weight.clone()
    assert torch.equal(edit(weight, 0), weight)
    out = edit(weight, inside(edit, unit))
    assert (out.shape, out.dtype, out.device) == (weight.shape, weight.dtype, weight.device)
    assert torch.equal(weight, before)


@given(height=SIZES, width=SIZES, seed=SEEDS, units=st.lists(st.floats(-1, 1), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_what_it_adds_is_what_the_changed_matrix_gives_more(weight_kind, height, width, seed, units):
    edit, generator = drawn(weight_kind, height, width, seed)
    weight, x = torch.randn(height, width, generator=generator), torch.randn(3, 4, width, generator=generator)
    strengths = torch.tensor([inside(edit, u) for u in units])
    together = edit.added(x, strengths[:, None, None])
    for row in range(3):
        more = x[row] @ (edit(weight, float(strengths[row])) - weight).T
        torch.testing.assert_close(together[row], more, rtol=MANY, atol=MANY)
    torch.testing.assert_close(edit(weight, 1.0) - weight, edit.change(), rtol=MANY, atol=MANY)


@given(height=SIZES, width=SIZES, seed=SEEDS, unit=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_two_sided_one_has_an_opposite_and_a_one_sided_one_refuses(weight_kind, height, width, seed, unit):
    edit, generator = drawn(weight_kind, height, width, seed)
    weight, x = torch.randn(height, width, generator=generator), torch.randn(2, width, generator=generator)
    if not edit.two_sided:
        with pytest.raises(EditError, match="opposite"):
            edit.opposite()
        for act in (lambda: edit(weight, -0.5), lambda: edit.added(x, -0.5), lambda: edit.added(x, 1.5)):
            with pytest.raises(EditError, match=r"takes strengths in \[0, 1\]"):
                act()
        return
    s = 2.5 * unit
    torch.testing.assert_close(edit(weight, -s), edit.opposite()(weight, s), rtol=ONE, atol=ONE)
    torch.testing.assert_close(edit.opposite().opposite().added(x, s), edit.added(x, s))


@given(height=SIZES, width=SIZES, seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_gradients_reach_the_tensors_and_the_file_holds_them(weight_kind, height, width, seed):
    edit, generator = drawn(weight_kind, height, width, seed)
    x = torch.randn(16, width, generator=generator)
    row, tensors = artefact.flatten(edit, "0.edit")
    again = artefact.restore(row, tensors, edits.kinds("weights"))
    assert torch.equal(again.added(x, 0.6), edit.added(x, 0.6))
    names = [f.name for f in fields(edit) if isinstance(getattr(edit, f.name), torch.Tensor)]
    for name in names:
        object.__setattr__(edit, name, getattr(edit, name).clone().requires_grad_(True))
    weights = torch.randn(16, height, generator=generator)
    (edit.added(x, 0.7) * weights).sum().backward()
    assert names
    for name in names:
        assert float(getattr(edit, name).grad.abs().sum()) > 0, f"no gradient reaches {name}"


@given(height=SIZES, width=SIZES, seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_another_shape_is_refused(weight_kind, height, width, seed):
    edit, _ = drawn(weight_kind, height, width, seed)
    for wrong in ((height, width + 1), (height + 1, width)):
        with pytest.raises(EditError, match=rf"{width}|{height}"):
            edit(torch.zeros(wrong))


def test_a_delta_is_low_rank_or_full_and_its_norm_is_its_changes():
    low = Delta.random(5, torch.Generator().manual_seed(2), 4)
    assert low.norm == pytest.approx(float(low.change().norm()), rel=ONE)
    assert Delta(full=low.change()).norm == pytest.approx(low.norm, rel=ONE)
    with pytest.raises(EditError, match="left and right, or full"):
        Delta(left=torch.ones(3, 1))
    with pytest.raises(EditError, match=r"\[out, r\] and \[r, in\]"):
        Delta(torch.ones(3, 2), torch.ones(1, 4))
    with pytest.raises(EditError, match="NaN"):
        Delta(full=torch.full((2, 2), float("nan")))


# --- run by the engine --------------------------------------------------------------------------------------------------


def prompts(lengths=(3, 11, 6)) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [tiny.words(generator, n) for n in lengths]


def answered() -> list[Example]:
    return [Example.ask(t, a) for t, a in zip(prompts(), ("w1 w2 w3 w4", "w5", "w6 w7"), strict=True)]


def changing(engine, layers=(1,), seed: int = 0) -> Steering:
    """Every matrix of some blocks changed, two-sided, by a low rank and fully in turn."""
    generator, made = torch.Generator().manual_seed(seed), []
    for layer in layers:
        for n, (site, shape) in enumerate(engine.matrices(layer).items()):
            change = torch.randn(shape.height, shape.width, generator=generator) / shape.width
            left, right = (
                torch.randn(shape.height, 2, generator=generator),
                torch.randn(2, shape.width, generator=generator),
            )
            delta = Delta(full=change, symmetric=True) if n % 2 else Delta(left / shape.width, right, symmetric=True)
            made.append(Intervention(site, delta, ALL))
    assert made, "every architecture has matrices that can be edited"
    return Steering(tuple(made))


def rewritten(engine, steering: Steering, strength: float) -> HFEngine:
    """The definition: a copy of the model whose matrices were really changed."""
    model = copy.deepcopy(engine.model)
    changed = HFEngine(model, engine.tokenizer, name="rewritten")
    with torch.no_grad():
        for i in steering.interventions:
            module = changed.anatomy.blocks[i.site.layer].get_submodule(i.site.matrix)
            stored_in_by_out = type(module).__name__ == "Conv1D"
            weight = module.weight.T if stored_in_by_out else module.weight
            now = i.edit(weight, strength)
            module.weight.copy_(now.T if stored_in_by_out else now)
    return changed


def far(a, b) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.fixture(params=["left", "right"])
def padding(request):
    return request.param


def test_it_is_the_model_whose_matrices_were_changed_each_row_at_its_own_strength(architecture, padding):
    engine, examples = tiny.engine(architecture, padding=padding), answered()
    steering, other = changing(engine, (0, 1)), changing(engine, (1, 2), seed=1)
    plain = engine.logprobs(examples)
    before = state_of(engine.model)
    under = [steering, None, other.scaled(-0.5)]
    together = engine.logprobs(examples, under)
    assert far(together[:1], rewritten(engine, steering, 1.0).logprobs(examples[:1])) <= TOLERANCE
    assert far(together[2:], rewritten(engine, other, -0.5).logprobs(examples[2:])) <= TOLERANCE
    assert far(together[:1], plain[:1]) > 1e-2, "the change is seen"
    assert torch.equal(together[1], plain[1]), "a row without a steering stays bit-identical"
    for a, b in zip(engine.logits(examples, steering.scaled(0)), engine.logits(examples), strict=True):
        assert torch.equal(a, b)
    assert state_of(engine.model) == before
    for example, one, scored in zip(examples, under, together, strict=True):
        assert far(engine.logprobs([example], one), [scored]) <= TOLERANCE


def test_cached_decoding_is_one_full_forward_is_any_chunking_and_somebody_elses_generate(architecture):
    engine = tiny.engine(architecture)
    steering, texts = changing(engine, (0, 2)), prompts()
    under = [steering, None, steering.scaled(0.5)]
    replies = engine.generate(texts, under, GREEDY)
    scored = engine.logprobs([Example.ask(t, r.text) for t, r in zip(texts, replies, strict=True)], under)
    for reply, one in zip(replies, scored, strict=True):
        assert far([torch.tensor(reply.logprobs)], [one[: len(reply.logprobs)]]) <= TOLERANCE
    for chunk in (1, 4):
        for reply, piece in zip(
            replies, tiny.engine(architecture, chunk=chunk).generate(texts, under, GREEDY), strict=True
        ):
            assert reply.ids == piece.ids
            assert far([torch.tensor(reply.logprobs)], [torch.tensor(piece.logprobs)]) <= TOLERANCE
    rendered = [engine.renderer.prompt(Example.ask(t).messages).ids for t in texts]
    width = max(map(len, rendered))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rendered])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rendered])
    with engine.steer(under):
        out = engine.model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)
    for reply, row in zip(replies, out[:, width:], strict=True):
        assert row[: len(reply.ids)].tolist() == list(reply.ids)


def test_weights_act_first_whatever_the_order_they_are_listed_in(architecture):
    """What an activation edit meets and what stands after it are those of the changed model."""
    engine, examples = tiny.engine(architecture), answered()
    site = next(s for s, m in engine.matrices(1).items() if m.reads == "heads")
    weights, generator = changing(engine), torch.Generator().manual_seed(3)
    parts = ("heads", "attn", "v", "resid")
    beside = tuple(
        Intervention(Site(1, p), Clamp.random(engine.width(Site(1, p)), generator), NOT_TEMPLATE) for p in parts
    )
    both = [Steering((*beside, *weights.interventions)), weights + Steering(beside)]
    assert all(s.interventions[0].site.on_weights for s in both)
    changed = rewritten(engine, weights, 1.0)
    for steering in both:
        assert far(engine.logprobs(examples, steering), changed.logprobs(examples, Steering(beside))) <= TOLERANCE
        read = engine.capture(examples, [Site(1, "attn"), Site(1)], ALL, steering)
        wanted = changed.capture(examples, [Site(1, "attn"), Site(1)], ALL, Steering(beside))
        for where in read:
            torch.testing.assert_close(read[where].values, wanted[where].values, rtol=MANY, atol=MANY)
    twice = Steering(tuple(i for i in weights.interventions if i.site == site))
    sums = (twice + twice.scaled(0.5), twice.scaled(0.5) + twice, twice.scaled(1.5))
    scored = [engine.logprobs(examples, s) for s in sums]
    assert far(scored[0], scored[1]) <= TOLERANCE
    assert far(scored[0], scored[2]) <= TOLERANCE


def test_nothing_is_left_behind_also_when_a_pass_raises(architecture):
    engine = tiny.engine(architecture)
    steering, before = changing(engine, (0, 1)), state_of(engine.model)
    with pytest.raises(RuntimeError, match="planted"), engine.steer(steering):
        raise RuntimeError("planted")
    stream = engine.stream(prompts(), steering, GREEDY)
    next(stream)
    assert state_of(engine.model) == before, "nothing stands on the model while the caller has the floor"
    stream.close()
    site = next(iter(engine.matrices(1)))

    def fails(_x):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        engine.resume(engine.batch(answered()), {site: fails})
    assert state_of(engine.model) == before


def test_a_pass_of_training_is_that_of_the_changed_weights_from_its_block_up_gradients_too(architecture):
    engine = tiny.engine(architecture)
    batch, below = engine.batch(answered()), Site(0)
    kept = engine.resume(batch, sites=[below], logits=False).at[below]
    for site, shape in engine.matrices(1).items():
        weight = engine.anatomy.matrix(site).module.weight
        transposed = type(engine.anatomy.matrix(site).module).__name__ == "Conv1D"
        change = torch.randn(shape.height, shape.width, generator=torch.Generator().manual_seed(1)) / shape.width
        found = []
        for start in (None, Start(0, kept)):
            leaf = change.clone().requires_grad_()
            run = engine.resume(batch, {site: lambda x, leaf=leaf: x.float() @ leaf.T}, start=start)
            found.append((run.logits.detach(), torch.autograd.grad(run.logits.square().mean(), leaf)[0]))
        real = rewritten(engine, Steering((Intervention(site, Delta(full=change), ALL),)), 1.0)
        matrix = real.anatomy.matrix(site).module.weight.requires_grad_()
        logits = real.model(
            input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.position.clamp(min=0)
        ).logits[batch.predicts]
        (gradient,) = torch.autograd.grad(logits.square().mean(), matrix)
        for told, mine in found:
            torch.testing.assert_close(told, logits, rtol=MANY, atol=MANY)
            # gradients through float32 matrices: MANY of each of ten terms
            torch.testing.assert_close(mine, gradient.T if transposed else gradient, rtol=1e-3, atol=ONE)
        assert weight.grad is None
    with pytest.raises(SiteError, match="lies below"):
        engine.resume(batch, {next(iter(engine.matrices(0))): lambda x: x}, start=Start(0, kept))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_keep_their_dtype_and_changes_run_in_float32(architecture, dtype):
    engine = tiny.engine(architecture, dtype=dtype)
    site, shape = next((s, m) for s, m in engine.matrices(1).items() if m.reads == "heads")
    delta = Delta.random(shape.width, torch.Generator().manual_seed(0), shape.height)
    module, seen = engine.anatomy.matrix(site).module, []
    steering = Steering((Intervention(site, delta, ALL),))
    with engine.steer(steering), torch.no_grad():
        begun = engine.model(input_ids=torch.tensor([[1, 9, 10, 11]]), use_cache=True)
        handle = module.register_forward_hook(
            lambda _m, args, out: seen.append((args[0], out))
        )  # after the engine's own
        try:
            engine.model(input_ids=torch.tensor([[12]]), past_key_values=begun.past_key_values, use_cache=True)
        finally:
            handle.remove()
    ((x, out),) = seen
    assert out.dtype == getattr(torch, dtype)
    assert torch.equal(out, (module(x).float() + delta.added(x)).to(out.dtype))


def test_a_gate_that_decides_ahead_switches_weights_row_by_row(architecture):
    engine, examples = tiny.engine(architecture), answered()
    weights = changing(engine)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    scores = engine.capture([e.without_answer() for e in examples], [Site(2)])[Site(2)].values @ direction
    gate = Gate(Site(2), direction, float(scores.median()) - 1e-4, ahead=True)
    gated = Steering(tuple(Intervention(i.site, i.edit, ALL, gate) for i in weights.interventions))
    is_open = [bool(v) for v in scores > gate.threshold]
    assert len(set(is_open)) == 2
    under = [weights if o else None for o in is_open]
    for a, b in zip(engine.logits(examples, gated), engine.logits(examples, under), strict=True):
        assert torch.equal(a, b)


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_what_is_no_weight_edit_is_told_when_it_is_made():
    delta, site = Delta(full=torch.ones(32, 32)), Site(1, "w:self_attn.o_proj")
    with pytest.raises(EditError, match="acts on every token"):
        Intervention(site, delta)
    with pytest.raises(EditError, match="edits a weight matrix, and resid@1"):
        Intervention(Site(1), delta, ALL)
    with pytest.raises(EditError, match="edits activations, and w:self_attn.o_proj@1"):
        Intervention(site, Shift(torch.ones(32)), ALL)
    with pytest.raises(EditError, match="gate that decides ahead"):
        Intervention(site, delta, ALL, Gate(Site(0), torch.ones(32), 0.0))
    with pytest.raises(EditError, match=r"\[0, 1\]"):
        Steering((Intervention(site, delta, ALL),)).scaled(-1)
    with pytest.raises(SiteError, match="the embedding and the head, often tied, are none"):
        Site.parse("w:lm_head")


def test_a_matrix_that_is_not_there_or_of_another_shape_is_refused_with_the_nearest():
    engine = tiny.engine("llama")
    wrong = {
        "w:self_attn.q_prj@1": "self_attn.q_proj", "w:mlp.down_proj@7": "3 blocks, 0 to 2", "w:mlp@1": "no weight matrix",
        "w:input_layernorm@1": "no weight matrix", "w:mlp.down_proj@1": "changes a matrix of 5 × 4",
    }  # fmt: skip
    for text, why in wrong.items():
        steering = Steering((Intervention(Site.parse(text), Delta(full=torch.ones(5, 4)), ALL),))
        (reason,) = engine.refuses(steering)
        assert why in reason
        with pytest.raises(UnsupportedError, match=text.split("@")[0]):
            engine.generate(["w1"], steering)
    with pytest.raises(SiteError, match="has no activations"):
        engine.capture([Example.ask("w1")], [Site.parse("w:mlp.down_proj@1")])
    experts = Steering((Intervention(Site.parse("w:mlp.experts.down_proj@1"), Delta(full=torch.ones(5, 4)), ALL),))
    assert "mixture of experts" in tiny.engine("mixtral").refuses(experts)[0]


class Packed(torch.nn.Linear):
    """A layer of eight-bit integers with a scale per row, as quantised layers keep them."""

    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features, bias=False)
        scale = plain.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        del self.weight
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (plain.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x):
        return x @ (self.weight.float() * self.scale).T


def test_quantised_and_tied_weights_are_refused_with_a_sentence():
    model = copy.deepcopy(tiny.model("llama"))
    first, second = (model.model.layers[n].mlp for n in (0, 1))
    first.down_proj = Packed(first.down_proj)
    second.up_proj.weight = second.gate_proj.weight
    engine = HFEngine(model, tiny.tokenizer(), name="half quantised")
    site = Site.parse("w:mlp.down_proj@0")
    (reason,) = engine.refuses(Steering((Intervention(site, Delta(full=torch.ones(32, 48)), ALL),)))
    assert "quantised" in reason
    assert site not in engine.matrices(0)
    tied = Site.parse("w:mlp.up_proj@1")
    (reason,) = engine.refuses(Steering((Intervention(tied, Delta(full=torch.ones(48, 32)), ALL),)))
    assert "model.layers.1.mlp.gate_proj and model.layers.1.mlp.up_proj are one tensor" in reason
    assert Site.parse("w:mlp.down_proj@1") in engine.matrices(1)
    engine.logprobs(answered(), changing(engine, (0, 1)))
