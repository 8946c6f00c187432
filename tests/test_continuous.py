"""Continuous batching: whoever joins or leaves, each row says what it says alone, steered by its own steering."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from steerlab.controls import Gate, Network
from steerlab.edits import Clamp, Rotate, Shift
from steerlab.engines.base import Sampling
from steerlab.engines.hf_serving import Ask, Prompts, Running
from steerlab.positions import ALL, DECODING, GENERATED, NOT_TEMPLATE, PROMPT
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny

WIDTH = 32


def steered(site: str, edit, positions=NOT_TEMPLATE, control=None) -> Steering:
    given = {} if control is None else {"control": control}
    return Steering((Intervention(Site.parse(site), edit, positions, **given),))


def several(generator: torch.Generator) -> list[Steering | None]:
    shift, clamp = Shift.random(WIDTH, generator), Clamp.random(WIDTH, generator)
    gate = Gate(Site.parse("1"), torch.randn(WIDTH, generator=generator), 0.0)
    network = Network.random(Site.parse("0"), WIDTH, generator)
    return [
        None,
        steered("1", shift),
        steered("1", shift).scaled(-0.5),
        steered("2", clamp, GENERATED),
        steered("1", Rotate.random(WIDTH, generator), PROMPT) + steered("2", shift, ALL),
        steered("2", clamp, control=gate),
        steered("2", shift, DECODING, dataclasses.replace(gate, held=True)),
        steered("2", shift, control=dataclasses.replace(gate, ahead=True)),
        steered("1", shift, DECODING, dataclasses.replace(network, held=True)),
    ]


def alone(engine, text: str, steering, sampling) -> tuple:
    reply = engine.generate([text], steering, sampling)[0]
    return reply.ids, reply.finish, reply.logprobs


def told(running: Running, row) -> tuple:
    reply = running.reply(row)
    return reply.ids, reply.finish, reply.logprobs


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_rows_that_join_and_leave_a_running_batch_say_what_they_say_alone(architecture):
    engine, generator = tiny.engine(architecture), torch.Generator().manual_seed(3)
    prompts, running = Prompts(engine), Running(engine)
    wanted = []
    for n, steering in enumerate(several(generator) * 2):
        text = tiny.words(generator, 1 + (7 * n) % 19)  # longer than the windows of 8
        sampling = Sampling(3 + (5 * n) % 13, temperature=(0.0, 1.0, 0.7)[n % 3], top_k=(None, 20)[n % 2], seed=n)
        from steerlab.contrast import Message

        ask = Ask(prompts.chat([Message("user", text)]), steering, sampling)
        running.check(ask)
        wanted.append((text, ask))
    done, waiting = [], list(wanted)
    while waiting or len(running):
        moved = running.step() if len(running) else []
        if waiting:
            taken, waiting = waiting[:3], waiting[3:]
            fresh = running.admit([ask for _, ask in taken])
            for row, (text, ask) in zip(fresh, taken, strict=True):
                done.append((row, text, ask))
        running.drop([row for row in moved if row.finish])
    assert len(done) == len(wanted)
    for row, text, ask in done:
        ids, finish, logprobs = alone(engine, text, ask.steering, ask.sampling)
        assert told(running, row)[:2] == (ids, finish)
        assert row.logprobs == pytest.approx(logprobs, abs=1e-5)
