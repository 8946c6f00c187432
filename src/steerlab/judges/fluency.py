"""Whether a text reads like language, by rule: known words, known word order, no stutter, whole sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Judge, Score
from .rule import sentences_of, words_of

if TYPE_CHECKING:
    from ..contrast import Example


@dataclass(frozen=True)
class FluencyJudge(Judge):
    """Whether a text reads like language: known words, known word order, no stutter, sentences that begin and end.

    `words` are the known words, `small` the commonest of them (no sentence does without). `order` maps the class of a
    word to the classes that may follow it (`word_class` gives them), learned from text: shuffled words break it, and
    keyword lists lack the small words. The degree is the product of the parts, each brought to [0, 1].
    """

    words: frozenset[str]
    small: frozenset[str]
    order: Mapping[str, frozenset[str]]
    threshold: float = 0.5

    def __call__(self, reply: str, example: Example) -> Score:
        """The degree of fluency; missing for an empty reply, and for a word or two where an item asks for no more."""
        tokens = words_of(reply)
        if not tokens:
            return Score.missing("the reply is empty")
        if len(tokens) < 4 and "check" in example.tags:
            return Score.missing("a right answer of a word or two is no text")
        known = sum(w in self.words or not w.isalpha() for w in tokens) / len(tokens)
        parts = {
            "known words": _ramp(known, 0.7, 0.95),
            "small words": _ramp(sum(w in self.small for w in tokens) / len(tokens), 0.1, 0.25),
            "word order": _ramp(self.ordered(reply), 0.75, 0.95),
            "no repetition": _ramp(1 - repetition(tokens), 0.5, 0.85),
            "sentence shape": self._shape(reply),
        }
        degree = 1.0
        for value in parts.values():
            degree *= value
        weakest = min(parts, key=lambda k: parts[k])
        return Score(degree, f"weakest: {weakest} {parts[weakest]:.2f}")

    def ordered(self, reply: str) -> float:
        """The share of neighbouring words whose classes may stand side by side."""
        classes = [word_class(t) for t in _ORDER_TOKEN.findall(reply.lower() if reply.isupper() else reply)]
        pairs = list(zip(["^", *classes], [*classes, "$"], strict=True))
        return sum(b in self.order.get(a, frozenset()) for a, b in pairs) / len(pairs)

    @staticmethod
    def _shape(reply: str) -> float:
        text = reply.strip()
        if len(words_of(text)) < 4 or text[0] in "{[(" or "\n" in text:
            return 1.0
        parts = sentences_of(text)
        begins = sum(not p.lstrip("\"'(¡¿-")[:1].islower() for p in parts) / len(parts)
        ends = 1.0 if text[-1] in '.!?"}:' else 0.6
        return (0.4 + 0.6 * begins) * ends


def _ramp(x: float, low: float, high: float) -> float:
    return max(0.0, min(1.0, (x - low) / (high - low)))


def repetition(tokens: Sequence[str]) -> float:
    """The share of word triples that were there before (pairs in short texts): 0 for none, near 1 for a loop."""
    n = 3 if len(tokens) > 12 else 2
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    if not grams:
        return 0.0
    triples = 1 - len(set(grams)) / len(grams)
    most = Counter(tokens).most_common(1)[0][1] / len(tokens)
    return max(triples, _ramp(most, 0.25, 0.6) if len(tokens) > 8 else 0.0)


_ORDER_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]|\n")
_FUNCTION_LINES = (
    "a an the this that these those some any no every each all both few many most several such same other another i",
    "you he she it we they me him her us them my your his its our their who whom whose which what and or but nor so",
    "yet because since while when where if as than though although until unless after before of in on at to from with",
    "without by for about into over under between through near beside behind beyond above below among along around",
    "against up down off out is are was were be been being am has have had do does did will would can could may might",
    "must shall should not never always often only also too very more less just then there here now how why one two",
    "three four five",
)
FUNCTION_WORDS = frozenset(word for line in _FUNCTION_LINES for word in line.split())


def word_class(token: str) -> str:
    """The class of a token for word order: small words and marks are their own, others go by shape and ending."""
    if not token[0].isalnum():
        return token if token in ".,;:!?\"'()-{}[]\n" else "#"
    low = token.lower()
    if low in FUNCTION_WORDS:
        return low
    if token[0].isdigit():
        return "0"
    if token[0].isupper():
        return "Aa"
    for ending in ("ing", "ed", "ly", "s"):
        if low.endswith(ending) and len(low) > len(ending) + 2:
            return "~" + ending
    return "~"


def learn_order(texts: Iterable[str], *, least: int = 3) -> dict[str, frozenset[str]]:
    """The word-class neighbours seen at least `least` times in texts, for a `FluencyJudge`."""
    seen: Counter[tuple[str, str]] = Counter()
    for text in texts:
        classes = [word_class(t) for t in _ORDER_TOKEN.findall(text)]
        seen.update(zip(["^", *classes], [*classes, "$"], strict=True))
    found: dict[str, set[str]] = {}
    for (a, b), n in seen.items():
        if n >= least:
            found.setdefault(a, set()).add(b)
    return {a: frozenset(bs) for a, bs in found.items()}
