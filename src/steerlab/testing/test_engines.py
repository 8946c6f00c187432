"""The laws of the Hugging Face engine, on tiny random models of thirteen architectures.

Pairwise by default: each architecture meets every part of a site, every edit and both paddings at least once; the whole
product runs with `--full` (make test-all).
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
from steerlab.engines.hf_generate import sample
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

TOLERANCE = 1e-5
PARTS = ("embed", "norm_attn", "q", "k", "v", "heads", "attn", "norm_mlp", "neurons", "mlp", "resid", "final")
MASKS = {
    "all": ALL, "not_template": NOT_TEMPLATE, "prompt": PROMPT, "generated": GENERATED, "last_prompt": LAST_PROMPT,
    "decoding": DECODING, "f2+l1": first(2) | last(1), "some": Positions((), (Window(1, 4), Window(6))),
}  # fmt: skip
GREEDY = Sampling(max_new_tokens=12)
ABSENT = {("olmo2", "norm_attn"), ("olmo2", "norm_mlp"), ("mixtral", "neurons"), ("qwen3_moe", "neurons")}


def cases(full: bool) -> list[tuple[str, str, str, str]]:
    """(architecture, part, kind of edit, mask): each architecture with each part, the rest in turn; in full, the product
    of architecture, part and kind with masks in turn, and of architecture, kind and mask at `resid`."""
    kinds, masks = list(edits.kinds()), list(MASKS)
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
        metafunc.parametrize("case", cases(full), ids="-".join)
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


def prompts(seed: int = 0, lengths=(3, 11, 6)) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [tiny.words(generator, n) for n in lengths]


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
    torch.testing.assert_close(under, wanted, rtol=1e-5, atol=1e-5)


# --- sites ------------------------------------------------------------------------------------------------------------------

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
BY_NAME = {  # what a person who knows the architectures would have hooked: module below the block, or a third of one
    "llama": ("self_attn.o_proj", "mlp.down_proj", "self_attn", "mlp", *QKV),
    "gpt2": ("attn.c_proj", "mlp.c_proj", "attn", "mlp", ("attn.c_attn", 0), ("attn.c_attn", 1), ("attn.c_attn", 2)),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h", "self_attention", "mlp", None, None, None),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h", "attention", "mlp", None, None, None),
    "phi3": ("self_attn.o_proj", "mlp.down_proj", "self_attn", "mlp", None, None, None),
    "mixtral": ("self_attn.o_proj", None, "self_attn", "mlp", *QKV),
}  # fmt: skip
for _like_llama in ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2"):
    BY_NAME[_like_llama] = BY_NAME["llama"]
BY_NAME["qwen3_moe"] = BY_NAME["mixtral"]


def test_sites_found_by_structure_are_the_ones_known_by_name(architecture):
    engine = tiny.engine(architecture)
    block = engine.anatomy.blocks[1]
    parts = ("heads", "neurons", "attn", "mlp", "q", "k", "v")
    for part, named in zip(parts, BY_NAME[architecture], strict=True):
        if named is None:
            continue
        point = engine.anatomy.point(Site(1, part))
        name, third = named if isinstance(named, tuple) else (named, None)
        assert point.module is block.get_submodule(name), part
        assert point.side == ("input" if part in ("heads", "neurons") else "output")
        if third is not None:
            assert torch.equal(point.columns, torch.arange(32) + 32 * third)


def test_fused_projections_are_told_apart(architecture):
    """Changing v alone changes what attention returns linearly: twice the change, twice the effect. q and k don't."""
    engine = tiny.engine(architecture)
    examples = [Example.ask(prompts()[0])]
    heads = Site(1, "heads")
    seen = {}
    for part in ("q", "k", "v"):
        v = torch.randn(engine.width(Site(1, part)), generator=torch.Generator().manual_seed(3))
        effects = []
        for k in (0.0, 1.0, 2.0):
            steering = Steering((Intervention(Site(1, part), Shift(v), ALL),)).scaled(k)
            effects.append(engine.capture(examples, [heads], ALL, steering)[heads].values)
        once, twice = effects[1] - effects[0], effects[2] - effects[0]
        assert once.abs().max() > 1e-4 or part == "k", part
        seen[part] = float((twice - 2 * once).abs().max() / once.abs().max().clamp_min(1e-9))
    assert seen["v"] < 1e-3
    assert seen["q"] > 1e-2


