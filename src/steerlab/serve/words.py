"""Texts and conversations as token ids, and back, as vLLM's server tells them: /tokenize and /detokenize."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool

from ..errors import SteerlabError
from .completions import body_of
from .problems import Problem
from .schema import ChatMessage, ChatRequest, Ids, Strict, TemplateArguments, Tool, parsed
from .service import Service
from .turns import conversation


class TokenizeRequest(Strict):
    """The body of /tokenize: a text, or a conversation as a chat would have it."""

    model: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=512)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    add_special_tokens: bool = True  # of a text: begun as the model's texts begin
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _checked(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt (a text) or messages (a conversation), one of them")
        return self


class DetokenizeRequest(Strict):
    """The body of /detokenize."""

    model: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    tokens: Ids


async def tokenized(request: Request, service: Service) -> dict[str, Any]:
    """The ids. Raises `Problem`."""
    asked = parsed(TokenizeRequest, await body_of(request, service))
    _known(service, asked.model)
    ids = await run_in_threadpool(_ids, asked, service)
    words = {"token_strs": service.prompts.told(ids)} if asked.return_token_strs else {}
    return {"count": len(ids), "max_model_len": service.engine.context, "tokens": ids, **words}


async def detokenized(request: Request, service: Service) -> dict[str, Any]:
    """The text. Raises `Problem`."""
    asked = parsed(DetokenizeRequest, await body_of(request, service))
    _known(service, asked.model)
    most = service.prompts.vocabulary
    if wrong := [i for i in asked.tokens if i >= most]:
        raise Problem(
            400, f"there is no token {wrong[0]}; expected ids from 0 to {most - 1}.", "bad_value", param="tokens"
        )
    return {"prompt": service.prompts.words(asked.tokens, special=True)}


def _ids(asked: TokenizeRequest, service: Service) -> list[int]:
    try:
        if asked.prompt is not None:
            service.check_length(asked.prompt)
            return service.prompts.spelled(asked.prompt, begun=asked.add_special_tokens)
        fields = {"prompt", "model", "add_special_tokens", "return_token_strs"}
        told = {"model": "base", **asked.model_dump(exclude=fields, exclude_none=True)}
        chat = parsed(ChatRequest, json.dumps(told).encode())
        service.check_length("\n".join(m.text for m in chat.messages))
        return list(conversation(chat, service, None).ids)
    except SteerlabError as problem:
        raise Problem(400, str(problem), "bad_value") from problem


def _known(service: Service, model: str | None) -> None:
    if model is not None:
        service.known(model)
