"""AxBench in miniature on the built-in model: its own generator writes every text, so that all of it runs offline.

Positives answer plain instructions with the concept, negatives answer others without it; both come from wordings that nothing
is fitted on. A hard negative is a plain answer that has words of the concept's own generator (a subject called by them: the
word, and not the image), or an answer with its nearest kin (a concept of the same genre), half and half.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ... import pilot
from ...contrast import Contrast, Example
from ...evals.suite import Task
from ...judges.words import stem, words_of
from ...pilot.expression import specs
from ...pilot.suite import PilotSuite
from .data import AxSuite, Rows, elicited
from .rating import Rater, RuleRater, model_rater

if TYPE_CHECKING:
    from ...engines.hf import HFEngine

_POOL = 400  # plain answers among which hard negatives are looked for
_SEED = 7000  # of everything that is drawn for AxBench; concepts add their place
_COMMON = 0.04  # a word that more of the plain answers have says nothing of a concept
_SLOT = re.compile(r"\{\w*\}")


@dataclass(frozen=True)
class PilotAxBench(AxSuite):
    """The concepts of a variant. `pairs` are fitted on; `judged_by` is an `llm` judge in place of the pilot's own rules."""

    variant: str = "pilot"
    pairs: int = 32
    neutral_pairs: int = 32
    batch_size: int = 140
    device: str | None = None
    judged_by: str = ""

    @property
    def _suite(self) -> PilotSuite:
        return PilotSuite(self.variant, self.pairs, self.neutral_pairs, self.batch_size, self.device)

    def engine(self) -> HFEngine:
        from ...engines.hf import HFEngine

        made = self._suite.engine()
        assert isinstance(made, HFEngine)
        return made

    def files(self) -> Sequence[str | os.PathLike[str]]:
        return self._suite.files()

    def tasks(self) -> tuple[Task, ...]:
        return tuple(Task(c.name, c.genre, "concepts") for c in pilot.concepts(self.variant))

    def words(self, task: str) -> str:
        return pilot.concept(task, self.variant).description

    def contrast(self, task: str, seed: int) -> Contrast:
        return self._suite.contrast(task, seed)

    def prompt_settings(self, task: str, seed: int) -> dict[str, Any]:
        return self._suite.prompt_settings(task, seed)

    def rows(self, task: str, n: int, hard: int) -> Rows:
        seed = _SEED + self._place(task)
        negative = pilot.prompts("ordinary", n=n, seed=seed, variant=self.variant)
        return Rows(self._showing(task, n, seed), negative, self._hard(task, hard) if hard else ())

    def shared(self, n: int) -> tuple[Example, ...]:
        return pilot.prompts("ordinary", n=n, seed=_SEED - 1, variant=self.variant) if n else ()

    def instructions(self, task: str, n: int, *, suppress: bool) -> tuple[Example, ...]:
        kind = f"asked:{task}" if suppress else "ordinary"
        return pilot.prompts(kind, n=n, seed=2 * _SEED + self._place(task), variant=self.variant)

    def rater(self, task: str) -> Rater:
        found = pilot.concept(task, self.variant)
        if self.judged_by:
            return model_rater(self.judged_by, found.description)
        return RuleRater(found.judge, pilot.follows(), pilot.fluent(self.variant))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _place(self, task: str) -> int:
        return [t.name for t in self.tasks()].index(task)

    def _showing(self, task: str, n: int, seed: int) -> tuple[Example, ...]:
        pairs = pilot.contrast(task, n=n, seed=seed, split="test", variant=self.variant, neutral=0).pairs
        return tuple(elicited(p, q) for p, q in pairs)

    def _hard(self, task: str, n: int) -> tuple[Example, ...]:
        """Plain answers with the concept's own words, the most of them first; then answers with its kin."""
        own = _own_words(task, self.variant)
        scored = [(len(own & _stems(e.answer or "")), k, e) for k, e in enumerate(_plain(self.variant))]
        worded = [e for score, _, e in sorted(scored, key=lambda s: (-s[0], s[1])) if score > 0][: n // 2]
        genre = pilot.concept(task, self.variant).genre
        kin = [c.name for c in pilot.concepts(self.variant) if c.genre == genre and c.name != task]
        left = n - len(worded)
        share = [left // len(kin) + (k < left % len(kin)) for k in range(len(kin))]
        seed = 3 * _SEED + self._place(task)
        shown = [e for name, many in zip(kin, share, strict=True) if many for e in self._showing(name, many, seed)]
        return (*worded, *shown)


@lru_cache(maxsize=4)
def _plain(variant: str) -> tuple[Example, ...]:
    return pilot.prompts("ordinary", n=_POOL, seed=_SEED - 2, variant=variant)


@lru_cache(maxsize=4)
def _usual(variant: str) -> frozenset[str]:
    """Words that plain answers have often."""
    counts = Counter(word for e in _plain(variant) for word in _stems(e.answer or ""))
    return frozenset(word for word, n in counts.items() if n > _COMMON * _POOL)


@lru_cache(maxsize=512)
def _own_words(task: str, variant: str) -> frozenset[str]:
    """What the concept's generator writes it with, stemmed, without usual words. Not the judge's list."""
    spec = specs(pilot.VARIANTS[variant].lexicon)[task]
    named = ("thing", "folk", "place") if spec.genre == "topic" else tuple(spec.fields)  # of a topic the nouns alone
    lists = [spec.fields.get(key) for key in named]
    texts = [v for value in lists if isinstance(value, list) for v in value if isinstance(v, str)]
    return frozenset(_stems(" ".join(_SLOT.sub(" ", text) for text in texts)) - _usual(variant))


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in words_of(text) if len(word) > 3)
