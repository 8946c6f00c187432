"""The laws of controls: every kind that exists, on random instances, alone and inside an engine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab import artefact, controls
from steerlab.contrast import Example
from steerlab.controls import Control, Tokens
from steerlab.edits import Shift
from steerlab.engines.base import Sampling
from steerlab.positions import DECODING
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny
from steerlab.testing.precision import FEW, ONE

SEEDS = st.integers(0, 2**31 - 1)
WIDTH = 32
READ, ACTED = Site(1), Site(2)
TOLERANCE = 1e-5
GREEDY = Sampling(max_new_tokens=10)


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(tiny.ARCHITECTURES))


def drawn(kind: str, seed: int, width: int = WIDTH) -> tuple[Control, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return controls.kinds()[kind].random(READ, width, generator), generator


def sequences(generator: torch.Generator) -> tuple[torch.Tensor, Tokens]:
    """Activations and tokens of three rows, left-padded, with prompts of different lengths and two answer tokens."""
    lengths, width = torch.tensor([3, 6, 5]), 8
    position = torch.arange(width).expand(3, -1) - (width - 2 - lengths[:, None])
    position = position.clamp(min=-1)
    return torch.randn(3, width, WIDTH, generator=generator), Tokens(torch.ones(3, width).long(), position, lengths)


def strengths(control: Control, h: torch.Tensor, tokens: Tokens, sizes: list[int]) -> torch.Tensor:
    """The strength at every token, asked for in chunks of these sizes."""
    state, found = control.start(len(h), h.device), []
    for part, ids, position in zip(*(t.split(sizes, dim=1) for t in (h, tokens.ids, tokens.position)), strict=True):
        now = Tokens(ids, position, tokens.prompt_length)
        strength, state = control.strength(dict.fromkeys(control.reads, part), now, state)
        found.append(strength.expand(*ids.shape, -1))
    return torch.cat(found, dim=1)


def later(tokens: Tokens) -> torch.Tensor:
    """The last prompt token and those after it, where a control that decides there may act."""
    return tokens.position >= tokens.prompt_length[:, None] - 1


@given(seed=SEEDS, k=st.floats(-2, 2))
@settings(max_examples=15, deadline=None)
def test_scaled_gives_so_many_times_the_strength_within_its_bounds(control_kind, seed, k):
    control, generator = drawn(control_kind, seed)
    h, tokens = sequences(generator)
    plain, scaled = (strengths(c, h, tokens, [8]) for c in (control, control.scaled(k)))
    torch.testing.assert_close(scaled, k * plain, rtol=ONE, atol=FEW)
    low, high = control.scaled(k).most
    assert bool(((scaled >= low - 1e-6) & (scaled <= high + 1e-6)).all())
    assert bool((strengths(control.scaled(0.0), h, tokens, [8]) == 0).all())


@given(seed=SEEDS, cut=st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_chunks_change_nothing(control_kind, seed, cut):
    control, generator = drawn(control_kind, seed)
    h, tokens = sequences(generator)
    whole, parts = (strengths(control, h, tokens, sizes) for sizes in ([8], [cut, 8 - cut]))
    torch.testing.assert_close(whole[later(tokens)], parts[later(tokens)], rtol=ONE, atol=FEW)


@given(seed=SEEDS, row=st.integers(0, 2))
@settings(max_examples=15, deadline=None)
def test_a_row_doesnt_depend_on_its_neighbours_and_state_leads_with_rows(control_kind, seed, row):
    control, generator = drawn(control_kind, seed)
    h, tokens = sequences(generator)
    alone = Tokens(tokens.ids[[row]], tokens.position[[row]], tokens.prompt_length[[row]])
    here = later(alone)
    torch.testing.assert_close(
        strengths(control, h[[row]], alone, [8])[here],
        strengths(control, h, tokens, [8])[[row]][here],
        rtol=ONE,
        atol=ONE,
    )
    for state in (
        control.start(3, h.device),
        control.strength(dict.fromkeys(control.reads, h), tokens, control.start(3, h.device))[1],
    ):
        assert all(len(value) == 3 for value in state.values())


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_it_survives_the_file_format(control_kind, seed):
    control, generator = drawn(control_kind, seed)
    row, kept = artefact.flatten(control, "0.control")
    again = artefact.restore(row, kept, controls.kinds())
    h, tokens = sequences(generator)
    assert torch.equal(strengths(again, h, tokens, [8]), strengths(control, h, tokens, [8]))


@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_reads_say_what_it_needs(control_kind, seed):
    control, generator = drawn(control_kind, seed)
    assert set(control.reads) <= {READ}
    h, tokens = sequences(generator)
    for site in control.reads:
        with pytest.raises(LookupError):
            control.strength({}, tokens, control.start(3, h.device))
        assert site == READ


def steered(engine, kind: str, seed: int = 3) -> Steering:
    """Two edits under two controls of the kind."""
    one, generator = drawn(kind, seed, engine.width(READ))
    other = controls.kinds()[kind].random(READ, engine.width(READ), generator)
    made = [Shift(0.4 * torch.randn(engine.width(ACTED), generator=generator)) for _ in range(2)]
    return Steering(tuple(Intervention(ACTED, e, DECODING, c) for e, c in zip(made, (one, other), strict=True)))


def prompts() -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [tiny.words(generator, n) for n in (3, 11, 6, 8)]


def test_at_strength_0_the_model_is_bit_identical(control_kind, architecture):
    engine = tiny.engine(architecture)
    steering = steered(engine, control_kind)
    examples = [Example.ask(t, "w1 w2 w3") for t in prompts()]
    plain = list(engine.logits(examples))
    for a, b in zip(engine.logits(examples, steering.scaled(0.0)), plain, strict=True):
        assert torch.equal(a, b)
    moved = [not torch.equal(a, b) for a, b in zip(engine.logits(examples, steering), plain, strict=True)]
    assert any(moved), "at strength 1 nothing happens"


def test_cached_decoding_is_one_full_forward_and_a_row_alone(control_kind, architecture):
    engine = tiny.engine(architecture)
    steering = steered(engine, control_kind)
    replies = engine.generate(prompts(), steering, GREEDY)
    scored = engine.logprobs([Example.ask(t, r.text) for t, r in zip(prompts(), replies, strict=True)], steering)
    for text, reply, lp in zip(prompts(), replies, scored, strict=True):
        assert (torch.tensor(reply.logprobs) - lp[: len(reply.logprobs)]).abs().max() <= TOLERANCE
        alone = engine.logprobs([Example.ask(text, reply.text)], steering)[0]
        assert (alone - lp).abs().max() <= TOLERANCE
