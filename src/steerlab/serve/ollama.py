"""Ollama's interface, as far as its clients need it to chat: /api/chat and generate, tags, show, ps, version.

Each request is a chat like any other; lines of JSON are streamed unless `stream` is false. What isn't said has this server's
defaults, not Ollama's, so that an answer is the one that /v1/chat/completions gives.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from ..version import __version__
from .completions import Exchange, begin, body_of
from .guard import as_json
from .problems import Problem
from .scheduler import Done, Event, Moved
from .schema import WRITTEN, ChatRequest, Finite, Name, Strict, Term, Tool, parsed
from .service import Service
from .talk import Told

NDJSON = "application/x-ndjson"
VERSION = "0.30.0"  # of Ollama's interface; its clients ask


def _no_images(given: object) -> object:
    if given:
        raise PydanticCustomError(
            "not_text", "images can't be read: this server's models take text alone; leave them out"
        )
    return None


Images = Annotated[None, BeforeValidator(_no_images)]
Model = Annotated[str, Field(min_length=1, max_length=2048)]


class OllamaFunction(Strict):
    """What was called, its arguments as an object."""

    name: Name
    arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    index: int | None = None


class OllamaCall(Strict):
    """A call that the assistant made in an earlier turn."""

    function: OllamaFunction
    id: str | None = None


class OllamaMessage(Strict):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    images: Images = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=64)] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class OllamaOptions(Strict):
    """How a reply is drawn."""

    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    num_predict: Annotated[int, Field(ge=-2)] | None = None
    stop: Annotated[list[Name], Field(max_length=64)] | Name | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    repeat_last_n: int | None = None

    # at their default only
    typical_p: Annotated[Finite, Field(ge=1, le=1)] | None = None
    tfs_z: Annotated[Finite, Field(ge=1, le=1)] | None = None
    mirostat: Literal[0] | None = None

    # taken and left: how Ollama runs a model
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    numa: bool | None = None
    low_vram: bool | None = None


class OllamaAsked(Strict):
    """What a chat and a text to be gone on with share."""

    model: Model
    options: OllamaOptions | None = None
    format: Literal["json", ""] | dict[str, Any] | None = None
    stream: bool = True
    think: bool | None = None
    keep_alive: str | float | int | None = None  # taken and left: the model stays
    steering: Annotated[list[Term], Field(max_length=256), WRITTEN] | None = None
    strict: bool | None = None


class OllamaChat(OllamaAsked):
    """The body of /api/chat."""

    messages: Annotated[list[OllamaMessage], Field(min_length=1, max_length=512)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None


class OllamaGenerate(OllamaAsked):
    """The body of /api/generate: a prompt that the chat template is written around."""

    prompt: Annotated[str, Field(min_length=1)]
    system: str | None = None
    images: Images = None
    raw: Literal[False] | None = None


class OllamaShow(Strict):
    """The body of /api/show."""

    model: Model
    verbose: bool | None = None


async def chat(request: Request, service: Service, kind: type[OllamaChat] | type[OllamaGenerate]) -> Response:
    """The answer to /api/chat or /api/generate. Raises `Problem`."""
    asked = parsed(kind, await body_of(request, service, untyped=True))
    answer = _Answer(asked, await begin(request, service, _as_chat(asked, service)))
    if not asked.stream:
        return as_json(answer.whole((await answer.exchange.whole(request))[0]))
    return await answer.exchange.stream(request, answer.written, NDJSON)


async def tags(service: Service) -> Response:
    """The model, alone and under each steering."""
    names = [service.model, *(f"{service.model}+{entry.name}" for entry in service.store.all())]
    made = datetime.fromtimestamp(service.began, UTC).isoformat()
    known = {"modified_at": made, "size": 0, "digest": "", "details": _details()}
    return as_json({"models": [{"name": name, "model": name, **known} for name in names]})


async def show(request: Request, service: Service) -> Response:
    """What the model is. Raises `Problem` 404."""
    asked = parsed(OllamaShow, await body_of(request, service, untyped=True))
    service.known(_bare(asked.model))
    can = {"completion": True, "tools": service.form.calls is not None, "thinking": service.form.switch}
    return as_json({
        "modelfile": "", "parameters": "", "template": service.prompts.template, "details": _details(),
        "model_info": {"general.architecture": "steerlab", "steerlab.context_length": service.engine.context},
        "capabilities": [name for name, does in can.items() if does],
    })  # fmt: skip


async def version() -> Response:
    """The version of Ollama's interface, and ours."""
    return as_json({"version": VERSION, "steerlab": __version__})


def _details() -> dict[str, Any]:
    return {
        "parent_model": "", "format": "safetensors", "family": "steerlab", "families": ["steerlab"], "parameter_size": "",
        "quantization_level": "",
    }  # fmt: skip


def _bare(model: str) -> str:
    return model.removesuffix(":latest")


