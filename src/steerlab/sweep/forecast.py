"""What a sweep will take, before it is run: fits by `methods.forecast`, measuring by one unit that is really measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..evals.unit import ArmPlan, Plan, method_of
from ..evals.workers import Bench
from ..meter import Meter, peak_mib
from ..methods.base import method
from ..methods.forecast import forecast_many
from ..methods.trained import Trained
from .status import in_words
from .units import Units, groups, job, planned, saved


class Expected(NamedTuple):
    """Units by kind, steps of training, seconds of work of one worker, MiB of a worker's process and of disk."""

    units: dict[str, int]
    steps: int
    seconds: float
    memory_mib: float
    disk_mib: float

    def words(self, workers: int) -> str:
        """In words, for so many workers."""
        of = ", ".join(f"{n} {kind}" for kind, n in self.units.items())
        return (
            f"{sum(self.units.values())} units ({of}), {self.steps} steps of training; about"
            f" {in_words(self.seconds / workers)} with {workers} worker{'s' * (workers > 1)} after the model is loaded, about"
            f" {self.memory_mib:.0f} MiB of memory each, {self.disk_mib:.1f} MiB on disk"
        )


@dataclass(frozen=True)
class Forecasting:
    """A job: try what a plan asks for. Each method is tried at the first and the last of its layers, and averaged."""

    plan: Plan
    together: int

    def __call__(self, bench: Bench) -> Expected:
        plan, units = self.plan, planned(bench.suite, self.plan, self.together)
        counts = {kind: sum(u.kind == kind for u in units.all) for kind in ("plain", "fit", "measure")}
        before = peak_mib()
        plain, measured = self.tried(bench, units)
        steps, seconds, disk, memory = 0.0, 0.0, 0.0, 0.0
        for arms in _by_method(plan).values():
            found = [self.fit(bench, arm) for arm in (arms if len(arms) == 1 else (arms[0], arms[-1]))]
            many = len(arms) * len(plan.tasks) * len(plan.seeds) / len(found)
            steps += many * sum(f[0] for f in found)
            seconds += many * sum(f[1] for f in found)
            disk += many * sum(f[2] for f in found)
            memory = max(memory, *(f[3] for f in found))
        for kind, (took, size) in (("plain", plain), ("measure", measured)):
            seconds += counts[kind] * took
            disk += counts[kind] * size
        most = max(peak_mib(), before + memory)
        return Expected(counts, round(steps), round(seconds, 1), round(most, 1), round(disk / 2**20, 2))

    def tried(self, bench: Bench, units: Units) -> tuple[tuple[float, int], tuple[float, int]]:
        """Seconds and bytes of an unsteered unit, and of one that measures a steering: a random direction in each arm's place."""
        unsteered = next(u for u in units.all if u.kind == "plain")
        plain = _told(job(unsteered, self.plan)(bench))
        unit = next(u for u in units.all if u.kind == "measure")
        arm = next(a for a in self.plan.arms if a.name == unit.arm)
        site = arm.settings.get("site", self.plan.site)
        steering = method("random", {"site": site}).fit(bench.engine, bench.suite.contrast(unit.tasks[0], unit.seed))
        return plain, _told(job(unit, self.plan, saved(steering))(bench))

    def fit(self, bench: Bench, arm: ArmPlan) -> tuple[float, float, float, float]:
        """Steps, seconds and bytes of one concept's fit, and a worker's MiB beside the model."""
        seed = self.plan.seeds[0]
        tasks, made = groups(bench.suite, self.plan, arm, seed, self.together)[0]
        data = [bench.suite.contrast(task, seed) for task in tasks]
        if isinstance(made, Trained):
            told, n = forecast_many(made, bench.engine, data), len(data)
            return told.steps / n, told.seconds / n, HEADER + told.saved_mib * 2**20 / n, told.memory_mib
        with Meter() as meter:
            size = len(saved(method_of(bench.suite, self.plan, arm, tasks[0], seed).fit(bench.engine, data[0])))
        return 0.0, meter.seconds, float(size), 0.0


HEADER = 4096  # bytes of a steering's file beside its tensors: where it comes from


def _by_method(plan: Plan) -> dict[str, list[ArmPlan]]:
    found: dict[str, list[ArmPlan]] = {}
    for arm in plan.arms:
        found.setdefault(arm.name.rsplit("@", 1)[0], []).append(arm)
    return found


def _told(result: Mapping[str, Any]) -> tuple[float, int]:
    return result["meter"]["seconds"], len(json.dumps(result, ensure_ascii=False).encode())
