"""Routes beside OpenAI's completions: its Responses, vLLM's words and version, and Ollama's interface."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from fastapi import FastAPI, Request
from starlette.responses import Response

from ..version import __version__
from . import ollama
from .guard import as_json
from .keys import Key
from .problems import Problem
from .responses import respond
from .service import Service
from .words import detokenized, tokenized


class Allowed(Protocol):
    """Whose request it is. Raises `Problem` 401, 403 or 429."""

    def __call__(self, request: Request, service: Service, scope: str, *, counts: bool = False) -> Key: ...


def others(app: FastAPI, service: Service, allowed: Allowed) -> None:
    """Put them on a server."""

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        allowed(request, service, "use", counts=True)
        return await respond(request, service)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        allowed(request, service, "use", counts=True)
        return as_json(await tokenized(request, service))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        allowed(request, service, "use", counts=True)
        return as_json(await detokenized(request, service))

    @app.get("/version")
    async def version(request: Request) -> Response:
        allowed(request, service, "use")
        return as_json({"version": __version__})

    for used in (responses, tokenize, detokenize, version):
        assert used  # FastAPI holds them
    _ollama(app, service, allowed)


def _ollama(app: FastAPI, service: Service, allowed: Allowed) -> None:
    async def answered(
        request: Request, answer: Callable[[], Awaitable[Response]], *, counts: bool = False
    ) -> Response:
        try:
            allowed(request, service, "use", counts=counts)
            return await answer()
        except Problem as problem:  # as Ollama has it: a sentence alone
            return as_json({"error": problem.sentence}, problem.status, problem.headers)

    @app.post("/api/chat")
    async def chat(request: Request) -> Response:
        return await answered(request, lambda: ollama.chat(request, service, ollama.OllamaChat), counts=True)

    @app.post("/api/generate")
    async def generate(request: Request) -> Response:
        return await answered(request, lambda: ollama.chat(request, service, ollama.OllamaGenerate), counts=True)

    @app.post("/api/show")
    async def show(request: Request) -> Response:
        return await answered(request, lambda: ollama.show(request, service))

    @app.get("/api/tags")
    async def tags(request: Request) -> Response:
        return await answered(request, lambda: ollama.tags(service))

    @app.get("/api/ps")
    async def running(request: Request) -> Response:
        return await answered(request, lambda: ollama.tags(service))

    @app.get("/api/version")
    async def version(request: Request) -> Response:
        return await answered(request, ollama.version)

    for used in (chat, generate, show, tags, running, version):
        assert used
