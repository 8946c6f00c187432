"""From the body of a request for completions to the replies that have to be made."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

from ..engines.base import Sampling
from ..engines.hf_serving import Ask
from ..engines.render import Rendered
from ..errors import SteerlabError
from .answers import Answers
from .forms import grammar
from .problems import Problem
from .resolve import Resolved, resolve
from .scheduler import Event, Job
from .schema import Asked, ChatRequest, TextRequest
from .service import Service
from .talk import THINK, Tagged
from .turns import conversation, echoed, offered

TEXT_TOKENS = 16  # OpenAI's default for /v1/completions


def jobs_of(
    asked: ChatRequest | TextRequest, service: Service
) -> tuple[Answers, list[Job], asyncio.Queue[tuple[int, Event]]]:
    """Everything that a request wants, as replies to be made. Raises `Problem` for what can't be served as it stands."""
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
        opened = chat and service.form.thinks and service.prompts.ends_with(prompts[0], THINK.begin)
        tops, sampling = _tops(asked), _sampling(asked, service, opened=opened)
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        markers = service.form.markers if chat else ()
        read = tuple(entry.digest for entry, _ in resolved.monitors)
        told = tuple((p.entry.digest, p.strength, p.positions) for p in resolved.parts)
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        jobs: list[Job] = []
        for prompt in prompts:
            for k in range(n):
                ask = Ask(
                    prompt, resolved.steering, replace(sampling, seed=seed + k), tops, resolved.readouts, resolved.unsteered,
                    markers, told, read,
                )  # fmt: skip
                service.scheduler.check(ask)
                jobs.append(Job(ask, _ignored, streams=bool(asked.stream)))
    except SteerlabError as problem:
        raise Problem(400, str(problem), "bad_value") from problem
    form = Answers(
        chat, asked.model, seed, resolved, service.prompts, _logprobs(asked), tops, sum(len(p.ids) for p in prompts),
        service.form, offered(asked) if chat else frozenset(), opened, bool(asked.return_token_ids),
        chat and asked.parallel_tool_calls is False, _echoes(asked, service, prompts, n),
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


def _echoes(asked: ChatRequest | TextRequest, service: Service, prompts: list[Rendered], n: int) -> tuple[str, ...]:
    """What is told again before each reply."""
    if not asked.echo:
        return ()
    if _logprobs(asked):
        sentence = "echo with logprobs isn't built: a prompt's tokens aren't scored; leave one of them out."
        raise Problem(400, sentence, "unsupported", param="echo")
    if isinstance(asked, ChatRequest):
        return (echoed(asked),) * n
    texts = [
        given if isinstance(given, str) else service.prompts.words(p.ids) for given, p in zip(asked.prompts, prompts)
    ]
    return tuple(text for text in texts for _ in range(n))


def _sampling(asked: ChatRequest | TextRequest, service: Service, *, opened: bool) -> Sampling:
    most, chat = service.settings.most_tokens, isinstance(asked, ChatRequest)
    wanted = (asked.max_completion_tokens if isinstance(asked, ChatRequest) else None) or asked.max_tokens
    tokens = wanted or (service.settings.default_tokens if chat else TEXT_TOKENS)
    if tokens > most:
        raise Problem(400, f"{tokens} tokens are asked for; at most {most} are made for one reply.", "too_many")
    return Sampling(
        tokens,
        1.0 if asked.temperature is None else asked.temperature,
        None if asked.top_k in (0, -1) else asked.top_k,
        1.0 if asked.top_p is None else asked.top_p,
        0,
        _stops(asked, service),
        min_p=asked.min_p or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias=tuple((int(i), value) for i, value in (asked.logit_bias or {}).items()),
        stop_ids=tuple(asked.stop_token_ids or ()),
        ignore_end=bool(asked.ignore_eos),
        min_new_tokens=asked.min_tokens or 0,
        grammar=grammar(asked, service, opened=opened),
    )


def _stops(asked: Asked, service: Service) -> tuple[str, ...]:
    """The strings that end a reply; where one call is all, it ends with that."""
    form = service.form.calls
    single = isinstance(asked, ChatRequest) and asked.parallel_tool_calls is False and offered(asked)
    return (*asked.stops, form.span.end) if single and isinstance(form, Tagged) else asked.stops


def _tops(asked: ChatRequest | TextRequest) -> int:
    if isinstance(asked, TextRequest):
        return asked.logprobs or 0
    if asked.top_logprobs and not asked.logprobs:
        raise Problem(400, "top_logprobs needs logprobs to be true.", "bad_value", param="top_logprobs")
    return asked.top_logprobs or 0


def _logprobs(asked: ChatRequest | TextRequest) -> bool:
    return asked.logprobs is not None if isinstance(asked, TextRequest) else bool(asked.logprobs)
