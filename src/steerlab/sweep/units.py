"""The units of a sweep, and the work of each.

- `plain`: the unsteered model on one concept's prompts and the capability items, for one seed.
- `fit`: one arm (a method at a layer) with one seed, for one concept or for a group of them that is fitted in one pass. The
  plan fixes the groups, so that whoever runs them gets the same.
- `measure`: one fitted steering at every strength, tuned on dev and reported on test; it needs its fit.

A unit is named by the digest of its inputs: settings with their defaults, suite, files, the package's code, the versions of
torch and transformers, and the fit that it needs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..evals.suite import Suite
from ..evals.unit import SPLITS, ArmPlan, Plan, amounts_of, measure_arm, measure_plain, method_of
from ..evals.workers import Bench, Job
from ..files import code_digest, digest
from ..meter import Meter
from ..methods.base import Method
from ..methods.trained import Trained
from ..steering import Steering

Kind = Literal["plain", "fit", "measure"]


@dataclass(frozen=True)
class Unit:
    """One piece of a run: its kind, the digest of its inputs, what it is of, and the unit that it needs."""

    kind: str
    inputs: str
    arm: str
    tasks: tuple[str, ...]
    seed: int
    needs: str | None = None

    @property
    def name(self) -> str:
        """In words."""
        of = ", ".join(self.tasks) if len(self.tasks) <= 3 else f"{self.tasks[0]} and {len(self.tasks) - 1} more"
        return (
            f"{self.kind} {self.arm} on {of}, seed {self.seed}" if self.arm else f"{self.kind} {of}, seed {self.seed}"
        )

    def file(self, task: str) -> str:
        """What a fitted steering's file is called."""
        safe = "".join(c if c.isalnum() or c in "-_@" else "_" for c in f"{self.arm}-{task}-{self.seed}")
        return f"{safe}-{self.inputs[:8]}.safetensors"


@dataclass(frozen=True)
class Units:
    """A sweep's units in the order in which they are worth doing, and where each result belongs."""

    all: tuple[Unit, ...]
    plain: dict[tuple[str, int], str]  # task, seed -> inputs
    measured: dict[tuple[str, str, int], str]  # arm, task, seed -> inputs

    @property
    def by_inputs(self) -> dict[str, Unit]:
        """Each by the digest of its inputs."""
        return {unit.inputs: unit for unit in self.all}


def planned(suite: Suite, plan: Plan, together: int) -> Units:
    """Every unit of a plan: for each seed the unsteered model, then arm by arm the fits, each with what it is measured by.

    Two arms that say the same share their units.
    """
    basis = _basis(suite)
    found: dict[str, Unit] = {}
    plain: dict[tuple[str, int], str] = {}
    measured: dict[tuple[str, str, int], str] = {}

    def add(
        kind: Kind, arm: str, tasks: tuple[str, ...], seed: int, asked: Mapping[str, Any], needs: str | None
    ) -> str:
        inputs = _digest({"basis": basis, "kind": kind, "tasks": tasks, "seed": seed, "asked": asked, "needs": needs})
        found.setdefault(inputs, Unit(kind, inputs, arm, tasks, seed, needs))
        return inputs

    amounts = {split: asdict(amounts_of(plan, split)) for split in SPLITS}
    for seed in plan.seeds:
        for task in plan.tasks:
            plain[task, seed] = add("plain", "", (task,), seed, amounts, None)
        for arm in plan.arms:
            of = arm if not arm.one_sided_of else next(a for a in plan.arms if a.name == arm.one_sided_of)
            for tasks, made in groups(suite, plan, of, seed, together):
                fit = add("fit", of.name, tasks, seed, {"method": made.name, **asdict(made)}, None)
                for task in tasks:
                    asked = {
                        **amounts, "strengths": plan.strengths if arm.strengths is None else arm.strengths,
                        "budget": plan.budget, "curves": plan.curves, "samples": plan.samples,
                    }  # fmt: skip
                    if arm.one_sided_of:
                        asked["one_sided"] = True
                    measured[arm.name, task, seed] = add("measure", arm.name, (task,), seed, asked, fit)
    return Units(tuple(found.values()), plain, measured)


