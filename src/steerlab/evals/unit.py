"""One unit of an evaluation: one task with one seed, every arm fitted, tuned on dev and measured on test.

A unit is what a worker process does and what the journal holds, so that an interrupted evaluation goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast, get_args

from .. import plugins
from ..engines.base import Trainable
from ..errors import ConfigError
from ..meter import Meter
from ..methods.base import Aim, Method, method
from ..steering import Steering
from .measure import Amounts, CostMeter, Costs, Effects, measure_effects
from .results import Direction
from .stats import mean
from .suite import Split, Suite

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class ArmPlan:
    """An arm: a method with its settings, a saved steering (`file`), or an earlier arm's served one-sided (`one_sided_of`).

    `strengths` replaces the plan's for it alone. With `adopt` a file is taken over that was fitted on another model.
    """

    name: str
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    file: str | None = None
    one_sided_of: str | None = None
    label: str = ""
    strengths: tuple[float, ...] | None = None
    adopt: bool = False

    def __post_init__(self) -> None:
        if sum(map(bool, (self.method, self.file, self.one_sided_of))) != 1:
            raise ConfigError(f"the arm {self.name!r} needs a method, a file or another arm's name, one of the three.")


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and how.

    `strengths` are tried both ways on dev; the one with the best joint success among those that lose at most `budget`
    of the capability items is reported on test beside unit strength. `curves` measures every strength on test, too. A layer
    profile measures unit strength and `layer_strengths`.
    `site` is the one site of every arm that has one and doesn't name its own.
    """

    arms: tuple[ArmPlan, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    layer_strengths: tuple[float, ...] = (1.0,)
    site: str | None = None
    budget: float = 0.10
    curves: bool = True
    dev: Amounts = field(default_factory=lambda: Amounts(prompts=16, items=60, neutral=4, texts=0))
    test: Amounts = field(default_factory=Amounts)
    samples: int = 2

    def __post_init__(self) -> None:
        if not self.arms or not self.tasks or not self.seeds:
            raise ConfigError("an evaluation needs at least one arm, one task and one seed.")
        if len({a.name for a in self.arms}) < len(self.arms):
            raise ConfigError("two arms have the same name; give each its own.")
        for n, arm in enumerate(self.arms):
            if arm.one_sided_of and arm.one_sided_of not in {a.name for a in self.arms[:n]}:
                raise ConfigError(
                    f"the arm {arm.name!r} is to serve {arm.one_sided_of!r} one-sided; name an arm that stands before it."
                )
        if not self.strengths or min(self.strengths) <= 0 or not all(math.isfinite(s) for s in self.strengths):
            raise ConfigError(
                f"strengths are {self.strengths}; expected positive sizes, each is tried with both signs."
            )
        if 1.0 not in self.strengths:
            object.__setattr__(self, "strengths", tuple(sorted({*self.strengths, 1.0})))


def run_unit(suite: Suite, plan: Plan, task: str, seed: int, engine: Trainable) -> dict[str, Any]:
    """Everything measured for one task and seed, as plain data."""
    with Meter() as meter:
        meters = {split: CostMeter(suite, engine, split, amounts_of(plan, split), seed) for split in SPLITS}
        plain = measure_plain(suite, plan, task, seed, engine, meters)
        fitted: dict[str, Steering] = {}
        for arm in plan.arms:
            fitted[arm.name] = (
                fitted[arm.one_sided_of].one_sided()
                if arm.one_sided_of
                else fit_arm(suite, plan, arm, task, seed, engine)
            )
        arms = {
            arm.name: measure_arm(suite, plan, arm, fitted[arm.name], task, seed, engine, meters) for arm in plan.arms
        }
    return {"task": task, "seed": seed, **plain, "arms": arms, "meter": meter.figures()}


def fit_arm(suite: Suite, plan: Plan | None, arm: ArmPlan, task: str, seed: int, engine: Trainable) -> Steering:
    """The arm's steering for this task and seed; with no plan, at the site that the arm or its method names."""
    if arm.file:
        steering = Steering.load(arm.file)
        return steering.adopted(engine) if arm.adopt else steering
    return method_of(suite, plan, arm, task, seed).fit(engine, suite.contrast(task, seed))


def method_of(suite: Suite, plan: Plan | None, arm: ArmPlan, task: str, seed: int) -> Method:
    """The method that an arm fits, with what it leaves open: the plan's site, the seed, the task's prompt."""
    settings = dict(arm.settings)
    known = set(plugins.load(arm.method).__dataclass_fields__)
    if plan is not None and "site" in known and plan.site is not None:
        settings.setdefault("site", plan.site)
    if "seed" in known:
        settings.setdefault("seed", seed)
    if arm.method == "prompt":
        settings = {**suite.prompt_settings(task, seed), **settings}
    return method(arm.method, settings)


def signed(plan: Plan, steering: Steering, arm: ArmPlan, direction: Direction) -> list[float]:
    """The strengths at which this arm can act in a direction, weakest first."""
    sign = 1.0 if direction == "elicit" else -1.0
    if _aim(arm, steering) == "suppress":
        sign = 1.0
        if direction == "elicit":
            return []
    low, high = steering.domain
    discrete = steering.prompt is not None
    sizes = [1.0] if discrete else list(plan.strengths if arm.strengths is None else arm.strengths)
    return [sign * s for s in sizes if low - 1e-9 <= sign * s <= high + 1e-9]


def signed_domain(steering: Steering, arm: ArmPlan | None, direction: Direction) -> tuple[float, float]:
    """The sign of the strengths that act in a direction, and the greatest size there is (0, 0 where there are none)."""
    sign = 1.0 if direction == "elicit" else -1.0
    if _aim(arm, steering) == "suppress":
        if direction == "elicit":
            return 0.0, 0.0
        sign = 1.0
    low, high = steering.domain
    size = high if sign > 0 else -low
    return (sign, size) if size > 0 else (0.0, 0.0)


def choose(strengths: Sequence[float], effects: Sequence[Effects], costs: Sequence[Costs], budget: float) -> int | None:
    """Which strength dev favours: the best joint success among those within the budget, the weakest of equals.

    Where none is within the budget, the one that loses least. None where nothing could be judged.
    """
    joint = [mean(e.joint) for e in effects]
    lost = [0.0 if not c.lost else math.inf if (m := mean(c.lost)) is None else m for c in costs]
    within = [n for n in range(len(strengths)) if lost[n] <= budget + 1e-9 and joint[n] is not None]
    if within:
        return max(within, key=lambda n: (cast("float", joint[n]), -abs(strengths[n])))
    known = [n for n in range(len(strengths)) if joint[n] is not None]
    return min(known, key=lambda n: (lost[n], abs(strengths[n]))) if known else None


def _aim(arm: ArmPlan | None, steering: Steering) -> Aim:
    """What strength 1 does: the method tells, a saved steering's too."""
    name = (arm.method if arm else "") or str(steering.meta.method.get("name", ""))
    return plugins.load(name).aim if name in plugins.names("methods") else "elicit"


def measure_arm(
    suite: Suite,
    plan: Plan,
    arm: ArmPlan,
    steering: Steering,
    task: str,
    seed: int,
    engine: Trainable,
    meters: Mapping[str, CostMeter],
) -> dict[str, Any]:
    """A fitted arm, tuned on dev and measured on test, both ways."""
    found: dict[str, Any] = {"fit": steering.meta.figures, "digest": steering.digest, "directions": {}}
    for direction in DIRECTIONS:
        strengths = signed(plan, steering, arm, direction)
        if not strengths:
            continue
        scaled = [steering.scaled(s) for s in strengths]
        unit = min(range(len(strengths)), key=lambda n: abs(abs(strengths[n]) - 1))
        if len(strengths) == 1:  # nothing to choose
            effects, costs, best = [], [], 0
        else:
            effects = measure_effects(suite, engine, task, direction, "dev", scaled, plan.dev, seed)
            costs = meters["dev"].measure(scaled)
            best = choose(strengths, effects, costs, plan.budget)
        wanted = range(len(strengths)) if plan.curves else sorted({unit, unit if best is None else best})
        tested = [strengths[n] for n in wanted]
        again = [scaled[n] for n in wanted]
        test_effects = measure_effects(suite, engine, task, direction, "test", again, plan.test, seed)
        test_costs = meters["test"].measure(again)
        found["directions"][direction] = {
            "dev": _told(strengths, effects, costs, 0) if effects else [],
            "test": _told(tested, test_effects, test_costs, plan.samples),
            "unit": strengths[unit],
            "tuned": None if best is None else strengths[best],
        }
    return found


def _told(
    strengths: Sequence[float], effects: Sequence[Effects], costs: Sequence[Costs], samples: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for strength, effect, cost in zip(strengths, effects, costs, strict=True):
        told = asdict(effect)
        told["texts"], told["prompts"] = effect.texts[:samples], effect.prompts[:samples]
        rows.append({"strength": strength, "effects": told, "costs": asdict(cost)})
    return rows


def measure_plain(
    suite: Suite, plan: Plan, task: str, seed: int, engine: Trainable, meters: Mapping[str, CostMeter]
) -> dict[str, Any]:
    """The unsteered model on the prompts of both directions (`plain`), and on the capability items (`base`)."""
    plain = {
        split: {
            d: asdict(measure_effects(suite, engine, task, d, split, [None], amounts_of(plan, split), seed)[0])
            for d in DIRECTIONS
        }
        for split in SPLITS
    }
    return {"plain": plain, "base": {split: asdict(meters[split].base) for split in SPLITS}}


def amounts_of(plan: Plan, split: Split) -> Amounts:
    """How much is measured of a split."""
    return plan.dev if split == "dev" else plan.test
