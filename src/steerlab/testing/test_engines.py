"""The laws of the Hugging Face engine, on tiny random models of thirteen architectures.

Pairwise by default: each architecture meets every part of a site, every edit and both paddings at least once; the whole
product runs with `--full` (make test-all).

Where sites are is in `test_sites`, what is said in `test_generation`.
"""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from steerlab import edits
from steerlab.contrast import Example
from steerlab.controls import Gate
from steerlab.edits import Clamp, Shift
from steerlab.engines.base import Sampling
from steerlab.errors import DataError, SteerlabError, UnsupportedError
from steerlab.positions import (
    ALL,
    DECODING,
    GENERATED,
    LAST_PROMPT,
    NOT_TEMPLATE,
    PROMPT,
    Positions,
    Window,
    first,
    last,
)
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny
from steerlab.testing.plugin import edit_kinds
from steerlab.testing.precision import MANY, ONE
from steerlab.testing.tiny import prompts

TOLERANCE = 1e-5
PARTS = ("embed", "norm_attn", "q", "k", "v", "heads", "attn", "norm_mlp", "neurons", "mlp", "resid", "final")
MASKS = {
    "all": ALL, "not_template": NOT_TEMPLATE, "prompt": PROMPT, "generated": GENERATED, "last_prompt": LAST_PROMPT,
    "decoding": DECODING, "f2+l1": first(2) | last(1), "some": Positions((), (Window(1, 4), Window(6))),
}  # fmt: skip
GREEDY = Sampling(max_new_tokens=8)
ABSENT = {("olmo2", "norm_attn"), ("olmo2", "norm_mlp"), ("mixtral", "neurons"), ("qwen3_moe", "neurons")}


def cases(full: bool, kinds: list[str]) -> list[tuple[str, str, str, str]]:
    """(architecture, part, kind of edit, mask): each architecture with each part, the rest in turn; in full, the product
    of architecture, part and kind with masks in turn, and of architecture, kind and mask at `resid`."""
    masks = list(MASKS)
    k, m = cycle(kinds), cycle(masks)
    if full:
        places = [(a, p, k, next(m)) for a in tiny.ARCHITECTURES for p in PARTS for k in kinds if (a, p) not in ABSENT]
        return list(
            dict.fromkeys([*places, *((a, "resid", k, m) for a in tiny.ARCHITECTURES for k in kinds for m in masks)])
        )
    return [(a, p, next(k), next(m)) for a in tiny.ARCHITECTURES for p in PARTS if (a, p) not in ABSENT]


def pytest_generate_tests(metafunc):
    full = metafunc.config.getoption("--full")
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(full, edit_kinds(metafunc)), ids="-".join)
    if "architecture" in metafunc.fixturenames and "method_name" not in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(tiny.ARCHITECTURES))


@pytest.fixture(params=["left", "right"])
def padding(request):
    return request.param


def site_of(part: str) -> Site:
    return Site(None if part in ("embed", "final") else 1, part)


