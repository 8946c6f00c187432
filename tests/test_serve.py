"""The server in this process, on a tiny model: what it answers and what it applies; test_serve_*.py has the rest."""

from __future__ import annotations

import json

import pytest
import torch

from serving import DRAWN, TEXT, drawn, made, pieces, put, refused, shift, solo, text_of
from steerlab.contrast import Example, Message
from steerlab.deltas import Delta
from steerlab.engines.base import Sampling
from steerlab.engines.readout import readouts
from steerlab.positions import ALL, GENERATED, Positions, Window
from steerlab.serve.problems import Problem
from steerlab.serve.resolve import split
from steerlab.sites import Site
from steerlab.steering import Intervention, Prompt, Steering
from steerlab.testing import tiny
from steerlab.testing.precision import MANY, ONE


def test_a_chat_says_what_the_engine_says_alone_and_what_was_applied(server, engine, steerings):
    asked = [{"name": "formal", "strength": 0.8}, {"name": "verbose", "strength": -0.5, "positions": "generated"}]
    told = server.chat(TEXT, steering=asked, n=3, **DRAWN).json()
    one = steerings["verbose"].interventions[0]
    moved = Steering((Intervention(one.site, one.edit, GENERATED),), meta=steerings["verbose"].meta)
    whole = steerings["formal"].scaled(0.8) + moved.scaled(-0.5)
    replies = solo(engine, TEXT, whole, 7, 3, **drawn())
    assert [c["message"]["content"] for c in told["choices"]] == [r.text for r in replies]
    assert told["usage"]["completion_tokens"] == sum(len(r.ids) for r in replies)
    assert told["usage"]["prompt_tokens"] == replies[0].prompt_tokens
    applied = told["steering"]["applied"]
    assert [(a["name"], a["digest"], a["strength"]) for a in applied] == [
        ("formal", steerings["formal"].digest, 0.8),
        ("verbose", steerings["verbose"].digest, -0.5),
    ]
    assert applied[1]["positions"] == ["generated"]
    assert told["steering"]["seed"] == 7
    assert replies[0].text != solo(engine, TEXT, None, 7, **drawn())[0].text


def test_the_grammar_of_the_models_name_is_the_field(server, steerings):
    field = server.chat(TEXT, steering=["formal", {"name": "anti-dry", "strength": -0.5}], **DRAWN)
    for name in (
        "base+formal-0.5*anti-dry",
        "tiny llama+1*formal-0.50*anti-dry",
        f"base+{steerings['formal'].digest}-0.5*anti-dry",
    ):
        named = server.chat(TEXT, model=name, **DRAWN)
        assert text_of(named) == text_of(field)
        assert named.json()["model"] == name
    mixed = server.chat(TEXT, model="base-0.5*anti-dry", steering="formal", **DRAWN)
    assert text_of(mixed) == text_of(field)


@pytest.mark.parametrize(
    ("name", "base", "terms"),
    [
        ("base+0.8*formal-0.5*verbose", "base", [("+0.8", "formal"), ("-0.5", "verbose")]),
        ("a/B-0.5B-it+x-y-2*z", "a/B-0.5B-it", [("+1", "x-y"), ("-2", "z")]),
        ("base", "base", []),
    ],
)
def test_the_grammar(name, base, terms):
    assert split(name) == (base, terms)


@pytest.mark.parametrize("name", ["base+", "base+*x", "base+1*", "base+1**x", "base++x", "base-1*"])
def test_the_grammar_refuses_the_rest(name):
    with pytest.raises(Problem, match="expected a form like"):
        split(name)


def test_a_text_is_gone_on_with(server, engine, steerings):
    told = server.post(
        "/v1/completions", prompt=[TEXT, [9, 10, 11]], n=2, logprobs=2, steering="formal", **DRAWN
    ).json()
    assert [c["index"] for c in told["choices"]] == [0, 1, 2, 3]
    plain = tiny.engine("llama", template="plain")
    bare = steerings["formal"].adopted(plain)
    for k, choice in enumerate(told["choices"][:2]):
        alone = plain.generate([TEXT], bare, Sampling(12, temperature=0.8, seed=7 + k))[0]
        assert choice["text"] == alone.text
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(alone.logprobs[: len(alone.ids)], abs=ONE)
        assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"])
    assert server.post("/v1/completions", prompt=TEXT).json()["usage"]["completion_tokens"] <= 16


