"""Thinking and tool calls in replies, for the forms of chat templates that are known here.

    Hermes, Qwen   text <tool_call>{"name": ..., "arguments": {...}}</tool_call> ...
    Llama 3        {"name": ..., "parameters": {...}}, and nothing else in the reply
    thinking       <think>...</think> before the answer, or begun by the template itself

A call is one of a tool that was offered, in whole JSON; whatever else looks like one stays in the text, word for word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, NoReturn, cast

from ..engines.spans import NAMED, Span

TAGGED = re.compile(r'<tool_call>[^<]{0,80}\{\s*\\?"(?:name|arguments)\\?"')
BARE = re.compile(r'\{\s*\\?"name\\?": ?function name, ?\\?"parameters\\?"')
THINK = NAMED["thinking"]


class Call(NamedTuple):
    """A tool that the model asks for: its name, and its arguments as JSON."""

    name: str
    arguments: str


class Told(NamedTuple):
    """A reply, or what is new and certain of it, in its parts."""

    thinking: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()


class Tagged:
    """`<tool_call>` around the JSON of each call, anywhere in the reply."""

    span: ClassVar[Span] = NAMED["tool_calls"]
    markers: ClassVar[tuple[str, ...]] = (span.begin, span.end)

    def read(self, text: str, offered: frozenset[str], *, final: bool) -> tuple[str, tuple[Call, ...]]:
        """The words and the calls that are certain."""
        begin, end = self.span
        content, at = "", 0
        calls: list[Call] = []
        while True:
            start = text.find(begin, at)
            if start < 0:
                tail = text[at:]
                content += tail if final else tail[: len(tail) - _held(tail, begin)]
                break
            content += text[at:start]
            stop = text.find(end, start)
            if stop < 0 and not final:
                break
            inner = text[start + len(begin) : stop if stop >= 0 else len(text)]
            at = stop + len(end) if stop >= 0 else len(text)
            call = _call(inner, offered)
            if call is None:
                content += text[start:at]
            else:
                calls.append(call)
        return (content.rstrip() if calls or not final else content), tuple(calls)


class Bare:
    """A reply that is nothing but the JSON of one call, or of several with semicolons between."""

    tag: ClassVar[str] = "<|python_tag|>"
    span: ClassVar[Span] = Span('{"name"', "<|eot_id|>")
    markers: ClassVar[tuple[str, ...]] = (tag,)

    def read(self, text: str, offered: frozenset[str], *, final: bool) -> tuple[str, tuple[Call, ...]]:
        """The words and the calls that are certain: nothing before its end of what begins like a call."""
        body = text.lstrip()
        inner = body.removeprefix(self.tag).lstrip()
        if not final:
            held = inner.startswith("{") or not inner or self.tag.startswith(body)
            return ("" if held else text), ()
        calls: list[Call] = []
        decoder = json.JSONDecoder(parse_constant=_refused)
        while inner:
            try:
                made, at = decoder.raw_decode(inner)
            except (ValueError, RecursionError):
                return text, ()
            call = _checked(made, offered)
            if call is None:
                return text, ()
            calls.append(call)
            inner = inner[at:].lstrip("; \n\t")
        return ("", tuple(calls)) if calls else (text, ())


@dataclass(frozen=True)
class Form:
    """What a chat template's replies may hold: calls in a known form, thinking, and whether thinking can be switched."""

    calls: Tagged | Bare | None = None
    thinks: bool = False
    switch: bool = False

    @classmethod
    def of(cls, template: str) -> Form:
        """The form of a template by its text."""
        calls = Tagged() if TAGGED.search(template) else Bare() if BARE.search(template) else None
        thinks = THINK.begin in template or THINK.end in template
        return cls(calls, thinks, "enable_thinking" in template)

    @property
    def markers(self) -> tuple[str, ...]:
        """Words that stay in a reply's text also where they are special tokens."""
        return (*(THINK if self.thinks else ()), *(self.calls.markers if self.calls else ()))

    @property
    def spans(self) -> Mapping[str, Span]:
        """The parts of a reply that may go unsteered, by name."""
        return {**NAMED, "tool_calls": self.calls.span} if self.calls else NAMED


class Reader:
    """Reads one reply as it comes. `opened`: the prompt ends in the midst of thinking. `single`: its first call is all."""

    def __init__(self, form: Form, offered: frozenset[str], *, opened: bool = False, single: bool = False) -> None:
        self._form, self._offered, self._opened, self._single = form, offered, opened, single
        self._text, self._told = "", Told()

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return len(self._told.calls)

    def more(self, text: str, *, final: bool = False) -> Told:
        """What is new and certain, once `text` is added."""
        self._text += text
        thinking, rest = self._thought(final)
        content, calls = rest, ()
        if self._form.calls and self._offered:
            content, calls = self._form.calls.read(rest, self._offered, final=final)
            calls = calls[:1] if self._single else calls
        before, self._told = self._told, Told(thinking, content, calls)
        new = (thinking[len(before.thinking) :], content[len(before.content) :], calls[len(before.calls) :])
        return Told(*new)

    def _thought(self, final: bool) -> tuple[str, str]:
        """Thinking, and what follows it."""
        if not self._form.thinks:
            return "", self._text
        inner = self._text
        if not self._opened:
            body = self._text.lstrip()
            if not body.startswith(THINK.begin):
                waits = not final and THINK.begin.startswith(body)
                return "", "" if waits else self._text
            inner = body[len(THINK.begin) :]
        thinking, ended, rest = inner.partition(THINK.end)
        if ended:
            return thinking.strip("\n"), rest.lstrip("\n")
        if not final:
            thinking = thinking[: len(thinking) - _held(thinking, THINK.end)].rstrip("\n")
        return thinking.lstrip("\n"), ""


def _held(text: str, marker: str) -> int:
    """How many of the last characters may be the beginning of a marker."""
    return next((k for k in range(len(marker) - 1, 0, -1) if text.endswith(marker[:k])), 0)


def _call(text: str, offered: frozenset[str]) -> Call | None:
    try:
        return _checked(json.loads(text.strip(), parse_constant=_refused), offered)
    except (ValueError, RecursionError):
        return None


def _checked(made: Any, offered: frozenset[str]) -> Call | None:
    """A call of a tool that was offered; None for anything else."""
    if not isinstance(made, dict):
        return None
    given = cast("dict[str, Any]", made)
    name = given.get("name")
    arguments = given.get("arguments", given.get("parameters", {}))
    if not isinstance(name, str) or name not in offered or not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))


def _refused(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
