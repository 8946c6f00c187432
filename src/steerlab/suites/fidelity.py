"""Fidelity: how near a steered model comes to the model on the other prompt of a pair, as CDAS measures it and over
whole answers.

Suppressing (strength below 0), the reference is the model as it is on the prompt without the behaviour, and the steered
model runs on the prompt with it; eliciting, the other way round. `last` is KL(reference ‖ steered) at the last prompt token
alone, which is what CDAS reports; `answer` the mean over every token of the reference's own answer. Each stands beside the
same without steering (the plain column), since two prompts of a pair never give quite the same distribution: less than that
is what a steering can reach.

Bao et al. 2026 (CDAS), https://arxiv.org/abs/2602.05234, `eval_kl`. KL is in nats, log-softmax in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import data, pilot
from ..contrast import Contrast, Example
from ..errors import DataError
from .base import Condition, Metric, Row, Stage, Suite, mean_of
from .reading import unit

WAYS = {"elicit": 1, "suppress": -1}


class Pair(NamedTuple):
    """The two prompts of a pair with their answers."""

    positive: Example
    negative: Example


@dataclass(frozen=True)
class Fidelity(Suite[Pair]):
    """`concept` is what the built-in model is steered for: refusal, backdoor, or a concept."""

    about: ClassVar[str] = "distance from the model on the other prompt of a pair, at one token and over whole answers"
    paper: ClassVar[str] = "https://arxiv.org/abs/2602.05234"
    layout: ClassVar[str] = "contrast data in pairs with answers, in any layout of `steerlab data layouts`"

    concept: str = "refusal"

    def of_pilot(self, variant: str) -> Sequence[Pair]:
        return _pairs(pilot.contrast(self.concept, n=self.n, seed=self.seed, split="test", variant=variant, neutral=1))

    def read(self, path: str) -> Sequence[Pair]:
        return _pairs(data.read(path))[: self.n]

    def contrast(self, variant: str) -> Contrast:
        return pilot.contrast(self.concept, n=64, seed=self.seed, variant=variant)

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Pair]) -> list[Row]:
        found: list[Row] = []
        for way, sign in WAYS.items():
            if condition.strength * sign < 0:
                continue  # at this strength the steering goes the other way
            target = [p.positive if way == "elicit" else p.negative for p in items]
            other = [
                Example((p.negative if way == "elicit" else p.positive).messages, t.answer)
                for p, t in zip(items, target, strict=True)
            ]
            reference = stage.engine.logits(target)
            steered = stage.engine.logits(other, condition.steering)
            for n, (t, a, b) in enumerate(zip(target, reference, steered, strict=True)):
                each = divergence(a, b)
                found.append(
                    {
                        "unit": unit(items[n].negative.instruction), "item": n, "set": way, "last": float(each[0]),
                        "answer": float(each.mean()), "tokens": len(each), "prompt": t.instruction, "reply": t.answer,
                    }
                )  # fmt: skip
        return found

    def metrics(self, items: Sequence[Pair]) -> tuple[Metric, ...]:
        return tuple(
            mean_of(
                f"{column}, {way}",
                column,
                f"KL from the model on the other prompt, {told}, {way}ing",
                wanted=-1,
                where={"set": way},
            )
            for way in WAYS
            for column, told in (
                ("last", "at the last prompt token (CDAS)"),
                ("answer", "mean over the answer's tokens"),
            )
        )


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference ‖ other) in nats of each row of scores `[n, v]`."""
    p, q = (torch.log_softmax(s.double(), dim=-1) for s in (reference, other))
    return torch.xlogy(p.exp(), p.exp()).sum(-1) - (p.exp() * q).sum(-1)


def _pairs(contrast: Contrast) -> list[Pair]:
    found = [Pair(p, q) for p, q in contrast.pairs]
    if any(not p.positive.answer or not p.negative.answer for p in found):
        raise DataError(
            "a pair has no answer on one side; fidelity is measured over the answer that the reference gives."
        )
    return found
