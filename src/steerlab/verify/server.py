"""`steerlab serve` through HTTP: replies of a real server against the reference, whole and streamed, alone and together.

Without `Options.url` the server is started on the model in memory and stopped again. Replies are greedy and its own; what
is compared is the log-probability of each of their tokens, which it tells as numbers (`return_token_ids`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.hf import HFEngine
from ..errors import ConfigError, DataError, nearest
from ..steering import Steering
from . import _plain
from ._client import Answer, Client, started
from ._replies import as_said, differ, effect, meant, mixture
from .base import Check, Options, Probe, Target, apart, scored, with_prompt, within

ENGINES = ("hf", "vllm")
ROUNDS = 4  # at most, of rows that are asked for together, until each had company
LONGER = 4  # times as many tokens then
Row = tuple[Probe, float | None]


class Server(Target):
    """steerlab's server, asked as any client asks."""

    what: ClassVar[str] = "steerlab serve, over HTTP"

    def check(self, engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> list[Check]:
        if options.server_engine not in ENGINES:
            raise ConfigError(
                f"there is no engine {options.server_engine!r}. {nearest(options.server_engine, ENGINES)}"
            )
        engine.accept(steering)
        rows = mixture(steering, probes)
        with _reached(engine, steering, options) as (client, left):
            bodies = [_body(p, steering, s, options.tokens) for p, s in rows]
            alone = [client.ask(body) for body in bodies]
            at_once, later = _rounds(client, [{**body, "max_tokens": LONGER * options.tokens} for body in bodies])
            again = [client.ask(body) for body in reversed(bodies)][::-1]
        if not any(a.said.ids for a, (_, s) in zip(alone, rows, strict=True) if s):
            raise DataError("every steered reply was empty, so nothing is shown; give other prompts.")
        return [*self._compared(engine, steering, rows, alone, at_once, later, again, probes, options), *left]

    def _compared(
        self, engine: HFEngine, steering: Steering, rows: Sequence[Row], alone: Sequence[Answer],
        at_once: Sequence[Sequence[Answer]], later: Sequence[Sequence[Answer]], again: Sequence[Answer],
        probes: Sequence[Probe], options: Options,
    ) -> list[Check]:  # fmt: skip
        rounds = [*at_once, *later]
        under = [None if s is None else steering.scaled(s) for _, s in rows]
        asked = [with_prompt(engine, p, s) for (p, _), s in zip(rows, under, strict=True)]
        most, line = self.most(engine, probes, options)
        if options.server_engine == "vllm" and options.tolerance is None:
            most = max(most, 2e-4)
        said = [a.said for a in alone]
        wanted, short = _wanted(engine, asked, under, alone)
        together = max(differ([a.said for a in answers], said) for answers in rounds)
        bare = [n for n, (_, s) in enumerate(rows) if s is None]
        off = [n for n, (_, s) in enumerate(rows) if s == 0]
        plain = {rows[n][0].ids: said[n] for n in bare}
        near = [(a[n].said, asked[n]) for a in rounds for n in bare]
        company = [any(_overlaps(a, n) for a in rounds) for n in range(len(rows))]
        joined = max(map(_joined, later))
        beside = (
            f"a streamed row among others is the row alone ({sum(company)} of {len(rows)} ran while others did,"
            f" {joined} of {len(rows) // 2} that came later joined one under way)"
        )
        return [
            within("reference", "replies at several strengths, decoded with a cache, are one whole pass of the definition",
                   apart([s.logprobs for s in said], wanted), most),
            within("tokens", "and each token is the one that is likeliest there, up to a near-tie", short, 2 * most),
            Check("prompt", _prompts(asked, [alone, again, *rounds]), "the server writes conversations the same way"),
            Check("mixed", together <= most if any(company) else None, beside, together, most),
            within("neighbours", "unsteered rows beside them are those of plain transformers",
                   apart([s.logprobs for s, _ in near], [meant(engine, p, None, s) for s, p in near]), most),
            within("cache", "asked again when the others' prompts have been served, rows are as at first",
                   differ([a.said for a in again], said), most),
            within("off", "strength 0 is what unsteered rows are",
                   differ([said[n] for n in off], [plain[rows[n][0].ids] for n in off]), 0.0),
            Check("applied", _applied(steering, rows, [alone, again, *rounds]),
                  "each answer names the digest and the strength that were asked for"),
            Check("effect", None, "how far it moves a log-probability at most", effect(engine, asked, rows, said, wanted)),
            line,
        ]  # fmt: skip


@contextmanager
def _reached(engine: HFEngine, steering: Steering, options: Options) -> Generator[tuple[Client, list[Check]]]:
    """A server that has the steering; what it was brought for this alone is taken away again, or a line says why not."""
    left: list[Check] = []
    if options.url is None:
        with started(engine, steering, options) as client:
            yield client, left
        return
    client = Client(options.url, options.key)
    name = None if client.has(steering) else client.upload(steering)
    try:
        yield client, left
    finally:
        if name is not None and (why := client.remove(name)) is not None:
            left.append(Check("left", None, f"the steering stays on the server as {name!r}: {why}"))


def _body(probe: Probe, steering: Steering, strength: float | None, tokens: int) -> dict[str, Any]:
    """A request for a greedy reply, as a client writes it."""
    messages = [{"role": m.role, "content": m.content} for m in probe.example.messages]
    named = [] if strength is None else [{"name": steering.digest, "strength": strength}]
    return {
        "model": "base", "messages": messages, "temperature": 0, "seed": 0, "max_tokens": tokens, "logprobs": True,
        "return_token_ids": True, **({"steering": named} if named else {}),
    }  # fmt: skip


def _rounds(client: Client, bodies: Sequence[dict[str, Any]]) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """All at one moment, until each row has run while another did; then half of them when the other half has begun, until
    each has come upon one that was running. A fast server may be done with one before it hears of the next."""
    every = range(len(bodies))
    at_once = _until(lambda: client.together(bodies), lambda a: all(_overlaps(a, n) for n in every))
    return at_once, _until(lambda: client.in_turn(bodies), lambda a: _joined(a) == len(bodies) // 2)


def _joined(answers: Sequence[Answer]) -> int:
    """How many of the rows that were asked for in turn began while the one that they waited for went on."""
    return sum(late.when[0] < early.when[1] for early, late in zip(answers[::2], answers[1::2], strict=False))


def _until(ask: Callable[[], list[Answer]], seen: Callable[[list[Answer]], bool]) -> list[list[Answer]]:
    rounds: list[list[Answer]] = []
    while len(rounds) < ROUNDS and not (rounds and seen(rounds[-1])):
        rounds.append(ask())
    return rounds


def _overlaps(answers: Sequence[Answer], n: int) -> bool:
    """Whether pieces of another reply came between the first and the last of this one."""
    began, ended = answers[n].when
    return any(a.when[0] < ended and began < a.when[1] for k, a in enumerate(answers) if k != n)


def _wanted(
    engine: HFEngine, asked: Sequence[Probe], under: Sequence[Steering | None], answers: Sequence[Answer]
) -> tuple[list[Tensor], float]:
    """The reference's log-probabilities of each reply's tokens, and by how much the likeliest ones exceed them at most."""
    wanted: list[Tensor] = []
    short = 0.0
    for probe, steering, answer in zip(asked, under, answers, strict=True):
        whole = as_said(probe, answer.said)
        logits = _plain.logits(engine, whole, steering)
        wanted.append(scored(logits, whole))
        best = torch.log_softmax(logits[probe.prompt_length - 1 : len(whole.ids) - 1].double(), dim=-1).amax(dim=-1)
        short = max(short, float((best - wanted[-1]).max())) if len(best) else short
    return wanted, short


def _prompts(asked: Sequence[Probe], times: Sequence[Sequence[Answer]]) -> bool:
    """Whether all prompts are the reference's, token by token."""
    written = [p.ids[: p.prompt_length] for p in asked]
    return all([a.prompt for a in answers] == written for answers in times)


def _applied(steering: Steering, rows: Sequence[Row], times: Sequence[Sequence[Answer]]) -> bool:
    told = [[] if s is None else [(steering.digest, s)] for _, s in rows]
    return all([a.applied for a in answers] == told for answers in times)
