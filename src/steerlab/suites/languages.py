"""Language forcing (CLaS-Bench): does a steering make the model answer in a language, and is the answer still about the
question?

Forcing is the share of replies identified as the target language; relevance the share (or the mean rating) that still
answers; the score is the harmonic mean of the two averages, as published, beside the mean of the items' own harmonic means,
which can be far lower. Pairs whose question is in the target language already are counted apart. Replies of fewer than 20
characters aren't identified: they are missing.

Gurgurov et al. 2026, https://github.com/d-gurgurov/CLaS-Bench. Identification is by rule (`judges.language`: scripts and
commonest words), not by fastText; relevance by whatever judge is given. The built-in model: English questions, Spanish or
German.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .. import pilot
from ..contrast import Contrast, Example
from ..errors import ConfigError, nearest
from ..judges.base import Judge
from ..judges.language import LANGUAGES, identify
from ..judges.spec import parse_rule
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean, mean_of, values
from .measures import harmonic
from .reading import table, text, unit

SHORTEST = 20  # characters that identification needs
SPOKEN = {"es": "spanish", "de": "german", "fr": "french", "it": "italian"}  # what built-in models write beside English


@dataclass(frozen=True)
class Languages(Suite[Example]):
    """`target` is the language's two-letter code. `relevance` is a judge in a line of text (none: the built-in model's,
    or none).
    """

    about: ClassVar[str] = "answers forced into a language, and whether they still answer"
    paper: ClassVar[str] = "https://github.com/d-gurgurov/CLaS-Bench"
    layout: ClassVar[str] = "question and language (two-letter code), as CSV or JSON Lines"

    target: str = "es"
    relevance: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in LANGUAGES:
            raise ConfigError(f"the target language is {self.target!r}. {nearest(self.target, LANGUAGES)}")

    def of_pilot(self, variant: str) -> Sequence[Example]:
        self._spoken(variant)
        found = pilot.prompts("ordinary", n=self.n, seed=self.seed, split="test", variant=variant)
        return [Example(e.messages, e.answer, family=e.family, tags={**e.tags, "set": "en"}) for e in found]

    def read(self, path: str) -> Sequence[Example]:
        return [
            Example.ask(text(cells, "question"), tags={"set": text(cells, "language").lower()})
            for cells in table(path, ("question", "language"), self.layout)
        ]

    def contrast(self, variant: str) -> Contrast:
        return pilot.contrast(self._spoken(variant), n=64, seed=self.seed, variant=variant)

    def _spoken(self, variant: str) -> str:
        """The concept of the built-in model that is the target language."""
        known = {code: name for code, name in SPOKEN.items() if name in {c.name for c in pilot.concepts(variant)}}
        if self.target not in known:
            raise ConfigError(
                f"the model {variant!r} writes {' and '.join(known)} beside English, and the target is {self.target!r};"
                " name one of these (--set target=...), or give data of your own."
            )
        return known[self.target]

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Example]) -> list[Row]:
        replies = stage.replies(items, condition)
        relevant = self._relevant(stage, replies, items)
        found: list[Row] = []
        for n, (item, reply, about) in enumerate(zip(items, replies, relevant, strict=True)):
            told = identify(reply) if len(reply.strip()) >= SHORTEST else None
            forced = None if told is None else float(told == self.target)
            found.append(
                {
                    "unit": unit(item.instruction), "item": n, "set": item.tags["set"],
                    "crossing": item.tags["set"] != self.target, "forced": forced, "relevant": about,
                    "both": harmonic(forced, about), "language": told,
                    "prompt": item.instruction, "reply": reply,
                }
            )  # fmt: skip
        return found

    def _relevant(self, stage: Stage, replies: Sequence[str], items: Sequence[Example]) -> list[float | None]:
        judge: Judge | None = parse_rule(self.relevance) if self.relevance else None
        if judge is None and stage.variant is not None:
            judge = pilot.follows()
        if judge is None:
            return [None] * len(items)
        scores = judge.scores(replies, items)
        if self.relevance:
            return [s.value for s in scores]
        return [None if (there := judge.present(s)) is None else float(there) for s in scores]

    def metrics(self, items: Sequence[Example]) -> tuple[Metric, ...]:
        crossing = {"crossing": True}
        found = [
            mean_of(
                "forced",
                "forced",
                f"replies in {self.target}, to questions in another language",
                share=True,
                where=crossing,
            ),
            mean_of("relevant", "relevant", "replies that still answer", wanted=1, bounded=True, where=crossing),
            Metric(
                "score",
                "harmonic mean of forced and relevant (of the averages)",
                score,
                "forced",
                crossing,
                compares=False,
            ),
            mean_of("both", "both", "mean over items of their own harmonic mean", bounded=True, where=crossing),
        ]
        if any(i.tags["set"] == self.target for i in items):
            found.append(
                Metric(
                    "score, all",
                    "the same with questions that are in the language already",
                    score,
                    "forced",
                    bounded=True,
                )
            )
        return tuple(found)

    def notes(self, rows: Rows) -> list[str]:
        if any(r["relevant"] is not None for r in rows):
            return []
        return ["relevance was not judged: give a judge (--set relevance=llm,model=...,what=instruction)"]


def score(rows: Rows) -> float | None:
    """The harmonic mean of the average forcing and the average relevance."""
    return harmonic(mean(values(rows, "forced")), mean(values(rows, "relevant")))