def test_heads_are_slices(architecture):
    """Steering head 1 changes the columns of head 1 and no other."""
    engine = tiny.engine(architecture)
    whole, one = Site(1, "heads"), Site(1, "heads", 1)
    size = engine.width(one)
    assert size * 4 == engine.width(whole)
    steering = Steering((Intervention(one, Shift(torch.ones(size)), ALL),))
    examples = [Example.ask(prompts()[0])]
    delta = (
        engine.capture(examples, [whole], ALL, steering)[whole].values
        - engine.capture(examples, [whole], ALL)[whole].values
    )
    torch.testing.assert_close(delta[:, size : 2 * size], torch.ones(len(delta), size))
    assert not delta[:, :size].any()
    assert not delta[:, 2 * size :].any()


def test_resid_is_the_output_of_its_block_and_the_input_of_the_next(architecture):
    engine = tiny.engine(architecture)
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    steering = Steering((Intervention(Site(0), Shift(v), ALL),))
    examples = [Example.ask(prompts()[0])]
    seen = {}
    handle = engine.anatomy.blocks[1].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.setdefault("h", []).append((args or (kwargs["hidden_states"],))[0].clone()),
        with_kwargs=True,
    )
    try:
        list(engine.logits([Example.ask(prompts()[0], "w1")]))
        list(engine.logits([Example.ask(prompts()[0], "w1")], steering))
    finally:
        handle.remove()
    torch.testing.assert_close(seen["h"][1] - seen["h"][0], v.expand_as(seen["h"][0]), rtol=1e-4, atol=1e-4)
    assert engine.capture(examples, [Site(0)], ALL)[Site(0)].values.shape[1] == 32


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


# --- positions, streams, seeds ---------------------------------------------------------------------------------------------


def test_the_callers_own_generate_is_steered_alike(architecture):
    engine = tiny.engine(architecture)
    steering = Steering(
        (
            Intervention(Site(1), Shift(torch.full((32,), 0.7)), NOT_TEMPLATE),
            Intervention(Site(2), Clamp.random(32, torch.Generator().manual_seed(2)), GENERATED),
        )
    )
    texts = prompts()
    wanted = engine.generate(texts, steering, GREEDY)
    rendered = [engine.renderer.prompt(Example.ask(t).messages).ids for t in texts]
    width = max(map(len, rendered))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rendered])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rendered])
    with engine.steer(steering):
        out = engine.model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    for reply, row in zip(wanted, out[:, width:], strict=True):
        assert row[: len(reply.ids)].tolist() == list(reply.ids)


def test_streamed_pieces_make_the_reply(architecture):
    engine = tiny.engine(architecture)
    replies = engine.generate(prompts(), None, GREEDY)
    texts, ends = [""] * 3, [None] * 3
    for piece in engine.stream(prompts(), None, GREEDY):
        texts[piece.row] += piece.text
        ends[piece.row] = piece.finish
    assert texts == [r.text for r in replies]
    assert ends == [r.finish for r in replies]


def test_a_rows_sampled_text_depends_on_its_seed_alone():
    engine = tiny.engine("llama")
    warm = Sampling(max_new_tokens=15, temperature=1.0, top_p=0.9, top_k=40, seed=(5, 6, 7))
    together = engine.generate(prompts(), None, warm)
    for n, text in enumerate(prompts()):
        alone = engine.generate([text], None, Sampling(15, 1.0, 40, 0.9, seed=5 + n))[0]
        assert alone.ids == together[n].ids
    again = engine.generate([prompts()[0]] * 2, None, Sampling(15, 1.0, seed=(5, 9)))
    assert again[0].ids != again[1].ids


