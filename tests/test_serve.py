"""The server in this process, on a tiny model: what it answers, what it applies, what it refuses."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import struct
from threading import Event

import pytest
import torch

from serving import Here, clamp, gated, made, pieces, shift, solo
from steerlab.contrast import Example, Message
from steerlab.deltas import Delta
from steerlab.edits import Shift
from steerlab.engines.base import Sampling
from steerlab.engines.readout import readouts
from steerlab.errors import ConfigError
from steerlab.positions import ALL, GENERATED, Positions, Window
from steerlab.serve.guard import JsonLines
from steerlab.serve.keys import Keys
from steerlab.serve.problems import Problem
from steerlab.serve.resolve import split
from steerlab.sites import Site
from steerlab.steering import Intervention, Prompt, Steering
from steerlab.testing import tiny

TEXT = "w5 w6 w7 w8"
DRAWN = {"max_tokens": 12, "temperature": 0.8, "seed": 7}


@pytest.fixture(scope="module")
def engine():
    return tiny.engine("llama")


@pytest.fixture(scope="module")
def steerings(engine):
    return {
        "formal": shift(engine, 1),
        "verbose": clamp(engine, 2, site="2"),
        "anti-dry": shift(engine, 3, site="0"),
        "shut": gated(engine, shift(engine, 1), 1e9, ahead=True),
        "open": gated(engine, shift(engine, 1), -1e9, ahead=True),
        "each": gated(engine, shift(engine, 1), 0.0),
    }


@pytest.fixture(scope="module")
def server(engine, steerings, tmp_path_factory):
    here = Here(engine, tmp_path_factory.mktemp("store"))
    for name, steering in steerings.items():
        assert put(here, name, steering).status_code == 201
    yield here
    here.close()


def put(here, name, steering, **given):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        steering.save(Path(folder) / "x.safetensors")
        data = (Path(folder) / "x.safetensors").read_bytes()
    return here.ask("PUT", f"/v1/steerings/{name}", content=data, **given)


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def refused(response, status, *words):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    for word in words:
        assert word in error["message"]
    return error


def drawn(**more):
    return {"max_new_tokens": 12, "temperature": 0.8, **more}


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
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(alone.logprobs[: len(alone.ids)], abs=1e-5)
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
        assert read == pytest.approx(choice["steering"]["readouts"]["verbose"], abs=1e-4)


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
    assert choice["steering"]["readouts"]["verbose"][: len(wanted)] == pytest.approx(wanted[:6], abs=1e-3)
    assert set(choice["steering"]["readouts"]) == {"verbose", "formal"}


def test_read_outs_of_a_clamp_are_its_poles(engine, steerings):
    (one,) = steerings["verbose"].interventions
    (readout,) = readouts(steerings["verbose"])
    h = torch.randn(3, one.edit.width)
    assert readout(one.edit(h, 1.0)).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    assert readout(one.edit(h, -1.0)).tolist() == pytest.approx([-1.0] * 3, abs=1e-4)
    (line,) = readouts(steerings["formal"])
    (moves,) = steerings["formal"].interventions
    assert (line(moves.edit(h, 0.7)) - line(h)).tolist() == pytest.approx([0.7] * 3, abs=1e-4)


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


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"steering": "formol"}, 404, ["'formol'", "Did you mean 'formal'?"]),
        ({"model": "base+0.8*formol"}, 404, ["'formol'", "Did you mean 'formal'?"]),
        ({"model": "gpt-5"}, 404, ["no model 'gpt-5'", "tiny llama"]),
        ({"model": "tiny llama2+1*formal"}, 404, ["no model"]),
        ({"steerng": "formal"}, 400, ["'steerng'", "Did you mean 'steering'?"]),
        ({"steering": [{"name": "formal", "strenght": 2}]}, 400, ["Did you mean 'strength'?"]),
        ({"steering": [{"name": "formal", "strength": "2"}]}, 400, ["steering"]),
        ({"steering": ["formal", "formal"]}, 400, ["twice"]),
        ({"model": "base+formal", "steering": "formal"}, 400, ["twice"]),
        ({"steering": [{"name": "formal", "positions": "generatd"}]}, 400, ["Did you mean 'generated'?"]),
        ({"steering": [{"name": "formal", "positions": "f99999999999999999999"}]}, 400, ["further"]),
        ({"steering": [{"name": "formal", "strength": 1e308}]}, 400, ["finite"]),
        ({"readouts": ["nothing"]}, 404, ["'nothing'"]),
        ({"unsteered": ["thinkin"]}, 400, ["Did you mean 'thinking'?"]),
        ({"steering": ["formal"] * 17}, 400, ["at most 16"]),
        ({"tools": [{"type": "function"}]}, 400, ["tools.0.function"]),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, ["tools aren't built for this model"]),
        ({"tool_choice": "required"}, 400, ["tool_choice isn't built here"]),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 400, ["no switch for thinking"]),
        ({"response_format": {"type": "json_object"}}, 400, ["response_format isn't built here"]),
        ({"frequency_penalty": 0.5}, 400, ["frequency_penalty isn't built here"]),
        ({"temperature": 3}, 400, ["temperature"]),
        ({"n": 9}, 400, ["at most 8"]),
        ({"max_tokens": 5000}, 400, ["at most 1024"]),
        ({"top_logprobs": 2}, 400, ["needs logprobs"]),
        ({"stop": ""}, 400, ["stop"]),
        ({"messages": []}, 400, ["messages"]),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, ["tool_call_id"]),
        ({"messages": [{"role": "root", "content": "x"}]}, 400, ["role"]),
        ({"messages": [{"role": "user"}]}, 400, ["needs a content"]),
        (
            {
                "messages": [
                    {"role": "user", "content": "x", "tool_calls": []},
                    {"role": "tool", "content": "x", "tool_call_id": "1"},
                ]
            },
            400,
            ["tools aren't built for this model"],
        ),
        ({"messages": [{"role": "user", "content": "w1 " * 200}]}, 400, ["context holds 128"]),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, ["ends with the assistant"]),
    ],
)
def test_what_cant_be_served_as_asked_fails_with_a_sentence(server, body, status, words):
    for stream in (False, True):
        refused(server.chat(TEXT, **{"max_tokens": 4, "stream": stream, **body}), status, *words)


def test_a_damaged_row_fails_alone(server, engine):
    async def both():
        bad = {"model": "base", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 8}
        good = {**bad, **DRAWN}
        bad["steering"] = [{"name": "formal", "strength": 1e38}]
        return await asyncio.gather(
            *(server.client.post("/v1/chat/completions", json=b) for b in (good, bad, good, bad, good))
        )

    found = server.loop.run_until_complete(both())
    assert [r.status_code for r in found] == [200, 400, 200, 400, 200]
    refused(found[1], 400, "NaN or infinite")
    assert {text_of(r) for r in found[::2]} == {solo(engine, TEXT, None, 7, **drawn())[0].text}


def test_a_step_that_fails_is_told_to_all_and_the_next_request_is_served(server, monkeypatch):
    def broken():
        monkeypatch.undo()
        raise RuntimeError("a step that fails")

    monkeypatch.setattr(server.service.scheduler._running, "step", broken)
    refused(server.chat(TEXT, n=2, **DRAWN), 500, "the server's log says why")
    assert server.chat(TEXT, **DRAWN).status_code == 200


def test_where_the_models_thread_ends_whoever_waits_is_told(engine, tmp_path, monkeypatch):
    here = Here(engine, tmp_path)

    def broken(jobs):
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(here.service.scheduler, "_tell", broken)
    refused(here.chat(TEXT, **DRAWN), 503, "has ended")
    assert here.ask("GET", "/health").status_code == 503
    refused(here.chat(TEXT, **DRAWN), 503)
    here.close()


def test_a_call_whose_waiter_has_left_is_not_run_and_harms_nobody(server):
    scheduler, ran, go = server.service.scheduler, [], Event()
    first = scheduler.call(lambda: go.wait(30))  # the model's thread is busy with this one
    left = scheduler.call(lambda: ran.append("left"))
    failing = scheduler.call(lambda: 1 // 0)
    assert left.cancel()
    go.set()
    assert first.result(30) is True
    with pytest.raises(ZeroDivisionError):
        failing.result(30)
    assert scheduler.call(lambda: "well").result(30) == "well"
    assert ran == []
    assert scheduler.alive


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


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_uploads_are_listed_fetched_and_removed(server, engine, steerings, tmp_path):
    fresh = shift(engine, 40)
    first = put(server, "fresh", fresh)
    assert first.status_code == 201
    assert first.json()["digest"] == fresh.digest
    assert put(server, "fresh", fresh).status_code == 200
    refused(put(server, "fresh", shift(engine, 41)), 409, "never changes", "fresh-2")
    assert "fresh" in [row["name"] for row in server.ask("GET", "/v1/steerings").json()["data"]]
    assert server.ask("GET", "/v1/steerings/fresh").json()["edits"] == ["Shift"]
    (tmp_path / "got.safetensors").write_bytes(server.ask("GET", "/v1/steerings/fresh/file").content)
    assert Steering.load(tmp_path / "got.safetensors").digest == fresh.digest
    assert "tiny llama+fresh" in [m["id"] for m in server.ask("GET", "/v1/models").json()["data"]]
    assert server.ask("GET", "/v1/models/tiny llama+fresh").status_code == 200
    assert server.ask("DELETE", "/v1/steerings/fresh").json()["deleted"] is True
    refused(server.chat(TEXT, steering="fresh"), 404, "'fresh'")
    refused(server.ask("DELETE", "/v1/steerings/fresh"), 404)
    refused(server.ask("GET", "/v1/models/tiny llama+fresh"), 404)


def saved(steering, tmp_path) -> bytes:
    steering.save(tmp_path / "s.safetensors")
    return (tmp_path / "s.safetensors").read_bytes()


def test_uploads_that_arent_steerings_of_this_model_are_refused(server, engine, tmp_path):
    def upload(data, name="bad"):
        return server.ask("PUT", f"/v1/steerings/{name}", content=data)

    good = saved(shift(engine, 50), tmp_path)
    refused(upload(pickle.dumps({"a": 1})), 400, "never read")
    refused(upload(b"PK\x03\x04" + b"\0" * 400), 400, "never read")
    refused(upload(good[: len(good) // 2]), 400)
    refused(upload(b""), 400, "0 bytes")
    refused(upload(struct.pack("<Q", 2**60) + b"{}" + b"x" * 100), 400, "whole")
    refused(upload(struct.pack("<Q", 600 << 10) + b"{" + b" " * (700 << 10)), 400, "at most")
    refused(upload(struct.pack("<Q", 20) + b"{" + b"[" * 400), 400)
    wide = Steering((Intervention(Site.parse("1"), Shift(torch.ones(33))),))
    refused(upload(saved(wide, tmp_path)), 400, "width 33")
    other = shift(tiny.engine("gpt2"), 1)
    refused(upload(saved(other, tmp_path)), 400, "fitted on tiny gpt2")
    deep = Steering((Intervention(Site.parse("9"), Shift(torch.ones(32))),))
    refused(upload(saved(deep, tmp_path)), 400)
    huge = made(engine, Shift(torch.full((32,), 2e38)))
    refused(upload(saved(huge + huge, tmp_path)), 400, "strength 1", "NaN or infinite")
    assert "bad" not in [row["name"] for row in server.ask("GET", "/v1/steerings").json()["data"]]
    for name in (
        "base",
        "a b",
        "..%2fx",
        "a%2f..%2fb",
        "%00",
        "x" * 65,
        ".hidden",
        "a..b",
        "ü",
        "a+b",
        "a*b",
        "-a",
        "deadbeef",
    ):
        refused(upload(good, name), 404 if "%2f" in name else 400)
    assert not [p for p in server.service.settings.store.iterdir() if p.name.startswith(".")]


def test_a_body_that_is_too_large_or_encoded_is_refused(engine, tmp_path):
    here = Here(engine, tmp_path, body=2000, upload=3000)
    refused(here.chat("w1 " * 1000), 413, "2000 bytes")
    refused(here.ask("PUT", "/v1/steerings/x", content=b"x" * 3001), 413, "3000 bytes")
    gzip = {"content-encoding": "gzip", "content-type": "application/json"}
    refused(here.ask("POST", "/v1/chat/completions", content=b"x", headers=gzip), 415)
    refused(here.ask("POST", "/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"}), 415)
    here.close()


def test_a_store_is_read_again_and_checked(engine, tmp_path):
    here = Here(engine, tmp_path, stored=1)
    assert put(here, "kept", shift(engine, 1)).status_code == 201
    refused(put(here, "more", shift(engine, 2)), 409, "remove one")
    here.close()
    (tmp_path / ".kept.safetensors.abc.part").write_bytes(b"half")
    again = Here(engine, tmp_path)
    assert [entry.name for entry in again.service.store.all()] == ["kept"]
    assert not list(tmp_path.glob(".*"))
    again.close()
    shift(tiny.engine("gpt2"), 1).save(tmp_path / "alien.safetensors")
    with pytest.raises(Exception, match="Move it out of the folder"):
        Here(engine, tmp_path)


# --- who may, how often, how long -------------------------------------------------------------------------------------


def test_keys_and_scopes(engine, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(
        "keys:\n - {name: reader, key: reader-reader-reader}\n"
        " - {name: writer, key: writer-writer-writer, scopes: [use, upload]}\n"
    )
    here = Here(engine, tmp_path / "store", Keys.read(path, "the-key-of-the-admin"))

    def ask(method, where, key, **given):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return here.ask(method, where, headers=headers, **given).status_code

    reader, writer, admin = "reader-reader-reader", "writer-writer-writer", "the-key-of-the-admin"
    data = saved(shift(engine, 1), tmp_path)
    assert [ask("GET", "/v1/models", k) for k in (None, "wrong", "", reader, writer, admin)] == [
        401,
        401,
        401,
        200,
        200,
        200,
    ]
    assert [ask("PUT", "/v1/steerings/a", k, content=data) for k in (None, reader, writer, admin)] == [
        401,
        403,
        201,
        200,
    ]
    assert [ask("GET", "/metrics", k) for k in (None, reader, writer, admin)] == [401, 403, 403, 200]
    assert [ask("DELETE", "/v1/steerings/a", k) for k in (None, reader, writer, admin)] == [401, 403, 403, 200]
    assert [ask("GET", where, None) for where in ("/health", "/ready")] == [200, 200]
    here.close()


def test_without_keys_only_this_machines_names_are_answered(server):
    assert server.ask("GET", "/v1/models", headers={"host": "127.0.0.1:8000"}).status_code == 200
    refused(server.ask("GET", "/v1/models", headers={"host": "evil.example"}), 403, "no keys")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("keys: 3", "no list"),
        ("keys: []", "holds no key"),
        ("keys: [{name: a, key: short}]", "16 characters"),
        ("keys: [{name: a, key: long-enough-to-be-one, scopes: [usee]}]", "Did you mean 'use'"),
        ("keys: [{name: a, kee: x}]", "Did you mean 'key'"),
        (
            "keys: [{name: a, key: long-enough-to-be-one}, {name: a, key: long-enough-to-be-too}]",
            "two keys of one name",
        ),
    ],
)
def test_a_file_of_keys_is_checked(tmp_path, text, match):
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        Keys.read(tmp_path / "keys.yaml")


def test_too_many_requests_get_429_and_when_to_come_again(engine, tmp_path):
    here = Here(engine, tmp_path, rate=2)
    assert [here.chat(TEXT, max_tokens=1).status_code for _ in range(3)] == [200, 200, 429]
    told = here.chat(TEXT, max_tokens=1)
    assert refused(told, 429)["type"] == "rate_limit_error"
    assert int(told.headers["retry-after"]) >= 1
    here.close()
    here = Here(engine, tmp_path, rows=1, waiting=1)
    refused(here.chat(TEXT, n=3), 429, "as many as are taken")
    assert here.chat(TEXT, n=2, max_tokens=2).status_code == 200
    here.close()


def test_time_is_up_and_the_end_is_near(engine, tmp_path):
    here = Here(engine, tmp_path, timeout=0.001)
    refused(here.chat(TEXT, max_tokens=100), 504, "0.001 s")
    here.close()
    here = Here(engine, tmp_path)
    assert here.ask("GET", "/ready").status_code == 200
    here.service.draining = True
    refused(here.chat(TEXT), 503, "ending")
    assert here.ask("GET", "/ready").status_code == 503
    assert here.ask("GET", "/health").status_code == 200
    here.close()
    assert here.service.scheduler.alive is False


# --- what it tells of itself ------------------------------------------------------------------------------------------


def test_metrics_count_and_monitors_are_histograms(engine, tmp_path):
    here = Here(engine, tmp_path, monitors=("watched",))
    put(here, "watched", clamp(engine, 1))
    told = here.chat(TEXT, max_tokens=5, temperature=0).json()
    assert "readouts" not in told["choices"][0]["steering"]
    text = here.ask("GET", "/metrics").text
    made = told["usage"]["completion_tokens"]
    assert f'steerlab_readout_count{{steering="watched",site="resid@1"}} {made}' in text
    assert 'steerlab_requests_total{route="/v1/chat/completions",status="200"} 1' in text
    assert "steerlab_running 0" in text
    for line in text.splitlines():
        assert line.startswith("# ") or isinstance(float(line.rsplit(" ", 1)[1]), float)
    here.close()


def test_logs_are_json_lines_without_prompts(engine, tmp_path, caplog):
    secret = "w41 w42 w43"
    for prompts in (False, True):
        here = Here(engine, tmp_path, log_prompts=prompts)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="steerlab.serve"):
            assert here.chat(secret, max_tokens=2, steering=[]).status_code == 200
            here.chat(secret, steering="nothing")
        lines = [JsonLines().format(record) for record in caplog.records if record.name == "steerlab.serve"]
        rows = [json.loads(line) for line in lines]
        assert [row["status"] for row in rows] == [200, 404]
        assert rows[0]["tokens"] <= 2
        assert any(secret in line for line in lines) == prompts
        here.close()


def test_pages_of_named_origins_may_call(engine, tmp_path):
    here = Here(engine, tmp_path, cors=("https://a.example",))

    def preflight(origin):
        asks = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        }
        return here.ask("OPTIONS", "/v1/chat/completions", headers=asks)

    assert preflight("https://a.example").headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in preflight("https://b.example").headers
    here.close()


def test_paths_and_methods_that_arent_there(server):
    refused(server.ask("GET", "/v1/nothing"), 404, "/v1/nothing")
    refused(server.ask("GET", "/v1/chat/completions"), 405)
    assert server.ask("GET", "/openapi.json").status_code == 200


# --- calibrated ranges --------------------------------------------------------------------------------------------------------


RANGE = {
    "directions": {"elicit": {"sign": 1, "min_useful": 0.5, "default": 1.0, "max_safe": 1.2}},
    "budget": {"kl": 0.1},
}


@pytest.fixture
def ranged(engine, tmp_path):
    folder = tmp_path / "ranged"
    folder.mkdir()
    shift(engine, 1, range=RANGE).save(folder / "known.safetensors")
    shift(engine, 2).save(folder / "unknown.safetensors")
    here = Here(engine, folder)
    yield here
    here.close()


def applied(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["steering"]["applied"][0]


def test_an_answer_says_where_a_strength_stands_in_its_range(ranged):
    inside = applied(ranged.chat(TEXT, steering="known", max_tokens=1))
    assert inside["standing"] == "inside" and "warning" not in inside and inside["range"] == RANGE
    beyond = applied(ranged.chat(TEXT, steering=[{"name": "known", "strength": 2.0}], max_tokens=1))
    assert beyond["standing"] == "beyond" and "beyond its calibrated range" in beyond["warning"]
    assert applied(ranged.chat(TEXT, steering="unknown", max_tokens=1))["standing"] == "not calibrated"
    elsewhere = applied(ranged.chat(TEXT, steering=[{"name": "known", "positions": "generated"}], max_tokens=1))
    assert elsewhere["standing"] == "not calibrated" and "other positions" in elsewhere["warning"]


@pytest.mark.parametrize(
    ("steering", "allowed"),
    [
        ("known", True), ([{"name": "known", "strength": 1.5}], False), ([{"name": "known", "strength": -0.5}], False),
        ("unknown", False), ([{"name": "unknown", "strength": 0.0}], True),
    ],
)  # fmt: skip
def test_a_strict_request_is_held_to_calibrated_strengths(ranged, steering, allowed):
    answer = ranged.chat(TEXT, steering=steering, strict=True, max_tokens=1)
    assert answer.status_code == (200 if allowed else 400)
    if not allowed:
        assert answer.json()["error"]["code"] == "beyond_range"


def test_a_strict_server_is_never_loosened_by_a_request(engine, ranged, tmp_path):
    strict = Here(engine, tmp_path / "ranged", strict=True)
    try:
        assert strict.chat(TEXT, steering="unknown", strict=False, max_tokens=1).status_code == 400
        assert strict.chat(TEXT, model="base+2*known", max_tokens=1).status_code == 400
        assert strict.chat(TEXT, steering="known", max_tokens=1).status_code == 200
    finally:
        strict.close()