def steered(engine, part: str, kind: str, mask: str, seed: int = 0) -> Steering:
    """A steering of one random edit; at strength 1, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    site = site_of(part)
    return Steering((Intervention(site, edits.kinds()[kind].random(engine.width(site), generator), MASKS[mask]),))


def same_words(a, b) -> bool:
    """Equal token by token; a difference is only allowed at a recorded near-tie."""
    for x, y, p, q in zip(a.ids, b.ids, a.logprobs, b.logprobs, strict=False):
        if x != y:
            return abs(p - q) <= TOLERANCE
    return True


def distance(a, b) -> float:
    """Greatest difference of log-probabilities over the common words."""
    n = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), min(len(a.ids), len(b.ids)))
    pairs = list(zip(a.logprobs[: n + 1], b.logprobs[: n + 1], strict=False))
    return max(abs(x - y) for x, y in pairs)


# --- one truth, however it is computed -----------------------------------------------------------------------------------


def test_cached_decoding_is_one_full_forward_is_any_chunking(case):
    architecture, part, kind, mask = case
    engine = tiny.engine(architecture)
    steering, texts = steered(engine, part, kind, mask), prompts()
    under = [steering, None, steering.scaled(0.5)]
    replies = engine.generate(texts, under, GREEDY)
    examples = [Example.ask(t, r.text) for t, r in zip(texts, replies, strict=True)]
    for reply, scored in zip(replies, engine.logprobs(examples, under), strict=True):
        n = len(reply.logprobs)
        assert (torch.tensor(reply.logprobs) - scored[:n]).abs().max() <= TOLERANCE
    for chunk in (1, 4):
        pieces = tiny.engine(architecture, chunk=chunk).generate(texts, under, GREEDY)
        for reply, piece in zip(replies, pieces, strict=True):
            assert same_words(reply, piece)
            assert distance(reply, piece) <= TOLERANCE


def test_a_row_in_a_batch_is_the_row_alone(case, padding):
    architecture, part, kind, mask = case
    engine = tiny.engine(architecture, padding=padding)
    steering = steered(engine, part, kind, mask)
    answers = prompts(1, (4, 2, 7))
    examples = [Example.ask(t, a) for t, a in zip(prompts(), answers, strict=True)]
    under = [steering, None, steering.scaled(0.5)]
    together = engine.logprobs(examples, under)
    for example, one, scored in zip(examples, under, together, strict=True):
        alone = engine.logprobs([example], one)[0]
        assert (alone - scored).abs().max() <= TOLERANCE


def test_what_nothing_touches_is_bit_identical(case, padding):
    architecture, part, kind, mask = case
    engine = tiny.engine(architecture, padding=padding)
    steering = steered(engine, part, kind, mask)
    examples = [Example.ask(t, "w1 w2 w3") for t in prompts()]
    batch, site = engine.batch(examples), site_of(part)
    plain = engine.capture(examples, [site], ALL)[site]
    under = engine.capture(examples, [site], ALL, [steering, None, steering.scaled(0)])[site]
    touched = batch.mask(MASKS[mask])
    for row in range(3):
        mine = plain.row == row
        same = (plain.values[mine] == under.values[mine]).all(dim=1)
        positions = plain.position[mine]
        if row > 0:
            assert same.all(), "an unsteered row changed"
            continue
        hit = touched[0][batch.position[0] >= 0]
        assert same[~hit[positions]].all(), "a position outside the mask changed"
        content = kind == "OneSided" or (kind == "Push" and int(hit.sum()) < 3)  # what is where it should be stays
        assert not same[hit[positions]].all() or content, "no position inside the mask changed"
    off = list(engine.logits(examples, steering.scaled(0)))
    for a, b in zip(off, engine.logits(examples), strict=True):
        assert torch.equal(a, b)


def test_the_edit_is_the_edit(case):
    """What stands at the site afterwards is `edit(what stood there)`, cast to the model's dtype."""
    architecture, part, kind, mask = case
    engine = tiny.engine(architecture)
    steering, site = steered(engine, part, kind, mask), site_of(part)
    examples = [Example.ask(t, "w4 w5") for t in prompts()]
    plain = engine.capture(examples, [site], ALL)[site].values
    under = engine.capture(examples, [site], ALL, steering)[site].values
    mask_ = engine.batch(examples).mask(MASKS[mask])[engine.batch(examples).position >= 0]
    wanted = torch.where(mask_[:, None], steering.interventions[0].edit(plain, 1.0), plain)
    torch.testing.assert_close(under, wanted, rtol=ONE, atol=ONE)


# --- nothing is left behind ----------------------------------------------------------------------------------------------