def test_a_stream_says_what_the_whole_says(server):
    body = {"steering": "formal", "n": 2, "logprobs": True, "top_logprobs": 3, "readouts": ["verbose"], **DRAWN}
    whole = server.chat(TEXT, **body).json()
    streamed = server.chat(TEXT, stream=True, stream_options={"include_usage": True}, **body)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(piece) for piece in pieces(streamed.text)]
    assert events[0]["steering"] == whole["steering"]
    assert events[-1]["usage"] == whole["usage"]
    for n, choice in enumerate(whole["choices"]):
        mine = [c for e in events for c in e["choices"] if c["index"] == n]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        tokens = [t for c in mine if c["logprobs"] for t in c["logprobs"]["content"]]
        kept = choice["logprobs"]["content"]
        assert [t["token"] for t in tokens] == [t["token"] for t in kept]
        assert [len(t["top_logprobs"]) for t in kept] == [3] * len(kept)
        read = [v for c in mine for v in c.get("steering", {}).get("readouts", {}).get("verbose", [])]
        assert read == pytest.approx(choice["steering"]["readouts"]["verbose"], abs=MANY)


def test_tokens_are_told_as_numbers_where_asked_for(server, engine):
    """As vLLM's server tells them: in an answer, and piece by piece in a stream, without the end token."""
    alone = solo(engine, TEXT, None, 7, **drawn())[0]
    prompt = engine.renderer.prompt(Example.ask(TEXT).messages).ids
    whole = server.chat(TEXT, return_token_ids=True, **DRAWN).json()
    assert whole["prompt_token_ids"] == prompt
    assert whole["choices"][0]["token_ids"] == list(alone.ids)
    events = [json.loads(p) for p in pieces(server.chat(TEXT, stream=True, return_token_ids=True, **DRAWN).text)]
    assert events[0]["prompt_token_ids"] == prompt
    assert [i for e in events for c in e["choices"] for i in c.get("token_ids", [])] == list(alone.ids)
    told = server.post("/v1/completions", prompt=[[9, 10, 11], [7, 8]], return_token_ids=True, **DRAWN).json()
    assert [c["prompt_token_ids"] for c in told["choices"]] == [[9, 10, 11], [7, 8]]
    assert "token_ids" not in server.chat(TEXT, **DRAWN).json()["choices"][0]


def test_stop_strings_end_a_reply_and_are_cut(server, engine):
    full = solo(engine, TEXT, None, 7, max_new_tokens=12, temperature=0.8)[0].text
    stop = full.split()[3]
    for stream in (False, True):
        told = server.chat(TEXT, stop=[stop, "nowhere"], stream=stream, **DRAWN)
        if stream:
            events = [json.loads(piece) for piece in pieces(told.text)]
            said = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
        else:
            said = text_of(told)
            assert told.json()["choices"][0]["finish_reason"] == "stop"
        assert said == full[: full.index(stop)]


def test_without_a_seed_the_answer_tells_the_one_it_drew(server):
    told = server.chat(TEXT, max_tokens=8).json()
    again = server.chat(TEXT, max_tokens=8, seed=told["steering"]["seed"])
    assert text_of(again) == told["choices"][0]["message"]["content"]


def test_turns_and_roles(server, engine):
    turns = [("developer", "w1"), ("user", "w2 w3"), ("assistant", "w4"), ("user", "w5")]
    messages = [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in turns]
    told = server.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=6)
    alone = engine.generate(
        [[Message("system", "w1"), Message("user", "w2 w3"), Message("assistant", "w4"), Message("user", "w5")]],
        None,
        Sampling(6),
    )[0]
    assert text_of(told) == alone.text


def test_read_outs_are_the_axis_where_each_token_was_predicted(server, engine, steerings):
    told = server.chat(TEXT, readouts=["verbose", "formal"], temperature=0, max_tokens=6, steering="formal").json()
    choice = told["choices"][0]
    example = Example((Message("user", TEXT),), choice["message"]["content"])
    site = Site.parse("2")
    captured = engine.capture([example], [site], ALL, steerings["formal"])[site]
    first = told["usage"]["prompt_tokens"] - 1
    (readout,) = readouts(steerings["verbose"])
    wanted = readout(captured.values[first : first + 6]).tolist()
    # read-outs are printed with four digits
    assert choice["steering"]["readouts"]["verbose"][: len(wanted)] == pytest.approx(wanted[:6], abs=1e-3)
    assert set(choice["steering"]["readouts"]) == {"verbose", "formal"}


