"""The laws of what is said: the caller's own `generate`, streams, seeds, draws, stop strings and the end of the context."""

from __future__ import annotations

import pytest
import torch

from steerlab.contrast import Example
from steerlab.edits import Clamp, Shift
from steerlab.engines.base import Sampling
from steerlab.engines.hf_generate import sample
from steerlab.errors import DataError
from steerlab.positions import GENERATED, NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny
from steerlab.testing.tiny import prompts

GREEDY = Sampling(max_new_tokens=12)


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(tiny.ARCHITECTURES))


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
    # a thousand evenly spaced draws: each share is off by one draw at most
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


def test_the_smallest_temperature_is_greedy():
    scores = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 20
    uniform = torch.linspace(0, 1, 52, dtype=torch.float64)[1:-1]
    for temperature in (1e-6, 1e-308, 5e-324):
        assert torch.equal(sample(scores, Sampling(temperature=temperature), uniform), scores.argmax(dim=-1))
