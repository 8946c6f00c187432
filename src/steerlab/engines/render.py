"""Conversations become token ids in one place: through the model's chat template, or as plain text by name.

Also found here: the template's head, the tokens before the first message's text, by rendering the conversation with two
different one-letter first messages and counting equal ids.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..contrast import Example, Message
from ..errors import ConfigError, DataError
from .grammar import Grammars

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
    """What a template is given beside the messages: tools, as JSON, and whether to think (None: as it likes).

    The assistant's turn is begun after them, unless the last message is the assistant's and `continues`, or `begins` is false.
    """

    tools: str = ""
    thinking: bool | None = None
    continues: bool = False
    begins: bool = True


NOTHING = Extras()


class Rendering(NamedTuple):
    """How conversations are written beyond what their messages say.

    `system` is put before every conversation that has no system message. `thinking` switches the template's thinking on or
    off (None: as the template likes); an example that says so itself wins. `rendered`: each text is a whole prompt that
    somebody has written with the chat template, so that nothing is written around it.
    """

    system: str | None = None
    thinking: bool | None = None
    rendered: bool = False

    def to_json(self) -> dict[str, Any]:
        """What differs from the usual, as plain data."""
        usual = Rendering()
        return {k: v for k, v in self._asdict().items() if v != getattr(usual, k)}


class RenderedTwice(UserWarning):
    """A text holds tokens of the chat template, which is then written around it a second time."""


class Rendered(NamedTuple):
    """A prompt's ids, and how many of them are the template's head."""

    ids: list[int]
    head: int


class Renderer:
    """Turns messages into ids for one tokenizer.

    `template="chat"` is the tokenizer's own chat template; `"plain"` joins the messages' texts with line breaks, for
    base models, and is only ever used when asked for. `rendering` says what is written beyond the messages; with
    `warns`, a text that looks rendered already is warned of once (`RenderedTwice`). Raises
    `DataError` for a tokenizer without a chat template, for thinking where the template has no switch for it, and for a text
    with an id that isn't among the rows of the model's embedding (`embedded`, where known).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        ends: Sequence[int],
        *,
        kept: int = KEPT,
        rendering: Rendering = Rendering(),  # noqa: B008  (immutable)
        warns: bool = True,
        embedded: int | None = None,
    ) -> None:
        if template not in ("chat", "plain"):
            raise ConfigError(f"the template is {template!r}; expected 'chat' or 'plain'.")
        if rendering.rendered and (rendering.system is not None or rendering.thinking is not None):
            raise ConfigError(
                "a system message and thinking are written by the template, and texts that are rendered already have none to"
                " come; leave --rendered out, or --system and --thinking."
            )
        if template == "chat" and not tokenizer.chat_template:
            raise DataError(
                "this model's tokenizer has no chat template, so there is no one right way to write a conversation."
                " Pass template='plain' (--template plain) to join the messages as plain text, or set"
                " tokenizer.chat_template."
            )
        self._tokenizer, self._kept, self.embedded = tokenizer, kept, embedded
        self.grammars, self.vocabulary = Grammars(tokenizer, ends), len(tokenizer)
        self.rendering = rendering
        self.template: Template = template
        self.ends = tuple(dict.fromkeys(ends))
        if rendering.thinking is not None:
            self._need_switch()
        self._warned = not warns  # of texts that are rendered twice
        self._template_tokens: frozenset[str] | None = None
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

    def conversation(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, begun with the system message of `rendering` where they have none."""
        if self.rendering.system is None or messages[0].role == "system":
            return tuple(messages)
        return (Message("system", self.rendering.system), *messages)

    def example(self, example: Example) -> Rendered:
        """An example's prompt as the model reads it."""
        return self.prompt(self.conversation(example.messages), Extras(thinking=example.thinking))

    def prompt(self, messages: Sequence[Message | Turn], extras: Extras = NOTHING) -> Rendered:
        """The ids up to where the assistant begins. Raises `DataError` for a conversation without any token."""
        if extras.thinking is None:
            extras = extras._replace(thinking=self.rendering.thinking)
        key = (tuple(messages), extras)
        if key not in self._prompts:
            if self.rendering.rendered:
                return self._as_written(messages)
            self._warn_of_template([m.content for m in messages])
            ids = self._ids(messages, extras=extras)
            self._check(ids)
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
            if not self.rendering.rendered:
                self._warn_of_template([text])
            self._answers[text] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore
            self._check(self._answers[text])
        ids = self._answers[text]
        if self.rendering.rendered and ids and ids[-1] == self.close:
            ids = ids[:-1]  # written with the rest of the template; it comes back where the turn is to be closed
        return [*ids, self.close] if close and self.close is not None else list(ids)

    def _as_written(self, messages: Sequence[Message | Turn]) -> Rendered:
        """A prompt that was rendered by somebody else, as it is. Raises `DataError` for more than one message."""
        if len(messages) != 1:
            roles = ", ".join(m.role for m in messages)
            raise DataError(
                f"a rendered prompt is one text, and this conversation has {len(messages)} messages ({roles}); give the whole"
                " prompt as one message, or leave --rendered out and let the template write it."
            )
        ids = list(self._tokenizer(messages[0].content, add_special_tokens=False)["input_ids"])  # pyright: ignore
        self._check(ids)
        if not ids:
            raise DataError("the prompt has no tokens; expected some text.")
        return Rendered(ids, self.head_of(ids))

    def template_tokens(self) -> frozenset[str]:
        """The special tokens that the chat template writes (a text that holds one was rendered already); none for plain text."""
        if self._template_tokens is None:
            written = "" if self.template == "plain" else self.template_text
            try:
                turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
                ids = self._ids(turns) if self.template == "chat" else []
            except DataError:
                ids = []
            names = self._specials()
            tokens = {name for i, name in names.items() if name.strip() and (i in ids or name in written)}
            self._template_tokens = frozenset(tokens)
        return self._template_tokens

    def _warn_of_template(self, texts: Sequence[str]) -> None:
        """Say once that a text looks rendered already."""
        if self._warned:
            return
        tokens = [t for t in self.template_tokens() if any(t in text for text in texts)]
        if tokens:
            self._warned = True
            warnings.warn(
                f"a text holds {tokens[0]!r}, which the chat template writes, so that it is rendered twice: the model reads the"
                " template's tokens within a message. Give the bare messages, or say that texts are rendered already"
                " (--rendered, steerlab.load(..., rendered=True)).",
                RenderedTwice,
                stacklevel=2,
            )

    def _need_switch(self) -> None:
        if self.template == "plain" or "enable_thinking" not in self.template_text:
            raise DataError(
                "this model's chat template has no switch for thinking (enable_thinking); leave --thinking out, or ask for it in"
                " the messages."
            )

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
        ids = ids if self.begin is None else [self.begin, *ids]
        self._check(ids)
        return ids

    def _check(self, ids: Sequence[int]) -> None:
        """Raise `DataError` for an id that the model's embedding hasn't got."""
        beyond = next((i for i in ids if self.embedded is not None and i >= self.embedded), None)
        if beyond is not None:
            raise DataError(
                f"the tokenizer writes {self._tokenizer.convert_ids_to_tokens(beyond)!r} as id {beyond}, and the model's"
                f" embedding has {self.embedded} rows, 0 to {(self.embedded or 0) - 1}. Call"
                " model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that the model came with."
            )

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
        if extras.thinking is not None:
            self._need_switch()
        more: dict[str, Any] = {} if extras.thinking is None else {"enable_thinking": extras.thinking}
        tools = json.loads(extras.tools) if extras.tools else None
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                tools=tools,
                tokenize=False,
                continue_final_message=extras.continues,
                add_generation_prompt=prompt and extras.begins and not extras.continues,
                **more,
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
