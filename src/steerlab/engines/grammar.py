"""Replies that must have a form: JSON, JSON of a schema, a regular expression, or a grammar in Lark's notation.

At each step the tokens that the form rules out are forbidden, and among the others one is drawn as ever. Which those are is
said by llguidance (https://github.com/guidance-ai/llguidance), the extra `constrained`; without it a `ConfigError` says so.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxtyping import Bool

KEPT = 64  # compiled grammars that are remembered
OBJECT = '{"type": "object"}'
SPACES: dict[str, Any] = {
    "whitespace_pattern": r"\n[ ]{0,32}|[ ]?"
}  # between JSON's parts; as they like, models may go on for ever


@dataclass(frozen=True, slots=True)
class Grammar:
    """A form of a reply: `json` (a JSON schema as text), `regex`, or `lark` (llguidance's dialect).

    Where `after` is given, the reply is free until it holds that text (the end of thinking), and has the form from there on.
    """

    kind: Literal["json", "regex", "lark"]
    text: str
    after: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("json", "regex", "lark"):
            raise ConfigError(f"the grammar's kind is {self.kind!r}; expected 'json', 'regex' or 'lark'.")
        if self.kind == "json":
            try:
                made = json.loads(self.text)
            except (ValueError, RecursionError) as problem:
                raise DataError(f"the JSON schema isn't valid JSON: {str(problem)[:200]}.") from problem
            if not isinstance(made, (dict, bool)):
                raise DataError(f"the JSON schema is {self.text[:80]!r}; expected an object.")


class Matcher:
    """Where one reply stands in its grammar."""

    def __init__(self, core: Any, vocabulary: int, after: str) -> None:
        self._core, self._known, self.after = core, vocabulary, after  # `after` is emptied once it has come

    def allowed(self, width: int) -> Bool[torch.Tensor, " v"] | None:
        """Which of `width` tokens may come next; None: any."""
        if self.after:
            return None
        known = self._known
        words = torch.zeros((known + 31) // 32, dtype=torch.int32)
        self._core.unsafe_compute_mask_ptr(words.data_ptr(), 4 * words.numel())
        bits = ((words[:, None] >> torch.arange(32, dtype=torch.int32)) & 1).flatten()[:known].bool()
        return torch.cat([bits, bits.new_zeros(max(0, width - known))])[:width]

    def take(self, token: int) -> None:
        """The token that came."""
        self._core.consume_token(token)

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return not self.after and bool(self._core.is_stopped())

    @property
    def problem(self) -> str | None:
        """Why the grammar can't be followed any more; None where it can."""
        told = self._core.get_error()
        return f"its grammar can't be followed further: {str(told)[:200]}" if told else None


class Grammars:
    """Grammars for one tokenizer, compiled once. Any thread may ask."""

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        self._tokenizer, self._ends = tokenizer, list(ends)
        self._lock, self._words = Lock(), None
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    def matcher(self, grammar: Grammar) -> Matcher:
        """The beginning of a reply. Raises `DataError` for a grammar that can't be compiled, `ConfigError` without llguidance."""
        library = _library()
        with self._lock:
            words, core = self._known(library), self._compiled.get(grammar)
        if core is None:
            core = self._compile(library, words, grammar)  # without the lock: others need not wait for a large one
        with self._lock:
            self._compiled[grammar] = core
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Matcher(core.deep_copy(), words.vocab_size, grammar.after)

    def _known(self, library: Any) -> Any:
        if self._words is None:
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            if backend is None:
                raise DataError(
                    "a grammar needs a fast tokenizer (one with a tokenizer.json), and this model's is none."
                )
            ends = self._ends or [i for i in [self._tokenizer.eos_token_id] if isinstance(i, int)]
            try:
                self._words = library.LLTokenizer(backend.to_str(), eos_token=ends or None)
            except Exception as problem:
                raise DataError(
                    f"a grammar can't be used with this model's tokenizer: {str(problem)[:200]}"
                ) from problem
        return self._words

    def _compile(self, library: Any, words: Any, grammar: Grammar) -> Any:
        kind = library.LLMatcher
        try:
            if grammar.kind == "json":
                text = kind.grammar_from_json_schema(grammar.text, overrides=SPACES)
            else:
                text = (kind.grammar_from_regex if grammar.kind == "regex" else kind.grammar_from_lark)(grammar.text)
        except ValueError as problem:
            raise DataError(f"the form ({grammar.kind}) of the reply can't be read: {str(problem)[:300]}") from problem
        made = kind(words, text, log_level=0)
        if made.is_error():
            told = str(made.get_error()).splitlines()[0][:300]
            raise DataError(f"the form ({grammar.kind}) of the reply can't be followed here: {told}")
        return made


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as problem:
        raise ConfigError(
            "a reply that must have a form (response_format, tool_choice required or named, strict tools) takes llguidance, which"
            f' isn\'t installed here ({problem}); pip install "steerlab[constrained]".'
        ) from problem
