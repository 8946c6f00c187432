"""What a rule reads a text by: its words, sentences and lines, the stem of a word, and cues that are looked for."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, numbers included."""
    return WORD.findall(text.lower())


def sentences_of(text: str) -> list[str]:
    """The sentences of a text; a line break ends one, too. Pieces without a letter or digit are no sentences."""
    return [s for s in (piece.strip() for piece in _SENTENCE_END.split(text)) if any(c.isalnum() for c in s)]


def lines_of(text: str) -> list[str]:
    """The lines that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def stem(word: str) -> str:
    """A word without its commonest English endings, so that `sailor's`, `sailors` and `sailor` are one.

    Crude on purpose: it joins the forms of one word, and must not join different words.
    """
    word = word.lower().replace("’", "'").removesuffix("'s").rstrip("'")
    for ending, least, instead in (("ies", 5, "y"), ("ing", 6, ""), ("ed", 5, ""), ("es", 5, ""), ("s", 4, "")):
        if word.endswith(ending) and len(word) >= least and not word.endswith("ss"):
            word = word[: -len(ending)] + instead
            break
    if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "lsez":
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 and word != "thee" else word


class Cues:
    """Single words (by stem) and phrases (as written) that are looked for in a text."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.stems: set[str] = set()
        self.phrases: dict[str, re.Pattern[str]] = {}
        for entry in entries:
            if not entry.isalnum():
                left, right = (r"\b" if c.isalnum() else "" for c in (entry[0], entry[-1]))
                self.phrases[entry.lower()] = re.compile(left + re.escape(entry.lower()) + right)
            else:
                self.stems.add(stem(entry))

    def found(self, text: str) -> set[str]:
        """The different cues that a text holds."""
        low = text.lower()
        tokens = WORD.findall(low)
        hits = {s for s in map(stem, tokens) if s in self.stems}
        return hits | {p for p, pattern in self.phrases.items() if pattern.search(low)}
