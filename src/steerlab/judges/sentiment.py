"""How positive or negative a text is, by rule: words with a valence, negation, intensity, and contrast.

The lexicon that is built in is small, and was written for this file from common English alone. A larger one in VADER's layout
(word, tab, valence) is read from a file. It knows neither irony nor context: `steerlab judge agree` says how far it can be
trusted.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import ConfigError
from .base import Judge, Score
from .words import stem

if TYPE_CHECKING:
    from ..contrast import Example

_READ: dict[str, list[str]] = {
    name: words.split()
    for name, words in tomllib.loads((Path(__file__).parent / "data/valence.toml").read_text(encoding="utf-8")).items()
}
_VALENCE = {
    word: float(n) * sign
    for name, sign in (("plus", 1), ("minus", -1))
    for n in (1, 2, 3)
    for word in _READ[f"{name}{n}"]
}
_NOT = frozenset(_READ["negations"])
_WEIGHS = dict.fromkeys(_READ["more"], 1.3) | dict.fromkeys(_READ["less"], 0.7)
_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[.,;:!?]")


@lru_cache(maxsize=4)
def _lexicon(path: str) -> tuple[dict[str, float], dict[str, float]]:
    """Words as they stand, and their stems for what stands nowhere."""
    words = dict(_VALENCE)
    if path:
        try:
            rows = [
                line.split("\t")[:2] for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()
            ]
            words = {word.lower(): float(value) for word, value in rows}
        except (OSError, UnicodeDecodeError, ValueError) as problem:
            raise ConfigError(
                f"the sentiment lexicon {path} can't be read: {problem}. Expected lines of a word, a tab and its valence."
            ) from problem
    stems: dict[str, float] = {}
    for word, value in words.items():
        if word.isalpha():
            stems.setdefault(stem(word), value)
    return words, stems


def valence(text: str, lexicon: str = "") -> tuple[float, int]:
    """The mean valence of a text's words that have one, in −1 to 1 by their sum's size, and how many there are.

    A negation turns the next three words and weakens them, an intensifier before a word counts with it, and what follows "but"
    counts half as much again as what stands before.
    """
    words, stems = _lexicon(lexicon)
    tokens = [t.lower().replace("’", "'") for t in _TOKEN.findall(text)]
    total, weight, negated, strength, found = 0.0, 1.0, 0, 1.0, 0
    for token in tokens:
        if token in ".;:!?":
            negated, strength, weight = 0, 1.0, 1.0
            continue
        if token == "but":
            total, weight, negated = 0.5 * total, 1.5, 0
            continue
        if token in _NOT or token.endswith("n't"):
            negated, strength = 3, 1.0
            continue
        value = words.get(token)
        if value is None and token.isalpha():
            value = stems.get(stem(token))
        if value:
            total += value * strength * weight * (-0.6 if negated else 1.0)
            found += 1
        strength = _WEIGHS.get(token, 1.0)
        negated = max(0, negated - (token != ","))
    return total / math.sqrt(total * total + 15), found


@dataclass(frozen=True)
class SentimentJudge(Judge):
    """How positive (or negative) a text is: 0.5 is neither. `lexicon` is a file of words and valences in place of the built-in
    one."""

    pole: Literal["positive", "negative"] = "positive"
    lexicon: str = ""
    threshold: float = 0.6
    tried: ClassVar[Mapping[str, Any]] = {"pole": "positive"}
    shows: ClassVar[tuple[str, ...]] = (
        "A wonderful evening, warm and very funny.",
        "It is not bad at all, and I loved the end.",
    )
    lacks: ClassVar[tuple[str, ...]] = ("A dreadful, boring mess.", "It was never good.", "The table has four legs.")

    def __post_init__(self) -> None:
        if self.pole not in ("positive", "negative"):
            raise ConfigError(f"the pole is {self.pole!r}; expected positive or negative.")
        _lexicon(self.lexicon)

    def __call__(self, reply: str, example: Example) -> Score:
        """The degree; missing for an empty reply."""
        if not reply.strip():
            return Score.missing("the reply is empty")
        value, found = valence(reply, self.lexicon)
        return Score(0.5 + 0.5 * (value if self.pole == "positive" else -value), f"{found} words with a valence")
