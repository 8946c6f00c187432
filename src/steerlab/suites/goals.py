"""Steerability in goal space: how far a text moved along what was asked for, and what else moved.

A text is a point of measured attributes in [0, 1]. From the plain reply z0 a steering for the attribute `goal` is asked to
move by `ask`, all else staying: z* = z0 + ask·e. Then error, miscalibration (too little or too far) and side effects are
those of `measures.moved`. `along` over the strengths is the calibration curve. The attributes beside the goal: length, mean
word and sentence length, variety of words, positive and negative valence; each scaled by the middle 95 % of the plain
replies, and clipped.

Chang et al. 2025, https://arxiv.org/abs/2505.23816. Cheap attributes in place of readability and part-of-speech formality;
un-binned, since the reference's binned form miscounts at the edges. The built-in model: the degree of a concept (`goal`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import pilot
from ..contrast import Contrast, Example
from ..errors import ConfigError
from ..judges.base import Judge
from ..judges.sentiment import valence
from ..judges.spec import parse_rule
from ..judges.words import sentences_of, words_of
from .base import Condition, Metric, Row, Stage, Suite, mean_of
from .measures import moved
from .reading import table, text, unit


def _word_length(reply: str) -> float:
    words = words_of(reply)
    return sum(map(len, words)) / max(1, len(words))


def _sentence_length(reply: str) -> float:
    return len(words_of(reply)) / max(1, len(sentences_of(reply)))


def _variety(reply: str) -> float:
    words = words_of(reply)
    return len(set(words)) / max(1, len(words))


BESIDE: Mapping[str, Callable[[str], float]] = {
    "length": lambda reply: float(len(words_of(reply))),
    "word length": _word_length,
    "sentence length": _sentence_length,
    "variety": _variety,
    "positive": lambda reply: max(0.0, valence(reply)[0]),
    "negative": lambda reply: max(0.0, -valence(reply)[0]),
}
WHOLE = ("positive", "negative")  # in [0, 1] as they are


@dataclass(frozen=True)
class Goals(Suite[Example]):
    """`goal` is a concept of the built-in model, or a judge in a line of text; `ask` how far it is to move, from −1 to 1.

    The sign of `ask` follows the strength: at −1 the goal is to fall.
    """

    about: ClassVar[str] = "movement in goal space: how far along the request, and what else moved"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.23816"
    layout: ClassVar[str] = "prompt, one a row, as CSV or JSON Lines"
    strengths: ClassVar[tuple[float, ...]] = (0.5, 1.0, 1.5)

    goal: str = "pirate"
    ask: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < abs(self.ask) <= 1:
            raise ConfigError(f"ask is {self.ask:g}; expected how far the goal is to move, in [-1, 1] and not 0.")

    def of_pilot(self, variant: str) -> Sequence[Example]:
        return pilot.prompts("ordinary", n=self.n, seed=self.seed, split="test", variant=variant)

    def read(self, path: str) -> Sequence[Example]:
        return [Example.ask(text(cells, "prompt")) for cells in table(path, ("prompt",), self.layout)[: self.n]]

    def contrast(self, variant: str) -> Contrast:
        return pilot.contrast(self.goal, n=64, seed=self.seed, variant=variant)

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Example]) -> list[Row]:
        plain = stage.replies(items, Condition.of(None, 0.0))
        replies = plain if condition.steering is None else stage.replies(items, condition)
        judge, scale = self._judge(stage), Scale.of(plain)
        asked = self.ask * (-1 if condition.strength < 0 else 1)
        found: list[Row] = []
        for n, (item, before, reply) in enumerate(zip(items, plain, replies, strict=True)):
            row: Row = {
                "unit": unit(item.instruction),
                "item": n,
                "set": "",
                "prompt": item.instruction,
                "reply": reply,
            }
            row |= dict.fromkeys(("error", "along", "miscalibration", "side_effects", "goal"), None)
            found.append(row | (self._moved(judge, scale, asked, before, reply, item) or {}))
        return found

    def _moved(
        self, judge: Judge, scale: Scale, asked: float, before: str, reply: str, item: Example
    ) -> dict[str, float] | None:
        a, b = judge(before, item).value, judge(reply, item).value
        if a is None or b is None or not before.strip() or not reply.strip():
            return None
        z0, z = [a, *scale.point(before)], [b, *scale.point(reply)]
        wanted = [min(1.0, max(0.0, a + asked)), *z0[1:]]
        told = moved(z0, wanted, z)
        return None if told is None else {**told._asdict(), "goal": b}

    def _judge(self, stage: Stage) -> Judge:
        known = stage.variant is not None and self.goal in {c.name for c in pilot.concepts(stage.variant)}
        return pilot.concept(self.goal, str(stage.variant)).judge if known else parse_rule(self.goal)

    def metrics(self, items: Sequence[Example]) -> tuple[Metric, ...]:
        return (
            mean_of("goal", "goal", f"degree of {self.goal}, 0 to 1", bounded=True),
            mean_of("along", "along", "share of the request that was moved; 1 is all of it"),
            mean_of("error", "error", "distance from the point that was asked for", wanted=-1),
            mean_of(
                "miscalibration",
                "miscalibration",
                "too little or too far along the request; 1 for no movement",
                wanted=-1,
            ),
            mean_of(
                "side effects", "side_effects", "share of the movement that nobody asked for", wanted=-1, bounded=True
            ),
        )


@dataclass(frozen=True)
class Scale:
    """Where the middle 95 % of the plain replies lie, for each attribute beside the goal."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, replies: Sequence[str]) -> Scale:
        """The ranges of these replies; one that doesn't vary is a unit wide."""
        table = np.asarray([[f(r) for f in BESIDE.values()] for r in replies])
        low, high = np.percentile(table, 2.5, axis=0), np.percentile(table, 97.5, axis=0)
        whole = np.asarray([name in WHOLE for name in BESIDE])
        low, high = np.where(whole, 0.0, low), np.where(whole, 1.0, high)
        return cls(tuple(low.tolist()), tuple(np.where(high > low, high, low + 1).tolist()))

    def point(self, reply: str) -> list[float]:
        """The attributes of a reply in [0, 1]; what lies outside is clipped, which hides overshoot."""
        raw = [f(reply) for f in BESIDE.values()]
        return [min(1.0, max(0.0, (v - a) / (b - a))) for v, a, b in zip(raw, self.low, self.high, strict=True)]