def groups(suite: Suite, plan: Plan, arm: ArmPlan, seed: int, together: int) -> list[tuple[tuple[str, ...], Method]]:
    """The tasks that an arm fits in one pass, with its method: so many where it is trained, one by one otherwise."""
    made = method_of(suite, plan, arm, plan.tasks[0], seed)
    size = together if isinstance(made, Trained) else 1
    parts = [plan.tasks[at : at + size] for at in range(0, len(plan.tasks), size)]
    if arm.method == "prompt":  # the one whose settings are the task's
        return [(part, method_of(suite, plan, arm, part[0], seed)) for part in parts]
    return [(part, made) for part in parts]


def job(unit: Unit, plan: Plan, steering: bytes = b"") -> Job:
    """The work of a unit; `steering` is the file of the fit that it measures."""
    if unit.kind == "plain":
        return _Plain(plan, unit.tasks[0], unit.seed)
    arm = next(a for a in plan.arms if a.name == unit.arm)
    if unit.kind == "fit":
        return _Fit(plan, arm, unit.tasks, unit.seed)
    return _Measure(plan, arm, unit.tasks[0], unit.seed, steering)


@dataclass(frozen=True)
class _Plain:
    plan: Plan
    task: str
    seed: int

    def __call__(self, bench: Bench) -> dict[str, Any]:
        with Meter() as meter:
            meters = {split: bench.meter(split, amounts_of(self.plan, split), self.seed) for split in SPLITS}
            found = measure_plain(bench.suite, self.plan, self.task, self.seed, bench.engine, meters)
        return {**found, "meter": meter.figures()}


@dataclass(frozen=True)
class _Fit:
    """Where a group can't be fitted because of some concept's data, each is fitted alone, and those that can't be say why."""

    plan: Plan
    arm: ArmPlan
    tasks: tuple[str, ...]
    seed: int

    def __call__(self, bench: Bench) -> dict[str, Any]:
        reasons: dict[str, str] = {}
        with Meter(apart=True) as meter:
            try:
                found = self._fitted(bench, self.tasks)
            except DataError:
                if len(self.tasks) == 1:
                    raise
                found: dict[str, Steering] = {}
                for task in self.tasks:
                    try:
                        found |= self._fitted(bench, (task,))
                    except DataError as problem:
                        reasons[task] = f"DataError: {problem}"
        return {
            "digests": {task: steering.digest for task, steering in found.items()},
            "reasons": reasons,
            "files": {task: saved(steering) for task, steering in found.items()},
            "meter": meter.figures(),
        }

    def _fitted(self, bench: Bench, tasks: Sequence[str]) -> dict[str, Steering]:
        made = method_of(bench.suite, self.plan, self.arm, tasks[0], self.seed)
        data = [bench.suite.contrast(task, self.seed) for task in tasks]
        if isinstance(made, Trained):
            return dict(zip(tasks, made.fit_many(bench.engine, data), strict=True))
        return {task: made.fit(bench.engine, contrast) for task, contrast in zip(tasks, data, strict=True)}


@dataclass(frozen=True)
class _Measure:
    plan: Plan
    arm: ArmPlan
    task: str
    seed: int
    steering: bytes

    def __call__(self, bench: Bench) -> dict[str, Any]:
        steering = loaded(self.steering)
        if self.arm.one_sided_of:
            steering = steering.one_sided()
        with Meter(apart=True) as meter:
            meters = {split: bench.meter(split, amounts_of(self.plan, split), self.seed) for split in SPLITS}
            found = measure_arm(bench.suite, self.plan, self.arm, steering, self.task, self.seed, bench.engine, meters)
        return {"arm": found, "meter": meter.figures()}


def saved(steering: Steering) -> bytes:
    """A steering as the bytes of its file, to be sent to wherever it is kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steering.safetensors"
        steering.save(path)
        return path.read_bytes()


def loaded(data: bytes) -> Steering:
    """What `saved` gave."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steering.safetensors"
        path.write_bytes(data)
        return Steering.load(path)


def basis_digest(suite: Suite) -> str:
    """What every unit of a suite rests on."""
    return _digest(_basis(suite))


def _basis(suite: Suite) -> dict[str, Any]:
    return {
        "suite": suite.told(),
        "files": [digest(file) for file in suite.files()],
        "code": code_digest(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _digest(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]
