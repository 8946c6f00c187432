"""The layer profile: one arm fitted at every layer and measured on dev, from which a layer is chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..engines.base import Trainable
from ..errors import ConfigError
from .measure import CostMeter, measure_effects
from .results import Direction, Layer
from .stats import Estimate, bootstrap, mean
from .suite import Suite
from .unit import DIRECTIONS, ArmPlan, Plan, fit_arm, signed


def run_layers(
    suite: Suite, plan: Plan, layers: Sequence[int], task: str, seed: int, engine: Trainable
) -> dict[str, Any]:
    """The first arm at every layer, for one task and seed: effects and costs on dev at `layer_strengths`."""
    arm = plan.arms[0]
    if not arm.method:
        raise ConfigError(
            f"the arm {arm.name!r} is a fitted steering, which has its site; give a method to profile layers."
        )
    costs = CostMeter(suite, engine, "dev", plan.dev, seed)
    found: dict[str, Any] = {"task": task, "seed": seed, "layers": {}}
    for layer in layers:
        steering = fit_arm(suite, replace(plan, site=str(layer)), _at(arm, layer), task, seed, engine)
        here: dict[str, Any] = {}
        for direction in DIRECTIONS:
            strengths = signed(replace(plan, strengths=plan.layer_strengths), steering, arm, direction)
            if not strengths:
                continue
            scaled = [steering.scaled(s) for s in strengths]
            effects = measure_effects(suite, engine, task, direction, "dev", scaled, plan.dev, seed)
            here[direction] = [
                {"strength": s, "effects": {**asdict(e), "texts": [], "prompts": []}, "costs": asdict(c)}
                for s, e, c in zip(strengths, effects, costs.measure(scaled), strict=True)
            ]
        found["layers"][str(layer)] = here
    return found


def profile(plan: Plan, units: Sequence[dict[str, Any]]) -> list[Layer]:
    """The profile of each task, for the report."""
    rows: list[Layer] = []
    for task in plan.tasks:
        mine = [u for u in units if u["task"] == task]
        for layer in mine[0]["layers"] if mine else ():
            for direction in DIRECTIONS:
                cells = [c for u in mine for c in u["layers"][layer].get(direction, ()) if abs(c["strength"]) == 1]
                if cells:
                    effect = bootstrap([[c["effects"]["effect"] for c in cells]])
                    lost = bootstrap([[c["costs"]["lost"] for c in cells]])
                    rows.append(Layer(task, plan.arms[0].name, int(layer), direction, effect, lost))
    return rows


def choose_layer(
    units: Sequence[dict[str, Any]], budget: float, uncounted: Collection[tuple[str, Direction]] = ()
) -> tuple[int, dict[int, Estimate]]:
    """The layer with the best mean joint success over tasks and directions, what it loses beyond the budget taken off.

    Returns it with the score of every layer. Every task and direction weighs the same, at its best strength. What is lost
    isn't counted for those in `uncounted`: a refusal that is brought out is one to capability items, too.
    """
    scores: dict[int, list[float | None]] = {}
    for unit in units:
        for layer, directions in unit["layers"].items():
            for direction, cells in directions.items():
                most = math.inf if (unit["task"], direction) in uncounted else budget
                known = [score for cell in cells if (score := _score(cell, most)) is not None]
                scores.setdefault(int(layer), []).append(max(known, default=None))
    told = {layer: bootstrap([[v] for v in ([x] for x in values)]) for layer, values in scores.items()}
    best = max(told, key=lambda layer: float("-inf") if (m := told[layer].mean) is None else m)
    return best, told


def _score(cell: dict[str, Any], budget: float) -> float | None:
    joint, lost = mean(cell["effects"]["joint"]), mean(cell["costs"]["lost"])
    if joint is None or (lost is None and cell["costs"]["lost"]):
        return None  # what could not be judged
    return joint - max(0.0, (lost or 0.0) - budget)


def _at(arm: ArmPlan, layer: int) -> ArmPlan:
    return replace(arm, settings={**arm.settings, "site": str(layer)})
