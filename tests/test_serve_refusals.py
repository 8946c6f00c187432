"""What the server can't serve as asked, and what fails on the way: each is told to whoever waits, and harms nobody else."""

from __future__ import annotations

import asyncio
import time
from threading import Event

import pytest

from serving import DRAWN, TEXT, Here, drawn, refused, solo, text_of
from steerlab.engines.base import Sampling
from steerlab.engines.hf_serving import Ask
from steerlab.serve.scheduler import Done, Job


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
        ({"tool_choice": "required"}, 400, ["no tools are offered"]),
        ({"tool_choice": "always"}, 400, ["tool_choice"]),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 400, ["no switch for thinking"]),
        ({"response_format": {"type": "json_schema"}}, 400, ["needs a json_schema"]),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, 400, ["needs one of"]),
        ({"structured_outputs": {"regex": "("}}, 400, ["a grammar can't be used with this model's tokenizer"]),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, 400, ["two forms"]),
        ({"frequency_penalty": 2.5}, 400, ["frequency_penalty"]),
        ({"logit_bias": {"a": 1}}, 400, ["logit_bias"]),
        ({"logit_bias": {"999999": 1}}, 400, ["logit_bias names the token 999999"]),
        ({"stop_token_ids": [999999]}, 400, ["stop_ids names the token 999999"]),
        ({"min_tokens": 9}, 400, ["min_new_tokens is 9"]),
        ({"length_penalty": 2}, 400, ["length_penalty isn't built here (only 1)"]),
        ({"mirostat": 2}, 400, ["mirostat isn't taken here"]),
        ({"functions": []}, 400, ["use tools"]),
        ({"echo": True, "logprobs": True}, 400, ["echo with logprobs"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            400,
            ["image_url can't be read", "text alone"],
        ),
        ({"continue_final_message": True}, 400, ["the last turn is the user's"]),
        ({"continue_final_message": True, "add_generation_prompt": True}, 400, ["give one"]),
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
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            400,
            ["ends with the assistant", "continue_final_message"],
        ),
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


def waiting_job(here) -> Job:
    """A reply that somebody could ask for."""
    return Job(Ask(here.service.prompts.text(TEXT), None, Sampling(2)), lambda event: None)


def test_a_step_that_fails_is_told_to_all_and_the_next_request_is_served(server, monkeypatch):
    def broken():
        monkeypatch.undo()
        raise RuntimeError("a step that fails")

    monkeypatch.setattr(server.service.scheduler._running, "step", broken)
    refused(server.chat(TEXT, n=2, **DRAWN), 500, "the server's log says why")
    assert server.chat(TEXT, **DRAWN).status_code == 200


@pytest.mark.parametrize("where", ["_tell", "_drop", "_taken"])
def test_what_fails_unexpectedly_fails_its_replies_under_a_name_that_the_log_has(server, monkeypatch, caplog, where):
    def broken(*_):
        monkeypatch.undo()
        raise RuntimeError("nobody expects this")

    scheduler = server.service.scheduler
    job, found = waiting_job(server), []
    job.tell = found.append
    with scheduler._wake:  # not before it is there
        monkeypatch.setattr(scheduler, where, broken)
        scheduler.submit([job])
    until = time.monotonic() + 30
    while not found and time.monotonic() < until:
        time.sleep(0.01)
    if where != "_tell":  # it waits still, and is served after all
        while not isinstance(found[-1], Done) and time.monotonic() < until:
            time.sleep(0.01)
        assert isinstance(found[-1], Done)
    else:
        told = [r.told["id"] for r in caplog.records if "given up" in r.getMessage()]
        assert [f.problem.status for f in found] == [500]
        assert told and told[0] in found[0].problem.sentence
        assert "RuntimeError: nobody expects this" in caplog.text
    assert server.chat(TEXT, **DRAWN).status_code == 200
    assert "steerlab_failures_total" in server.ask("GET", "/metrics").text


@pytest.mark.parametrize("problem", [SystemExit(1), RuntimeError("CUDA error: device-side assert triggered")])
def test_where_the_models_thread_ends_whoever_waits_is_told(engine, tmp_path, monkeypatch, problem):
    here = Here(engine, tmp_path)

    def broken():
        raise problem

    monkeypatch.setattr(here.service.scheduler._running, "step", broken)
    told = here.chat(TEXT, **DRAWN)
    assert told.status_code in (500, 503)
    here.service.scheduler._thread.join(30)
    for path in ("/health", "/ready"):
        assert here.ask("GET", path).status_code == 503
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
