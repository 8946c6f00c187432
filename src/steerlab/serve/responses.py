"""OpenAI's /v1/responses, for text: translated into a chat, and its reply into items, whole or as events.

Nothing is stored, so that an answer can't be gone on with by its id; the whole conversation is sent each time.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BeforeValidator, Field, model_validator
from starlette.responses import Response

from .completions import Exchange, begin, body_of
from .guard import as_json
from .problems import Problem
from .scheduler import Done, Event, Moved
from .schema import WRITTEN, ChatRequest, Finite, Name, Span, Strict, Term, parsed, text_alone
from .service import Service
from .talk import Told


class Part(Strict):
    """A piece of a message's text."""

    type: Literal["input_text", "output_text", "text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None  # as the openai client dumps it; left


Parts = Annotated[str | Annotated[list[Part], Field(max_length=256)], BeforeValidator(text_alone)]


class Item(Strict):
    """A turn: a message, a call of a tool, what a tool gave, or thinking (which is left)."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: Parts | None = None
    id: str | None = None
    status: str | None = None
    summary: list[Any] | None = None
    encrypted_content: str | None = None
    phase: str | None = None
    parsed_arguments: Any = None  # as the openai client dumps it; left

    @model_validator(mode="after")
    def _checked(self) -> Item:
        needs = {
            "message": ("role", "content"), "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"), "reasoning": (),
        }[self.type]  # fmt: skip
        if missing := [name for name in needs if getattr(self, name) is None]:
            raise ValueError(f"an item of type {self.type} needs {' and '.join(missing)}")
        return self


class Tool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Strict):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    name: Name


class Format(Strict):
    """The form of the reply."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Name | None = None
    description: str | None = None
    body: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class Text(Strict):
    """How the text is written."""

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """Whether to think."""

    effort: Literal["none"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(Strict):
    """The body of /v1/responses."""

    model: Annotated[str, Field(min_length=1, max_length=2048)]
    input: str | Annotated[list[Item], Field(min_length=1, max_length=512)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    steering: Annotated[list[Term], Field(max_length=256), WRITTEN] | None = None
    strict: bool | None = None
    unsteered: Annotated[list[Span], Field(max_length=8)] | None = None

    # at their default only
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    top_logprobs: Literal[0] | None = None

    # taken and left: nothing is stored, whatever is asked
    store: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    stream_options: dict[str, Any] | None = None
    previous_response_id: str | None = None  # refused with a sentence of its own


async def respond(request: Request, service: Service) -> Response:
    """The answer. Raises `Problem` for what can't be served as it stands."""
    asked = parsed(ResponsesRequest, await body_of(request, service))
    if asked.previous_response_id is not None:
        raise Problem(
            400, "nothing is stored here, so there is no previous response; send the whole conversation as input.",
            "unsupported", param="previous_response_id",
        )  # fmt: skip
    exchange = await begin(request, service, _chat(asked))
    answer = Answer(asked, exchange)
    if not asked.stream:
        return as_json(answer.whole((await exchange.whole(request))[0]))
    return await exchange.stream(request, answer.written)


def _chat(asked: ResponsesRequest) -> ChatRequest:
    """The same as a chat."""
    told: dict[str, Any] = {
        "max_tokens": asked.max_output_tokens, "stream": asked.stream, "messages": _messages(asked),
        "response_format": _format(asked.text.format if asked.text else None),
        "tool_choice": asked.tool_choice if not isinstance(asked.tool_choice, Choice) else
        {"type": "function", "function": {"name": asked.tool_choice.name}},
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "tools": [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in asked.tools or ()
        ] or None,
    }  # fmt: skip
    same = {
        "model",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "parallel_tool_calls",
        "steering",
        "strict",
        "unsteered",
    }
    told |= asked.model_dump(include=same, exclude_none=True)
    return parsed(ChatRequest, json.dumps({k: v for k, v in told.items() if v is not None}).encode())


def _messages(asked: ResponsesRequest) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    items = [Item(role="user", content=asked.input)] if isinstance(asked.input, str) else asked.input
    for item in items:
        if item.type == "message":
            made.append({"role": item.role, "content": _text(item.content)})
        elif item.type == "function_call":
            call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
            if not made or made[-1]["role"] != "assistant":
                made.append({"role": "assistant"})
            made[-1].setdefault("tool_calls", []).append(call)
        elif item.type == "function_call_output":
            made.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return made


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content if isinstance(part, Part))


def _format(form: Format | None) -> dict[str, Any] | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": form.name or "reply", "schema": form.body or {}}}


class Answer:
    """A reply as a response: items that are complete, and the events that told of them."""

    def __init__(self, asked: ResponsesRequest, exchange: Exchange) -> None:
        self._asked, self._exchange, self._form = asked, exchange, exchange.form
        self._id, self._created = f"resp_{exchange.form.id}", int(time.time())
        self._items: list[dict[str, Any]] = []
        self._open = ""  # the part that is being written: thinking or content
        self._number = 0

    def whole(self, done: Done) -> dict[str, Any]:
        """The answer in one piece."""
        self._heard(self._form.reader().more(done.reply.text, final=True), final=True)
        return self._told(done)

    async def written(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        """The answer as events."""
        reader = self._form.reader()
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._told(None))
        try:
            async for _, event in events:
                if isinstance(event, Moved):
                    for one in self._heard(reader.more(event.text)):
                        yield one
                elif isinstance(event, Done):
                    for one in self._heard(reader.more("", final=True), final=True):
                        yield one
                    told = self._told(event)
                    yield self._event(f"response.{told['status']}", response=told)
        except Problem as problem:
            error = problem.body["error"]
            yield self._event("error", code=error["code"], message=error["message"], param=error["param"])

    def _told(self, done: Done | None) -> dict[str, Any]:
        asked = self._asked
        cut = done is not None and done.reply.finish != "stop"
        status = "in_progress" if done is None else "incomplete" if cut else "completed"
        usage = None if done is None else self._form.usage([done])
        counts = None if usage is None else {
            "input_tokens": usage["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }  # fmt: skip
        written = asked.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens, "model": asked.model, "output": list(self._items),
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "previous_response_id": None, "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p, "text": written.get("text", {"format": {"type": "text"}}),
            "tool_choice": written.get("tool_choice", "auto"), "tools": written.get("tools", []), "truncation": "disabled",
            "metadata": asked.metadata or {}, "usage": counts, "steering": self._form.applied(),
        }  # fmt: skip

    def _heard(self, told: Told, *, final: bool = False) -> list[str]:
        """What is new of a reply, as events."""
        events: list[str] = []
        for part, text in (("thinking", told.thinking), ("content", told.content)):
            if text:
                if self._open != part:
                    events += [*self._closed(), *self._opened(part)]
                events.append(self._grown(text))
        if told.calls or final:
            events += self._closed()
        for call in told.calls:
            events += self._called(call.name, call.arguments)
        if final and not any(item["type"] in ("message", "function_call") for item in self._items):
            events += [*self._opened("content"), *self._closed()]  # an empty reply is a message, too
        return events

    def _opened(self, part: str) -> list[str]:
        self._open, thinks = part, part == "thinking"
        kind, name = ("reasoning", "rs") if thinks else ("message", "msg")
        item: dict[str, Any] = {
            "type": kind,
            "id": f"{name}_{uuid.uuid4().hex}",
            "status": "in_progress",
            "content": [],
        }
        item |= {"summary": []} if thinks else {"role": "assistant"}
        self._items.append(item)
        events = [self._event("response.output_item.added", output_index=self._last, item=item)]
        item["content"] = [
            {"type": "reasoning_text", "text": ""} if thinks else {"type": "output_text", "text": "", "annotations": []}
        ]
        return [*events, self._event("response.content_part.added", part=item["content"][0], **self._where)]

    def _grown(self, text: str) -> str:
        self._items[-1]["content"][0]["text"] += text
        return self._event(f"response.{self._kind}.delta", delta=text, **self._where, **self._logprobs)

    def _closed(self) -> list[str]:
        if not self._open:
            return []
        item = self._items[-1]
        part, kind, self._open, where = item["content"][0], self._kind, "", self._where
        item["status"] = "completed"
        logprobs = {"logprobs": []} if kind == "output_text" else {}
        return [
            self._event(f"response.{kind}.done", text=part["text"], **where, **logprobs),
            self._event("response.content_part.done", part=part, **where),
            self._event("response.output_item.done", output_index=self._last, item=item),
        ]

    def _called(self, name: str, arguments: str) -> list[str]:
        item = {
            "type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": f"call_{uuid.uuid4().hex[:24]}", "name": name,
            "arguments": "", "status": "in_progress",
        }  # fmt: skip
        self._items.append(item)
        events = [self._event("response.output_item.added", output_index=self._last, item=item)]
        at = {"item_id": item["id"], "output_index": self._last}
        item |= {"arguments": arguments, "status": "completed"}
        return [
            *events,
            self._event("response.function_call_arguments.delta", delta=arguments, **at),
            self._event("response.function_call_arguments.done", arguments=arguments, name=name, **at),
            self._event("response.output_item.done", output_index=self._last, item=item),
        ]

    @property
    def _last(self) -> int:
        return len(self._items) - 1

    @property
    def _kind(self) -> str:
        return "reasoning_text" if self._open == "thinking" else "output_text"

    @property
    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": []} if self._open == "content" else {}

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": self._last, "content_index": 0}

    def _event(self, kind: str, **more: Any) -> str:
        content = json.dumps({"type": kind, "sequence_number": self._number, **more}, allow_nan=False)
        self._number += 1
        return f"event: {kind}\ndata: {content}\n\n"