def test_read_outs_of_a_clamp_are_its_poles(engine, steerings):
    (one,) = steerings["verbose"].interventions
    (readout,) = readouts(steerings["verbose"])
    h = torch.randn(3, one.edit.width)
    assert readout(one.edit(h, 1.0)).tolist() == pytest.approx([1.0] * 3, abs=MANY)
    assert readout(one.edit(h, -1.0)).tolist() == pytest.approx([-1.0] * 3, abs=MANY)
    (line,) = readouts(steerings["formal"])
    (moves,) = steerings["formal"].interventions
    assert (line(moves.edit(h, 0.7)) - line(h)).tolist() == pytest.approx([0.7] * 3, abs=MANY)


def test_gates_say_what_they_decided(server, engine, steerings):
    plain = solo(engine, TEXT, None, 7, **drawn())[0]
    shut = server.chat(TEXT, steering="shut", **DRAWN).json()["choices"][0]
    assert shut["message"]["content"] == plain.text
    assert shut["steering"]["gates"] == [
        {"name": "shut", "site": "resid@1", "control": "Gate", "decided": "ahead", "open": False, "strength": 0.0}
    ]
    wide = server.chat(TEXT, steering="open", **DRAWN).json()["choices"][0]
    assert wide["message"]["content"] == text_of(server.chat(TEXT, steering="formal", **DRAWN))
    assert wide["steering"]["gates"][0]["open"] is True
    each = server.chat(TEXT, steering="each", **DRAWN).json()["choices"][0]
    (gate,) = each["steering"]["gates"]
    assert each["message"]["content"] == solo(engine, TEXT, steerings["each"], 7, **drawn())[0].text
    assert 0 < gate["acted"] < gate["tokens"]
    assert gate["strength"] == pytest.approx(gate["acted"] / gate["tokens"])


def test_spans_go_unsteered(server, engine, steerings):
    one = steerings["formal"].interventions[0]
    whole = Steering((Intervention(one.site, one.edit, GENERATED),), meta=steerings["formal"].meta)
    full = solo(engine, TEXT, whole, 0, max_new_tokens=20)[0]
    begin = full.text.split()[4]
    at = full.text.split().index(begin)
    asked = {"steering": [{"name": "formal", "positions": "generated"}], "temperature": 0, "max_tokens": 20}
    never = server.chat(TEXT, unsteered=[[begin, "nowhere"]], **asked)
    windows = Positions((), (Window(0, at),)) if at else Positions()
    reference = Steering((Intervention(one.site, one.edit, windows),), meta=steerings["formal"].meta)
    assert text_of(never) == solo(engine, TEXT, reference, 0, max_new_tokens=20)[0].text
    assert text_of(never) != full.text
    untouched = server.chat(TEXT, unsteered=["thinking", "json", "tool_calls"], **asked)
    assert text_of(untouched) == full.text


def test_a_prompt_arm_needs_a_chat(server, engine):
    asks = Steering(prompt=Prompt("w9 w10"), meta=shift(engine, 1).meta)
    assert put(server, "asks", asks).status_code == 201
    assert (
        text_of(server.chat(TEXT, steering="asks", **DRAWN))
        == solo(engine, f"{TEXT} w9 w10", None, 7, **drawn())[0].text
    )
    refused(server.post("/v1/completions", prompt=TEXT, steering="asks"), 400, "/v1/chat/completions")


def test_a_weight_edit_is_served_and_cant_rest(server, engine):
    generator = torch.Generator().manual_seed(1)
    edit = Delta(torch.randn(48, 2, generator=generator), torch.randn(2, 32, generator=generator))
    changed = made(engine, edit, "w:mlp.up_proj@1", ALL)
    assert put(server, "changed", changed).status_code == 201
    assert text_of(server.chat(TEXT, steering="changed", **DRAWN)) == solo(engine, TEXT, changed, 7, **drawn())[0].text
    refused(server.chat(TEXT, steering="changed", unsteered=["json"]), 400, "every token")
