"""Continuous batching: whoever joins or leaves, each row says what it says alone, steered by its own steering."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from steerlab.contrast import Message
from steerlab.controls import Gate, Network
from steerlab.edits import Clamp, Rotate, Shift
from steerlab.engines import hf_cache
from steerlab.engines.base import Sampling
from steerlab.engines.hf_generate import reply
from steerlab.engines.hf_hooks import Plan
from steerlab.engines.hf_serving import Ask, Prompts, Running
from steerlab.engines.readout import readouts
from steerlab.engines.spans import NAMED, inside
from steerlab.errors import DataError, UnsupportedError
from steerlab.positions import ALL, DECODING, GENERATED, NOT_TEMPLATE, PROMPT
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny
from steerlab.testing.precision import ONE

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


def wanted(engine, generator, rounds: int = 2) -> list[tuple[str, Ask]]:
    """Replies of all lengths, drawn in all ways, under all kinds of steerings."""
    prompts, made = Prompts(engine), []
    for n, steering in enumerate(several(generator) * rounds):
        text = tiny.words(generator, 1 + (7 * n) % 19)  # longer than the windows of 8
        sampling = Sampling(3 + (5 * n) % 13, temperature=(0.0, 1.0, 0.7)[n % 3], top_k=(None, 20)[n % 2], seed=n)
        made.append((text, Ask(prompts.chat([Message("user", text)]), steering, sampling)))
    return made


def run(engine, asks: list[Ask], *, at_once: int = 3, leaves=lambda step, row: False) -> list:
    """Rows of asks that join a few at a time between steps; `leaves` says which go before their end."""
    running, rows, step = Running(engine), [], 0
    while len(rows) < len(asks) or len(running):
        moved = running.step() if len(running) else []
        fresh = asks[len(rows) : len(rows) + at_once]
        for ask in fresh:
            running.check(ask)
        rows += running.admit(fresh) if fresh else []
        running.drop([row for row in moved if row.finish or leaves(step, row)])
        step += 1
    return rows


def same_as_alone(engine, asked, rows) -> None:
    for (text, ask), row in zip(asked, rows, strict=True):
        alone = engine.generate([text], ask.steering, ask.sampling)[0]
        told = reply(row, engine.renderer)
        assert (told.ids, told.text, told.finish) == (alone.ids, alone.text, alone.finish)
        assert told.logprobs == pytest.approx(alone.logprobs, abs=ONE)


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_rows_that_join_and_leave_a_running_batch_say_what_they_say_alone(architecture):
    engine = tiny.engine(architecture)
    asked = wanted(engine, torch.Generator().manual_seed(3))
    same_as_alone(engine, asked, run(engine, [ask for _, ask in asked]))


def test_who_joins_a_row_that_was_alone_is_not_steered_by_it():
    engine, draw = tiny.engine("llama"), torch.Generator().manual_seed(7)
    shift = steered("1", Shift(8 * torch.randn(WIDTH, generator=draw)))
    clamp = steered("2", Clamp.random(WIDTH, draw))
    prompts, asked = Prompts(engine), []
    for n, steering in enumerate((shift, None, clamp, None, shift.scaled(0.0), shift.scaled(-1.0), None)):
        text = tiny.words(draw, 4 + n)
        asked.append(
            (text, Ask(prompts.chat([Message("user", text)]), steering, Sampling(14, temperature=0.7, seed=n)))
        )
    same_as_alone(engine, asked, run(engine, [ask for _, ask in asked], at_once=1))
    turned = asked[::-1]
    same_as_alone(engine, turned, run(engine, [ask for _, ask in turned], at_once=1))


@pytest.mark.parametrize("held", [False, True])
def test_rows_that_share_a_gate_run_as_one_each_at_its_own_strength(held):
    engine, draw = tiny.engine("llama"), torch.Generator().manual_seed(8)
    gate = Gate(Site.parse("0"), torch.randn(WIDTH, generator=draw), 0.0, held=held)
    network = Network.random(Site.parse("0"), WIDTH, draw)
    shift = Shift(4 * torch.randn(WIDTH, generator=draw))
    gated = steered("1", shift, DECODING, gate)
    tighter = steered("1", shift, DECODING, dataclasses.replace(gate, threshold=0.5))
    by_network = steered("1", shift, DECODING, dataclasses.replace(network, held=held))
    steerings = [gated, gated.scaled(-0.5), by_network.scaled(2.0), None, tighter, gated.scaled(1.5), by_network]
    assert [len(g.rows) for g in Plan(steerings).groups] == [3, 2, 1]

    prompts, asked = Prompts(engine), []
    for n, steering in enumerate(steerings):
        text = tiny.words(draw, 4 + n)
        asked.append((text, Ask(prompts.chat([Message("user", text)]), steering, Sampling(9 + 2 * n, seed=n))))
    same_as_alone(engine, asked, run(engine, [ask for _, ask in asked], at_once=2))

    together, rows, steps = Running(engine), [], []
    for come, steps_then in ((asked[:1], 2), (asked[1:], 4)):  # the second time, two rows of each group at once
        rows += together.admit([ask for _, ask in come])
        for _ in range(steps_then):
            together.step()
        steps = [n + steps_then for n in steps] + len(come) * [steps_then]
    for n, (steering, (_, ask)) in enumerate(zip(steerings, asked, strict=True)):
        alone = Running(engine)
        (row,) = alone.admit([ask])
        for _ in range(steps[n]):
            alone.step()
        mine = together.decisions(rows[n])
        assert list(mine) == ([] if steering is None else [id(i.control) for i in steering.interventions])
        for told, by_itself in zip(mine.values(), alone.decisions(row).values(), strict=True):
            assert told[:2] == by_itself[:2] and told.strength == pytest.approx(by_itself.strength, abs=ONE)


def test_so_they_do_when_prompts_are_read_in_chunks():
    engine = tiny.engine("gemma2", chunk=3)
    asked = wanted(engine, torch.Generator().manual_seed(4), 1)
    same_as_alone(engine, asked, run(engine, [ask for _, ask in asked]))


def test_so_they_do_where_batches_cant_be_joined(monkeypatch):
    monkeypatch.setattr(hf_cache, "keep_all", lambda cache: False)
    engine = tiny.engine("mistral")
    asked = wanted(engine, torch.Generator().manual_seed(5), 1)
    same_as_alone(engine, asked, run(engine, [ask for _, ask in asked]))


def test_who_is_sent_away_leaves_the_others_as_they_were():
    engine = tiny.engine("llama")
    asked = wanted(engine, torch.Generator().manual_seed(6))
    gone = set(range(0, len(asked), 4))

    def leaves(step, row):
        return row.prompt.ids in [asked[n][1].prompt.ids for n in gone]

    rows = run(engine, [ask for _, ask in asked], leaves=leaves)
    stay = [n for n in range(len(asked)) if n not in gone]
    same_as_alone(engine, [asked[n] for n in stay], [rows[n] for n in stay])


def test_columns_that_are_padding_for_all_are_dropped():
    engine = tiny.engine("llama")
    prompts, running = Prompts(engine), Running(engine)

    def ask(words: int, tokens: int) -> Ask:
        text = tiny.words(torch.Generator().manual_seed(words), words)
        return Ask(prompts.chat([Message("user", text)]), None, Sampling(tokens))

    long, short = ask(60, 2), ask(3, 30)
    running.admit([long])
    rows = running.admit([short])
    running.step()
    assert running._batches[0]._attention.shape[1] > 60
    running.step()
    if rows[0].finish is None:
        (batch,) = running._batches
        assert batch._attention.shape[1] == len(short.prompt.ids) + len(rows[0].ids) - 1
        assert batch._cache.layers[0].keys.shape[2] == batch._attention.shape[1]


def test_prompts_refuse_what_is_no_prompt():
    prompts = Prompts(tiny.engine("llama"))
    with pytest.raises(DataError, match="no tokens"):
        prompts.ids([])
    with pytest.raises(DataError, match="from 0 to 96"):
        prompts.ids([5, 97])


def test_an_edit_without_an_axis_cant_be_read():
    with pytest.raises(UnsupportedError, match="Rotate at resid@1 has no single axis"):
        readouts(steered("1", Rotate.random(WIDTH, torch.Generator().manual_seed(1))))


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("a <think> b", True),
        ("a <think> b </think> c", False),
        ("</think> a", False),
        ("<think></think><think>", True),
        ("x ```json {", True),
        ("x ```json {} ``` ```", False),
        ("<tool_call> <think> </think>", True),
        ("<thin", False),
    ],
)
def test_spans(text, within):
    assert inside(text, list(NAMED.values())) is within
