"""A sweep's results in the form of an evaluation's, so that one report serves both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evals.results import Layer, Results
from ..evals.suite import Suite
from ..evals.summarise import Unit as Measured
from ..evals.summarise import asked_items, asked_prompts, estimate, summarise, values
from ..evals.unit import DIRECTIONS, Plan
from ..evals.workers import About
from .journal import Journal
from .units import Units


def summarised(suite: Suite, plan: Plan, units: Units, journal: Journal, about: About, *, title: str) -> Results:
    """What the journal holds of a plan: averaged, with what failed beside it."""
    rows, found = journal.rows(), merged(plan, units, journal)
    failed = [
        {"unit": row.name, "attempts": row.tried, "reason": row.reason}
        for row in rows.values()
        if row.state == "failed"
    ]
    notes = [f"{len(failed)} of {len(rows)} units failed; they are listed under Missing"] if failed else []
    if suite.fluent() is None:
        notes.append("no judge of fluency or of following the instruction: joint success is the effect alone")
    took = {kind: [r.seconds or 0.0 for r in rows.values() if r.kind == kind] for kind in ("plain", "fit", "measure")}
    meter = {f"{kind}_seconds": round(sum(seconds), 1) for kind, seconds in took.items()} | {"units": len(rows)}
    return summarise(
        suite, plan, found, about, run=journal.folder.name, title=title, meter=meter, layers=_profile(plan, found),
        notes=notes, failed=failed,
    )  # fmt: skip


def merged(plan: Plan, units: Units, journal: Journal) -> list[Measured]:
    """What is done of a plan, as the units of an evaluation: by task, then by seed."""
    results = {i: journal.read(i, row.kind) for i, row in journal.rows().items() if row.state == "done"}
    return [m for task in plan.tasks for seed in plan.seeds if (m := _measured(plan, units, results, task, seed))]


def _measured(
    plan: Plan, units: Units, results: Mapping[str, dict[str, Any] | None], task: str, seed: int
) -> Measured | None:
    """All that was measured of a task and seed, as one unit of an evaluation; None where the unsteered model failed."""
    plain = results.get(units.plain[task, seed])
    if plain is None:
        return None
    arms: dict[str, Any] = {}
    for arm in plan.arms:
        found = results.get(units.measured[arm.name, task, seed])
        if found is not None:
            arms[arm.name] = found["arm"]
    return {"task": task, "seed": seed, "plain": plain["plain"], "base": plain["base"], "arms": arms, "meter": {}}


def _profile(plan: Plan, found: list[Measured]) -> list[Layer]:
    """Each method's effect and cost by block, at unit strength on dev, where several blocks were swept."""
    rows: list[Layer] = []
    at = [(arm.name, *arm.name.rsplit("@", 1)) for arm in plan.arms if "@" in arm.name]
    at = [(name, of, int(layer)) for name, of, layer in at if layer.isdigit()]
    for task in plan.tasks:
        mine = [u for u in found if u["task"] == task]
        for name, of, layer in at:
            for direction in DIRECTIONS:
                effect, lost = (
                    estimate([mine], values(kind, what, name, direction, "unit", "dev"), names)
                    for kind, what, names in (
                        ("effects", "effect", asked_prompts("dev", direction)),
                        ("costs", "lost", asked_items("dev")),
                    )
                )
                if effect.n or effect.missing:
                    rows.append(Layer(task, of, layer, direction, effect, lost))
    return rows
