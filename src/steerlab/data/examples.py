"""Rows become examples: what every layout shares, with errors that say which row is wrong and how.

Also here: what counts as the same text, which family an instruction belongs to, and which concept of several is meant.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from ..contrast import Example, Message
from ..errors import DataError, nearest
from .rows import Found

FIELDS = ("messages", "prompt", "instruction", "system", "answer", "score", "family", "tags")
LABELS = {
    "positive": "positive", "pos": "positive", "1": "positive", "true": "positive", "yes": "positive",
    "negative": "negative", "neg": "negative", "0": "negative", "-1": "negative", "false": "negative", "no": "negative",
    "neutral": "neutral",
}  # fmt: skip


class Concept(NamedTuple):
    """A concept that a file holds: its id there, its text, its genre, and how many rows show it."""

    id: str | None
    name: str
    genre: str | None = None
    rows: int = 0


def squash(text: str) -> str:
    """A text as duplicates are told: compatibility forms and case folded, white space as single blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def family_of(instruction: str) -> str:
    """A short name that all rows of one instruction share, for layouts that don't name families."""
    plain = squash(instruction)
    if len(plain) <= 60:
        return plain
    return f"{plain[:48].rstrip()}… {hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def blank(value: Any) -> bool:
    """Whether a cell says nothing: absent, NaN, or white space."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def text_of(values: Mapping[str, Any], column: str, found: Found, where: str) -> str:
    """A cell that must hold text. Raises `DataError` that names file, row and column."""
    value = values.get(column)
    if blank(value):
        what = "blank" if isinstance(value, str) else "missing"
        raise DataError(
            f"{found.given}, {where}: {column!r} is {what}; expected text. Fill it in, or leave the row out."
        )
    if not isinstance(value, str):
        raise DataError(
            f"{found.given}, {where}: {column!r} is {type(value).__name__} ({str(value)[:40]}); expected text."
        )
    if value.strip().lower() == "nan":
        raise DataError(
            f"{found.given}, {where}: {column!r} is {value!r}, a missing value that was written as text; expected text."
            " Fill it in, or leave the row out."
        )
    return value


def label_of(value: Any, found: Found, where: str) -> str:
    """ "positive", "negative" or "neutral" for a label as people write it (1 and 0, true and false, pos and neg)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    given = str(value).strip().lower()
    if blank(value) or given not in LABELS:
        shown = "missing" if blank(value) else repr(value)
        close = difflib.get_close_matches(given, ("positive", "negative", "neutral"), n=1, cutoff=0.6)
        near = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(
            f"{found.given}, {where}: the label is {shown}; expected positive (or 1, true, pos), negative (or 0, false,"
            f" neg) or neutral.{near} Name the column that holds the class 'label'."
        )
    return LABELS[given]


def example_from(value: Any, found: Found, where: str, *, extra: Sequence[str] = ()) -> Example:
    """An example from our own JSON: text alone (one user turn), or an object with the fields of `Example.to_json`.

    `prompt` or `instruction` may stand in place of `messages`, with `system` before it. Raises `DataError`.
    """
    if isinstance(value, str):
        return Example.ask(text_of({"prompt": value}, "prompt", found, where))
    if not isinstance(value, Mapping):
        raise DataError(
            f"{found.given}, {where}: an example is {type(value).__name__}; expected text, or an object with 'prompt'"
            " or 'messages'."
        )
    row = cast("Mapping[str, Any]", value)
    for key in row:
        if key not in FIELDS and key not in extra:
            raise DataError(
                f"{found.given}, {where}: an example has the field {key!r}. {nearest(key, (*FIELDS, *extra))}"
                " What belongs to none of these goes into 'tags'."
            )
    system = row.get("system")
    try:
        return Example(
            _messages(row, system, found, where),
            _optional_text(row, "answer", found, where),
            _score(row.get("score"), found, where),
            _optional_text(row, "family", found, where),
            _tags(row.get("tags"), found, where),
        )
    except DataError as problem:
        if str(problem).startswith(found.given):
            raise
        raise DataError(f"{found.given}, {where}: {problem}") from problem


