"""Conversations become token ids in one place: through the model's chat template, or as plain text by name.

Also found here: the template's head, the tokens before the first message's text, by rendering the conversation with two
different one-letter first messages and counting equal ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..contrast import Message
from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["chat", "plain"]
KEPT = 8192  # renderings that are remembered


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
        self._prompts: dict[tuple[Message, ...], Rendered] = {}  # training renders the same prompts again and again
        self._answers: dict[str, list[int]] = {}
        self._heads: dict[tuple[str, str, int], tuple[list[int], list[int]]] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of the chat template, or "plain"."""
        if self.template == "plain":
            return "plain"
        return hashlib.sha256(str(self._tokenizer.chat_template).encode()).hexdigest()

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """The ids up to where the assistant begins. Raises `DataError` for a conversation without any token."""
        key = tuple(messages)
        if key not in self._prompts:
            ids = self._ids(messages)
            if not ids:
                raise DataError("the prompt has no tokens; expected some text.")
            head = min(_common(ids, other) for other in self._one_letter(messages))
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

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Ids as text, special tokens left out unless wanted."""
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

    def _find_close(self) -> int:
        """What the template writes after an answer, where that is one of the model's end tokens."""
        if self.template == "chat":
            asked = [Message("user", "a"), Message("assistant", "b")]
            after = self._ids(asked, prompt=False)
            for token in reversed(after):
                if token in self.ends:
                    return token
        return self.ends[0] if self.ends else -1

    def _one_letter(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        # only the roles matter: what stands before the first text can't depend on the texts
        key = (messages[0].role, messages[-1].role, len(messages))
        if key not in self._heads:
            if len(self._heads) >= self._kept:
                self._heads.clear()
            first, rest = messages[0], messages[1:]
            self._heads[key] = (
                self._ids([replace(first, content="a"), *rest]),
                self._ids([replace(first, content="b"), *rest]),
            )
        return self._heads[key]

    def _ids(self, messages: Sequence[Message], *, prompt: bool = True) -> list[int]:
        if self.template == "plain":
            text = "\n".join(m.content for m in messages)
            ids: Any = self._tokenizer(text)["input_ids"]
            return _without_end(list(ids), self.ends)
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except Exception as problem:
            raise DataError(
                f"the chat template can't write this conversation (roles {', '.join(m.role for m in messages)}): {problem}"
            ) from problem
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore


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