def _as_chat(asked: OllamaChat | OllamaGenerate, service: Service) -> ChatRequest:
    """The same as a chat of ours."""
    options = asked.options or OllamaOptions()
    if options.repeat_penalty not in (None, 1) and options.repeat_last_n != -1:
        raise Problem(
            400, "repeat_penalty looks at the whole prompt and reply here; say so with repeat_last_n -1, or leave it out.",
            "unsupported", param="options",
        )  # fmt: skip
    same = {"temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty"}
    told: dict[str, Any] = {
        "model": _bare(asked.model), "stream": asked.stream, **options.model_dump(include=same),
        "repetition_penalty": options.repeat_penalty, "max_tokens": _tokens(options.num_predict, service),
        "response_format": _form(asked.format), "strict": asked.strict,
        "steering": None if asked.steering is None else [term.model_dump(exclude_none=True) for term in asked.steering],
        "chat_template_kwargs": None if asked.think is None else {"enable_thinking": asked.think},
    }  # fmt: skip
    if asked.think is False and not service.form.switch:
        told["chat_template_kwargs"] = None  # a model that can't think doesn't
    if isinstance(asked, OllamaGenerate):
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        told["messages"] = [*system, {"role": "user", "content": asked.prompt}]
    else:
        told["messages"] = _messages(asked.messages)
        told["tools"] = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()] or None
        told["continue_final_message"] = asked.messages[-1].role == "assistant" or None  # as Ollama does
    return parsed(ChatRequest, json.dumps({k: v for k, v in told.items() if v is not None}).encode())


def _tokens(wanted: int | None, service: Service) -> int | None:
    return service.settings.most_tokens if wanted is not None and wanted <= 0 else wanted


def _form(wanted: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not wanted:
        return None
    return {"type": "json_object"} if isinstance(wanted, str) else {"type": "json_object", "schema": wanted}


def _messages(turns: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """Turns as OpenAI has them; calls without ids get some, and a tool's answer that of the first call that is open."""
    made: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []
    for turn in turns:
        told: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.thinking and turn.role == "assistant":
            told["reasoning_content"] = turn.thinking
        for call in turn.tool_calls or ():
            name = call.id or f"call_{len(made)}_{len(waiting)}"
            waiting.append((name, call.function.name))
            function = {"name": call.function.name, "arguments": json.dumps(call.function.arguments)}
            told.setdefault("tool_calls", []).append({"id": name, "function": function})
        if turn.role == "tool":
            told["tool_call_id"] = turn.tool_call_id or _answered(turn.tool_name, waiting)
            waiting = [one for one in waiting if one[0] != told["tool_call_id"]]
        made.append(told)
    return made


def _answered(tool: str | None, waiting: Sequence[tuple[str, str]]) -> str:
    for name, function in waiting:
        if tool in (None, function):
            return name
    raise Problem(400, f"a tool ({tool or 'without a name'}) answers, which no turn before it called.", "bad_value")


class _Answer:
    def __init__(self, asked: OllamaChat | OllamaGenerate, exchange: Exchange) -> None:
        self._asked, self.exchange, self._began = asked, exchange, time.monotonic()

    def whole(self, done: Done) -> dict[str, Any]:
        told = self.exchange.form.reader().more(done.reply.text, final=True)
        return {**self._line(told), **self._end(done)}

    async def written(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        reader = self.exchange.form.reader()
        try:
            async for _, event in events:
                if isinstance(event, Moved):
                    told = reader.more(event.text)
                    if any(told):
                        yield _written({**self._line(told), "done": False})
                elif isinstance(event, Done):
                    yield _written({**self._line(reader.more("", final=True)), **self._end(event)})
        except Problem as problem:
            yield _written({"error": problem.sentence})

    def _line(self, told: Told) -> dict[str, Any]:
        head = {"model": self._asked.model, "created_at": datetime.now(UTC).isoformat()}
        if isinstance(self._asked, OllamaGenerate):
            return {**head, "response": told.content, **({"thinking": told.thinking} if told.thinking else {})}
        calls = [{"function": {"name": c.name, "arguments": json.loads(c.arguments)}} for c in told.calls]
        message: dict[str, Any] = {"role": "assistant", "content": told.content}
        message |= {"thinking": told.thinking} if told.thinking else {}
        return {**head, "message": {**message, **({"tool_calls": calls} if calls else {})}}

    def _end(self, done: Done) -> dict[str, Any]:
        took = int(1e9 * (time.monotonic() - self._began))
        usage = self.exchange.form.usage([done])
        return {
            "done": True, "done_reason": "stop" if done.reply.finish == "stop" else "length", "total_duration": took,
            "load_duration": 0, "prompt_eval_count": usage["prompt_tokens"], "prompt_eval_duration": 0,
            "eval_count": usage["completion_tokens"], "eval_duration": took, "steering": self.exchange.form.applied(),
        }  # fmt: skip


def _written(content: dict[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"