def pick(concepts: Iterable[Concept], wanted: str | None, found: Found) -> Concept:
    """The concept that is meant: by id, by name, or by a part of the name that only one has.

    The only one where none is named. Raises `DataError` that lists them.
    """
    known = list(concepts)
    if not known:
        raise DataError(f"{found.given} holds no concept: no row is labelled positive.")
    if wanted is None:
        if len(known) == 1:
            return known[0]
        raise DataError(
            f"{found.given} holds {len(known)} concepts; name one (concept=..., --concept) by its id or text:"
            f" {_named(known)}."
        )
    text = squash(wanted)
    for same in (
        [c for c in known if c.id is not None and c.id == wanted.strip()],
        [c for c in known if squash(c.name) == text],
        [c for c in known if text and text in squash(c.name)],
    ):
        if len(same) == 1:
            return same[0]
        if same:
            raise DataError(
                f"{found.given}: {wanted!r} fits {len(same)} concepts; give the id, or more of the text:"
                f" {_named(same)}."
            )
    near = max(known, key=lambda c: (_alike(text, squash(c.name)), -len(c.name)))
    raise DataError(
        f"{found.given} holds no concept {wanted!r}. The nearest is {_named([near])}. All {len(known)}:"
        f" {_named(known)}."
    )


def named(given: str, wanted: str | None, found: Found) -> str:
    """The name of a file's only concept: what the file says, or what the caller calls it where the file says"
    " nothing."""
    if not given:
        return wanted or ""
    return given if wanted is None else pick([Concept(None, given)], wanted, found).name


def both(
    found: Found, positive: Sequence[Example], negative: Sequence[Example], what: str = "label"
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The two classes, once neither is empty. Raises `DataError` that names the file."""
    if positive and negative:
        return tuple(positive), tuple(negative)
    have, lack = ("positive", "negative") if positive else ("negative", "positive")
    n = len(positive) + len(negative)
    raise DataError(
        f"{found.given} has {n} {have} examples and no {lack} ones; a contrast needs both classes. Add rows with the"
        f" {what} {lack!r}."
    )


def _messages(row: Mapping[str, Any], system: Any, found: Found, where: str) -> tuple[Message, ...]:
    given = [key for key in ("messages", "prompt", "instruction") if row.get(key) is not None]
    if len(given) != 1:
        told = " and ".join(repr(key) for key in given) or f"none (it has {', '.join(map(repr, row)) or 'no fields'})"
        raise DataError(
            f"{found.given}, {where}: an example has {told}; expected one of 'prompt', 'instruction' or 'messages'."
        )
    value = row[given[0]]
    if isinstance(value, str):
        before = () if system is None else (Message("system", text_of(row, "system", found, where)),)
        return (*before, Message("user", text_of(row, given[0], found, where)))
    if given[0] != "messages":
        raise DataError(f"{found.given}, {where}: {given[0]!r} is {type(value).__name__}; expected text.")
    if system is not None:
        raise DataError(
            f"{found.given}, {where}: an example has 'system' beside a list of messages; put it into the list."
        )
    return Example.from_json({"messages": value}).messages


def _optional_text(row: Mapping[str, Any], key: str, found: Found, where: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    raise DataError(
        f"{found.given}, {where}: {key!r} is {type(value).__name__} ({str(value)[:40]}); expected text, or nothing."
    )


def _score(value: Any, found: Found, where: str) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise DataError(f"{found.given}, {where}: the score is {value!r}; expected a number, or nothing.")


def _tags(value: Any, found: Found, where: str) -> dict[str, str]:
    if value is None:
        return {}
    tags = cast("Mapping[Any, Any]", value if isinstance(value, Mapping) else {None: value})
    for key, tag in tags.items():
        if not isinstance(key, str) or not isinstance(tag, str):
            raise DataError(
                f"{found.given}, {where}: 'tags' is {str(value)[:60]}; expected an object whose values are text."
            )
    return dict(tags)


def _named(concepts: Sequence[Concept], most: int = 20) -> str:
    told = [(f"{c.id}: " if c.id is not None else "") + _short(c.name) for c in concepts[:most]]
    return "; ".join(told) + ("; …" if len(concepts) > most else "")


def _alike(a: str, b: str) -> float:
    """How well each word of one text is met by some word of another, from 0 to 1."""
    words = a.split() or [""]
    ratios = (max(difflib.SequenceMatcher(None, w, v).ratio() for v in b.split() or [""]) for w in words)
    return sum(ratios) / len(words)


def _short(text: str, most: int = 60) -> str:
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
