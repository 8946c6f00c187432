"""Reliability: averages hide that many inputs don't respond to a steering, or respond the wrong way.

For each sample the propensity m(α) = log p(answer with the behaviour) − log p(answer without it), under strength α, and the
slope of the straight line through it: that sample's steerability. `anti` is the share of samples with a negative slope. Out
of distribution: the same samples behind a system message that asks for the behaviour, or for its absence.

Answers of several tokens count per token, so that a longer one isn't the steerier one; single tokens give the paper's logit
difference. Tan et al. 2024, https://arxiv.org/abs/2407.12404. The built-in model: a concept (or refusal, or backdoor).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from .. import data, pilot
from ..contrast import Contrast, Example, Message
from ..errors import ConfigError, DataError
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean, mean_of, values
from .choices import told
from .measures import line
from .reading import unit

ID, FOR, AGAINST = "id", "asked for", "asked against"


class Sample(NamedTuple):
    """A prompt with an answer that shows the behaviour and one that doesn't, and in which distribution it stands."""

    where: str
    prompt: Example
    positive: str
    negative: str


@dataclass(frozen=True)
class Reliability(Suite[Sample]):
    """`concept` is what the built-in model is steered for; `multipliers` are the strengths of the line.

    `ask` and `avoid` are system messages for the samples out of distribution (none: the built-in model's own, or no such
    samples).
    """

    about: ClassVar[str] = (
        "steerability sample by sample: slopes, the share that moves the wrong way, out of distribution"
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.12404"
    layout: ClassVar[str] = "contrast data in pairs, in any layout of `steerlab data layouts`"
    strengths: ClassVar[tuple[float, ...]] = (1.0,)
    needs_steering: ClassVar[bool] = True

    concept: str = "pirate"
    multipliers: tuple[float, ...] = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    ask: str = ""
    avoid: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.multipliers)) < 2:
            raise ConfigError(f"the multipliers are {self.multipliers}; a line needs two different strengths at least.")

    def of_pilot(self, variant: str) -> Sequence[Sample]:
        pairs = pilot.contrast(self.concept, n=self.n, seed=self.seed, split="test", variant=variant, neutral=1)
        if self.concept in ("refusal", "backdoor"):
            return self._samples(pairs)
        ask = self.ask or pilot.request(self.concept, seed=self.seed, variant=variant)
        avoid = self.avoid or pilot.avoid(self.concept, seed=self.seed, variant=variant)
        return self._samples(pairs, ask, avoid)

    def read(self, path: str) -> Sequence[Sample]:
        return self._samples(data.read(path), self.ask, self.avoid)[: 3 * self.n]

    def contrast(self, variant: str) -> Contrast:
        return pilot.contrast(self.concept, n=64, seed=self.seed, variant=variant)

    def _samples(self, pairs: Contrast, ask: str = "", avoid: str = "") -> list[Sample]:
        found: list[Sample] = []
        for positive, negative in pairs.pairs[: self.n]:
            if not positive.answer or not negative.answer:
                raise DataError("a pair has no answer on one side; reliability compares how likely both answers are.")
            bare = negative.without_answer()
            found.append(Sample(ID, bare, positive.answer, negative.answer))
            for where, words in ((FOR, ask), (AGAINST, avoid)):
                if words:
                    kept = [m for m in bare.messages if m.role != "system"]
                    told_so = Example((Message("system", words), *kept), family=bare.family)
                    found.append(Sample(where, told_so, positive.answer, negative.answer))
        return found

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Sample]) -> list[Row]:
        blank = {"slope": None, "r2": None, "rho": None, "residual": None, "anti": None, "at0": None}
        if condition.steering is None:
            return [
                {"unit": unit(s.prompt.instruction), "item": n, "set": s.where, **blank} for n, s in enumerate(items)
            ]
        low, high = condition.steering.domain
        taken = [a for a in self.multipliers if low - 1e-9 <= a <= high + 1e-9]
        propensities = [self._propensities(stage, Condition.of(condition.steering, a), items) for a in taken]
        found: list[Row] = []
        for n, s in enumerate(items):
            fit = line(taken, [p[n] for p in propensities])
            found.append(
                {
                    "unit": unit(s.prompt.instruction), "item": n, "set": s.where, "slope": fit.slope, "r2": fit.r2,
                    "rho": fit.rho, "residual": fit.residual, "anti": float(fit.slope < 0),
                    "at0": propensities[taken.index(0.0)][n] if 0.0 in taken else None,
                    "curve": [p[n] for p in propensities], "prompt": s.prompt.instruction, "reply": None,
                }
            )  # fmt: skip
        return found

    def _propensities(self, stage: Stage, condition: Condition, items: Sequence[Sample]) -> list[float]:
        asked = [Example(s.prompt.messages, a) for s in items for a in (s.positive, s.negative)]
        scores = [t.per_token for t in told(stage, condition, asked)]
        return [scores[2 * n] - scores[2 * n + 1] for n in range(len(items))]

    def metrics(self, items: Sequence[Sample]) -> tuple[Metric, ...]:
        found: list[Metric] = []
        for where in dict.fromkeys(s.where for s in items):
            mine, label = {"set": where}, "" if where == ID else f", {where}"
            found += [
                mean_of(
                    f"slope{label}",
                    "slope",
                    "mean steerability, nats per token and unit of strength",
                    wanted=1,
                    where=mine,
                ),
                mean_of(f"anti{label}", "anti", "samples that move the wrong way", wanted=-1, share=True, where=mine),
            ]
            if where == ID:
                found += [
                    Metric(f"slope, {q} %", f"the {q} % point of the slopes", _at(q), "slope", mine)
                    for q in (10, 50, 90)
                ]
                found.append(mean_of("R²", "r2", "how straight the lines are", where=mine))
                found.append(
                    mean_of("rank correlation", "rho", "of strength and propensity, sample by sample", where=mine)
                )
            else:
                found.append(
                    Metric(
                        f"ratio{label}",
                        "mean slope there over the mean slope in distribution",
                        ratio_to(where),
                        "slope",
                    )
                )
        return tuple(found)

    def notes(self, rows: Rows) -> list[str]:
        curves = [r["curve"] for r in rows if r.get("curve")]
        short = [len(c) for c in curves if len(c) < len(self.multipliers)]
        return ["the steering doesn't take all multipliers; lines go through those that it takes"] if short else []


def _at(q: int) -> Callable[[Rows], float | None]:
    def of(rows: Rows) -> float | None:
        found = values(rows, "slope")
        return float(np.percentile(found, q)) if found else None

    return of


def ratio_to(where: str) -> Callable[[Rows], float | None]:
    """The mean slope in one distribution over that in the usual one."""

    def of(rows: Rows) -> float | None:
        inside = mean(values([r for r in rows if r["set"] == ID], "slope"))
        outside = mean(values([r for r in rows if r["set"] == where], "slope"))
        return None if not inside or outside is None else outside / inside

    return of
