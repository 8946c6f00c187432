"""Routes beside OpenAI's completions, each through a client as people have it: Responses, words, versions, Ollama's interface."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Literal

import openai
import pydantic
import pytest

from serving import Listening, refused, shift
from test_serve_asked import ASK, NARROW, SCHEMA, random
from test_serve_tools import OPENS, QWEN, QWEN3, ROME, Scripted

FLAT = {"type": "function", **NARROW["function"]}


class Made(pydantic.BaseModel):
    """What a client has parsed."""

    model_config = {"extra": "forbid"}
    n: Annotated[int, pydantic.Field(ge=0, le=99)]
    kind: Literal["a", "bb"]


@pytest.fixture(scope="module")
def engine():
    return random(QWEN3)


@pytest.fixture(scope="module")
def steerings(engine):
    """What the server of `conftest` has."""
    return {"firm": shift(engine, 1)}


@pytest.fixture(scope="module")
def address(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("listening")
    shift(engine, 1).save(folder / "firm.safetensors")
    with Listening(engine, folder) as listening:
        yield listening.address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def plain(server, **body):
    told = server.post("/v1/chat/completions", messages=ASK, **body)
    assert told.status_code == 200, told.text
    return told.json()["choices"][0]


# --- the openai client ----------------------------------------------------------------------------------------------------


def test_the_openai_client_parses_sends_back_and_calls(client):
    how = {"model": "base+0.5*firm", "seed": 3, "temperature": 1.0}
    parsed = client.chat.completions.parse(messages=ASK, response_format=Made, max_tokens=120, **how).choices[0].message
    assert isinstance(parsed.parsed, Made)
    assert client.chat.completions.create(messages=[*ASK, parsed.model_dump(warnings=False), *ASK], max_tokens=5, **how)
    first = client.chat.completions.create(messages=ASK, max_tokens=20, **how).choices[0].message
    again = client.chat.completions.create(messages=[*ASK, first.model_dump(), *ASK], max_tokens=5, **how)
    assert again.usage.completion_tokens <= 5
    called = client.chat.completions.parse(
        messages=ASK, tools=[NARROW], tool_choice="required", parallel_tool_calls=False, max_tokens=300, **how
    ).choices[0].message  # fmt: skip
    (call,) = called.tool_calls
    assert call.function.parsed_arguments["city"] in ("Rome", "Oslo")
    turns = [*ASK, called.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "22"}]
    assert client.chat.completions.create(messages=turns, tools=[NARROW], tool_choice="none", max_tokens=5, **how)


def test_the_openai_client_streams_a_form_and_asks_at_once(client, address):
    how = {"model": "base", "seed": 3, "max_tokens": 120}
    form = {"type": "json_schema", "json_schema": {"name": "made", "schema": SCHEMA, "strict": True}}
    with client.chat.completions.stream(messages=ASK, response_format=Made, **how) as stream:
        last = stream.until_done().get_final_completion()
    assert isinstance(last.choices[0].message.parsed, Made)

    async def both():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as there:
            asked = [
                there.chat.completions.create(messages=ASK, **{**how, "seed": n}, response_format=form)
                for n in range(3)
            ]
            return await asyncio.gather(*asked)

    for one in asyncio.run(both()):
        assert Made.model_validate_json(one.choices[0].message.content)


# --- /v1/responses ----------------------------------------------------------------------------------------------------------


def test_a_response_is_the_chat(client, server):
    how = {"model": "base+0.5*firm", "temperature": 0.9, "extra_body": {"seed": 5}}
    made = client.responses.create(input="Some words.", max_output_tokens=30, store=False, **how)
    chat = plain(server, model="base+0.5*firm", temperature=0.9, seed=5, max_tokens=30)
    assert made.output_text == chat["message"]["content"]
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert made.usage.output_tokens == 30
    assert made.model_dump()["steering"]["applied"][0]["strength"] == 0.5
    turns = [{"role": "user", "content": [{"type": "input_text", "text": "Some words."}]}, *made.output, *ASK]
    longer = client.responses.create(input=turns, instructions="Be brief.", max_output_tokens=5, **how)
    assert longer.usage.input_tokens > made.usage.input_tokens
    parsed = client.responses.parse(input="Some words.", text_format=Made, max_output_tokens=200, **how)
    assert isinstance(parsed.output_parsed, Made) and parsed.status == "completed"
    back = [{"role": "user", "content": "a"}, *(item.model_dump() for item in parsed.output), *ASK]
    assert client.responses.create(input=back, max_output_tokens=5, **how)


def test_a_response_streams_its_items(client):
    how = {"model": "base", "input": "Some words.", "max_output_tokens": 30, "extra_body": {"seed": 5}}
    whole = client.responses.create(**how)
    events = list(client.responses.create(stream=True, **how))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage
    with client.responses.stream(**how) as stream:  # the client's own state machine takes every event
        assert stream.until_done() and events[-1].type in ("response.incomplete", "response.completed")
    with client.responses.stream(text_format=Made, **{**how, "max_output_tokens": 200}) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Made)


def test_a_response_calls_and_goes_on(client):
    how = {
        "model": "base",
        "tools": [FLAT],
        "max_output_tokens": 300,
        "extra_body": {"seed": 5},
        "parallel_tool_calls": False,
    }
    made = client.responses.create(input="Some words.", tool_choice={"type": "function", "name": "weather"}, **how)
    (call,) = made.output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    turns = [*ASK, call, {"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}]
    longer = client.responses.create(input=turns, **{**how, "max_output_tokens": 5})
    assert longer.usage.input_tokens > made.usage.input_tokens
    events = list(client.responses.create(input="Some words.", tool_choice="required", stream=True, **how))
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments


def test_thinking_is_an_item_of_its_own(tmp_path):
    server = Scripted(OPENS, tmp_path)
    asked = {"input": ASK[0]["content"], "temperature": 0, "max_output_tokens": 100}
    length = server.here.post("/v1/responses", **{**asked, "max_output_tokens": 1}).json()["usage"]["input_tokens"]
    server.says("Rome, hm.\n</think>\n\nWarm.", length)
    whole = server.here.post("/v1/responses", **asked).json()
    streamed = server.here.post("/v1/responses", stream=True, **asked).text.strip().split("\n\n")
    last = json.loads(streamed[-1].split("data: ", 1)[1])["response"]
    for told in (whole, last):
        assert [(i["type"], i["content"][0]["text"]) for i in told["output"]] == [
            ("reasoning", "Rome, hm."),
            ("message", "Warm."),
        ]
    server.here.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": "a", "previous_response_id": "resp_1"}, "nothing is stored"),
        ({"input": []}, "input"), ({"input": "a", "background": True}, "background"), ({"input": "a", "inputs": 1}, "inputs"),
        ({"input": [{"type": "message", "role": "user"}]}, "needs content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "text alone"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "no turn before it made"),
        ({"input": "a", "model": "gpt-5"}, "no model"),
    ],
)  # fmt: skip
def test_what_a_response_cant_be_is_told(server, body, words):
    for stream in (False, True):
        error = server.post("/v1/responses", stream=stream, **body)
        assert words in error.json()["error"]["message"] and error.status_code in (400, 404), error.text


# --- words and versions -----------------------------------------------------------------------------------------------------


def test_words_and_back(server, engine):
    told = server.post("/tokenize", prompt="Some words.", return_token_strs=True).json()
    assert told["tokens"] == engine.renderer.text_ids("Some words.") and told["count"] == len(told["tokens"])
    assert (told["max_model_len"], "".join(told["token_strs"])) == (engine.context, "Some words.")
    assert server.post("/detokenize", tokens=told["tokens"]).json() == {"prompt": "Some words."}
    chat = server.post("/tokenize", messages=ASK).json()["tokens"]
    asked = server.post("/v1/chat/completions", messages=ASK, max_tokens=1, return_token_ids=True).json()
    assert chat == asked["prompt_token_ids"]
    assert "<|im_start|>" in server.post("/detokenize", tokens=chat).json()["prompt"]
    refused(server.post("/tokenize", prompt="a", messages=ASK), 400, "one of them")
    refused(server.post("/detokenize", tokens=[10**6]), 400, "no token 1000000")
    refused(server.post("/tokenize", prompt="a", model="gpt-5"), 404, "no model")


def test_versions_and_probes(server):
    from steerlab.version import __version__

    assert server.ask("GET", "/version").json() == {"version": __version__}
    for path in ("/health", "/ready"):
        assert server.ask("HEAD", path).status_code == server.ask("GET", path).status_code == 200
    described = server.ask("GET", "/openapi.json").json()["paths"]
    assert {"/v1/responses", "/tokenize", "/api/chat"} <= set(described)


# --- Ollama -----------------------------------------------------------------------------------------------------------------


def lines(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def test_ollamas_chat_is_the_chat(server):
    options = {"temperature": 0.9, "seed": 5, "num_predict": 30, "num_ctx": 4096}
    asked = {"model": "base+0.5*firm:latest", "messages": ASK, "options": options}
    whole = server.post("/api/chat", stream=False, think=False, keep_alive="5m", **asked).json()
    chat = plain(server, model="base+0.5*firm", temperature=0.9, seed=5, max_tokens=30)
    streamed = lines(server.post("/api/chat", **asked))
    thought = server.post("/api/chat", stream=False, **asked).json()
    assert thought["message"]["content"] == chat["message"]["content"]
    assert (thought["done"], thought["done_reason"], thought["eval_count"]) == (True, "length", 30)
    assert "".join(line["message"]["content"] for line in streamed) == chat["message"]["content"]
    assert [line["done"] for line in streamed] == [False] * (len(streamed) - 1) + [True]
    assert whole["prompt_eval_count"] > thought["prompt_eval_count"]  # think=False writes an empty thought
    told = server.post("/api/generate", model="base", prompt="Some words.", options=options, stream=False).json()
    assert told["response"] == plain(server, temperature=0.9, seed=5, max_tokens=30)["message"]["content"]
    made = lines(server.post("/api/chat", **{**asked, "options": {**options, "num_predict": 200}}, format=SCHEMA))
    assert Made.model_validate_json("".join(line["message"]["content"] for line in made))


def test_ollamas_tools(tmp_path):
    server = Scripted(QWEN, tmp_path)
    asked = {"model": "base", "messages": ASK, "tools": [NARROW], "options": {"temperature": 0, "num_predict": 200}}
    length = server.here.post("/api/chat", **asked, stream=False).json()["prompt_eval_count"]
    server.says(f"<tool_call>{ROME}</tool_call>", length)
    for message in (server.here.post("/api/chat", stream=False, **asked).json()["message"],
                    lines(server.here.post("/api/chat", **asked))[0]["message"]):  # fmt: skip
        assert message["tool_calls"] == [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    turns = [*ASK, message, {"role": "tool", "tool_name": "weather", "content": "22 degrees"}]
    assert server.here.post("/api/chat", **{**asked, "messages": turns}).status_code == 200
    server.here.close()


def test_what_ollamas_clients_ask_first(server):
    models = server.ask("GET", "/api/tags").json()["models"]
    assert [m["model"] for m in models] == ["scripted", "scripted+firm"]
    shown = server.post("/api/show", model="scripted:latest").json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert server.ask("GET", "/api/version").json()["version"].count(".") == 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "llama3"}, 404, "no model"), ({"messages": []}, 400, "messages"), ({"formt": "json"}, 400, "formt"),
        ({"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, 400, "text alone"),
        ({"options": {"repeat_penalty": 1.1}}, 400, "repeat_last_n -1"), ({"options": {"mirostat": 1}}, 400, "mirostat"),
        ({"messages": [*ASK, {"role": "tool", "content": "x", "tool_name": "f"}]}, 400, "no turn before it called"),
    ],
)  # fmt: skip
def test_what_ollamas_chat_cant_be_is_told_as_ollama_does(server, body, status, words):
    told = server.post("/api/chat", **{"messages": ASK, **body})
    assert told.status_code == status and words in told.json()["error"], told.text


def test_a_body_without_a_type_is_taken_by_ollamas_routes_unless_a_page_sends_it(server):
    body = json.dumps({"model": "base", "messages": ASK, "stream": False, "options": {"num_predict": 2}})
    ask = lambda path, **headers: server.ask("POST", path, content=body, headers=headers).status_code  # noqa: E731
    assert ask("/api/chat") == ask("/api/chat", **{"content-type": "application/x-www-form-urlencoded"}) == 200
    assert ask("/api/chat", origin="https://example.org") == ask("/api/chat", **{"sec-fetch-site": "cross-site"}) == 415
    assert ask("/api/chat", **{"content-type": "text/plain"}) == ask("/v1/chat/completions") == 415