def hooks_on(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_outlives_a_call_also_when_it_raises(architecture):
    engine = tiny.engine(architecture)
    model = engine.model
    assert hooks_on(model) == 0
    steering = steered(engine, "resid", "Shift", "all")
    engine.generate(prompts(), steering, GREEDY)
    stream = engine.stream(prompts(), steering, GREEDY)
    next(stream)
    assert hooks_on(model) == 0, "nothing stands on the model while the caller has the floor"
    assert torch.is_grad_enabled()
    stream.close()

    def fails(h):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        engine.resume(engine.batch([Example.ask("w1", "w2")]), {Site(1): fails})
    with pytest.raises(RuntimeError, match="planted"), engine.steer(steering):
        raise RuntimeError("planted")
    assert hooks_on(model) == 0


def test_mode_gradients_and_weights_are_left_as_they_were(architecture):
    engine = tiny.engine(architecture)
    model = engine.model
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    first_block = engine.anatomy.blocks[0]
    first_block.train()
    try:
        engine.generate(prompts(), steered(engine, "resid", "Clamp", "all"), GREEDY)
        q = torch.zeros(32, requires_grad=True)
        run = engine.resume(engine.batch([Example.ask("w1", "w2 w3")]), {Site(1): lambda h: h + q})
        run.logits.logsumexp(-1).sum().backward()
        assert first_block.training
        assert not engine.anatomy.blocks[1].training
    finally:
        first_block.eval()
    assert q.grad is not None
    assert q.grad.abs().sum() > 0
    for name, p in model.named_parameters():
        value, learning = before[name]
        assert torch.equal(p, value)
        assert p.requires_grad == learning
        assert p.grad is None


# --- gates -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
def test_a_closed_gate_is_inert_and_an_open_one_is_the_edit(architecture, held):
    engine = tiny.engine(architecture)
    edit, where = Shift(torch.full((32,), 0.5)), DECODING
    plain = Steering((Intervention(Site(2), edit, where),))
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def gated(threshold: float) -> Steering:
        return Steering((Intervention(Site(2), edit, where, Gate(Site(1), direction, threshold, held=held)),))

    examples = [Example.ask(t, "w1 w2 w3") for t in prompts()]
    for a, b in zip(engine.logits(examples, gated(1e6)), engine.logits(examples), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(engine.logits(examples, gated(-1e6)), engine.logits(examples, plain), strict=True):
        assert torch.equal(a, b)
    middle = gated(float((engine.capture(examples, [Site(1)])[Site(1)].values @ direction).median()) - 1e-4)
    replies = engine.generate(prompts(), middle, GREEDY)
    scored = engine.logprobs([Example.ask(t, r.text) for t, r in zip(prompts(), replies, strict=True)], middle)
    for reply, lp in zip(replies, scored, strict=True):
        assert (torch.tensor(reply.logprobs) - lp[: len(reply.logprobs)]).abs().max() <= TOLERANCE
    if held:
        alone = [engine.generate([t], middle, GREEDY)[0] for t in prompts()]
        assert all(same_words(a, b) for a, b in zip(alone, replies, strict=True))


# --- several at once -----------------------------------------------------------------------------------------------------------


def test_interventions_act_in_depth_order_then_list_order(architecture):
    engine = tiny.engine(architecture)
    generator = torch.Generator().manual_seed(4)
    a, b = Clamp.random(32, generator), Shift.random(32, generator)
    one = Steering((Intervention(Site(1), a, ALL), Intervention(Site(1), b, ALL)))
    other = Steering((Intervention(Site(1), b, ALL), Intervention(Site(1), a, ALL)))
    examples = [Example.ask(t) for t in prompts()]
    plain = engine.capture(examples, [Site(1)], ALL)[Site(1)].values
    for steering, wanted in ((one, b(a(plain))), (other, a(b(plain)))):
        got = engine.capture(examples, [Site(1)], ALL, steering)[Site(1)].values
        torch.testing.assert_close(got, wanted, rtol=ONE, atol=ONE)
    late_first = Steering((Intervention(Site(2), a), Intervention(Site(0), b)))
    assert [i.site.layer for i in late_first.interventions] == [0, 2]


def test_many_steerings_in_one_batch_are_each_alone():
    engine = tiny.engine("llama")
    generator = torch.Generator().manual_seed(0)
    kinds = list(edits.kinds().values())
    under = [
        Steering(
            tuple(Intervention(Site(layer), kinds[(n + layer) % len(kinds)].random(32, generator)) for layer in (2, 0))
        )
        for n in range(12)
    ]
    examples = [Example.ask(tiny.words(generator, 2 + n), "w1 w2") for n in range(12)]
    for example, one, lp in zip(examples, under, engine.logprobs(examples, under), strict=True):
        assert (engine.logprobs([example], one)[0] - lp).abs().max() <= TOLERANCE


def test_a_slice_and_the_whole_are_edited_in_list_order_and_collected_afterwards(architecture):
    engine = tiny.engine(architecture)
    whole, one = Site(1, "heads"), Site(1, "heads", 1)
    d, size = engine.width(whole), engine.width(one)
    generator = torch.Generator().manual_seed(0)
    clamp, shift = Clamp.random(d, generator), Shift(torch.ones(size))
    examples = [Example.ask(t) for t in prompts()]
    plain = engine.capture(examples, [whole], ALL)[whole].values

    def shifted(h):
        return torch.cat([h[:, :size], h[:, size : 2 * size] + 1, h[:, 2 * size :]], dim=1)

    parts = (Intervention(one, shift, ALL), Intervention(whole, clamp, ALL))
    for order, wanted in ((parts, clamp(shifted(plain))), (parts[::-1], shifted(clamp(plain)))):
        got = engine.capture(examples, [whole, one], ALL, Steering(order))
        torch.testing.assert_close(got[whole].values, wanted, rtol=MANY, atol=MANY)
        torch.testing.assert_close(got[one].values, wanted[:, size : 2 * size], rtol=MANY, atol=MANY)


# --- dtypes and refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_keep_their_dtype_and_edits_run_in_float32(architecture, dtype):
    engine = tiny.engine(architecture, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    clamp = Clamp.random(32, generator)
    steering = Steering((Intervention(Site(1), clamp, ALL),))
    examples = [Example.ask(t, "w1 w2") for t in prompts()]
    seen = {}
    handle = engine.anatomy.blocks[1].register_forward_hook(lambda _m, _a, out: seen.update(h=out))
    try:
        read = engine.capture(examples, [Site(1)], ALL, steering)[Site(1)].values
    finally:
        handle.remove()
    out = seen["h"] if isinstance(seen["h"], torch.Tensor) else seen["h"][0]
    assert out.dtype == getattr(torch, dtype)
    # bfloat16 keeps 8 bits, so numbers up to 8 are off by 2^-8 of them, and 32 of them are summed
    torch.testing.assert_close(read @ clamp.q.T, clamp.positive.expand(len(read), -1), rtol=0.03, atol=0.06)
    replies = engine.generate(prompts(), steering, GREEDY)
    assert all(len(r.logprobs) > 0 for r in replies)


def test_a_compiled_model_is_refused():
    import copy

    model = copy.deepcopy(tiny.model("llama"))
    engine = tiny.engine("llama")
    with pytest.raises(UnsupportedError, match="torch.compile"):
        type(engine)(torch.compile(model), tiny.tokenizer())
    later = type(engine)(model, tiny.tokenizer())
    model.compile()
    with pytest.raises(UnsupportedError, match=r"\.compile\(\)"):
        later.generate(["w1"])
    assert later.refuses(Steering())


@pytest.mark.parametrize("way", ["generate", "logprobs", "text_logprobs", "capture"])
def test_numbers_that_are_not_finite_are_said_whichever_way_a_model_is_run(way):
    import copy

    model = copy.deepcopy(tiny.model("llama"))
    engine = type(tiny.engine("llama"))(model, tiny.tokenizer())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    runs = {
        "generate": lambda: engine.generate(["w1 w2"], None, GREEDY),
        "logprobs": lambda: engine.logprobs([Example.ask("w1 w2", "w3")]),
        "text_logprobs": lambda: engine.text_logprobs(["w1 w2 w3"]),
        "capture": lambda: engine.capture([Example.ask("w1 w2")], [Site(2)]),
    }
    with pytest.raises(DataError, match="NaN or infinite"):
        runs[way]()


def test_a_steering_of_another_model_width_or_site_is_refused_with_every_reason():
    engine, other = tiny.engine("llama"), tiny.engine("mistral")
    assert engine.fingerprint != other.fingerprint
    generator = torch.Generator().manual_seed(0)
    wrong = Steering(
        (
            Intervention(Site(1), Shift.random(16, generator)),
            Intervention(Site(9), Shift.random(32, generator)),
        )
    )
    reasons = engine.refuses(wrong)
    assert len(reasons) == 2
    assert "width 16" in reasons[0]
    assert "3 blocks, 0 to 2" in reasons[1]
    with pytest.raises(SteerlabError, match="width 16.*3 blocks"):
        engine.generate(["w1"], wrong)
    foreign = Steering((Intervention(Site(1), Shift.random(32, generator)),)).adopted(other)
    with pytest.raises(UnsupportedError, match="tiny mistral"):
        engine.generate(["w1"], foreign)
    assert not engine.refuses(foreign.adopted(engine))


def test_the_same_model_in_another_dtype_is_the_same_model():
    from steerlab.steering import same_model

    full, half = tiny.engine("llama"), tiny.engine("llama", dtype="bfloat16")
    assert same_model(full.fingerprint, half.fingerprint)
    assert not same_model(full.fingerprint, tiny.engine("qwen2").fingerprint)
