"""One request for completions, from its body to its answer, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .answers import Answers, gates
from .begin import jobs_of
from .guard import as_json, read_body
from .problems import LEFT, Problem
from .scheduler import Done, Event, Failed, Job, Moved
from .schema import ChatRequest, TextRequest, parsed
from .service import Service

EVENTS = "text/event-stream"
UNTYPED = ("", "application/x-www-form-urlencoded")  # what programs and curl say that don't think of it
Writer = Callable[[AsyncIterator[tuple[int, Event]]], AsyncIterator[str]]


async def complete(request: Request, service: Service, kind: type[ChatRequest] | type[TextRequest]) -> Response:
    """The answer to OpenAI's completions. Raises `Problem`, before anything has run, for what can't be served as it stands."""
    asked = parsed(kind, await body_of(request, service))
    exchange = await begin(request, service, asked)
    if not asked.stream:
        return as_json(exchange.form.whole(await exchange.whole(request)))
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return await exchange.stream(request, lambda events: exchange.written(events, usage=usage))


async def body_of(request: Request, service: Service, *, untyped: bool = False) -> bytes:
    """The body of a request. Raises `Problem` 503 where the server ends, and 415 for one that isn't said to be JSON
    (with `untyped`, one of which nothing is said will do, unless a page sends it)."""
    if service.draining:
        raise Problem(503, "the server is ending; ask another one.", "ending", after=5)
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json" and not (untyped and given in UNTYPED and not _from_a_page(request)):
        raise Problem(415, f"the body is said to be {given[:40]!r}; expected application/json.", "content_type")
    return await read_body(request, service.settings.body, service.settings.patience)


def _from_a_page(request: Request) -> bool:
    """Whether a browser says that a page sends this; pages of other origins may send what has no type without asking first."""
    return "origin" in request.headers or "sec-fetch-site" in request.headers


async def begin(request: Request, service: Service, asked: ChatRequest | TextRequest) -> Exchange:
    """Have a request's replies made."""
    form, jobs, events = await run_in_threadpool(jobs_of, asked, service)
    _log(request, asked, form, service.settings.log_prompts)
    exchange = Exchange(service, form, jobs, events)
    service.scheduler.submit(jobs)
    return exchange


def _log(request: Request, asked: ChatRequest | TextRequest, form: Answers, prompts: bool) -> None:
    told = request.state.told
    told |= {
        "stream": bool(asked.stream),
        "prompt_tokens": form.prompt_tokens,
        "steerings": [{"digest": p.entry.digest[:12], "strength": p.strength} for p in form.resolved.parts],
    }
    if prompts:
        told["prompt"] = [m.text for m in asked.messages] if isinstance(asked, ChatRequest) else asked.prompt