@pytest.mark.parametrize(
    ("warm", "kept"),
    [
        (Sampling(temperature=1.0), [0.1, 0.4, 0.15, 0.3, 0.05]),
        (Sampling(temperature=0.5), [0.01, 0.16, 0.0225, 0.09, 0.0025]),
        (Sampling(temperature=1.0, top_k=3), [0, 0.4, 0.15, 0.3, 0]),
        (Sampling(temperature=1.0, top_p=0.7001), [0, 0.4, 0.15, 0.3, 0]),
        (Sampling(temperature=1.0, top_p=0.6), [0, 0.4, 0, 0.3, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.8), [0, 0.4, 0, 0.3, 0]),
    ],
)
def test_draws_have_their_probabilities_and_a_rounding_moves_none(warm, kept):
    scores = torch.tensor([0.1, 0.4, 0.15, 0.3, 0.05]).log()
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = sample(scores.expand(1000, -1), warm, uniform)
    share = torch.tensor(kept) / sum(kept)
    assert torch.allclose(drawn.bincount(minlength=5) / 1000, share, atol=1.1e-3)
    near = torch.tensor([0.25, 0.25, 0.25, 0.25]).log() + torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]) * 1e-6
    one, other = (sample(row.expand(1000, -1), warm, uniform) for row in near[:, :3])
    assert warm.top_k or warm.top_p < 1 or int((one != other).sum()) <= 2


def test_stop_strings_end_a_reply_and_are_cut_off():
    engine = tiny.engine("llama")
    whole = engine.generate(prompts()[:1], None, GREEDY)[0].text.split()
    word = next(w for w in whole[2:] if whole.index(w) >= 2)
    stopped = engine.generate(prompts()[:1], None, Sampling(12, stop=(word,)))[0]
    assert stopped.finish == "stop"
    assert stopped.text.split() == whole[: whole.index(word)]
    streamed = "".join(p.text for p in engine.stream(prompts()[:1], None, Sampling(12, stop=(word,))))
    assert streamed == stopped.text


def test_a_prompt_longer_than_the_context_is_refused_and_a_long_reply_ends_there():
    engine = tiny.engine("llama")
    long = " ".join(["w1"] * 130)
    with pytest.raises(DataError, match=r"134 tokens.*128"):
        engine.generate([long])
    reply = engine.generate([" ".join(["w1"] * 118)], None, Sampling(50))[0]
    assert reply.finish in ("context", "stop")
    with pytest.raises(DataError, match=r"example 0 is \d+ tokens"):
        engine.logprobs([Example.ask("w1", long)])


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
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
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
        torch.testing.assert_close(got[whole].values, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got[one].values, wanted[:, size : 2 * size], rtol=1e-4, atol=1e-4)


class Adapted(torch.nn.Module):
    """A projection with a low-rank adapter beside it, built as PEFT builds its own."""

    def __init__(self, base, width_in, width_out):
        super().__init__()
        self.base_layer = base
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(width_in, 2, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(2, width_out, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_sites_of_an_adapted_model_are_those_of_the_whole_projection(name):
    import copy

    from steerlab.engines.hf import HFEngine

    torch.manual_seed(0)
    model, plain = copy.deepcopy(tiny.model(name)), tiny.engine(name)
    block = plain.anatomy.blocks[1]
    names = {m: n for n, m in block.named_modules()}
    for part in ("q", "v", "heads", "neurons"):
        module = plain.anatomy.point(Site(1, part)).module
        path = names[module]
        parent, _, leaf = path.rpartition(".")
        mine = HFEngine(model, tiny.tokenizer()).anatomy.blocks[1]
        held = mine.get_submodule(parent)
        if isinstance(getattr(held, leaf), Adapted):
            continue  # q and v of a fused projection
        base = getattr(held, leaf)
        shape = tuple(base.weight.shape) if name == "gpt2" else tuple(base.weight.shape[::-1])
        setattr(held, leaf, Adapted(base, *shape))
    adapted = HFEngine(model, tiny.tokenizer())
    assert adapted.sites(1) == plain.sites(1)
    for part in ("q", "k", "v", "heads", "neurons"):
        one, other = plain.anatomy.point(Site(1, part)), adapted.anatomy.point(Site(1, part))
        assert (one.side, one.width) == (other.side, other.width)
        assert (one.columns is None) == (other.columns is None)
    assert isinstance(adapted.anatomy.point(Site(1, "v")).module, Adapted)
    assert isinstance(adapted.anatomy.point(Site(1, "heads")).module, Adapted)
    v = Clamp.random(adapted.width(Site(1, "v")), torch.Generator().manual_seed(0))
    steering = Steering((Intervention(Site(1, "v"), v, ALL),))
    read = adapted.capture([Example.ask(prompts()[0])], [Site(1, "v")], ALL, steering)[Site(1, "v")].values
    torch.testing.assert_close(read @ v.q.T, v.positive.expand(len(read), -1), rtol=1e-4, atol=1e-4)
