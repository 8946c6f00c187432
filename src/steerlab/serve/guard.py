"""Around every request: its id, its time, its log line (never a prompt), and a sentence where something goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connections import PROBES, Patient
from .keys import Keys
from .metrics import Metrics
from .problems import LEFT, Problem, body

log = logging.getLogger("steerlab.serve")
LONGEST, HEADERS, MOST = 8 << 10, 32 << 10, 100  # bytes of an address and of headers, and how many of these
ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/steerings", "/tokenize",
    "/detokenize", "/version", "/api/chat", "/api/generate", "/api/tags", "/api/show", "/api/ps", "/api/version", "/metrics",
    "/health", "/ready",
)  # fmt: skip


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer, in ASCII, so that no text can break it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    return Response(text, status, {**(headers or {}), "content-type": "application/json"})


def as_problem(problem: Problem) -> Response:
    """A problem's answer."""
    return as_json(problem.body, problem.status, problem.headers)


class Room:
    """Memory for bodies that are being read, in bytes; each holds what it took until it is done with."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0

    @contextmanager
    def taking(self) -> Generator[Share]:
        """One body's share."""
        share = Share(self)
        try:
            yield share
        finally:
            self._held -= share.size

    def take(self, size: int) -> None:
        """Raise `Problem` 503 where there is no more."""
        if self._held + size > self._most:
            raise Problem(
                503, "as many uploads are being read as there is memory for; come again.", "too_busy", after=1
            )
        self._held += size


class Share:
    """What one body holds of the room."""

    def __init__(self, room: Room) -> None:
        self._room, self.size = room, 0

    def take(self, size: int) -> None:
        """Some more. Raises `Problem` 503."""
        self._room.take(size)
        self.size += size


async def read_body(
    request: Request, most: int, patience: float, take: Callable[[int], None] = lambda size: None
) -> bytes:
    """A request's body; `take` hears how much of it is kept. Raises `Problem` 408, 413 or 415."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(415, f"the body is encoded as {encoding[:40]!r}; send it as it is.", "encoded")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(patience):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    take(len(part))
                    parts.append(part)
                elif size > 4 * most:  # some more is read and dropped, so that the sender comes to hear of it
                    break
    except TimeoutError:
        raise Problem(408, f"the body didn't come within {patience:g} s.", "slow") from None
    except ClientDisconnect:
        raise Problem(LEFT, "the client left before its body was whole.", "left") from None
    if size > most:
        raise Problem(413, f"the body has more than {most} bytes, which is the most that is taken.", "too_large")
    return b"".join(parts)


class Guard:
    """The outermost layer: nothing gets past it but an answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: Keys) -> None:
        self._app, self._metrics, self._keys = app, metrics, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        name, connection = uuid.uuid4().hex, cast("Patient | None", scope.get("connection"))
        told: dict[str, Any] = scope.setdefault("state", {}).setdefault("told", {})

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            if problem := _flood(scope) or _framing(scope) or self._too_many(scope):
                await as_problem(problem)(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            if connection is None or not connection.door.ending:
                raise
            told["cancelled"] = True  # the process ends and waits no longer
        except Exception:
            log.error("a request failed", exc_info=True, extra={"told": {"id": name}})
            if not status:
                sentence = f"the server failed on this request; its log says why under {name}."
                await as_json(body(500, sentence, "internal"), 500)(scope, receive, sending)
        finally:
            seconds = time.monotonic() - began
            if told.pop("left", False) or (connection is not None and connection.left):
                status = LEFT
            path = str(scope["path"])
            route = next((r for r in ROUTES if path == r or path.startswith(r + "/")), "other")
            self._metrics.requests.add(route, str(status))
            self._metrics.seconds.note(seconds, route)
            facts = {"id": name, "method": str(scope["method"])[:16], "route": route, "status": status}
            log.info("request", extra={"told": {**facts, "seconds": round(seconds, 4), **told}})

    def _too_many(self, scope: Scope) -> Problem | None:
        """Why a connection beyond the limits isn't answered; probes are, and whoever has a key takes another one's place."""
        connection: Patient | None = scope.get("connection")
        if connection is None or connection.refused is None or scope["path"] in PROBES:
            return None
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._keys.known(headers.get(b"authorization"), headers.get(b"host"))
        except Problem:
            return connection.door.admit(connection, False)
        return connection.door.admit(connection, True)


def _framing(scope: Scope) -> Problem | None:
    """Two lengths of one body: what is between may read the one and the server the other (RFC 9112, 6.3)."""
    names = [name for name, _ in scope["headers"]]
    if b"content-length" in names and b"transfer-encoding" in names:
        return Problem(
            400, "the request has both content-length and transfer-encoding, which is how requests are smuggled; send one.",
            "two_lengths", closes=True,
        )  # fmt: skip
    return None


def _flood(scope: Scope) -> Problem | None:
    """More of a path or of headers than any client needs (the parser bounds only what comes in pieces)."""
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST:
        return Problem(414, f"the address has more than {LONGEST} bytes.", "too_large")
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > HEADERS or len(scope["headers"]) > MOST:
        return Problem(
            431, f"the headers have {size} bytes; at most {HEADERS} and {MOST} of them are read.", "too_large"
        )
    return None


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, level, words, and what was told beside them."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "said": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str).replace("\x7f", "\\u007f")


def log_lines() -> None:
    """Log as JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers[:] = [handler]
    logging.captureWarnings(True)
    for name in ("steerlab.serve", "uvicorn", "asyncio", "transformers", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "steerlab.serve" else logging.WARNING)

    def ended(told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not SystemExit and told.exc_value is not None:
            log.error(
                "a thread has ended",
                exc_info=told.exc_value,
                extra={"told": {"thread": getattr(told.thread, "name", "")}},
            )

    threading.excepthook = ended


def tell(words: str) -> None:
    """A line of the log for the person who starts the server."""
    log.info(words)
