"""A conversation of a request as the chat template takes it: turns, tools, calls of tools and their answers, thinking."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..contrast import Message
from ..engines.render import Extras, Rendered, Turn
from ..errors import nearest
from ..steering import Steering
from .forms import certain
from .problems import Problem
from .schema import ChatMessage, ChatRequest
from .talk import Form

if TYPE_CHECKING:
    from .service import Service

ROLES = {"developer": "system"}


def conversation(asked: ChatRequest, service: Service, steering: Steering | None) -> Rendered:
    """Its ids up to where the assistant begins. Raises `Problem` 400 for what the model's template can't write."""
    form, messages = service.form, asked.messages
    begins = _begins(asked)
    if form.calls is None and (asked.tools or any(m.tool_calls or m.role == "tool" for m in messages)):
        raise Problem(
            400, "tools aren't built for this model: its chat template writes no calls of a form that is read here (<tool_call>"
            " as Hermes and Qwen have it, or Llama 3's JSON).", "unsupported", param="tools",
        )  # fmt: skip
    tools = asked.tools if asked.tools and asked.tool_choice != "none" else []
    written = json.dumps([tool.model_dump(exclude_none=True) for tool in tools]) if tools else ""
    extras = Extras(written, _thinking(asked, form), continues=bool(asked.continue_final_message), begins=begins)
    return service.prompts.chat(_turns(messages), steering, extras)


def _begins(asked: ChatRequest) -> bool:
    """Whether the assistant's turn is begun after the messages. Raises `Problem` 400 for what can't be meant."""
    last, continues, begins = asked.messages[-1], bool(asked.continue_final_message), asked.add_generation_prompt
    if continues and begins:
        sentence = (
            "continue_final_message goes on with the last message and add_generation_prompt begins a new one; give one."
        )
        raise Problem(400, sentence, "bad_value", param="continue_final_message")
    if continues and (last.role != "assistant" or last.tool_calls or not last.text):
        sentence = f"continue_final_message goes on with the assistant's text, and the last turn is the {last.role}'s"
        more = " calls of tools" if last.tool_calls else "" if last.role != "assistant" else " without any"
        raise Problem(
            400, f"{sentence}{more}; end the messages with the text to go on with.", "bad_value", param="messages"
        )
    if last.role == "assistant" and not continues and begins is None:
        raise Problem(
            400, "the conversation ends with the assistant's turn; end it with the user's, or say continue_final_message to have"
            " it gone on with (or add_generation_prompt for a new turn).", "bad_value", param="messages",
        )  # fmt: skip
    return begins is not False


def echoed(asked: ChatRequest) -> str:
    """What is told again before a reply: the message that is gone on with, where that is asked for."""
    return asked.messages[-1].text if asked.echo and asked.continue_final_message else ""


def offered(asked: ChatRequest) -> frozenset[str]:
    """The names of the tools that may be called."""
    if asked.tool_choice == "none":
        return frozenset()
    return frozenset(function.name for function in certain(asked) or [tool.function for tool in asked.tools or ()])


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
