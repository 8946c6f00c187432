"""Anthropic's model-written evaluations (personas), and the A/B questions of CAA: one question, two answers.

Each row becomes a pair: the same question, answered as the persona would and as it wouldn't. The leading space of
" Yes" belongs to the "Assistant:" format that the files were made for, and is dropped; a chat template writes its own.
The family is the statement (or the question where there is none). Where the matching answer is not "Yes" (or "(A)") in
half of the rows, `steerlab data check` says so: a direction fitted on such rows is also one from No to Yes.

Sources: https://github.com/anthropics/evals (CC-BY-4.0); Rimsky et al. 2024, https://arxiv.org/abs/2312.06681.
"""

from __future__ import annotations

from pathlib import Path

from ...contrast import Contrast, Example
from ...errors import DataError
from ..examples import blank, family_of, named, text_of
from ..rows import Found, rows
from .base import Reader

_ANSWERS = ("answer_matching_behavior", "answer_not_matching_behavior")


class Persona(Reader):
    """Questions with the answer that matches a behaviour and the one that doesn't."""

    what = "Anthropic's persona evaluations and CAA's A/B questions, as pairs"
    expects = (
        "question, answer_matching_behavior, answer_not_matching_behavior (and statement), as JSON Lines or a JSON list"
    )

    def recognises(self, found: Found) -> bool:
        """A table with one of the two answer columns."""
        return any(found.has(column) for column in _ANSWERS)

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """A pair per question: answered as the persona would, and as it wouldn't."""
        positive: list[Example] = []
        negative: list[Example] = []
        if missing := [c for c in ("question", *_ANSWERS) if c not in found.columns]:
            raise DataError(f"{found.given} is {found.told()}; {missing[0]!r} is missing. Expected {self.expects}.")
        for row in rows(found):
            question = text_of(row.values, "question", found, row.where)
            yes, no = (text_of(row.values, column, found, row.where).strip() for column in _ANSWERS)
            if yes == no:
                raise DataError(
                    f"{found.given}, {row.where}: both answers are {yes!r}; expected one that matches the behaviour and"
                    " one that doesn't. Correct the row, or leave it out."
                )
            statement = row.values.get("statement")
            family = family_of(question if blank(statement) else str(statement))
            tags = {
                k: str(v)
                for k, v in row.values.items()
                if k not in ("question", "statement", *_ANSWERS) and not blank(v)
            }
            positive.append(Example.ask(question, yes, family=family, tags=tags))
            negative.append(Example.ask(question, no, family=family, tags=tags))
        name = named("", concept, found) or Path(found.given).stem.replace("_", " ")
        return Contrast(tuple(positive), tuple(negative), paired=True, concept=name, source=found.source)
