"""Around every request: its id, its time, its log line (never a prompt), and a sentence where something goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import uuid
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .problems import Problem, body

log = logging.getLogger("steerlab.serve")
LONGEST, HEADERS, MOST = 8 << 10, 32 << 10, 100  # bytes of an address and of headers, and how many of these
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/steerings", "/metrics", "/health", "/ready")


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer, in ASCII, so that no text can break it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    return Response(text, status, {**(headers or {}), "content-type": "application/json"})


def as_problem(problem: Problem) -> Response:
    """A problem's answer."""
    return as_json(problem.body, problem.status, problem.headers)


async def read_body(request: Request, most: int, patience: float) -> bytes:
    """A request's body. Raises `Problem` 408, 413 or 415."""
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
                    parts.append(part)
                elif size > 4 * most:  # some more is read and dropped, so that the sender comes to hear of it
                    break
    except TimeoutError:
        raise Problem(408, f"the body didn't come within {patience:g} s.", "slow") from None
    except ClientDisconnect:
        raise Problem(400, "the client left before its body was whole.", "left") from None
    if size > most:
        raise Problem(413, f"the body has more than {most} bytes, which is the most that is taken.", "too_large")
    return b"".join(parts)


class Guard:
    """The outermost layer: nothing gets past it but an answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        name = uuid.uuid4().hex
        told: dict[str, Any] = scope.setdefault("state", {}).setdefault("told", {})

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            if problem := _flood(scope):
                await as_problem(problem)(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except Exception:
            log.error("a request failed", exc_info=True, extra={"told": {"id": name}})
            if not status:
                sentence = f"the server failed on this request; its log says why under {name}."
                await as_json(body(500, sentence, "internal"), 500)(scope, receive, sending)
        finally:
            seconds = time.monotonic() - began
            path = str(scope["path"])
            route = next((r for r in ROUTES if path == r or path.startswith(r + "/")), "other")
            self._metrics.requests.add(route, str(status))
            self._metrics.seconds.note(seconds, route)
            facts = {"id": name, "method": str(scope["method"])[:16], "route": route, "status": status}
            log.info("request", extra={"told": {**facts, "seconds": round(seconds, 4), **told}})


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
        return json.dumps(row, default=str)


def log_lines() -> None:
    """Log as JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("steerlab.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "steerlab.serve" else logging.WARNING)
