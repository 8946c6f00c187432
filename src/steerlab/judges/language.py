"""Which language a text is in, by rule: its script, and where several languages share one, their commonest words and letters.

Small on purpose: thirty languages, a few dozen words each, nothing to download. Short texts (under about four words) are often
undecided, and are said to be. What it gets right on texts that nothing here was made from: `tests/test_judges_rule_more.py`.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfigError, nearest
from .base import Judge, Score
from .words import sentences_of, words_of

if TYPE_CHECKING:
    from ..contrast import Example

DATA = Path(__file__).parent / "data"
_READ: dict[str, str] = tomllib.loads((DATA / "languages.toml").read_text(encoding="utf-8"))
COMMON = {language: tuple(dict.fromkeys(words.split())) for language, words in _READ.items()}
LETTERS = {  # letters that few others use
    "de": "ßäöü", "fr": "êèçœàùîôû", "es": "ñ¿¡", "it": "òìù", "pt": "ãõç", "sv": "åäö", "da": "æøå", "no": "æøå", "fi": "äö",
    "pl": "łżśźćęąń", "cs": "řěůčšž", "ro": "ășțâî", "hu": "őű", "tr": "ğışç", "vi": "ơưđạảấầậẹềệọộờợụừự", "ru": "ыэъё",
    "uk": "іїєґ", "bg": "ъщ",
}  # fmt: skip
SCRIPTS = {
    "GREEK": "el", "HEBREW": "he", "ARABIC": "ar", "DEVANAGARI": "hi", "THAI": "th", "HANGUL": "ko", "HIRAGANA": "ja",
    "KATAKANA": "ja", "CJK": "zh", "GEORGIAN": "ka", "ARMENIAN": "hy", "BENGALI": "bn", "TAMIL": "ta", "TIBETAN": "bo",
}  # fmt: skip
LANGUAGES = tuple(sorted({*COMMON, *SCRIPTS.values()}))
_CYRILLIC = ("ru", "uk", "bg")


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0].split("-")[0] if character.isalpha() else ""


@cache
def _weights() -> dict[str, dict[str, float]]:
    """Word -> language -> weight: a word that many languages have says little."""
    found: dict[str, dict[str, float]] = {}
    for language, words in COMMON.items():
        for word in words:
            found.setdefault(word, {})[language] = 1.0
    return {word: {k: 1 / len(of) for k in of} for word, of in found.items()}


def identify(text: str) -> str | None:
    """The language of a text as its two-letter code; None where nothing decides it."""
    scripts = Counter(s for s in map(_script, text) if s)
    if not scripts:
        return None
    most, count = scripts.most_common(1)[0]
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * sum(scripts.values()):
        return "ja"
    if most in SCRIPTS:
        return SCRIPTS[most] if count > 0.5 * sum(scripts.values()) else None
    if most not in ("LATIN", "CYRILLIC"):
        return None
    allowed = _CYRILLIC if most == "CYRILLIC" else tuple(k for k in COMMON if k not in _CYRILLIC)
    points: dict[str, float] = dict.fromkeys(allowed, 0.0)
    weights = _weights()
    tokens = [piece for w in words_of(text) for piece in w.replace("’", "'").split("'")]
    for token in tokens:
        for language, weight in weights.get(token, {}).items():
            if language in points:
                points[language] += weight
    low = text.lower()
    for language in allowed:
        here = sum(low.count(letter) for letter in LETTERS.get(language, ""))
        points[language] += min(0.5 * here, 0.15 * len(tokens) + 0.5)
    ranked = sorted(points.items(), key=lambda p: -p[1])[:2]
    if ranked[0][1] < max(0.5, 0.05 * len(tokens)):
        return None
    return None if ranked[1][1] > 0.97 * ranked[0][1] else ranked[0][0]


@dataclass(frozen=True)
class IdentifiedJudge(Judge):
    """The share of words that stand in sentences of a language (sentences that nothing decides go with the whole text)."""

    language: str = "en"
    threshold: float = 0.5
    tried: ClassVar[Mapping[str, Any]] = {"language": "de"}
    shows: ClassVar[tuple[str, ...]] = ("Das ist ein Haus, und wir wohnen nicht darin. Es gehört der Stadt.",)
    lacks: ClassVar[tuple[str, ...]] = (
        "This is a house, and we do not live in it.",
        "C'est une maison, et nous n'y sommes pas.",
    )

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ConfigError(f"the language {self.language!r} isn't known. {nearest(self.language, LANGUAGES)}")

    def __call__(self, reply: str, example: Example) -> Score:
        """The share of the reply in the language; missing where nothing decides any of it."""
        shares = languages_of(reply)
        if not shares:
            return Score.missing(
                "nothing tells which language the reply is in" if reply.strip() else "the reply is empty"
            )
        return Score(min(1.0, shares.get(self.language, 0.0)), ", ".join(f"{k} {v:.2f}" for k, v in shares.items()))


def languages_of(text: str) -> dict[str, float]:
    """The share of a text's letters by language, sentence by sentence, the largest first; nothing where nothing decides."""
    whole = identify(text)
    counts: Counter[str] = Counter()
    for part in sentences_of(text):
        letters = sum(c.isalpha() for c in part)
        told = (identify(part) if len(words_of(part)) > 3 or not part.isascii() else None) or whole
        if told is not None:
            counts[told] += letters
    total = sum(counts.values())
    return {k: v / total for k, v in counts.most_common()} if total else {}
