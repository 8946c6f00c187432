"""What a calibrated steering does on test prompts, at its default strength in each direction: figures, samples, failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engines.base import Trainable
from ..ranges import sides
from ..steering import Steering
from .measure import Amounts, CostMeter, Costs, Effects, measure_effects
from .results import Direction
from .stats import bootstrap, mean, paired_difference
from .suite import Suite

SAMPLES = 4


def checked(
    suite: Suite, task: str, steering: Steering, engine: Trainable, amounts: Amounts, *, seed: int = 0
) -> dict[str, Any]:
    """For each calibrated direction its test figures as plain data; `default` is None where nothing useful is safe.

    `kept` says for each cost that has a budget whether its mean on test was within.
    """
    told = steering.meta.range or {}
    budget: Mapping[str, float | None] = told.get("budget", {})
    meter = CostMeter(suite, engine, "test", amounts, seed)
    directions: dict[str, Any] = {}
    for name, side in sides(told).items():
        direction: Direction = "elicit" if name == "elicit" else "suppress"
        row: dict[str, Any] = {"default": side.default, "max_safe": side.max_safe, "min_useful": side.min_useful}
        strengths = [s for s in dict.fromkeys((side.default, side.max_safe)) if s]
        under = [steering.scaled(s) for s in strengths]
        found = measure_effects(suite, engine, task, direction, "test", [None], amounts, seed)
        found += measure_effects(suite, engine, task, direction, "test", under, amounts, seed) if under else []
        plain, steered = found[0], found[1:]
        row["unsteered"] = {"joint": _told(plain.joint), "effect": _told(plain.effect)}
        row["at"] = [
            _figures(s, e, c, plain, budget)
            for s, e, c in zip(strengths, steered, meter.measure(under) if under else [], strict=True)
        ]
        if steered:
            row["samples"], row["failures"] = _samples(plain, steered[0])
        directions[name] = row
    return {"task": task, "split": "test", "seed": seed, "directions": directions, "amounts": vars(amounts).copy()}


def _figures(
    strength: float, effects: Effects, costs: Costs, plain: Effects, budget: Mapping[str, float | None]
) -> dict[str, Any]:
    added = [None if v is None else v - 1 for v in costs.perplexity]
    paid = {"lost": costs.lost, "kl": costs.kl, "perplexity": added}
    return {
        "strength": strength,
        **{name: _told(getattr(effects, name)) for name in ("effect", "joint", "follows", "fluent")},
        "gained": paired_difference([[effects.joint]], [[plain.joint]]).to_json(),
        **{name: _told(values) for name, values in paid.items()},
        "kept": {
            name: m <= most
            for name, values in paid.items()
            if (most := budget.get(name)) is not None and (m := mean(values)) is not None
        },
    }


def _told(values: list[float | None]) -> dict[str, Any]:
    return bootstrap([[values]]).to_json()


def _samples(plain: Effects, steered: Effects) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Prompts with both replies: some as they come, and those that went wrong."""
    rows = [
        {"prompt": p, "unsteered": a, "steered": b, "success": j, "effect": e}
        for p, a, b, j, e in zip(
            steered.prompts, plain.texts, steered.texts, steered.joint, steered.effect, strict=True
        )
    ]
    failures = [r for r in rows if r["success"] == 0.0]
    return [r for r in rows if r["success"] != 0.0][:SAMPLES], failures[:SAMPLES]
