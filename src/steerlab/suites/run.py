"""Runs a suite: the model as it is and a steering at some strengths, on the same items, with intervals and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import config, progress
from ..engines.base import Trainable
from ..errors import ConfigError, EditError
from ..evals.stats import Estimate
from ..judges.base import Judge
from ..meter import Meter
from ..steering import Steering
from ..version import __version__
from .base import Condition, Metric, Row, Stage, Suite
from .estimates import change, estimate
from .health import Checkup, Health, verdict

BESIDE = ("unit", "item", "set")


@dataclass(frozen=True)
class Result:
    """A suite's findings: for each condition its table, its metrics with intervals, and the change from the plain model."""

    suite: str
    about: str
    paper: str
    settings: dict[str, Any]
    model: str
    identity: str
    steering: str | None  # digest
    data: str
    conditions: tuple[Condition, ...]
    metrics: tuple[Metric, ...]
    rows: Mapping[str, Sequence[Row]]
    found: Mapping[str, Mapping[str, Estimate]]
    changes: Mapping[str, Mapping[str, Estimate | None]]
    health: Mapping[str, Health]
    verdict: tuple[str, ...]
    notes: tuple[str, ...]
    meter: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Everything but the table itself, which `report.write` puts beside it."""

        def told(estimates: Mapping[str, Estimate | None]) -> dict[str, Any]:
            return {k: None if e is None else e.to_json() for k, e in estimates.items()}

        return {
            "suite": self.suite, "about": self.about, "paper": self.paper, "settings": self.settings, "model": self.model,
            "identity": self.identity, "steering": self.steering, "data": self.data, "steerlab": __version__,
            "verdict": list(self.verdict), "notes": list(self.notes),
            "metrics": {m.name: {"about": m.about, "wanted": m.wanted} for m in self.metrics},
            "conditions": {
                c.label: {
                    "strength": c.strength, "metrics": told(self.found[c.label]),
                    "change": told(self.changes.get(c.label, {})),
                    "health": self.health[c.label].to_json(), "rows": len(self.rows[c.label]),
                }
                for c in self.conditions
            },
            "meter": dict(self.meter),
        }  # fmt: skip


def run(
    suite: Suite[Any],
    engine: Trainable,
    items: Sequence[Any],
    steering: Steering | None = None,
    *,
    strengths: Sequence[float] | None = None,
    variant: str | None = None,
    fluent: Judge | None = None,
    tokens: int = 64,
    data: str = "",
) -> Result:
    """Measure a steering (None: the model alone) by a suite.

    `strengths` stand beside the model as it is; those that the steering can't take are left out with a note, unless they were
    asked for. `variant` says which built-in model it is. Raises `ConfigError` where there is nothing to measure, `EditError`
    for a strength that was asked for and can't be.
    """
    if not items:
        raise ConfigError(f"the suite {suite.name} was given no items; there is nothing to measure.")
    if steering is None and suite.needs_steering:
        raise ConfigError(
            f"the suite {suite.name} measures what a steering does; give one (--steering FILE, or --method NAME to fit one)."
        )
    stage = staged(engine, variant, fluent, tokens)
    conditions, notes = _conditions(suite, steering, strengths)
    metrics, checkup = suite.metrics(items), Checkup.of(stage, seed=suite.seed)
    rows: dict[str, list[Row]] = {}
    health: dict[str, Health] = {}
    with Meter() as meter:
        for condition in progress.track(conditions, f"suite {suite.name}"):
            if condition.steering is not None:
                engine.accept(condition.steering)
            rows[condition.label] = suite.rows(stage, condition, items)
            health[condition.label] = checkup.measure(stage, condition)
        plain = rows["plain"]
        found = {c.label: {m.name: estimate(m, rows[c.label], plain) for m in metrics} for c in conditions}
        changes = {
            c.label: {m.name: change(m, rows[c.label], plain) for m in metrics} for c in conditions if c.steering is not None
        }  # fmt: skip
    notes += [note for c in conditions for note in suite.notes(rows[c.label])]
    return Result(
        suite.name, suite.about, suite.paper, config.to_dict(suite), engine.name, engine.identity,
        None if steering is None else steering.digest, data, tuple(conditions), metrics, rows, found, changes, health,
        tuple(verdict(health["plain"], [(c.label, health[c.label]) for c in conditions[1:]])),
        tuple(dict.fromkeys(notes)), meter.figures(),
    )  # fmt: skip


def staged(engine: Trainable, variant: str | None, fluent: Judge | None = None, tokens: int = 64) -> Stage:
    """Where a suite runs, with the built-in model's own judge of fluency where it is one."""
    from .. import pilot

    if fluent is not None:
        return Stage(engine, variant, tokens, fluent)
    return Stage(engine, None, tokens) if variant is None else Stage(engine, variant, tokens, pilot.fluent(variant))


def _conditions(
    suite: Suite[Any], steering: Steering | None, strengths: Sequence[float] | None
) -> tuple[list[Condition], list[str]]:
    plain = Condition("plain", 0.0, None)
    if steering is None:
        return [plain], []
    found, notes = [plain], list[str]()
    low, high = steering.domain
    for s in strengths if strengths is not None else suite.strengths:
        if s == 0:
            continue
        if low - 1e-9 <= s <= high + 1e-9:
            found.append(Condition.of(steering, s))
        elif strengths is not None:
            raise EditError(f"this steering takes strengths from {low:g} to {high:g}; {s:g} was asked for.")
        else:
            notes.append(f"strength {s:g} is left out: this steering takes {low:g} to {high:g}")
    return found, notes
