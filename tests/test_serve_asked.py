"""What clients ask for beyond OpenAI's basics: penalties, forms, certain calls, prefill, echo; as the engine alone has it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from serving import Here, pieces, refused, shift
from steerlab.contrast import Message
from steerlab.engines.base import Sampling
from steerlab.engines.render import Extras
from steerlab.serve.fields import LLAMA_CPP, OPENAI, VLLM, rows, table
from steerlab.serve.forms import _closed
from test_serve_tools import LLAMA, OPENS, QWEN, QWEN3
from test_serve_tools import engine as scripted

ASK = [{"role": "user", "content": "Some words."}]
SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["a", "bb"]}},
    "required": ["n", "kind"], "additionalProperties": False,
}  # fmt: skip
NARROW = {
    "type": "function",
    "function": {
        "name": "weather", "strict": True, "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
OTHER = {
    "type": "function",
    "function": {"name": "other", "parameters": {"type": "object", "additionalProperties": False}},
}


def random(template: str, **how):
    """A random model over bytes, which says anything at all."""
    made = scripted(template, **how)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def engine():
    return random(QWEN3)


@pytest.fixture(scope="module")
def steerings(engine):
    """What the server of `conftest` has."""
    return {"firm": shift(engine, 1)}


def chat(server, **body):
    return server.post("/v1/chat/completions", **{"messages": ASK, "max_tokens": 40, "seed": 3, **body})


def choice(server, **body):
    """The reply to a request, whole and streamed, which have to be the same."""
    told = chat(server, **body)
    assert told.status_code == 200, told.text
    one = told.json()["choices"][0]
    streamed = chat(server, stream=True, **body)
    deltas = [c["delta"] for p in pieces(streamed.text) for c in json.loads(p)["choices"]]
    assert "".join(d.get("content") or "" for d in deltas) == (one["message"]["content"] or "")
    calls = [call["function"] for d in deltas for call in d.get("tool_calls", ())]
    assert calls == [call["function"] for call in one["message"].get("tool_calls", ())]
    return one


@pytest.mark.parametrize(
    ("body", "drawn"),
    [
        ({"min_p": 0.7}, {"min_p": 0.7}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ({"frequency_penalty": -1.5}, {"frequency_penalty": -1.5}),
        ({"logit_bias": {"70": 9, "66": -100}}, {"logit_bias": ((70, 9.0), (66, -100.0))}),
        ({"stop_token_ids": list(range(60, 120))}, {"stop_ids": tuple(range(60, 120))}),
        ({"ignore_eos": True, "logit_bias": {"257": 5}}, {"ignore_end": True, "logit_bias": {257: 5.0}}),
        ({"min_tokens": 20, "logit_bias": {"257": 5}}, {"min_new_tokens": 20, "logit_bias": {257: 5.0}}),
        ({"stop": list("abcdefgh")}, {"stop": tuple("abcdefgh")}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": -1}, {}),
        ({"top_k": 0}, {}),
    ],
)
def test_what_is_drawn_is_what_the_engine_draws_alone(server, engine, body, drawn):
    steering = server.service.store.get("firm").steering
    said = choice(server, steering="firm", **body)
    alone = engine.generate([[Message("user", "Some words.")]], steering, Sampling(40, 1.0, seed=3, **drawn))[0]
    assert said["message"]["content"] == alone.text
    assert said["finish_reason"] == alone.finish


def test_nulls_names_and_what_a_client_sends_back(server):
    plain = choice(server)
    nothing = dict.fromkeys(
        ["audio", "functions", "verbosity", "readouts", "nonsense", "tools", "response_format", "stop", "echo"]
    )
    asked = [{**ASK[0], "name": "Ann", "audio": None}]
    assert choice(server, messages=asked, **nothing) == plain
    sent = {
        "content": "Yes.", "refusal": None, "role": "assistant", "annotations": None, "audio": None, "function_call": None,
        "tool_calls": None,
    }  # fmt: skip
    told = chat(
        server, messages=[*ASK, sent, *ASK], parallel_tool_calls=False, tool_choice="none", user="me", store=False
    )
    assert told.status_code == 200, told.text


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
)
def test_a_reply_has_the_form_of_a_schema(server, body):
    for temperature in (0, 1.3):
        said = choice(server, steering="firm", temperature=temperature, max_tokens=200, **body)
        made = json.loads(said["message"]["content"])
        assert set(made) == {"n", "kind"} and 0 <= made["n"] <= 99 and made["kind"] in ("a", "bb")
        assert said["finish_reason"] == "stop"


def test_objects_have_the_properties_that_their_schema_names(server):
    """Left free, a model writes others without end; where the schema speaks of others, or joins parts, it is as it is."""
    loose = {k: v for k, v in SCHEMA.items() if k != "additionalProperties"}
    nested = {
        "type": "object", "required": ["all"], "$defs": {"one": loose},
        "properties": {"all": {"type": "array", "items": {"$ref": "#/$defs/one"}, "minItems": 1, "maxItems": 2}},
    }  # fmt: skip
    for seed in range(4):
        how = {"max_tokens": 300, "seed": seed}
        one = json.loads(choice(server, structured_outputs={"json": loose}, **how)["message"]["content"])
        many = json.loads(choice(server, structured_outputs={"json": nested}, **how)["message"]["content"])
        assert all(set(made) == {"n", "kind"} for made in (one, *many["all"]))
    assert json.loads(_closed({**loose, "additionalProperties": True}))["additionalProperties"] is True
    joined = {"allOf": [loose, {"properties": {"more": {"type": "string"}}}]}
    assert json.loads(_closed(joined)) == joined
    assert json.loads(_closed({"properties": {"properties": {"type": "string"}}}))["properties"] == {
        "properties": {"type": "string"}
    }


def test_other_forms(server):
    assert choice(server, structured_outputs={"choice": ["yes.", "no"]})["message"]["content"] in ("yes.", "no")
    assert re.fullmatch("[0-9]{3}x", choice(server, structured_outputs={"regex": "[0-9]{3}x"})["message"]["content"])
    text = server.post("/v1/completions", prompt="a", max_tokens=9, structured_outputs={"regex": "[0-9]{3}x"}).json()
    assert re.fullmatch("[0-9]{3}x", text["choices"][0]["text"])
    some = choice(
        server, response_format={"type": "json_object"}, logit_bias={"92": 100}, max_tokens=60
    )  # ends: id of "}"
    assert some["message"]["content"].startswith("{")
    assert choice(server, response_format={"type": "text"}) == choice(server)


@pytest.mark.parametrize("template", [QWEN, LLAMA])
@pytest.mark.parametrize("marks_are_special", [False, True])
def test_calls_that_are_certain(template, marks_are_special, tmp_path):
    made = random(template, marks_are_special=marks_are_special)
    here = Here(made, tmp_path)
    for asked, names in (
        ("required", {"weather", "other"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ):
        for seed in range(4):
            said = choice(
                here, tools=[NARROW, OTHER], tool_choice=asked, parallel_tool_calls=False, max_tokens=400, seed=seed
            )
            (call,) = said["message"]["tool_calls"]
            assert (said["finish_reason"], said["message"]["content"]) == ("tool_calls", None)
            assert call["function"]["name"] in names
            arguments = json.loads(call["function"]["arguments"])
            assert arguments in (
                [{"city": "Rome"}, {"city": "Oslo"}] if call["function"]["name"] == "weather" else [{}]
            )
    refused(chat(here, tools=[OTHER], tool_choice={"function": {"name": "othr"}}), 400, "Did you mean 'other'?")
    here.close()


def test_strict_tools_may_be_called_and_then_have_their_schema(server, engine):
    """A bias for the mark makes a call likely, and nothing makes it certain."""
    (mark,) = engine.tokenizer("<tool_call>", add_special_tokens=False)["input_ids"]
    called = 0
    for seed in range(6):
        said = choice(
            server,
            tools=[NARROW, OTHER],
            seed=seed,
            max_tokens=300,
            logit_bias={str(mark): 6},
            parallel_tool_calls=False,
        )
        for call in said["message"].get("tool_calls", ()):
            called += 1
            if call["function"]["name"] == "weather":
                assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
        assert len(said["message"].get("tool_calls", ())) <= 1
        if said["finish_reason"] == "tool_calls":
            assert "<tool_call>" not in (said["message"]["content"] or "")
    assert called >= 3


def test_a_form_begins_after_thinking_that_the_template_began(tmp_path):
    made = random(OPENS)
    (end,) = made.tokenizer("</think>", add_special_tokens=False)["input_ids"]
    here = Here(made, tmp_path)
    said = choice(here, structured_outputs={"regex": "[0-9]{3}x"}, logit_bias={str(end): 4}, max_tokens=300)["message"]
    assert said["reasoning_content"] and re.fullmatch("[0-9]{3}x", said["content"])
    here.close()


def test_steered_rows_with_forms_and_penalties_share_a_batch_with_plain_ones(server):
    import asyncio

    bodies = [
        {"steering": "firm", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"steering": "firm"}, {}, {"presence_penalty": 2, "model": "base-1*firm"},
        {"tools": [NARROW], "tool_choice": "required", "steering": "firm"},
    ]  # fmt: skip
    bodies = [{**b, "max_tokens": 120, "seed": n} for n, b in enumerate(bodies * 2)]
    alone = [choice(server, **body) for body in bodies]

    async def together():
        return await asyncio.gather(
            *(server.client.post("/v1/chat/completions", json={"model": "base", "messages": ASK, **b}) for b in bodies)
        )

    for one, told in zip(alone, server.loop.run_until_complete(together()), strict=True):
        said = told.json()["choices"][0]
        assert (said["message"]["content"], said["finish_reason"]) == (one["message"]["content"], one["finish_reason"])


def test_a_message_that_was_begun_is_gone_on_with(server, engine):
    begun = [*ASK, {"role": "assistant", "content": "It is a"}]
    turns = [Message("user", "Some words."), Message("assistant", "It is a")]
    prompt = engine.renderer.prompt(turns, Extras(continues=True)).ids
    assert engine.tokenizer.decode(prompt).endswith("<|im_start|>assistantIt is a")
    told = chat(server, messages=begun, continue_final_message=True, return_token_ids=True).json()
    assert told["prompt_token_ids"] == prompt
    said = choice(server, messages=begun, continue_final_message=True, add_generation_prompt=False, echo=True)
    assert said["message"]["content"] == "It is a" + told["choices"][0]["message"]["content"]
    bare = chat(server, add_generation_prompt=False, return_token_ids=True).json()["prompt_token_ids"]
    assert engine.tokenizer.decode(bare).endswith("Some words.<|im_end|>")
    new = chat(server, messages=begun, add_generation_prompt=True, return_token_ids=True).json()["prompt_token_ids"]
    assert engine.tokenizer.decode(new).endswith("It is a<|im_end|><|im_start|>assistant")


def test_a_text_is_told_again(server):
    asked = {"prompt": ["Once", [65, 66]], "n": 2, "max_tokens": 8, "seed": 4}
    plain, echoed = (server.post("/v1/completions", echo=e, **asked).json()["choices"] for e in (False, True))
    words = ["Once", "Once", *[server.service.prompts.words([65, 66])] * 2]
    assert [c["text"] for c in echoed] == [word + c["text"] for word, c in zip(words, plain, strict=True)]
    streamed = server.post("/v1/completions", echo=True, stream=True, **asked)
    for n, one in enumerate(echoed):
        mine = [c for p in pieces(streamed.text) for c in json.loads(p)["choices"] if c["index"] == n]
        assert "".join(c["text"] for c in mine) == one["text"]


# --- every field of other servers ---------------------------------------------------------------------------------------

VALUES = {
    **dict.fromkeys(["max_completion_tokens", "max_tokens", "min_tokens", "n", "seed", "top_k"], 1),
    "messages": ASK, "model": "base", "response_format": {"type": "json_object"}, "stream_options": {"include_usage": True},
    "tools": [OTHER], "tool_choice": "auto", "stop": ["x"], "logit_bias": {"70": 1}, "chat_template_kwargs": {},
    "structured_outputs": {"regex": "a+"}, "stop_token_ids": [5], "temperature": 0.5, "top_p": 0.5, "top_logprobs": 0,
    "min_p": 0.1, "repetition_penalty": 1.2, "frequency_penalty": 1, "presence_penalty": 1,
    "reasoning_effort": "none", "modalities": ["text"], "verbosity": "medium", "length_penalty": 1, "priority": 0,
    "include_stop_str_in_output": False, "use_beam_search": False, "add_special_tokens": False, "metadata": {"a": "b"},
    "user": "me", "safety_identifier": "me", "service_tier": "auto", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"}, "request_id": "r", "cache_salt": "s", "continue_final_message": False,
}  # fmt: skip


@pytest.mark.parametrize(("name", "here"), [(name, here) for name, _, here, _ in rows()])
def test_the_table_of_fields_says_what_happens(server, name, here):
    value = VALUES.get(name, True)
    told = chat(server, **{"max_tokens": 1, name: value})
    if here == "refused":
        error = refused(told, 400, name, "isn't taken here")
        assert error["param"] == name
    else:
        assert told.status_code == 200, (name, told.text)
    if here == "its default":
        refused(chat(server, **{name: "other"}), 400, name, "isn't built here")


def test_the_tables_fields_are_those_of_the_openai_client():
    import typing

    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

    assert set(OPENAI.split()) == set(typing.get_type_hints(CompletionCreateParamsNonStreaming))
    assert len(VLLM.split()) > 50 < len(LLAMA_CPP.split())


def test_the_docs_have_the_table():
    """Written by `python -c "from steerlab.serve.forms import _closed
    from steerlab.serve.fields import table; print(table())"`."""
    docs = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    assert docs.split("<!-- fields -->\n")[1].split("<!-- /fields -->")[0] == table()
