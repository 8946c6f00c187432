"""One request for completions, from its body to its answer, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..engines.base import Sampling
from ..engines.hf_serving import Ask
from ..engines.render import Rendered
from ..errors import SteerlabError
from .answers import Answers, gates
from .guard import as_json, read_body
from .problems import LEFT, Problem
from .resolve import Resolved, resolve
from .scheduler import Done, Event, Failed, Job, Moved
from .schema import Asked, ChatRequest, TextRequest, parsed
from .service import Service
from .talk import THINK
from .turns import conversation, offered

TEXT_TOKENS = 16  # OpenAI's default for /v1/completions


async def complete(request: Request, service: Service, kind: type[ChatRequest] | type[TextRequest]) -> Response:
    """The answer. Raises `Problem`, before anything has run, for a request that can't be served as it stands."""
    settings = service.settings
    if service.draining:
        raise Problem(503, "the server is ending; ask another one.", "ending", after=5)
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise Problem(415, f"the body is said to be {given[:40]!r}; expected application/json.", "content_type")
    asked = parsed(kind, await read_body(request, settings.body, settings.patience))
    form, jobs, events = await run_in_threadpool(_jobs, asked, service)
    _log(request, asked, form, settings.log_prompts)
    exchange = Exchange(service, form, jobs, events)
    service.scheduler.submit(jobs)
    if not asked.stream:
        return await exchange.whole(request)
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return await exchange.stream(request, usage=usage)


def _jobs(
    asked: ChatRequest | TextRequest, service: Service
) -> tuple[Answers, list[Job], asyncio.Queue[tuple[int, Event]]]:
    """Everything that a request wants, as replies to be made."""
    settings = service.settings
    resolved = resolve(
        asked, service.model, service.store, most=settings.terms, monitors=settings.monitors, strict=settings.strict,
        named=service.form.spans,
    )  # fmt: skip
    try:
        chat = isinstance(asked, ChatRequest)
        _fits(asked, service)
        prompts = [conversation(asked, service, resolved.steering)] if chat else _texts(asked, service, resolved)
        n = asked.n or 1
        if n > settings.choices or len(prompts) > settings.prompts:
            raise Problem(
                400, f"n is {n} and there are {len(prompts)} prompts; at most {settings.choices} and {settings.prompts}"
                " are taken.", "too_many",
            )  # fmt: skip
        tops = _tops(asked)
        sampling = _sampling(asked, settings.most_tokens, settings.default_tokens)
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        markers = service.form.markers if chat else ()
        read = tuple(entry.digest for entry, _ in resolved.monitors)
        told = tuple((p.entry.digest, p.strength, p.positions) for p in resolved.parts)
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        jobs: list[Job] = []
        for prompt in prompts:
            for k in range(n):
                own = Sampling(
                    sampling.max_new_tokens,
                    sampling.temperature,
                    sampling.top_k,
                    sampling.top_p,
                    seed + k,
                    sampling.stop,
                )
                ask = Ask(
                    prompt, resolved.steering, own, tops, resolved.readouts, resolved.unsteered, markers, told, read
                )
                service.scheduler.check(ask)
                jobs.append(Job(ask, _ignored, streams=bool(asked.stream)))
    except SteerlabError as problem:
        raise Problem(400, str(problem), "bad_value") from problem
    opened = chat and service.form.thinks and service.prompts.ends_with(prompts[0], THINK.begin)
    form = Answers(
        chat, asked.model, seed, resolved, service.prompts, _logprobs(asked), tops, sum(len(p.ids) for p in prompts),
        service.form, offered(asked) if chat else frozenset(), opened, bool(asked.return_token_ids),
    )  # fmt: skip
    return form, jobs, queue


def _ignored(_: Event) -> None:
    raise AssertionError("a job is submitted with somebody to tell")


def _fits(asked: ChatRequest | TextRequest, service: Service) -> None:
    """Raise a `DataError` for a text that is far beyond the context, before all of it is made tokens."""
    if isinstance(asked, ChatRequest):
        service.check_length("\n".join(m.text for m in asked.messages))
    else:
        for prompt in asked.prompts:
            if isinstance(prompt, str):
                service.check_length(prompt)


