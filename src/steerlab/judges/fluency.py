"""Whether a text reads like language: words, their order, no stutter, whole sentences, one language, length, perplexity."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfigError, nearest
from .base import Judge, Score
from .language import LANGUAGES, languages_of
from .words import sentences_of, words_of

if TYPE_CHECKING:
    from ..contrast import Example


@dataclass(frozen=True)
class FluencyJudge(Judge):
    """Whether a text reads like language; each part that is asked for brought to [0, 1], and their product.

    Without any setting: no stutter, and sentences that begin and end. `words` are the known words, `small` the commonest of
    them (no sentence does without). `order` maps the class of a word to the classes that may follow it (`word_class` gives them),
    learned from text: shuffled words break it, and keyword lists lack the small words. `distinct` is the least share of different
    word pairs. `language` is the code of the language that all of it should be in (`same`: whichever most of it is in). Fewer
    words than `shortest` or more than `longest` count the less. `reference` is a model (a folder, or a name on the hub) under
    which a perplexity per token of `usual` is full marks, and of `worst` none.
    """

    words: frozenset[str] = frozenset()
    small: frozenset[str] = frozenset()
    order: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    threshold: float = 0.5
    distinct: float = 0.0
    language: str = ""
    shortest: int = 0
    longest: int = 0
    reference: str = ""
    usual: float = 60.0
    worst: float = 1000.0
    revision: str | None = None
    device: str = "cpu"
    tried: ClassVar[Mapping[str, Any]] = {"distinct": 0.6, "language": "same", "shortest": 3}
    shows: ClassVar[tuple[str, ...]] = ("The kettle is on. We will have tea in the garden when the rain stops.",)
    lacks: ClassVar[tuple[str, ...]] = ("tea tea tea tea tea tea tea tea tea tea tea tea tea tea", "so so")

    def __post_init__(self) -> None:
        if self.language not in ("", "same", *LANGUAGES):
            raise ConfigError(f"the language is {self.language!r}. {nearest(self.language, ('same', *LANGUAGES))}")
        if not 0 < self.usual < self.worst or not 0 <= self.distinct <= 1 or (0 < self.longest < self.shortest):
            raise ConfigError(
                f"usual is {self.usual}, worst {self.worst}, distinct {self.distinct}, shortest {self.shortest}, longest"
                f" {self.longest}; expected 0 < usual < worst, distinct in [0, 1] and shortest up to longest."
            )

    def __call__(self, reply: str, example: Example) -> Score:
        """The degree of fluency; missing for an empty reply, and for a word or two where an item asks for no more."""
        tokens = words_of(reply)
        if not tokens:
            return Score.missing("the reply is empty")
        if len(tokens) < 4 and "check" in example.tags:
            return Score.missing("a right answer of a word or two is no text")
        parts = self.parts(reply)
        degree = 1.0
        for value in parts.values():
            degree *= value
        weakest = min(parts, key=lambda k: parts[k])
        return Score(degree, f"weakest: {weakest} {parts[weakest]:.2f}")

    def parts(self, reply: str) -> dict[str, float]:
        """What each part gives, in [0, 1]."""
        tokens = words_of(reply)
        parts: dict[str, float] = {}
        if self.words:
            known = sum(w in self.words or not w.isalpha() for w in tokens) / len(tokens)
            parts["known words"] = _ramp(known, 0.7, 0.95)
        if self.small:
            parts["small words"] = _ramp(sum(w in self.small for w in tokens) / len(tokens), 0.1, 0.25)
        if self.order:
            parts["word order"] = _ramp(self.ordered(reply), 0.75, 0.95)
        parts["no repetition"] = _ramp(1 - repetition(tokens), 0.5, 0.85)
        parts["sentence shape"] = self._shape(reply)
        if self.distinct and len(tokens) > 1:
            parts["distinct pairs"] = _ramp(distinct(tokens, 2), 0.5 * self.distinct, self.distinct)
        if self.language:
            shares = languages_of(reply)
            here = max(shares.values(), default=1.0) if self.language == "same" else shares.get(self.language, 0.0)
            # a text too short to tell is in no wrong language
            parts["one language"] = min(1.0, here) if shares else 1.0
        if self.shortest:
            parts["long enough"] = min(1.0, len(tokens) / self.shortest) ** 2
        if self.longest:
            parts["short enough"] = min(1.0, self.longest / len(tokens)) ** 2
        if self.reference:
            found = perplexity(reply, self.reference, self.revision, self.device)
            if found is not None:
                parts["perplexity"] = _ramp(
                    math.log(self.worst) - math.log(found), 0.0, math.log(self.worst / self.usual)
                )
        return parts

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


def distinct(tokens: Sequence[str], n: int) -> float:
    """Distinct-n: the share of different runs of n words among all of them (Li et al. 2016); 1 where there is none."""
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


@lru_cache(maxsize=4096)
def perplexity(text: str, model: str, revision: str | None = None, device: str = "cpu") -> float | None:
    """exp of the mean loss per token of a text under a causal model, from its first token on, whatever stands before it none.

    What is longer than the model can read is cut. Infinite where the loss is no number; None for fewer than two tokens.
    """
    import torch

    from .local import harmless, loaded, room

    found = loaded(model, revision, device)
    ids = found.tokenizer(harmless(found, text), return_tensors="pt")["input_ids"][:, : room(found)].to(
        found.model.device
    )
    if ids.shape[1] < 2:
        return None
    with torch.no_grad():
        logits = found.model(ids).logits[0, :-1].float()
    loss = float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.inf


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
