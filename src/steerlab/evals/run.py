"""Runs an evaluation: units over worker processes, journalled, then averaged into `Results`.

Every finished unit is one JSON file in the run's folder, written beside and renamed: an evaluation that is interrupted
goes on with the units that are missing, and gives the same figures.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import progress
from ..errors import ConfigError, nearest
from ..files import code_digest, digest, write_text
from ..methods.base import method
from .layers import run_layers
from .suite import Suite
from .unit import Plan, run_unit
from .workers import Bench, completed, local


def run(
    suite: Suite,
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    workers: int = 1,
    layers: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Every unit of the plan, those found in the folder's journal taken from there. Order: tasks, then seeds.

    With `layers`, the units are those of the layer profile.
    """
    known = {t.name for t in suite.tasks()}
    for task in plan.tasks:
        if task not in known:
            raise ConfigError(f"the suite has no task {task!r}. {nearest(task, known)}")
    journal = Journal(Path(folder) / ("layers" if layers else "units"), suite, plan, layers)
    units = [(task, seed) for task in plan.tasks for seed in plan.seeds]
    missing = {f"{t}, seed {s}": _Unit(plan, tuple(layers), t, s) for t, s in units if journal.read(t, s) is None}
    with progress.task("choosing a layer" if layers else "evaluating", len(units)) as bar, ExitStack() as stack:
        bar.advance(len(units) - len(missing))
        if missing:
            pool = stack.enter_context(local(suite, min(workers, len(missing))))
            for name, found in completed(pool, missing):
                journal.write(missing[name].task, missing[name].seed, found)
                bar.advance()
                bar.tell(name)
    return [found for unit in units if (found := journal.read(*unit)) is not None]


class Journal:
    """Finished units on disk, keyed by what was asked: another plan never takes up an old unit."""

    def __init__(self, folder: Path, suite: Suite, plan: Plan, layers: Sequence[int] = ()) -> None:
        self._folder = folder
        # tasks and seeds name the unit itself, so that a plan that asks for more goes on with what is there
        asked = {**asdict(plan), "tasks": None, "seeds": None, "suite": suite.told(), "layers": list(layers)}
        asked["settings"] = [
            asdict(method(a.method, a.settings)) if a.method else None for a in plan.arms
        ]  # defaults, too
        asked["files"] = [digest(f) for f in (*suite.files(), *(a.file for a in plan.arms if a.file))]
        asked["code"] = code_digest()
        self.key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def path(self, task: str, seed: int) -> Path:
        """Where a unit lies."""
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in task)
        return self._folder / f"{safe}-{seed}-{self.key}.json"

    def read(self, task: str, seed: int) -> dict[str, Any] | None:
        """The unit, or None where it is still to be done (or was damaged, and is done again)."""
        try:
            return json.loads(self.path(task, seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, task: str, seed: int, unit: dict[str, Any]) -> None:
        """Keep a finished unit."""
        write_text(self.path(task, seed), json.dumps(unit, ensure_ascii=False))


@dataclass(frozen=True)
class _Unit:
    """The job of one unit."""

    plan: Plan
    layers: tuple[int, ...]
    task: str
    seed: int

    def __call__(self, bench: Bench) -> dict[str, Any]:
        given = (self.task, self.seed, bench.engine)
        if self.layers:
            return run_layers(bench.suite, self.plan, self.layers, *given)
        return run_unit(bench.suite, self.plan, *given)
