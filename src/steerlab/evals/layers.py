"""The layer profile: one arm fitted at every layer and measured at unit strength on dev, from which a layer is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..engines.base import Trainable
from ..errors import ConfigError
from .measure import CostMeter, measure_effects
from .results import Layer
from .stats import Estimate, bootstrap
from .suite import Suite
from .unit import DIRECTIONS, ArmPlan, Plan, fit_arm, mean, signed


def run_layers(
    suite: Suite, plan: Plan, layers: Sequence[int], task: str, seed: int, engine: Trainable
) -> dict[str, Any]:
    """The first arm at every layer, for one task and seed: effects and costs at unit strength on dev."""
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
            unit = [s for s in signed(plan, steering, arm, direction) if abs(s) == 1]
            if not unit:
                continue
            scaled = [steering.scaled(unit[0])]
            effects = measure_effects(suite, engine, task, direction, "dev", scaled, plan.dev, seed)[0]
            told = asdict(effects)
            told["texts"] = told["prompts"] = []
            here[direction] = {"effects": told, "costs": asdict(costs.measure(scaled)[0])}
        found["layers"][str(layer)] = here
    return found


def profile(plan: Plan, units: Sequence[dict[str, Any]]) -> list[Layer]:
    """The profile of each task, for the report."""
    rows: list[Layer] = []
    for task in plan.tasks:
        mine = [u for u in units if u["task"] == task]
        for layer in mine[0]["layers"] if mine else ():
            for direction in DIRECTIONS:
                cells = [c for u in mine if (c := u["layers"][layer].get(direction)) is not None]
                if cells:
                    effect = bootstrap([[c["effects"]["effect"] for c in cells]])
                    lost = bootstrap([[c["costs"]["lost"] for c in cells]])
                    rows.append(Layer(task, plan.arms[0].name, int(layer), direction, effect, lost))
    return rows


def choose_layer(units: Sequence[dict[str, Any]], budget: float) -> tuple[int, dict[int, Estimate]]:
    """The layer with the best mean joint success over tasks and directions, what it loses beyond the budget taken off.

    Returns it with the score of every layer. Every task and direction weighs the same.
    """
    scores: dict[int, list[float | None]] = {}
    for unit in units:
        for layer, directions in unit["layers"].items():
            for cell in directions.values():
                joint, lost = mean(cell["effects"]["joint"]), mean(cell["costs"]["lost"])
                if lost is None and cell["costs"]["lost"]:
                    joint = None
                scores.setdefault(int(layer), []).append(
                    None if joint is None else joint - max(0.0, (lost or 0.0) - budget)
                )
    told = {layer: bootstrap([[v] for v in ([x] for x in values)]) for layer, values in scores.items()}
    best = max(told, key=lambda layer: float("-inf") if (m := told[layer].mean) is None else m)
    return best, told


def _at(arm: ArmPlan, layer: int) -> ArmPlan:
    return replace(arm, settings={**arm.settings, "site": str(layer)})
