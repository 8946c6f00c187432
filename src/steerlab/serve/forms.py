"""The form that a reply must have, as a grammar: JSON of a schema, calls of tools that are certain, calls that are strict.

Calls are written as the model's chat template writes them (`talk`), so that they are read back by what reads any other call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ..engines.grammar import OBJECT, SPACES, Grammar
from ..errors import nearest
from .problems import Problem
from .schema import Asked, ChatRequest, Function, NamedChoice, Structured
from .talk import THINK, Bare, Tagged

if TYPE_CHECKING:
    from .service import Service


def grammar(asked: Asked, service: Service, *, opened: bool) -> Grammar | None:
    """What a reply must look like; None where it is free. `opened`: the prompt ends in the midst of thinking.

    Raises `Problem` 400 for a tool that isn't offered, and for two forms at once.
    """
    if isinstance(asked, ChatRequest):
        made = _of_chat(asked, service)
    else:
        made = None if asked.structured_outputs is None else _structured(asked.structured_outputs)
    if made is None or not opened:
        return made
    return Grammar(made.kind, made.text, after=THINK.end)


def certain(asked: ChatRequest) -> list[Function]:
    """The tools of which one must be called; none where the model may do without. Raises `Problem` 400."""
    choice = asked.tool_choice
    if choice in (None, "none", "auto"):
        return []
    if not asked.tools:
        raise Problem(
            400, "tool_choice makes a call certain, and no tools are offered.", "bad_value", param="tool_choice"
        )
    functions = [tool.function for tool in asked.tools]
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        functions = [f for f in functions if f.name == name]
        if not functions:
            near = nearest(name, [tool.function.name for tool in asked.tools])
            raise Problem(
                400, f"tool_choice names {name!r}, which isn't offered. {near}", "bad_value", param="tool_choice"
            )
    return functions


def _of_chat(asked: ChatRequest, service: Service) -> Grammar | None:
    answer = _answer(asked)
    if asked.structured_outputs is not None:
        if answer is not None:
            raise Problem(
                400, "response_format and structured_outputs are two forms for one reply; give one.", "bad_value"
            )
        return _structured(asked.structured_outputs)
    calls, must = service.form.calls, certain(asked)
    offered = [tool.function for tool in asked.tools or ()] if asked.tool_choice != "none" else []
    if calls is None or not offered or not (must or answer or any(f.strict for f in offered)):
        return answer
    several = asked.parallel_tool_calls is not False
    marks = service.prompts.marks
    lines = _calls(calls, must or offered, marks, several=several, held=bool(must))
    if must:
        return Grammar("lark", "\n".join(["start: calls", *lines]))
    if answer is not None:
        return Grammar(
            "lark", "\n".join(["start: calls | answer", f"answer: %json {_spaced(json.loads(answer.text))}", *lines])
        )
    return Grammar("lark", "\n".join([*_free(calls, marks), *lines]))


def _answer(asked: ChatRequest) -> Grammar | None:
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    schema = form.json_schema.body if form.json_schema is not None else form.body
    return Grammar("json", OBJECT if schema is None else _closed(schema))


def _structured(given: Structured) -> Grammar:
    if given.json_ is not None:
        return Grammar("json", given.json_ if isinstance(given.json_, str) else _closed(given.json_))
    if given.regex is not None:
        return Grammar("regex", given.regex)
    if given.choice is not None:
        return Grammar("regex", "|".join(re.escape(one) for one in given.choice))
    return Grammar("json", OBJECT)


def _calls(
    form: Tagged | Bare, functions: Sequence[Function], marks: frozenset[str], *, several: bool, held: bool
) -> list[str]:
    """Rules for `calls`; arguments have their schema where that is `held`, or the tool strict."""
    argued = "arguments" if isinstance(form, Tagged) else "parameters"
    begin, end = (_mark(m, marks) for m in form.span) if isinstance(form, Tagged) else ('""', '""')
    between = r'"\n"' if isinstance(form, Tagged) else '"; "'
    ways = " | ".join(f"call_{n}" for n in range(len(functions)))
    inner = f"{begin} /\\n?/ ({ways}) /\\n?/ {end}" if isinstance(form, Tagged) else f"({ways})"
    lines = [f"calls: call ({between} call)*" if several else "calls: call", f"call: {inner}"]
    for n, function in enumerate(functions):
        schema = function.parameters if (held or function.strict) and function.parameters else {}
        opens = json.dumps(json.dumps({"name": function.name})[:-1] + f', "{argued}": ')
        lines += [
            f'call_{n}: {opens} args_{n} "}}"',
            f"args_{n}: %json {_spaced(json.loads(_closed({'type': 'object', **schema})))}",
        ]
    return lines


def _free(form: Tagged | Bare, marks: frozenset[str]) -> list[str]:
    """Rules for a reply of words in which calls may stand, and nothing that begins like one but isn't."""
    if isinstance(form, Bare):
        return ["start: TEXT | calls", r'TEXT: /(?s:.*)/ & ~/\s*\{\s*"name"(?s:.*)/']
    begin = form.span.begin
    text = f"/(?s:.+)/ & ~/(?s:.*){re.escape(begin)}(?s:.*)/"
    thought = f"({_mark(THINK.begin, marks)} TEXT {_mark(THINK.end, marks)})? " if THINK.begin in marks else ""
    return [f"start: {thought}TEXT? (call TEXT?)*", f"TEXT: {text}"]


def _mark(mark: str, marks: frozenset[str]) -> str:
    return mark if mark in marks else json.dumps(mark)


def _closed(schema: dict[str, Any]) -> str:
    """A schema whose objects have the properties that it names and no others, where it doesn't speak of others.

    What it allows is allowed by the schema, too; small models left free would write other properties without end. With `allOf`
    it stays as it is: each of its parts may name what others don't.
    """
    written = json.dumps(schema)
    return written if '"allOf"' in written else json.dumps(_shut(schema))


def _shut(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = dict(cast("dict[str, Any]", schema))
    for key, value in made.items():
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
            made[key] = {name: _shut(one) for name, one in cast("dict[str, Any]", value).items()}
        elif key in ("items", "additionalProperties"):
            made[key] = _shut(value)
        elif key in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            made[key] = [_shut(one) for one in cast("list[Any]", value)]
    open_ends = (
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "anyOf",
        "oneOf",
        "$ref",
        "if",
        "not",
    )
    if "properties" in made and not any(key in made for key in open_ends):
        made["additionalProperties"] = False
    return made


def _spaced(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": SPACES})
