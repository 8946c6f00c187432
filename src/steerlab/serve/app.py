"""The routes: who may ask, what is asked, and the answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from ..errors import SteerlabError
from ..version import __version__
from .completions import complete
from .described import BYTES, described
from .guard import Guard, as_json, as_problem, read_body
from .keys import Key
from .others import others
from .problems import Problem
from .schema import ChatRequest, TextRequest
from .service import Service


def app_of(service: Service) -> FastAPI:
    """The server of a service, which must have been started."""
    app = FastAPI(title="steerlab", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(SteerlabError, _mistake)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(Guard, metrics=service.metrics, keys=service.keys)
    if service.settings.cors:  # outermost, so that a page can read the guard's refusals, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after", "etag"],
        )
    _completions(app, service)
    _steerings(app, service)
    _state(app, service)
    others(app, service, _allowed)
    app.openapi = lambda: described(app)
    return app


def _completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        _allowed(request, service, "use", counts=True)
        return await complete(request, service, ChatRequest)

    @app.post("/v1/completions")
    async def text(request: Request) -> Response:
        _allowed(request, service, "use", counts=True)
        return await complete(request, service, TextRequest)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _allowed(request, service, "use")
        names = [service.model, *(f"{service.model}+{entry.name}" for entry in service.store.all())]
        return as_json({"object": "list", "data": [_model(service, name) for name in names]})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        _allowed(request, service, "use")
        service.known(name)
        return as_json(_model(service, name))

    for used in (chat, text, models, model):
        assert used  # FastAPI holds them


def _steerings(app: FastAPI, service: Service) -> None:
    @app.get("/v1/steerings")
    async def steerings(request: Request) -> Response:
        _allowed(request, service, "use")
        return as_json({"object": "list", "data": [entry.told() for entry in service.store.all()]})

    @app.get("/v1/steerings/{name}")
    async def steering(request: Request, name: str) -> Response:
        _allowed(request, service, "use")
        return as_json(service.store.get(name).told())

    @app.get("/v1/steerings/{name}/file")
    async def file(request: Request, name: str) -> Response:
        _allowed(request, service, "use")
        entry = service.store.get(name)
        data = await run_in_threadpool(service.store.bytes_of, entry)
        return Response(
            data, media_type=BYTES, headers={"etag": f'"{entry.digest}"', "x-content-type-options": "nosniff"}
        )

    @app.put("/v1/steerings/{name}")
    async def upload(request: Request, name: str) -> Response:
        _allowed(request, service, "upload", counts=True)
        if service.draining:
            raise Problem(503, "the server is ending; ask another one.", "ending", after=5)
        # its size is counted as it comes, so that nobody waits for those who send slowly
        with service.room.taking() as room:
            data = await read_body(request, service.settings.upload, service.settings.patience, room.take)
            async with service.uploads:  # a few at a time: each is read whole and tried
                entry, new = await service.upload(name, data)
        request.state.told["steering"] = entry.name
        return as_json({**entry.told(), "created": new}, 201 if new else 200)

    @app.delete("/v1/steerings/{name}")
    async def remove(request: Request, name: str) -> Response:
        _allowed(request, service, "admin")
        entry = await run_in_threadpool(service.remove, name)
        digest = None if entry is None else entry.digest
        return as_json({"object": "steering", "name": name, "digest": digest, "deleted": True})

    for used in (steerings, steering, file, upload, remove):
        assert used


def _state(app: FastAPI, service: Service) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        well = service.scheduler.alive
        return as_json({"status": "well" if well else "the model's thread has ended"}, 200 if well else 503)

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> Response:
        why = service.unready
        return as_json({"status": why or "ready"}, 503 if why else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _allowed(request, service, "admin")
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    for used in (health, ready, metrics):
        assert used


def _allowed(request: Request, service: Service, scope: str, *, counts: bool = False) -> Key:
    """Whose request it is. Raises `Problem` 401, 403 or 429."""
    key = service.keys.known(request.headers.get("authorization"), request.headers.get("host"))
    request.state.told["key"] = key.name
    if (connection := request.scope.get("connection")) is not None:
        connection.proven = True
    if not key.may(scope):
        raise Problem(403, f"this key may not do this; it takes one with the scope {scope!r}.", "scope")
    if counts:
        service.buckets.take(key.name)
    return key


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.began, "owned_by": "steerlab"}


async def _problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return as_problem(problem)


async def _mistake(_: Request, problem: Exception) -> Response:
    return as_problem(Problem(400, str(problem), "bad_value"))


async def _http(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    path = request.url.path[:80]
    words = {404: f"there is nothing at {path!r}.", 405: f"{request.method[:16]} can't be done at {path!r}."}
    sentence = words.get(problem.status_code, str(problem.detail)[:200])
    told = Problem(problem.status_code, sentence)
    return as_json(told.body, told.status, dict(problem.headers or {}))