class Exchange:
    """One request's replies as they come, until it is answered, its client leaves, or its time is up."""

    def __init__(
        self, service: Service, form: Answers, jobs: list[Job], events: asyncio.Queue[tuple[int, Event]]
    ) -> None:
        self._service, self.form, self._jobs, self._events = service, form, jobs, events
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + service.settings.timeout
        for n, job in enumerate(jobs):
            job.tell = _teller(loop, events, n)

    async def whole(self, request: Request) -> list[Done]:
        """Every reply, once all are done."""
        done: dict[int, Done] = {}

        async def collect() -> None:
            async for n, event in self._all():
                if isinstance(event, Done):
                    done[n] = event

        try:
            await _unless_left(collect(), request.receive)
        finally:
            self._service.scheduler.cancel(self._jobs)
        replies = [done[n] for n in range(len(self._jobs))]
        self._count(replies, request.state.told)
        return replies

    async def stream(self, request: Request, write: Writer, media_type: str = EVENTS) -> Response:
        """The replies as they come, as `write` has them; what fails before the first event is an ordinary error."""
        events = self._all()
        try:
            first = await _unless_left(anext(events), request.receive)
        except BaseException:
            self._service.scheduler.cancel(self._jobs)
            raise
        written = write(self._kept(first, events, request))
        return Events(written, lambda: self._service.scheduler.cancel(self._jobs), media_type)

    async def _kept(
        self, first: tuple[int, Event], events: AsyncIterator[tuple[int, Event]], request: Request
    ) -> AsyncIterator[tuple[int, Event]]:
        """All the events; what they were is counted at the end."""
        done: dict[int, Done] = {}
        n, event = first
        while True:
            if isinstance(event, Done):
                done[n] = event
            yield n, event
            try:
                n, event = await anext(events)
            except StopAsyncIteration:
                break
        self._count([done[n] for n in sorted(done)], request.state.told)

    async def written(self, events: AsyncIterator[tuple[int, Event]], *, usage: bool) -> AsyncIterator[str]:
        """Events as OpenAI's completions have them."""
        done: dict[int, Done] = {}
        offsets: dict[int, int] = {}
        readers = [self.form.reader() for _ in self._jobs]
        begun: dict[str, Any] = {"steering": self.form.applied()}  # in the first piece alone
        try:
            async for n, event in events:
                if isinstance(event, Moved):
                    offset = offsets.get(n, 0)
                    before, told = readers[n].calls, readers[n].more(event.text)
                    begins = None if n in offsets else self._jobs[n].ask.prompt
                    piece = self.form.moved(n, event, told, offset, begins=begins, before=before)
                    yield as_event({**piece, **begun})
                    offsets[n] = offset + len(event.text)
                elif isinstance(event, Done):
                    done[n] = event
                    before, told = readers[n].calls, readers[n].more("", final=True)
                    yield as_event({**self.form.done(n, event, told, before=before, alone=n not in offsets), **begun})
                begun = {}
            if usage:
                yield as_event(self.form.counted([done[n] for n in sorted(done)]))
            yield "data: [DONE]\n\n"
        except Problem as problem:
            yield as_event(problem.body)

    async def _all(self) -> AsyncIterator[tuple[int, Event]]:
        """Events until every reply is done. Raises `Problem` of a reply that fails, and 504 when the time is up."""
        left = len(self._jobs)
        while left:
            try:
                async with asyncio.timeout_at(self._deadline):
                    n, event = await self._events.get()
            except TimeoutError:
                seconds = self._service.settings.timeout
                raise Problem(504, f"this request took more than {seconds:g} s; ask for less.", "timeout") from None
            if isinstance(event, Failed):
                raise event.problem
            left -= isinstance(event, Done)
            yield n, event

    def _count(self, done: list[Done], told: dict[str, Any]) -> None:
        metrics, resolved = self._service.metrics, self.form.resolved
        told["tokens"] = sum(len(one.reply.ids) for one in done)
        for one in done:
            for part in resolved.parts:
                metrics.steered.add(part.entry.name)
            for gate in gates(resolved, one.row, one.tallies):
                tokens, acted = gate.get("tokens", 1), gate.get("acted", int(gate["open"]))
                metrics.gates.add(str(gate["name"]), "yes", by=acted)
                metrics.gates.add(str(gate["name"]), "no", by=tokens - acted)
            at = 0
            for entry, count in resolved.monitors:
                for k in range(at, at + count):
                    for values in one.row.readings:
                        metrics.readout.note(values[k], entry.name, str(resolved.readouts[k].site))
                at += count


class Events(Response):
    """Server-sent events that end when the client leaves, whatever happens after."""

    def __init__(self, parts: AsyncIterator[str], end: Callable[[], None], media_type: str = EVENTS) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._parts, self._end = parts, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def written() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await _unless_left(written(), receive)
        except (Problem, OSError):  # a client that left needs no answer
            scope["state"]["told"]["left"] = True
        finally:
            self._end()


async def _unless_left(work: Awaitable[Any], receive: Callable[[], Awaitable[Any]]) -> Any:
    """What some work gives; where the client leaves first, the work is cancelled and a `Problem` raised."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(LEFT, "the client left.", "left")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _teller(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[int, Event]], n: int
) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(events.put_nowait, (n, event))

    return tell


def as_event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=True, allow_nan=False)}\n\n"
