"""What the server says of itself at /openapi.json: FastAPI's description, with our bodies, answers and errors put in."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .ollama import NDJSON, OllamaChat, OllamaGenerate, OllamaShow
from .responses import ResponsesRequest
from .schema import ChatRequest, TextRequest
from .words import DetokenizeRequest, TokenizeRequest

JSON, BYTES, EVENTS, TEXT = "application/json", "application/octet-stream", "text/event-stream", "text/plain"
REF = "#/components/schemas/{model}"
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "a sentence for a person"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"], "description": "a word for programs"},
            },
        }
    },
}
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": TextRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/api/chat": OllamaChat,
    "/api/generate": OllamaGenerate,
    "/api/show": OllamaShow,
}
STREAMS = {
    "/v1/chat/completions": EVENTS, "/v1/completions": EVENTS, "/v1/responses": EVENTS,
    "/api/chat": NDJSON, "/api/generate": NDJSON,
}  # fmt: skip
NOT_JSON = {"/metrics": TEXT, "/v1/steerings/{name}/file": BYTES}


def described(app: FastAPI) -> dict[str, Any]:
    """The description; the same object at each call."""
    if app.openapi_schema is None:
        app.openapi_schema = _made(app)
    return app.openapi_schema


def _made(app: FastAPI) -> dict[str, Any]:
    whole = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, defined = models_json_schema([(kind, "validation") for kind in BODIES.values()], ref_template=REF)
    parts: dict[str, Any] = {"Error": ERROR, **defined["$defs"]}
    key = {"type": "http", "scheme": "bearer"}
    whole["components"] = {"schemas": parts, "securitySchemes": {"key": key}}
    whole["security"] = [{"key": []}]
    for path, methods in whole["paths"].items():
        for method, told in methods.items():
            told["responses"] = _answers(path, method)
            if path in BODIES:
                ref = {"$ref": REF.format(model=BODIES[path].__name__)}
                told["requestBody"] = {"required": True, "content": {JSON: {"schema": ref}}}
            elif method == "put":
                ref = {"type": "string", "format": "binary"}
                told["requestBody"] = {"required": True, "content": {BYTES: {"schema": ref}}}
    return whole


def _answers(path: str, method: str) -> dict[str, Any]:
    kinds = [NOT_JSON.get(path, JSON), *([STREAMS[path]] if path in STREAMS else [])]
    fine = {"description": "done", "content": {kind: {} for kind in kinds}}
    error = {"content": {JSON: {"schema": {"$ref": REF.format(model="Error")}}}}
    refused = {"description": "refused, with a sentence that says why", **error}
    later = {"description": "the server is ending, not ready or too slow", **error}
    if path in ("/health", "/ready"):
        return {"200": fine, "503": {**fine, "description": "not now"}}
    made = {"201": {**fine, "description": "kept; 200 where it was kept before"}} if method == "put" else {}
    return {"200": fine, **made, "4XX": refused, "503": later, "504": later}