def _texts(asked: TextRequest, service: Service, resolved: Resolved) -> list[Rendered]:
    steering = resolved.steering
    if steering is not None and steering.prompt is not None and steering.prompt.strength:
        raise Problem(
            400, "this steering has a prompt, which only a chat can take; ask /v1/chat/completions.", "needs_chat"
        )
    return [service.prompts.text(p) if isinstance(p, str) else service.prompts.ids(p) for p in asked.prompts]


def _sampling(asked: Asked, most: int, default: int) -> Sampling:
    chat = isinstance(asked, ChatRequest)
    wanted = (asked.max_completion_tokens if isinstance(asked, ChatRequest) else None) or asked.max_tokens
    tokens = wanted or (default if chat else TEXT_TOKENS)
    if tokens > most:
        raise Problem(400, f"{tokens} tokens are asked for; at most {most} are made for one reply.", "too_many")
    temperature = 1.0 if asked.temperature is None else asked.temperature
    return Sampling(tokens, temperature, asked.top_k, 1.0 if asked.top_p is None else asked.top_p, 0, asked.stops)


def _tops(asked: ChatRequest | TextRequest) -> int:
    if isinstance(asked, TextRequest):
        return asked.logprobs or 0
    if asked.top_logprobs and not asked.logprobs:
        raise Problem(400, "top_logprobs needs logprobs to be true.", "bad_value", param="top_logprobs")
    return asked.top_logprobs or 0


def _logprobs(asked: ChatRequest | TextRequest) -> bool:
    return asked.logprobs is not None if isinstance(asked, TextRequest) else bool(asked.logprobs)


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
        self._service, self._form, self._jobs, self._events = service, form, jobs, events
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + service.settings.timeout
        for n, job in enumerate(jobs):
            job.tell = _teller(loop, events, n)

    async def whole(self, request: Request) -> Response:
        """The answer in one piece."""
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
        return as_json(self._form.whole(replies))

    async def stream(self, request: Request, *, usage: bool) -> Response:
        """The answer as events; what fails before the first one is an ordinary error."""
        events = self._all()
        try:
            first = await _unless_left(anext(events), request.receive)
        except BaseException:
            self._service.scheduler.cancel(self._jobs)
            raise
        return Events(self._written(first, events, request, usage), lambda: self._service.scheduler.cancel(self._jobs))

    async def _written(
        self, first: tuple[int, Event], events: AsyncIterator[tuple[int, Event]], request: Request, usage: bool
    ) -> AsyncIterator[str]:
        done: dict[int, Done] = {}
        offsets: dict[int, int] = {}
        readers = [self._form.reader() for _ in self._jobs]
        begun: dict[str, Any] = {"steering": self._form.applied()}  # in the first piece alone
        try:
            n, event = first
            while True:
                if isinstance(event, Moved):
                    offset = offsets.get(n, 0)
                    before, told = readers[n].calls, readers[n].more(event.text)
                    begins = None if n in offsets else self._jobs[n].ask.prompt
                    piece = self._form.moved(n, event, told, offset, begins=begins, before=before)
                    yield _event({**piece, **begun})
                    offsets[n] = offset + len(event.text)
                elif isinstance(event, Done):
                    done[n] = event
                    before, told = readers[n].calls, readers[n].more("", final=True)
                    yield _event({**self._form.done(n, event, told, before=before), **begun})
                begun = {}
                n, event = await anext(events)
        except StopAsyncIteration:
            replies = [done[n] for n in sorted(done)]
            self._count(replies, request.state.told)
            if usage:
                yield _event(self._form.counted(replies))
            yield "data: [DONE]\n\n"
        except Problem as problem:
            yield _event(problem.body)

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
        metrics, resolved = self._service.metrics, self._form.resolved
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

    media_type = "text/event-stream"

    def __init__(self, parts: AsyncIterator[str], end: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
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


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=True, allow_nan=False)}\n\n"
