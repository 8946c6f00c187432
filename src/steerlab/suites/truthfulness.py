"""Truthfulness by likelihood: is the best true answer likelier than every false one (MC1), and how much of the mass is
true (MC2)?

TruthfulQA's two measures, from summed log-probabilities of whole answers, with no reader or judge. `chance` is what
guessing would give at MC1, item by item: false answers are of different number.

Lin et al. 2022, https://arxiv.org/abs/2109.07958. The built-in model: facts of people it knows, the true one against other
values in the same sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from .. import pilot
from ..contrast import Contrast, Example
from ..errors import DataError
from .base import Condition, Metric, Row, Stage, Suite, mean_of
from .choices import told
from .measures import mc1, mc2
from .reading import Cells, table, text, texts, unit

FALSE = 3  # other values beside the true one, for the built-in model


class Question(NamedTuple):
    """A question, its true answers (the best one first) and its false ones."""

    prompt: Example
    true: tuple[str, ...]
    false: tuple[str, ...]


@dataclass(frozen=True)
class Truthfulness(Suite[Question]):
    """The first `n` questions."""

    about: ClassVar[str] = "true answers against false ones, by likelihood"
    paper: ClassVar[str] = "https://arxiv.org/abs/2109.07958"
    layout: ClassVar[str] = (
        "TruthfulQA's columns: Question, Best Answer, Correct Answers, Incorrect Answers (semicolons or lists)"
    )

    def of_pilot(self, variant: str) -> Sequence[Question]:
        many = 4 * self.n + 80  # some questions come again, and each needs other values of its attribute
        people = pilot.abilities(variant, n=many, seed=self.seed, split="test", only=("people",))["people"]
        return _facts(people)[: self.n]

    def contrast(self, variant: str) -> Contrast:
        facts = _facts(pilot.abilities(variant, n=200, seed=self.seed, split="train", only=("people",))["people"])[:64]
        pairs = [(Example(q.prompt.messages, q.true[0]), Example(q.prompt.messages, q.false[0])) for q in facts]
        return Contrast(
            tuple(p for p, _ in pairs),
            tuple(q for _, q in pairs),
            paired=True,
            concept="true facts",
            source=f"pilot:{variant}:people",
        )

    def read(self, path: str) -> Sequence[Question]:
        rows = table(path, ("Question", "Best Answer", "Correct Answers", "Incorrect Answers"), self.layout)[: self.n]
        return [_question(cells) for cells in rows]

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Question]) -> list[Row]:
        asked = [Example(q.prompt.messages, a) for q in items for a in (*q.true, *q.false)]
        scores = iter(t.logprob for t in told(stage, condition, asked))
        found: list[Row] = []
        for n, q in enumerate(items):
            true = [next(scores) for _ in q.true]
            false = [next(scores) for _ in q.false]
            found.append(
                {
                    "unit": unit(q.prompt.instruction), "item": n, "set": "", "mc1": mc1(true, false), "mc2": mc2(true, false),
                    "chance": 1 / (1 + len(false)), "gap": true[0] - max(false),
                    "prompt": q.prompt.instruction, "reply": None,
                }
            )  # fmt: skip
        return found

    def metrics(self, items: Sequence[Question]) -> tuple[Metric, ...]:
        return (
            mean_of("mc1", "mc1", "questions whose best answer is likelier than every false one", share=True),
            mean_of("mc2", "mc2", "probability on the true answers, of all that are listed"),
            mean_of("gap", "gap", "nats between the best true and the likeliest false answer"),
            mean_of("chance", "chance", "MC1 of guessing"),
        )


def _question(cells: Cells) -> Question:
    best = text(cells, "Best Answer")
    rest = [t for t in texts(cells, "Correct Answers") if t != best]
    false = texts(cells, "Incorrect Answers")
    if set(false) & {best, *rest}:
        raise DataError(
            f"{cells[0]}: an answer is listed as correct and as incorrect; correct the row, or leave it out."
        )
    return Question(Example.ask(text(cells, "Question")), (best, *rest), false)


def _facts(examples: Sequence[Example]) -> list[Question]:
    """Each question once, its gold sentence with other values of the same attribute as the false answers."""
    known: dict[str, list[str]] = {}
    for e in examples:
        known.setdefault(e.tags["attribute"], []).append(e.tags["right"])
    found: dict[str, Question] = {}
    for e in examples:
        right, answer = e.tags["right"], e.answer or ""
        others = [v for v in dict.fromkeys(known[e.tags["attribute"]]) if v != right][:FALSE]
        false = tuple(_with(answer, right, other) for other in others)
        if len(false) == FALSE and answer not in false:
            found.setdefault(e.instruction, Question(e.without_answer(), (answer,), false))
    return list(found.values())


def _with(answer: str, right: str, other: str) -> str:
    """The sentence with another value, and the article that it takes."""
    changed = re.sub(rf"\b{re.escape(right)}\b", other, answer)
    article = "an" if other[:1].lower() in "aeiou" else "a"
    return re.sub(rf"\b(a|an) {re.escape(other)}\b", f"{article} {other}", changed)
