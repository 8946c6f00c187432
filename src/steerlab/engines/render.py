"""Conversations become token ids in one place: through the model's chat template, or as plain text by name.

Also found here: the template's head, the tokens before the first message's text, by rendering the conversation with two
different one-letter first messages and counting equal ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..contrast import Message
from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["chat", "plain"]
KEPT = 8192  # renderings that are remembered


@dataclass(frozen=True, slots=True)
class Turn:
    """A message that holds more than a role and a text: the assistant's calls of tools, or a tool's answer to one."""

    role: str
    content: str
    calls: str = ""  # JSON of the calls, as templates take them
    call_id: str = ""
    name: str = ""
    thinking: str = ""


class Extras(NamedTuple):
    """What a template is given beside the messages: tools, as JSON, and whether to think (None: as it likes)."""

    tools: str = ""
    thinking: bool | None = None


NOTHING = Extras()


class Rendered(NamedTuple):
    """A prompt's ids, and how many of them are the template's head."""

    ids: list[int]
    head: int


class Renderer:
    """Turns messages into ids for one tokenizer.

    `template="chat"` is the tokenizer's own chat template; `"plain"` joins the messages' texts with line breaks, for
    base models, and is only ever used when asked for. Raises `DataError` for a tokenizer without a chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, ends: Sequence[int], *, kept: int = KEPT
    ) -> None:
        if template not in ("chat", "plain"):
            raise ConfigError(f"the template is {template!r}; expected 'chat' or 'plain'.")
        if template == "chat" and not tokenizer.chat_template:
            raise DataError(
                "this model's tokenizer has no chat template, so there is no one right way to write a conversation."
                " Pass template='plain' (--template plain) to join the messages as plain text, or set"
                " tokenizer.chat_template."
            )
        self._tokenizer, self._kept = tokenizer, kept
        self.template: Template = template
        self.ends = tuple(dict.fromkeys(ends))
        self._close: int | None = None
        self._special: dict[int, str] | None = None
        self._prompts: dict[
            tuple[tuple[Message | Turn, ...], Extras], Rendered
        ] = {}  # training renders the same prompts again and again
        self._answers: dict[str, list[int]] = {}
        self._heads: dict[tuple[str, str, int, Extras], tuple[list[int], list[int]]] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of the chat template, or "plain"."""
        if self.template == "plain":
            return "plain"
        return hashlib.sha256(str(self._tokenizer.chat_template).encode()).hexdigest()

    @property
    def template_text(self) -> str:
        """The chat template as it is written, all of them where there are several; nothing for plain text."""
        written: Any = self._tokenizer.chat_template if self.template == "chat" else ""
        return "\n".join(map(str, written.values())) if isinstance(written, dict) else str(written)

    def prompt(self, messages: Sequence[Message | Turn], extras: Extras = NOTHING) -> Rendered:
        """The ids up to where the assistant begins. Raises `DataError` for a conversation without any token."""
        key = (tuple(messages), extras)
        if key not in self._prompts:
            ids = self._ids(messages, extras=extras)
            if not ids:
                raise DataError("the prompt has no tokens; expected some text.")
            head = min(_common(ids, other) for other in self._one_letter(messages, extras))
            if len(self._prompts) >= self._kept:
                self._prompts.clear()
            self._prompts[key] = Rendered(ids, min(head, len(ids) - 1))
        return self._prompts[key]

    def answer(self, text: str, *, close: bool = True) -> list[int]:
        """The ids of an answer and, unless told otherwise, of the token that closes the assistant's turn."""
        if text not in self._answers:
            if len(self._answers) >= self._kept:
                self._answers.clear()
            self._answers[text] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore
        ids = self._answers[text]
        return [*ids, self.close] if close and self.close is not None else list(ids)

    def head_of(self, ids: Sequence[int]) -> int:
        """The template's head of a prompt that somebody else rendered: what it shares with two one-letter ones."""
        starts: list[tuple[Message, ...]] = [(Message("user", "a"),)]
        if self.template == "chat":
            starts.append((Message("system", "a"), Message("user", "a")))
        best = 0
        for messages in starts:
            try:
                best = max(best, min(_common(ids, other) for other in self._one_letter(messages)))
            except DataError:  # a template without a system role
                continue
        return min(best, max(len(ids) - 1, 0))

    @property
    def close(self) -> int | None:
        """The token that ends the assistant's turn; None for a plain-text model without an end token."""
        if self._close is None:
            self._close = self._find_close()
        return self._close if self._close >= 0 else None

    def text(self, ids: Sequence[int], *, special: bool = False, keep: Sequence[str] = ()) -> str:
        """Ids as text, special tokens left out unless wanted, all of them or those called as `keep` says."""
        if keep and not special:
            names = self._specials()
            if any(name in keep for name in names.values()):
                ids, special = [i for i in ids if i not in names or names[i] in keep], True
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))

    @property
    def begin(self) -> int | None:
        """The token that a text begins with, where the model has one."""
        begin = self._tokenizer.bos_token_id
        return begin if isinstance(begin, int) else None

    def text_ids(self, text: str) -> list[int]:
        """Plain text as ids, begun as the model's texts begin."""
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore
        return ids if self.begin is None else [self.begin, *ids]

    def _specials(self) -> dict[int, str]:
        if self._special is None:
            t: Any = self._tokenizer
            found = {int(i): str(a.content) for i, a in t.added_tokens_decoder.items() if a.special}
            self._special = {**{i: str(t.convert_ids_to_tokens(i)) for i in t.all_special_ids}, **found}
        return self._special

    def _find_close(self) -> int:
        """What the template writes after an answer, where that is one of the model's end tokens."""
        if self.template == "chat":
            asked = [Message("user", "a"), Message("assistant", "b")]
            after = self._ids(asked, prompt=False)
            for token in reversed(after):
                if token in self.ends:
                    return token
        return self.ends[0] if self.ends else -1

    def _one_letter(self, messages: Sequence[Message | Turn], extras: Extras = NOTHING) -> tuple[list[int], list[int]]:
        # only the roles and tools matter: what stands before the first text can't depend on the texts
        key = (messages[0].role, messages[-1].role, len(messages), extras)
        if key not in self._heads:
            if len(self._heads) >= self._kept:
                self._heads.clear()
            first, rest = messages[0], messages[1:]
            self._heads[key] = (
                self._ids([replace(first, content="a"), *rest], extras=extras),
                self._ids([replace(first, content="b"), *rest], extras=extras),
            )
        return self._heads[key]

    def _ids(self, messages: Sequence[Message | Turn], *, prompt: bool = True, extras: Extras = NOTHING) -> list[int]:
        if self.template == "plain":
            text = "\n".join(m.content for m in messages)
            ids: Any = self._tokenizer(text)["input_ids"]
            return _without_end(list(ids), self.ends)
        turns = [_as_dict(m) for m in messages]
        more: dict[str, Any] = {} if extras.thinking is None else {"enable_thinking": extras.thinking}
        tools = json.loads(extras.tools) if extras.tools else None
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=prompt, **more
            )
        except Exception as problem:
            raise DataError(
                f"the chat template can't write this conversation (roles {', '.join(m.role for m in messages)}): {problem}"
            ) from problem
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore


def _as_dict(m: Message | Turn) -> dict[str, Any]:
    """A message as templates take it; what isn't there has no key, as templates ask whether it has."""
    told: dict[str, Any] = {"role": m.role, "content": m.content}
    if isinstance(m, Turn):
        told |= {"tool_calls": json.loads(m.calls)} if m.calls else {}
        more = {"tool_call_id": m.call_id, "name": m.name, "reasoning_content": m.thinking}
        told |= {key: value for key, value in more.items() if value}
    return told


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _without_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """A plain prompt goes on: an end token that the tokenizer appends is dropped."""
    return ids[:-1] if len(ids) > 1 and ids[-1] in ends else ids
