"""Other people's clients against a running server; run by an environment that has them: python clients.py ADDRESS MODEL.

Prints one JSON object a line: the client, what was tried, and what went wrong (nothing, where it worked).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import sys
import traceback
from typing import Literal

from pydantic import BaseModel

ADDRESS, MODEL = sys.argv[1:]
STEERED = f"{MODEL}+0.5*pirate"
ASK = [{"role": "user", "content": "Describe a kitchen."}]
LONGEST = 40
CHECKS = []


class Room(BaseModel):
    """A room of a house."""

    kind: Literal["kitchen", "bedroom"]
    size: Literal["small", "large"]


def check(client, what):
    def kept(function):
        CHECKS.append((client, what, function))
        return function

    return kept


# --- openai -------------------------------------------------------------------------------------------------------------


def openai_client(kind="OpenAI"):
    import openai

    return getattr(openai, kind)(base_url=f"{ADDRESS}/v1", api_key="none", max_retries=0)


@check("openai", "chat, and its message sent back")
def _():
    client, how = openai_client(), {"model": STEERED, "max_tokens": LONGEST, "seed": 1}
    first = client.chat.completions.create(messages=ASK, **how).choices[0].message
    assert first.content
    again = client.chat.completions.create(messages=[*ASK, first.model_dump(), *ASK], **how)
    assert again.choices[0].message.content and again.usage.completion_tokens


@check("openai", "stream, as the whole")
def _():
    client, how = openai_client(), {"model": STEERED, "messages": ASK, "max_tokens": LONGEST, "seed": 1}
    whole = client.chat.completions.create(**how).choices[0].message.content
    with client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **how) as stream:
        parts = list(stream)
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole and parts[-1].usage


@check("openai", "async, eight at once and streams")
def _():
    async def many():
        async with openai_client("AsyncOpenAI") as client:
            how = {"model": STEERED, "messages": ASK, "max_tokens": LONGEST}
            found = await asyncio.gather(*(client.chat.completions.create(seed=n, **how) for n in range(8)))
            stream = await client.chat.completions.create(seed=3, stream=True, **how)
            text = "".join([p.choices[0].delta.content or "" async for p in stream if p.choices])
            assert text == found[3].choices[0].message.content

    asyncio.run(many())


@check("openai", "chat.completions.parse")
def _():
    how = {"model": STEERED, "messages": ASK, "max_tokens": 60}
    message = openai_client().chat.completions.parse(response_format=Room, **how).choices[0].message
    assert isinstance(message.parsed, Room)


@check("openai", "chat.completions.stream, parsed")
def _():
    how = {"model": STEERED, "messages": ASK, "max_tokens": 60}
    with openai_client().chat.completions.stream(response_format=Room, **how) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Room)


TOOL = {
    "type": "function",
    "function": {
        "name": "room",
        "strict": True,
        "parameters": {**Room.model_json_schema(), "additionalProperties": False},
    },
}


@check("openai", "tools: required, named, strict, streamed, answered")
def _():
    client, how = openai_client(), {"model": STEERED, "tools": [TOOL], "max_tokens": 160, "parallel_tool_calls": False}
    first = client.chat.completions.create(messages=ASK, tool_choice="required", seed=1, **how).choices[0]
    (call,) = first.message.tool_calls
    assert first.finish_reason == "tool_calls" and Room.model_validate_json(call.function.arguments)
    turns = [*ASK, first.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    assert client.chat.completions.create(messages=turns, **{**how, "max_tokens": 20}).choices[0].message
    named = {"type": "function", "function": {"name": "room"}}
    with client.chat.completions.create(messages=ASK, tool_choice=named, stream=True, **how) as stream:
        parts = [call for p in stream for call in p.choices[0].delta.tool_calls or ()]
    assert Room.model_validate_json("".join(p.function.arguments for p in parts))


@check("openai", "text completions, logprobs, echo")
def _():
    client = openai_client()
    made = client.completions.create(model=STEERED, prompt=["Once upon", "A room"], max_tokens=8, logprobs=2, seed=1)
    assert len(made.choices) == 2 and made.choices[0].logprobs.tokens
    told = client.completions.create(model=STEERED, prompt="Once upon", max_tokens=8, echo=True, seed=1)
    assert told.choices[0].text == "Once upon" + made.choices[0].text


@check("openai", "responses: create, stream, parse")
def _():
    client, how = openai_client(), {"model": STEERED, "input": "Describe a kitchen.", "max_output_tokens": LONGEST}
    made = client.responses.create(**how, extra_body={"seed": 1})
    with client.responses.stream(**how, extra_body={"seed": 1}) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert made.output_text and text == made.output_text
    assert isinstance(client.responses.parse(text_format=Room, **{**how, "max_output_tokens": 60}).output_parsed, Room)


@check("openai", "models, and errors as its own classes")
def _():
    import openai

    client = openai_client()
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    for wrong, kind in (({"model": "gpt-5"}, openai.NotFoundError), ({"temperature": 9}, openai.BadRequestError)):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": ASK, **wrong})
        except kind:
            continue
        raise AssertionError(f"{wrong} was taken")


def _id(text):
    """A text that is one token of the model's, by /tokenize."""
    import httpx

    told = httpx.post(f"{ADDRESS}/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert told["count"] == 1
    return told["tokens"][0]


# --- LangChain ----------------------------------------------------------------------------------------------------------


def langchain(**how):
    from langchain_openai import ChatOpenAI

    given = {
        "model": STEERED,
        "base_url": f"{ADDRESS}/v1",
        "api_key": "none",
        "max_retries": 0,
        "max_tokens": 60,
        "seed": 1,
    }
    return ChatOpenAI(**{**given, **how})


@check("langchain-openai", "invoke, with turns of its own")
def _():
    from langchain_core.messages import HumanMessage, SystemMessage

    model = langchain()
    first = model.invoke([SystemMessage("Be brief."), HumanMessage("Describe a kitchen.", name="Ann")])
    assert first.content and first.usage_metadata["output_tokens"]
    assert model.invoke([HumanMessage("Describe a kitchen."), first, HumanMessage("And a bedroom?")]).content


@check("langchain-openai", "stream, as the whole")
def _():
    model = langchain(stream_usage=True)
    parts = list(model.stream("Describe a kitchen."))
    assert "".join(p.content for p in parts) == model.invoke("Describe a kitchen.").content


@check("langchain-openai", "batch and async batch")
def _():
    model, asked = langchain(), ["Describe a kitchen.", "Describe a bedroom.", "Describe a garden."]
    assert all(m.content for m in model.batch(asked))
    assert all(m.content for m in asyncio.run(model.abatch(asked)))


@check("langchain-openai", "structured output: json_schema, json_mode")
def _():
    for method in ("json_schema", "json_mode"):
        usual = (
            {} if method == "json_schema" else {"logit_bias": {_id("{"): 50, _id("}"): 100}}
        )  # some object, which soon ends
        model = langchain(**usual).with_structured_output(Room if method == "json_schema" else None, method=method)
        room = model.invoke("Describe a kitchen.")
        assert isinstance(room, Room if method == "json_schema" else dict)


@check("langchain-openai", "tools bound, structured output by function_calling")
def _():
    assert isinstance(
        langchain(max_tokens=160).with_structured_output(Room, method="function_calling").invoke("A kitchen?"), Room
    )
    from langchain_core.messages import HumanMessage, ToolMessage

    model = langchain(max_tokens=160).bind_tools([Room], tool_choice="any", parallel_tool_calls=False)
    first = model.invoke("A kitchen?")
    (call,) = first.tool_calls
    assert Room(**call["args"])
    turns = [HumanMessage("A kitchen?"), first, ToolMessage("done", tool_call_id=call["id"])]
    assert langchain(max_tokens=20).invoke(turns).content is not None


@check("langchain-openai", "the Responses interface")
def _():
    model = langchain(use_responses_api=True, seed=None)
    assert model.invoke("Describe a kitchen.").text
    assert "".join(str(p.text) for p in model.stream("Describe a kitchen."))


# --- LiteLLM ------------------------------------------------------------------------------------------------------------


def litellm(**how):
    import litellm

    litellm.suppress_debug_info = True
    given = {
        "model": f"openai/{STEERED}",
        "api_base": f"{ADDRESS}/v1",
        "api_key": "none",
        "num_retries": 0,
        "messages": ASK,
    }
    return litellm.completion(**{**given, "max_tokens": 60, "seed": 1, **how})


@check("litellm", "completion, and its message sent back")
def _():
    message = litellm().choices[0].message
    assert message.content
    assert litellm(messages=[*ASK, message.model_dump(), *ASK]).choices[0].message.content


@check("litellm", "stream, as the whole")
def _():
    parts = [p.choices[0].delta.content or "" for p in litellm(stream=True)]
    assert "".join(parts) == litellm().choices[0].message.content


@check("litellm", "async")
def _():
    import litellm as library

    async def many():
        how = {
            "model": f"openai/{STEERED}",
            "api_base": f"{ADDRESS}/v1",
            "api_key": "none",
            "messages": ASK,
            "max_tokens": 20,
        }
        return await asyncio.gather(*(library.acompletion(**how) for _ in range(4)))

    assert all(one.choices[0].message.content for one in asyncio.run(many()))


@check("litellm", "response_format of a pydantic model")
def _():
    assert Room.model_validate_json(litellm(response_format=Room).choices[0].message.content)


@check("litellm", "tools")
def _():
    (call,) = (
        litellm(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=160)
        .choices[0]
        .message.tool_calls
    )
    assert Room.model_validate_json(call.function.arguments)


@check("litellm", "hosted_vllm, with vLLM's own fields")
def _():
    told = litellm(model=f"hosted_vllm/{STEERED}", top_k=20, min_p=0.05, repetition_penalty=1.1)
    assert told.choices[0].message.content


@check("litellm", "ollama_chat")
def _():
    assert litellm(model=f"ollama_chat/{STEERED}", api_base=ADDRESS).choices[0].message.content


# --- ollama -------------------------------------------------------------------------------------------------------------


def ollama():
    import ollama

    return ollama.Client(host=ADDRESS)


@check("ollama", "chat and stream")
def _():
    how = {"model": STEERED, "messages": ASK, "options": {"seed": 1, "num_predict": LONGEST}}
    whole = ollama().chat(**how).message.content
    parts = list(ollama().chat(stream=True, **how))
    assert whole and "".join(p.message.content for p in parts) == whole and parts[-1].done


@check("ollama", "format of a schema")
def _():
    told = ollama().chat(model=STEERED, messages=ASK, format=Room.model_json_schema(), options={"num_predict": 60})
    assert Room.model_validate_json(told.message.content)


@check("ollama", "generate, list, show, and errors as its own class")
def _():
    import ollama as library

    client = ollama()
    assert client.generate(model=MODEL, prompt="Describe a kitchen.", options={"num_predict": LONGEST}).response
    assert MODEL in [m.model for m in client.list().models]
    assert client.show(MODEL).capabilities == ["completion", "tools"]
    try:
        client.chat(model="llama3", messages=ASK)
        told = ""
    except library.ResponseError as problem:
        told = f"{problem.status_code} {problem.error}"
    assert told.startswith("404 there is no model"), told


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    for client, what, function in CHECKS:
        problem = ""
        try:
            function()
        except Exception:  # noqa: BLE001  (whatever it is belongs into the table)
            problem = traceback.format_exc(limit=-3)
        version = importlib.metadata.version(client)
        print(json.dumps({"client": client, "version": version, "what": what, "problem": problem}), flush=True)
