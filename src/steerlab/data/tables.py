"""Tables become contrasts: which column plays which part, under the names that people give them.

A table holds pairs (`positive_prompt`, `negative_prompt`, with their answers; or one `prompt` with two answers) or
labelled rows (`prompt`, `label`, with an `answer`). Columns that play no part become tags, so that nothing is lost.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..contrast import Contrast, Example, Message
from ..errors import DataError, nearest
from .examples import Concept, blank, both, label_of, named, pick, text_of
from .rows import Found, Row, normal, rows

_PROMPT = ("prompt", "instruction", "question", "input", "text", "statement", "sentence", "query")
_ANSWER = ("answer", "output", "response", "completion", "reply")
ROLES: dict[str, tuple[str, ...]] = {
    "prompt": _PROMPT,
    "answer": _ANSWER,
    "positive_prompt": tuple(f"positive_{n}" for n in _PROMPT),
    "negative_prompt": tuple(f"negative_{n}" for n in _PROMPT),
    "positive_answer": (*(f"positive_{n}" for n in _ANSWER), "chosen", "winning_output"),
    "negative_answer": (*(f"negative_{n}" for n in _ANSWER), "rejected", "losing_output"),
    "label": ("label", "class", "is_positive"),
    "system": ("system", "system_prompt"),
    "family": ("family",),
    "score": ("score",),
    "concept": ("concept", "output_concept"),
}
EXPECTED = (
    "positive_prompt and negative_prompt (with positive_answer and negative_answer), or prompt with positive_answer and"
    " negative_answer, or prompt and label (with answer)"
)


@dataclass(frozen=True, slots=True)
class Roles:
    """Which column plays which part, and the columns that become tags."""

    column: Mapping[str, str]
    tags: tuple[str, ...]

    @property
    def pairs(self) -> bool:
        """Whether a row is a pair."""
        has = self.column.keys()
        shared = "prompt" in has and {"positive_answer", "negative_answer"} <= has
        return shared or {"positive_prompt", "negative_prompt"} <= has

    @property
    def labelled(self) -> bool:
        """Whether a row is one example with its class."""
        return {"prompt", "label"} <= self.column.keys()


@dataclass(slots=True)
class Gathered:
    """Examples as they are read, by class."""

    found: Found
    positive: list[Example] = field(default_factory=list[Example])
    negative: list[Example] = field(default_factory=list[Example])
    neutral: list[Example] = field(default_factory=list[Example])
    _form: tuple[str, str] | None = None

    def pair(self, positive: Example, negative: Example, where: str) -> None:
        """Add a pair."""
        self._same("a pair", where)
        self.positive.append(positive)
        self.negative.append(negative)

    def single(self, label: str, example: Example, where: str) -> None:
        """Add a labelled example; neutral ones stand beside pairs, too."""
        if label != "neutral":
            self._same("a labelled row", where)
        {"positive": self.positive, "negative": self.negative, "neutral": self.neutral}[label].append(example)

    def contrast(self, concept: str, source: str | None = None) -> Contrast:
        """What was read. Raises `DataError` where a class is empty."""
        positive, negative = both(self.found, self.positive, self.negative)
        paired = self._form is not None and self._form[0] == "a pair"
        source = self.found.source if source is None else source
        return Contrast(positive, negative, paired, concept, source, tuple(self.neutral))

    def _same(self, form: str, where: str) -> None:
        if self._form is None:
            self._form = (form, where)
        if self._form[0] != form:
            raise DataError(
                f"{self.found.given}, {where} is {form}, but {self._form[1]} is {self._form[0]}; expected pairs or"
                " labelled rows throughout (neutral rows may stand beside either). Put them into two files."
            )


def roles_of(found: Found) -> Roles:
    """The parts that the columns play. Raises `DataError` that says which part has no column, and the nearest name."""
    column: dict[str, str] = {}
    free = {normal(name): name for name in found.columns}
    bare = ("positive", "negative")
    for role, names in ROLES.items():
        there = [n for n in names if n in free]
        if len(there) > 1 and there[0] != role:
            raise DataError(
                f"{found.given}: the columns {' and '.join(repr(free[n]) for n in there)} could both be the {role};"
                f" rename the one that is meant to {role!r}."
            )
        if there:
            column[role] = free.pop(there[0])
    if all(n in free for n in bare) and "label" not in column:
        part = "answer" if "prompt" in column else "prompt"
        column |= {f"{n}_{part}": free.pop(n) for n in bare}
    _misspelt(found, free, column)
    roles = Roles(column, tuple(free.values()))
    if not roles.pairs and not roles.labelled:
        raise DataError(_wrong(found, roles))
    return roles


def concepts_in(found: Found) -> tuple[Concept, ...]:
    """The concepts of a table with a column for them, in their order; none where it has no such column."""
    roles = roles_of(found)
    if (name := roles.column.get("concept")) is None:
        return ()
    counts: dict[str, int] = {}
    for row in rows(found, [name]):
        if not blank(value := row.values.get(name)):
            counts[str(value)] = counts.get(str(value), 0) + 1
    return tuple(Concept(None, text, rows=n) for text, n in counts.items())


def read_table(found: Found, concept: str | None) -> Contrast:
    """The contrast in a table. Raises `DataError`."""
    roles = roles_of(found)
    known = concepts_in(found)
    chosen = pick(known, concept, found) if known else None
    gathered = Gathered(found)
    answered = _Answered(found)
    columns = set(found.columns)
    for row in rows(found):
        if more := sorted(row.values.keys() - columns):
            raise DataError(
                f"{found.given}, {row.where} has the field {more[0]!r}, which the first row lacks; expected the same"
                f" fields in every row (null where there is nothing). {nearest(more[0], found.columns)}"
            )
        if chosen is not None and not _about(row, roles, chosen, found):
            continue
        if roles.pairs:
            positive = _example(row, roles, "positive_", found)
            negative = _example(row, roles, "negative_", found)
            for example in (positive, negative):
                answered.note(example, row)
            gathered.pair(positive, negative, row.where)
        else:
            label = label_of(row.values.get(roles.column["label"]), found, row.where)
            example = _example(row, roles, "", found)
            answered.note(example, row)
            gathered.single(label, example, row.where)
    return gathered.contrast(named("", concept, found) if chosen is None else chosen.name)


@dataclass(slots=True)
class _Answered:
    """Sees to it that either every row has an answer or none has."""

    found: Found
    first: tuple[bool, str] | None = None

    def note(self, example: Example, row: Row) -> None:
        has = example.answer is not None
        if self.first is None:
            self.first = (has, row.where)
        if self.first[0] != has:
            without, with_ = (row.where, self.first[1]) if not has else (self.first[1], row.where)
            raise DataError(
                f"{self.found.given}, {without} has no answer, but {with_} has one; expected an answer in every row, or"
                " in none. Fill it in, or leave the row out."
            )


def _example(row: Row, roles: Roles, side: str, found: Found) -> Example:
    """One example of a row; `side` is "positive_" or "negative_" in a pair."""
    column = roles.column
    name = column.get(f"{side}prompt") or column["prompt"]
    messages = [Message("user", text_of(row.values, name, found, row.where))]
    if (system := column.get("system")) and not blank(row.values.get(system)):
        messages.insert(0, Message("system", text_of(row.values, system, found, row.where)))
    answer = column.get(f"{side}answer")
    says = answer is not None and not blank(row.values.get(answer))
    family = column.get("family")
    return Example(
        tuple(messages),
        text_of(row.values, answer, found, row.where) if says and answer is not None else None,
        _number(row, column.get("score"), found),
        str(row.values[family]) if family is not None and not blank(row.values.get(family)) else None,
        {tag: str(row.values[tag]) for tag in roles.tags if not blank(row.values.get(tag))},
    )


def _number(row: Row, column: str | None, found: Found) -> float | None:
    value: Any = None if column is None else row.values.get(column)
    if blank(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"{found.given}, {row.where}: {column!r} is {value!r}; expected a number (how much of the behaviour shows)."
        ) from problem


def _about(row: Row, roles: Roles, chosen: Concept, found: Found) -> bool:
    """Whether a row belongs to the concept; a neutral one without a concept belongs to every one."""
    value: Any = row.values.get(roles.column["concept"])
    if not blank(value):
        return str(value) == chosen.name
    label = roles.column.get("label")
    if label is not None and label_of(row.values.get(label), found, row.where) == "neutral":
        return True
    raise DataError(
        f"{found.given}, {row.where}: {roles.column['concept']!r} is blank; expected the concept that the row belongs"
        f" to (such as {chosen.name[:40]!r})."
    )


def _misspelt(found: Found, free: Mapping[str, str], column: Mapping[str, str]) -> None:
    """Raise for a column that is one slip away from a part that no column plays: it would pass for a tag."""
    missing = [role for role in ROLES if role not in column]
    for key, name in free.items():
        if close := difflib.get_close_matches(key, missing, n=1, cutoff=0.85):
            raise DataError(
                f"{found.given}: the column {name!r} is none that a contrast has. Did you mean {close[0]!r}? Rename it,"
                " or give it a name that is less like it to keep it as a tag."
            )


def _wrong(found: Found, roles: Roles) -> str:
    told = f"{found.given} is {found.told()}; expected {EXPECTED}."
    if not found.columns:
        return told
    pairs = ("positive_prompt", "negative_prompt", "positive_answer", "negative_answer")
    halves = [role for role in pairs if role in roles.column]
    if "prompt" in roles.column and not halves:
        told += " A column 'label' (positive or negative) is missing."
    elif halves:
        other = halves[0].replace("positive", "+").replace("negative", "positive").replace("+", "negative")
        told += f" {roles.column[halves[0]]!r} lacks its counterpart {other!r}."
    needed = {"prompt", "label", *pairs} - roles.column.keys()
    near = _near(roles.tags, sorted({alias for role in needed for alias in ROLES[role]}))
    return f"{told}{near} Rename the columns, or export them under these names."


def _near(names: Iterable[str], legal: Sequence[str]) -> str:
    for name in names:
        if close := difflib.get_close_matches(normal(name), legal, n=1, cutoff=0.7):
            return f" Did you mean {close[0]!r} by {name!r}?"
    return ""
