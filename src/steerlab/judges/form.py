"""How far a text keeps a form: JSON, lists, headings, links, dates, counts of words, how it begins and ends, and more.

Each form is one function to a degree in [0, 1]. Forms that hold of a whole text (it parses, it has three sentences) fall off with
the distance; forms that are made of parts (quoted words, hashtags) are the share of parts, or whether there are enough of them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfigError, nearest
from .base import Judge, Score
from .words import lines_of, sentences_of, words_of

if TYPE_CHECKING:
    from ..contrast import Example

Form = Callable[[str], float]


def _json(text: str) -> float:
    """1 where the whole text parses as an object or a list (a code fence around it is passed over); else the share that does."""
    body = re.sub(r"^```\w*\s*\n(.*?)\n```$", r"\1", text.strip(), flags=re.DOTALL)
    try:
        return float(isinstance(json.loads(body), (dict, list)))
    except ValueError:
        found = re.search(r"\{.*\}|\[.*\]", body, re.DOTALL)
    if not found:
        return 0.0
    try:
        json.loads(found.group(0))
    except ValueError:
        return 0.0
    return 0.9 * len(found.group(0)) / len(body)


def _share_of_lines(pattern: str) -> Form:
    def degree(text: str) -> float:
        rows = lines_of(text)
        return sum(re.match(pattern, row) is not None for row in rows) / len(rows)

    return degree


def _numbered(text: str) -> float:
    """The share of lines that are items 1, 2, 3 in their order."""
    rows = lines_of(text)
    wanted, right = 1, 0
    for row in rows:
        found = re.match(r"\(?(\d+)[.)]\s", row)
        if found and int(found.group(1)) == wanted:
            wanted, right = wanted + 1, right + 1
    return right / len(rows) if right > 1 or len(rows) == 1 else right / len(rows) / 2


def _there(pattern: str, enough: int = 1) -> Form:
    """How many are there, of so many."""
    compiled = re.compile(pattern)
    return lambda text: min(1.0, sum(1 for _ in compiled.finditer(text)) / enough)


def _letters(good: Callable[[str], bool]) -> Form:
    def degree(text: str) -> float:
        letters = [c for c in text if c.isalpha() and c.lower() != c.upper()]
        return sum(map(good, letters)) / len(letters) if letters else 0.0

    return degree


def _titled(text: str) -> float:
    found = [w for w in re.findall(r"[^\W\d_]+", text) if len(w) > 3]
    return sum(w.istitle() for w in found) / len(found) if found else 0.0


def _quoted(text: str) -> float:
    inside = sum(len(m) for m in re.findall(r"[\"“„«][^\"”“»\n]+[\"”“»]", text))
    return min(1.0, inside / max(1, len(text.strip())))


def _emoji(text: str) -> float:
    found = sum(unicodedata.category(c) == "So" or 0x1F300 <= ord(c) <= 0x1FAFF for c in text)
    return min(1.0, found / max(1, len(sentences_of(text))))


def _sentences_end(mark: str) -> Form:
    def degree(text: str) -> float:
        parts = sentences_of(text)
        return sum(p.rstrip("\"')”]").endswith(mark) for p in parts) / len(parts) if parts else 0.0

    return degree


def _code(text: str) -> float:
    inside = sum(len(m) for m in re.findall(r"```.*?(?:```|$)", text, re.DOTALL))
    return min(1.0, inside / max(1, len(text.strip())))


def _table(text: str) -> float:
    rows = lines_of(text)
    cells = [row.strip("|").count("|") for row in rows if "|" in row]
    ruled = any(re.fullmatch(r"\|?[\s:|-]*-[\s:|-]*\|?", row) for row in rows)
    same = cells.count(max(set(cells), key=cells.count)) if cells else 0
    return (0.5 + 0.5 * ruled) * same / len(rows) if same > 1 else 0.0


MONTHS = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DATE = (
    r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    rf"|\b(?:\d{{1,2}}\.? {MONTHS}|{MONTHS} \d{{1,2}}),? \d{{4}}\b"
)
FORMS: dict[str, Form] = {
    "json": _json,
    "bullets": _share_of_lines(r"[-*•]\s"),
    "numbered": _numbered,
    "headings": _there(r"(?m)^#{1,6}\s\S"),
    "table": _table,
    "code": _code,
    "lower": _letters(str.islower),
    "upper": _letters(str.isupper),
    "title": _titled,
    "questions": _sentences_end("?"),
    "exclamations": _sentences_end("!"),
    "quoted": _quoted,
    "emoji": _emoji,
    "hashtags": _there(r"(?<!\w)#[^\W\d]\w*"),
    "email": _there(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"),
    "url": _there(r"\bhttps?://\S+|\bwww\.\S+\.\S+"),
    "phone": _there(r"(?<!\d)(?:\+?\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d{3,4}[ .-]\d{3,4}(?:[ .-]\d{2,4})?(?!\d)"),
    "date": _there(_DATE),
    "number": _there(r"\d"),
    "bold": _there(r"\*\*\S[^*\n]*\*\*"),
}  # fmt: skip
COUNTS: dict[str, Callable[[str], int]] = {
    "words": lambda t: len(words_of(t)),
    "sentences": lambda t: len(sentences_of(t)),
    "lines": lambda t: len(lines_of(t)),
    "paragraphs": lambda t: len([p for p in re.split(r"\n\s*\n", t) if p.strip()]),
    "characters": lambda t: len(t.strip()),
}
_COUNTED = re.compile(r"(\w+)\s*(<=|>=|=|<|>)\s*(\d+)")


@dataclass(frozen=True)
class FormJudge(Judge):
    """How far a text keeps a form: a name of `FORMS`, a count (`words<=50`, `sentences=3`), or `starts=TEXT`, `ends=TEXT`.

    A count that isn't kept gives the ratio of the two numbers, cut to stay below the threshold: 60 words where 50 are the most is
    0.49, 100 words 0.25.
    """

    form: str = "json"
    threshold: float = 0.5
    tried: ClassVar[Mapping[str, Any]] = {"form": "json"}
    shows: ClassVar[tuple[str, ...]] = ('{"name": "tea", "hot": true}', "```json\n[1, 2, 3]\n```")
    lacks: ClassVar[tuple[str, ...]] = ("Tea is hot.", '{"name": tea}', '"only a string"')

    def __post_init__(self) -> None:
        counted = _COUNTED.fullmatch(self.form)
        known = [*FORMS, *(f"{c}<=N" for c in COUNTS), "starts=TEXT", "ends=TEXT"]
        edge = self.form.partition("=")[0] in ("starts", "ends") and self.form.partition("=")[2]
        if not edge and self.form not in FORMS and not (counted and counted.group(1) in COUNTS):
            raise ConfigError(f"there is no form {self.form!r}. {nearest(self.form, known)} Forms: {', '.join(known)}.")

    def __call__(self, reply: str, example: Example) -> Score:
        """How far it is kept; missing for an empty reply."""
        if not reply.strip():
            return Score.missing("the reply is empty")
        name, _, edge = self.form.partition("=")
        if self.form in FORMS:
            return Score(max(0.0, min(1.0, FORMS[self.form](reply))))
        if name in ("starts", "ends"):
            said, wanted = (" ".join(t.split()).lower() for t in (reply, edge))
            return Score(float(said.startswith(wanted) if name == "starts" else said.endswith(wanted)))
        counted = _COUNTED.fullmatch(self.form)
        assert counted is not None
        here, sign, there = COUNTS[counted.group(1)](reply), counted.group(2), int(counted.group(3))
        kept = {"<=": here <= there, ">=": here >= there, "=": here == there, "<": here < there, ">": here > there}[
            sign
        ]
        near = min(here, there) / max(here, there, 1)
        return Score(1.0 if kept else min(0.49, near * near), f"{here} {counted.group(1)}")
