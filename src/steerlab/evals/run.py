"""Runs an evaluation: units over worker processes, journalled, then averaged into `Results`.

Every finished unit is one JSON file in the run's folder, written beside and renamed: an evaluation that is interrupted
goes on with the units that are missing, and gives the same figures.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .. import progress
from ..engines.base import Trainable
from ..errors import ConfigError, nearest
from ..files import code_digest, digest, write_text
from ..methods.base import method
from .layers import run_layers
from .suite import Suite
from .unit import Plan, run_unit


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
    missing = [unit for unit in units if journal.read(*unit) is None]
    with progress.task("choosing a layer" if layers else "evaluating", len(units)) as bar:
        bar.advance(len(units) - len(missing))
        for task, seed, found in _done(suite, plan, missing, workers, layers):
            journal.write(task, seed, found)
            bar.advance()
            bar.tell(f"{task}, seed {seed}")
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


def _done(
    suite: Suite, plan: Plan, units: Sequence[tuple[str, int]], workers: int, layers: Sequence[int]
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if workers <= 1 or len(units) <= 1:
        engine = suite.engine() if units else None
        for task, seed in units:
            assert engine is not None
            yield task, seed, _one(suite, plan, layers, task, seed, engine)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_prepare, initargs=(suite, plan, tuple(layers))
    )
    try:
        pending: dict[Future[dict[str, Any]], tuple[str, int]] = {
            pool.submit(_in_worker, task, seed): (task, seed) for task, seed in units
        }
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                task, seed = pending.pop(future)
                yield task, seed, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one(suite: Suite, plan: Plan, layers: Sequence[int], task: str, seed: int, engine: Trainable) -> dict[str, Any]:
    return run_layers(suite, plan, layers, task, seed, engine) if layers else run_unit(suite, plan, task, seed, engine)


_worker: dict[str, Any] = {}  # a worker process's own engine: one model load per process


def _prepare(suite: Suite, plan: Plan, layers: tuple[int, ...]) -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _worker.update(suite=suite, plan=plan, layers=layers, engine=suite.engine())


def _in_worker(task: str, seed: int) -> dict[str, Any]:
    return _one(_worker["suite"], _worker["plan"], _worker["layers"], task, seed, _worker["engine"])
