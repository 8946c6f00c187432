"""OpenAI's objects, whole and in pieces, with a block that says what was applied."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..controls import Constant
from ..engines.base import Finish
from ..engines.hf_generate import Row
from ..engines.hf_serving import Prompts
from ..engines.render import Rendered
from .resolve import Resolved
from .scheduler import Done, Moved
from .talk import Call, Form, Reader, Told

FINISH: dict[Finish, str] = {"stop": "stop", "length": "length", "context": "length"}
LEAST = -9999.0  # a log-probability: JSON has no minus infinity


@dataclass(frozen=True, eq=False)
class Answers:
    """What the answers to one request have in common."""

    chat: bool
    model: str
    seed: int
    resolved: Resolved
    prompts: Prompts
    logprobs: bool = False
    tops: int = 0
    prompt_tokens: int = 0
    form: Form = field(default_factory=Form)
    offered: frozenset[str] = frozenset()
    opened: bool = False
    ids: bool = False  # whether tokens are told as numbers, too
    single: bool = False  # whether a reply has one call of a tool at most
    echoes: tuple[str, ...] = ()  # what is told again before each reply
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def applied(self) -> dict[str, Any]:
        """The block that says what was applied: everything asked for, in the order of the request, and the seed."""
        parts = [
            {
                "name": part.entry.name,
                "digest": part.entry.digest,
                "strength": part.strength,
                "positions": list(dict.fromkeys(str(i.positions) for i in part.steering.interventions)),
                "range": part.entry.told()["range"],
                "standing": part.standing.state,
                **({"warning": part.standing.words} if part.standing.words else {}),
            }
            for part in self.resolved.parts
        ]
        return {"applied": parts, "seed": self.seed}

    def whole(self, done: Sequence[Done]) -> dict[str, Any]:
        """The answer to a request that doesn't stream."""
        choices: list[dict[str, Any]] = []
        for n, one in enumerate(done):
            reply, echo = one.reply, self.echo(n)
            told = self.reader().more(reply.text, final=True)
            shown = told._replace(content=echo + told.content)
            said = {"message": _message(shown)} if self.chat else {"text": echo + reply.text}
            row = one.row
            kept = len(reply.ids)
            moved = Moved(reply.text, row.ids[:kept], row.logprobs[:kept], row.likeliest[:kept], row.readings)
            finish = _finish(reply.finish, bool(told.calls))
            choices.append({
                "index": n, **said, "logprobs": self._logprobs(moved, 0), "finish_reason": finish,
                **({"token_ids": moved.ids} if self.ids else {}), **self._asked_ids(row.prompt, text=True),
                "steering": {**self._gates(one), **self._readings(moved)},
            })  # fmt: skip
        kind = "chat.completion" if self.chat else "text_completion"
        asked = self._asked_ids(done[0].row.prompt, text=False)
        return {**self._head(kind), "choices": choices, "usage": self.usage(done), "steering": self.applied(), **asked}

    def _asked_ids(self, prompt: Rendered, *, text: bool) -> dict[str, Any]:
        """The prompt as numbers: a text's beside its reply, as a request may have several; a chat's once for all."""
        return {"prompt_token_ids": list(prompt.ids)} if self.ids and text != self.chat else {}

    def reader(self) -> Reader:
        """What takes a reply of a chat apart; a text stays as it is."""
        form = self.form if self.chat else Form()
        return Reader(form, self.offered, opened=self.opened, single=self.single)

    def echo(self, n: int) -> str:
        """What is told again before a reply."""
        return self.echoes[n] if self.echoes else ""

    def moved(
        self, n: int, moved: Moved, told: Told, offset: int, *, begins: Rendered | None, before: int
    ) -> dict[str, Any]:
        """A piece of a reply, the first one with its prompt, and what is certain of its parts, after `before` calls of tools."""
        delta, echo = _delta(told, before), self.echo(n) if begins is not None else ""
        if begins is not None:
            delta |= {"role": "assistant", "content": echo + delta["content"]}
        said = {"delta": delta} if self.chat else {"text": echo + moved.text}
        choice: dict[str, Any] = {"index": n, **said, "logprobs": self._logprobs(moved, offset), "finish_reason": None}
        if found := self._readings(moved):
            choice["steering"] = found
        if self.ids:
            choice["token_ids"] = moved.ids
        asked = {} if begins is None else self._asked_ids(begins, text=False)
        beside = {} if begins is None else self._asked_ids(begins, text=True)
        return {**self._head(self._piece), "choices": [{**choice, **beside}], **asked}

    def done(self, n: int, done: Done, told: Told, *, before: int, alone: bool = False) -> dict[str, Any]:
        """The last piece of a reply (`alone`: the only one), with `told` that waited for its end, after `before` calls."""
        echo = self.echo(n) if alone else ""
        told = told._replace(content=echo + told.content)
        said = {"delta": _delta(told, before) if any(told) else {}} if self.chat else {"text": echo}
        finish = _finish(done.reply.finish, bool(before or told.calls))
        choice = {"index": n, **said, "logprobs": None, "finish_reason": finish}
        return {**self._head(self._piece), "choices": [{**choice, "steering": self._gates(done)}]}

    def counted(self, done: Sequence[Done]) -> dict[str, Any]:
        """The piece that says what a stream took."""
        return {**self._head(self._piece), "choices": [], "usage": self.usage(done)}

    def usage(self, done: Sequence[Done]) -> dict[str, int]:
        """Tokens read and made; a prompt counts once for all its replies."""
        made = sum(len(one.reply.ids) for one in done)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    @property
    def _piece(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _gates(self, done: Done) -> dict[str, Any]:
        found = gates(self.resolved, done.row, done.tallies)
        return {"gates": found} if found else {}

    def _readings(self, moved: Moved) -> dict[str, Any]:
        """Each asked-for steering's axis where each token was predicted; a list a token where it acts at several sites."""
        if not self.resolved.asked or not moved.readings:
            return {}
        found: dict[str, Any] = {}
        at = 0
        for entry, count in self.resolved.monitors[: self.resolved.asked]:
            found[entry.name] = [
                _rounded(values[at]) if count == 1 else [_rounded(v) for v in values[at : at + count]]
                for values in moved.readings
            ]
            at += count
        return {"readouts": found}

    def _logprobs(self, moved: Moved, offset: int) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        words = self.prompts.told(moved.ids)
        tops = [
            [(self.prompts.told([token])[0], logprob) for token, logprob in likeliest[: self.tops]]
            for likeliest in moved.likeliest or [[] for _ in moved.ids]
        ]
        if self.chat:
            rows = zip(words, moved.logprobs, tops, strict=False)
            content = [{**_token(w, p), "top_logprobs": [_token(*top) for top in best]} for w, p, best in rows]
            return {"content": content, "refusal": None}
        offsets: list[int] = []
        for word in words:
            offsets.append(offset)
            offset += len(word)
        return {
            "tokens": words,
            "token_logprobs": [max(p, LEAST) for p in moved.logprobs[: len(words)]],
            "top_logprobs": [{w: max(p, LEAST) for w, p in best} for best in tops] if self.tops else None,
            "text_offset": offsets,
        }


def gates(resolved: Resolved, row: Row, tallies: dict[int, Any]) -> list[dict[str, Any]]:
    """What each control that isn't constant decided for a reply."""
    if resolved.steering is None or row.steering is None:
        return []
    owner = {id(i.control): part.entry.name for part in resolved.parts for i in part.steering.interventions}
    found: list[dict[str, Any]] = []
    for asked, ran in zip(resolved.steering.interventions, row.steering.interventions, strict=True):
        if isinstance(asked.control, Constant):
            continue
        told: dict[str, Any] = {
            "name": owner.get(id(asked.control)), "site": str(asked.site), "control": asked.control.kind,
        }  # fmt: skip
        if isinstance(ran.control, Constant):  # it decided ahead
            told |= {"decided": "ahead", "open": ran.control.value != 0, "strength": ran.control.value}
        else:
            tally = tallies.get(id(ran.control))
            tokens, acted, strength = tally if tally is not None else (0, 0, 0.0)
            told |= {"decided": "on the way", "open": acted > 0, "tokens": tokens, "acted": acted, "strength": strength}
        found.append(told)
    return found


def _message(told: Told) -> dict[str, Any]:
    calls = [_called(call) for call in told.calls]
    thought = {"reasoning_content": told.thinking} if told.thinking else {}
    content = None if calls and not told.content else told.content
    return {
        "role": "assistant",
        "content": content,
        "refusal": None,
        **thought,
        **({"tool_calls": calls} if calls else {}),
    }


def _delta(told: Told, before: int = 0) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": told.content}
    if told.thinking:
        delta["reasoning_content"] = told.thinking
    if told.calls:
        delta["tool_calls"] = [{"index": before + n, **_called(call)} for n, call in enumerate(told.calls)]
    return delta


def _called(call: Call) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": call._asdict()}


def _finish(finish: Finish, called: bool) -> str:
    return "tool_calls" if called and finish == "stop" else FINISH[finish]


def _token(word: str, logprob: float) -> dict[str, Any]:
    return {"token": word, "logprob": max(logprob, LEAST), "bytes": list(word.encode("utf-8", "replace"))}


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
