"""A conversation of a request as the chat template takes it: turns, tools, calls of tools and their answers, thinking."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..contrast import Message
from ..engines.render import Extras, Rendered, Turn
from ..errors import nearest
from ..steering import Steering
from .problems import Problem
from .schema import ChatMessage, ChatRequest
from .talk import Form

if TYPE_CHECKING:
    from .service import Service

ROLES = {"developer": "system"}


def conversation(asked: ChatRequest, service: Service, steering: Steering | None) -> Rendered:
    """Its ids up to where the assistant begins. Raises `Problem` 400 for what the model's template can't write."""
    form, messages = service.form, asked.messages
    if messages[-1].role == "assistant":
        sentence = "the conversation ends with the assistant's turn; end it with the user's."
        raise Problem(400, sentence, "bad_value", param="messages")
    if form.calls is None and (asked.tools or any(m.tool_calls or m.role == "tool" for m in messages)):
        raise Problem(
            400, "tools aren't built for this model: its chat template writes no calls of a form that is read here (<tool_call>"
            " as Hermes and Qwen have it, or Llama 3's JSON).", "unsupported", param="tools",
        )  # fmt: skip
    tools = asked.tools if asked.tools and asked.tool_choice != "none" else []
    written = json.dumps([tool.model_dump(exclude_none=True) for tool in tools]) if tools else ""
    return service.prompts.chat(_turns(messages), steering, Extras(written, _thinking(asked, form)))


def offered(asked: ChatRequest) -> frozenset[str]:
    """The names of the tools that may be called."""
    return frozenset(tool.function.name for tool in asked.tools or ()) if asked.tool_choice != "none" else frozenset()


def _thinking(asked: ChatRequest, form: Form) -> bool | None:
    """Whether to think, where the request says so. Raises `Problem` 400 where the template can't be told."""
    told = asked.chat_template_kwargs.enable_thinking if asked.chat_template_kwargs else None
    if asked.reasoning_effort == "none" and told is None and form.thinks:
        told = False
    if told is not None and not form.switch:
        raise Problem(400, "this model's chat template has no switch for thinking (enable_thinking).", "unsupported")
    return told


def _turns(messages: Sequence[ChatMessage]) -> list[Message | Turn]:
    names: dict[str, str] = {}
    turns: list[Message | Turn] = []
    for m in messages:
        role = ROLES.get(m.role, m.role)
        if m.tool_calls:
            names |= {call.id: call.function.name for call in m.tool_calls}
            made = [
                (c.id, {"name": c.function.name, "arguments": _arguments(c.function.arguments)}) for c in m.tool_calls
            ]
            calls = [{"id": name, "type": "function", "function": function} for name, function in made]
            turns.append(Turn(role, m.text, json.dumps(calls), thinking=m.reasoning_content or ""))
        elif m.tool_call_id is not None:
            if m.tool_call_id not in names:
                near = nearest(m.tool_call_id[:80], names)
                sentence = f"a tool answers the call {m.tool_call_id[:80]!r}, which no turn before it made. {near}"
                raise Problem(400, sentence, "bad_value", param="messages")
            turns.append(Turn(role, m.text, call_id=m.tool_call_id, name=m.name or names[m.tool_call_id]))
        elif m.reasoning_content:
            turns.append(Turn(role, m.text, thinking=m.reasoning_content))
        else:
            turns.append(Message(role, m.text))  # pyright: ignore[reportArgumentType]
    return turns


def _arguments(written: str) -> dict[str, Any]:
    """A call's arguments. Raises `Problem` 400 for what isn't a JSON object."""
    try:
        made = json.loads(written)
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise Problem(
            400, f"a call's arguments are {written[:80]!r}; expected a JSON object.", "bad_value", param="messages"
        )
    return made
