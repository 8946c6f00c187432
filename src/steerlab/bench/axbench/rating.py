"""Three ratings of a reply, each from 0 to 2: by rules, or by a language model.

A rule's degree in [0, 1] becomes 0, 1 or 2 by rounding twice the degree (half goes up): under a quarter is absent, from three
quarters on is full. A reply without a word in it shows nothing, follows nothing and is no text: it is rated 0 by every rater,
as it is the model that failed and not the judge. What a judge can't tell is None.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...judges.asking import MOST, mean_of_most
from ...judges.base import Judge, Score, judge
from ...judges.llm import LLMJudge
from ...judges.spec import settings_of
from .metrics import Rating, Ratings

if TYPE_CHECKING:
    from ...contrast import Example

SILENT = Ratings(0.0, 0.0, 0.0)


class Rater(ABC):
    """Rates replies; `told` is what it has asked and what that took, as plain data."""

    def rate(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Ratings]:
        """The ratings of each reply to its example, in their order."""
        spoken = [n for n, text in enumerate(texts) if text.strip()]
        found = dict(zip(spoken, self._rate([texts[n] for n in spoken], [examples[n] for n in spoken]), strict=True))
        return [found.get(n, SILENT) for n in range(len(texts))]

    @abstractmethod
    def _rate(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Ratings]:
        """The ratings of replies that say something."""

    def told(self) -> dict[str, Any]:
        """Calls, tokens, cost and what is missing; nothing where nobody is asked."""
        return {}


@dataclass(frozen=True)
class RuleRater(Rater):
    """Rules for the concept, for following the instruction and for fluency."""

    concept: Judge
    instruction: Judge
    fluency: Judge

    def _rate(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Ratings]:
        of = [judge.scores(texts, examples) for judge in (self.concept, self.instruction, self.fluency)]
        return [Ratings(*(step(score) for score in scores)) for scores in zip(*of, strict=True)]


@dataclass(frozen=True)
class ModelRater(Rater):
    """A language model for all three; a rule concept's own rule, where there is one, for the concept."""

    judge: LLMJudge
    rule: Judge | None = None

    def _rate(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Ratings]:
        of = [
            dict(zip(self.judge.aspects, map(mean_of_most, rated), strict=True))
            for rated in self.judge.ratings(texts, examples)
        ]
        if self.rule is not None:
            for rated, score in zip(of, self.rule.scores(texts, examples), strict=True):
                rated["concept"] = step(score)
        return [Ratings(rated["concept"], rated["instruction"], rated["fluency"]) for rated in of]

    def told(self) -> dict[str, Any]:
        return self.judge.tally.to_json()


def model_rater(spec: str, concept: str, rule: Judge | None = None) -> ModelRater:
    """The rater that `llm,model=...,url=...` names, for one concept. Raises `ConfigError`."""
    name, settings = spec.split(",", 1)[0].strip(), settings_of(spec)
    if name != "llm":
        raise ConfigError(
            f"AxBench's judge is {name!r}; expected a language model: llm,model=NAME,url=URL (or a folder)."
        )
    for taken in ("what", "concept"):
        if taken in settings:
            raise ConfigError(
                f"AxBench's judge has the setting {taken!r}, which the benchmark sets itself; leave it out."
            )
    made = judge("llm", {**settings, "what": "all", "concept": concept})
    assert isinstance(made, LLMJudge)
    return ModelRater(made, rule)


def step(score: Score) -> Rating:
    """A degree in [0, 1] as 0, 1 or 2; None stays None."""
    return None if score.value is None else float(math.floor(MOST * score.value + 0.5))


def added(tallies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tallies of several raters as one: counts summed, reasons gathered."""
    whole: dict[str, Any] = {}
    for tally in tallies:
        for name, value in tally.items():
            if isinstance(value, Mapping):
                reasons = whole.setdefault(name, {})
                for reason, n in value.items():
                    reasons[reason] = reasons.get(reason, 0) + n
            else:
                whole[name] = whole.get(name, 0) + value
    return whole
