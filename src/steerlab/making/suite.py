"""What a made behaviour is measured on: its own data and judge, and for the built-in model also its prompts, items and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import pilot
from ..contrast import Contrast, Example
from ..data.requests import ELICIT, asked
from ..evals.files import FileSuite
from ..evals.results import Direction
from ..evals.suite import Split
from ..judges.base import Judge


@dataclass(frozen=True)
class MadeSuite(FileSuite):
    """A file suite of made data. On the built-in model (`variant`) prompts are drawn from its corpus, of the split's wordings:
    plain ones to bring the behaviour out, and such with a request for `wish` to take it away."""

    variant: str | None = None
    wish: str = ""
    wordings: tuple[str, ...] = ELICIT

    def contrast(self, task: str, seed: int) -> Contrast:
        """What is fitted: all but the dev pairs, as the built-in model's tests take no prompt from written data."""
        made = super().contrast(task, seed)
        if self.variant is None:
            return made
        spare = self._part("test", seed)
        made = replace(
            made,
            positive=made.positive + spare.positive,
            negative=made.negative + spare.negative,
            neutral=made.neutral + spare.neutral,
        )
        if made.neutral:
            return made
        return replace(made, neutral=pilot.prompts("neutral", n=48, seed=seed, split="train", variant=self.variant))

    def prompts(self, task: str, direction: Direction, split: Split, n: int, seed: int) -> Sequence[Example]:
        if self.variant is None:
            return super().prompts(task, direction, split, n, seed)
        plain = pilot.prompts("ordinary", n=n, seed=seed, split=split, variant=self.variant)
        if direction == "elicit":
            return plain
        return [
            asked(e.without_answer(), self.wordings[k % len(self.wordings)], self.wish) for k, e in enumerate(plain)
        ]

    def follows(self, task: str, direction: Direction) -> Judge | None:
        return super().follows(task, direction) or (None if self.variant is None else pilot.follows())

    def fluent(self) -> Judge | None:
        return super().fluent() or (None if self.variant is None else pilot.fluent(self.variant))

    def items(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        if self.variant is None or self.items_file:
            return super().items(split, n, seed)
        return pilot.capability(split=split, n=n, seed=seed, variant=self.variant) if n else ()

    def correct(self) -> Judge | None:
        return super().correct() or (None if self.variant is None else pilot.correct())

    def refused(self) -> Judge | None:
        return None if self.variant is None else pilot.refusal(self.variant)

    def neutral(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        if self.variant is None or self.neutral_file:
            return super().neutral(split, n, seed)
        return pilot.prompts("neutral", n=n, seed=seed, split=split, variant=self.variant)

    def texts(self, split: Split, n: int) -> Sequence[str]:
        if self.variant is None or self.text_file:
            return super().texts(split, n)
        return pilot.text(split, n, variant=self.variant) if n else ()
