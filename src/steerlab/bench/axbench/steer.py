"""What a steered model says, how it is rated, and at which factor: towards a concept, away from it, and under attack."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ... import plugins
from ...contrast import Example
from ...engines.base import Sampling
from ...evals.unit import ArmPlan
from ...evals.workers import Bench
from ...meter import Meter
from ...steering import Steering
from ...sweep.units import loaded
from .data import ATTACKS, AxSuite, attacked, fitted, prompted
from .rating import added
from .units import AxPlan

if TYPE_CHECKING:
    from ...engines.hf import HFEngine


@dataclass(frozen=True)
class Say:
    """One arm on one concept at every factor that it takes, and what the judges say. An empty steering is none at all."""

    plan: AxPlan
    arm: ArmPlan
    task: str
    suppress: bool
    steering: bytes

    def __call__(self, bench: Bench) -> dict[str, Any]:
        suite, plan = cast("AxSuite", bench.suite), self.plan
        steering = loaded(self.steering) if self.steering else None
        factors = legal(plan, self.arm, steering, suppress=self.suppress)
        prompts, cut = prompts_for(bench, plan, self.task, suppress=self.suppress)
        with Meter(apart=True) as meter:
            rows = [(f, p) for f in factors for p in prompts]
            scaled = {f: None if steering is None else steering.scaled(f) for f in factors}
            texts = _said(
                bench,
                plan,
                [p for _, p in rows],
                [scaled[f] for f, _ in rows],
                seeds(plan, self.task, prompts) * len(factors),
            )
            rater = suite.rater(self.task)
            ratings = rater.rate(texts, [p for _, p in rows])
        n = len(prompts)
        return {
            "factors": factors, "cut": cut, "prompts": [p.instruction for p in prompts],
            "texts": [texts[k * n : (k + 1) * n] for k in range(len(factors))],
            "ratings": [[list(r) for r in ratings[k * n : (k + 1) * n]] for k in range(len(factors))],
            "meter": {**meter.figures(), "asked": rater.told()},
        }  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """The prompts that a factor was not chosen on, at that factor, with text that works against the suppression."""

    plan: AxPlan
    arm: ArmPlan
    task: str
    factor: float
    steering: bytes

    def __call__(self, bench: Bench) -> dict[str, Any]:
        suite, engine, plan = cast("AxSuite", bench.suite), cast("HFEngine", bench.engine), self.plan
        steering = loaded(self.steering).scaled(self.factor)
        bare = Steering(steering.interventions, None, steering.meta) if steering.interventions else None
        prompts = reported(prompts_for(bench, plan, self.task, suppress=True)[0])
        words, kinds, tallies = suite.words(self.task), dict[str, Any](), list[dict[str, Any]]()
        shown = suite.shown(self.task, plan.shots) if plan.shots else ()
        with Meter(apart=True) as meter:
            for kind in ATTACKS:
                made = [_attacked(engine, prompted(p, steering), kind, words, shown, plan.tokens) for p in prompts]
                there = [k for k, e in enumerate(made) if e is not None]
                asked = [e for e in made if e is not None]
                drawn = seeds(plan, self.task, prompts)
                texts = _said(bench, plan, asked, [bare] * len(asked), [drawn[k] for k in there]) if asked else []
                rater = suite.rater(self.task)
                ratings = dict(zip(there, rater.rate(texts, [prompts[k] for k in there]), strict=True)) if asked else {}
                tallies.append(rater.told())
                kinds[kind] = {
                    "texts": texts, "ratings": [list(ratings.get(k, (None, None, None))) for k in range(len(prompts))],
                }  # fmt: skip
        return {"factor": self.factor, "kinds": kinds, "meter": {**meter.figures(), "asked": added(tallies)}}


@dataclass(frozen=True)
class Nothing:
    """No attack, and why: there is no suppression that it could be on."""

    reason: str

    def __call__(self, bench: Bench) -> dict[str, Any]:
        return {"factor": None, "kinds": {}, "reason": self.reason, "meter": {"seconds": 0.0}}


def legal(plan: AxPlan, arm: ArmPlan, steering: Steering | None, *, suppress: bool) -> list[float]:
    """The factors at which an arm can act towards the concept, or away from it; none where it acts the other way alone."""
    if steering is None:
        return [0.0]
    sign = -1.0 if suppress else 1.0
    if plugins.load(arm.method).aim == "suppress":
        sign = 1.0
        if not suppress:
            return []
    sizes = (1.0,) if steering.prompt is not None else plan.suppress_factors if suppress else plan.factors
    low, high = steering.domain
    return [sign * s for s in sizes if low - 1e-9 <= sign * s <= high + 1e-9]


def chosen_on(prompts: Sequence[Any]) -> Sequence[Any]:
    """The half of the prompts (or of what belongs to them) that chooses the factor."""
    return prompts[: len(prompts) // 2]


def reported(prompts: Sequence[Any]) -> Sequence[Any]:
    """The other half, which is reported."""
    return prompts[len(prompts) // 2 :]


def seeds(plan: AxPlan, task: str, prompts: Sequence[Example]) -> list[int]:
    """Each prompt's seed: the same for every arm and factor, so that these are compared under the same luck."""
    asked = (f"{plan.seed}\0{task}\0{k}\0{p.instruction}" for k, p in enumerate(prompts))
    return [int.from_bytes(hashlib.sha256(a.encode(errors="surrogatepass")).digest()[:4]) >> 1 for a in asked]


def prompts_for(bench: Bench, plan: AxPlan, task: str, *, suppress: bool) -> tuple[list[Example], int]:
    """The instructions to steer on, and how many had to be cut so that a reply fits after them."""
    engine = cast("HFEngine", bench.engine)
    given = cast("AxSuite", bench.suite).instructions(task, plan.prompts, suppress=suppress)
    most = max(engine.context - plan.tokens, engine.context // 2)
    shorter = [fitted(engine, e.without_answer(), most) for e in given]
    return [e for e, _ in shorter], sum(cut > 0 for _, cut in shorter)


def _said(
    bench: Bench, plan: AxPlan, prompts: Sequence[Example], steerings: Sequence[Steering | None], drawn: Sequence[int]
) -> list[str]:
    if not prompts:
        return []
    sampling = Sampling(plan.tokens, plan.temperature, seed=tuple(drawn))
    return [reply.text for reply in bench.engine.generate(prompts, steerings, sampling)]


def _attacked(
    engine: HFEngine, example: Example, kind: str, words: str, shots: Sequence[Example], tokens: int
) -> Example | None:
    """The attacked conversation, with as many shots as leave room for a reply; None where there is no room for any."""
    for many in range(len(shots), 0, -1) if kind == "shots" else (0,):
        messages = attacked(example.messages, kind, words, shots[:many])
        if len(engine.renderer.prompt(messages).ids) + tokens <= engine.context or kind != "shots":
            return Example(messages, tags=example.tags)
    return None
