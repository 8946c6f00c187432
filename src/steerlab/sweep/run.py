"""Runs a sweep: gives each unit that is ready to whichever worker is idle, and keeps the journal.

Killed at any point, the same call goes on with the units that are missing and gives the same results.
"""

from __future__ import annotations

import heapq
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from .. import progress
from ..errors import ConfigError, nearest
from ..evals.results import Results
from ..evals.suite import Suite
from ..evals.unit import Plan
from ..evals.workers import About, Ended, Failure, Workers
from ..files import clear_unfinished
from .journal import STEERINGS, UNITS, Journal, locked
from .report import summarised
from .units import Unit, Units, basis_digest, job, planned

BEAT = 2.0  # seconds between signs of life, while workers are at it


def run(
    suite: Suite,
    plan: Callable[[int], Plan],
    folder: str | os.PathLike[str],
    workers: Workers,
    *,
    together: int = 8,
    retries: int = 2,
    title: str = "",
) -> Results:
    """Every unit of a plan (made for the model's number of blocks), those that the folder's journal holds taken from there.

    A unit that fails is tried `retries` times more, by whichever worker is idle, unless its error would be the same again;
    what fails for good is part of the results. Raises `ArtefactError` where another sweep is at work in the folder.
    """
    folder = Path(folder)
    with locked(folder), Journal(folder) as journal:
        for own in (UNITS, STEERINGS):
            clear_unfinished(folder / own)
        about = about_model(journal, basis_digest(suite), workers)
        asked = plan(about.depth)
        _check(suite, asked)
        units = planned(suite, asked, together)
        journal.begin(units.all)
        journal.note({"process": [platform.node(), os.getpid()], "beat": time.time(), "ended": None})
        _Turn(journal, units, asked, workers, retries).work()
        journal.note({"ended": time.time()})
        return summarised(suite, asked, units, journal, about, title=title)


def about_model(journal: Journal, basis: str, workers: Workers) -> About:
    """About the model: a worker tells, once for all runs."""
    known = journal.fact("about")
    if known is not None and known["basis"] == basis:
        return About(**known["told"])
    about = workers.known()
    journal.note({"about": {"basis": basis, "told": about._asdict()}})
    return about


def _check(suite: Suite, plan: Plan) -> None:
    known = {t.name for t in suite.tasks()}
    for task in plan.tasks:
        if task not in known:
            raise ConfigError(f"the suite has no task {task!r}. {nearest(task, known)}")


class _Turn:
    """One run of what a journal lacks."""

    def __init__(self, journal: Journal, units: Units, plan: Plan, workers: Workers, retries: int) -> None:
        self._journal, self._plan, self._workers, self._retries = journal, plan, workers, retries
        self._units = units.by_inputs
        self._place = {unit.inputs: n for n, unit in enumerate(units.all)}
        self._needed_by: dict[str, list[Unit]] = {}
        rows = journal.rows()
        self._state = {inputs: row.state for inputs, row in rows.items()}
        self._tried = dict.fromkeys(rows, 0)
        self._ready: list[int] = []
        self._all, self._running = units.all, 0
        self._over = sum(state == "done" for state in self._state.values())  # units that need no more work
        self._failed = 0
        for unit in units.all:
            if unit.needs is not None:
                self._needed_by.setdefault(unit.needs, []).append(unit)
            if self._state[unit.inputs] != "done":
                self._offer(unit)

    def work(self) -> None:
        """Until every unit is done or has failed."""
        with progress.task("sweeping", len(self._all)) as bar:
            bar.advance(self._over)
            while self._ready or self._running:
                self._workers.grow(len(self._ready) + self._running)
                for worker in self._workers.idle:
                    if self._ready:
                        self._give(worker, self._all[heapq.heappop(self._ready)])
                for ended in self._workers.wait(BEAT):
                    before = self._over
                    self._settle(ended)
                    bar.advance(self._over - before)
                    failed = f" ({self._failed} failed)" if self._failed else ""
                    bar.tell(f"{self._units[ended.key].name}{failed}")
                self._journal.note({"beat": time.time()})

    def _offer(self, unit: Unit) -> None:
        """To be done, once what it needs is there."""
        state = "done" if unit.needs is None else self._state[unit.needs]
        if state == "failed":
            self._give_up(unit, "the fit that it needs failed")
        elif state == "done":
            reason = self._lacking(unit)
            if reason is None:
                heapq.heappush(self._ready, self._place[unit.inputs])
            else:
                self._give_up(unit, reason)

    def _lacking(self, unit: Unit) -> str | None:
        """Why a fit of a group has nothing for this unit's concept."""
        if unit.needs is None:
            return None
        fit = self._journal.read(unit.needs, "fit")
        return None if fit is None else fit["reasons"].get(unit.tasks[0])

    def _give(self, worker: str, unit: Unit) -> None:
        steering = b""
        if unit.needs is not None:
            steering = self._journal.steering_path(self._units[unit.needs], unit.tasks[0]).read_bytes()
        self._journal.claim(unit.inputs, worker)
        self._state[unit.inputs] = "claimed"
        self._tried[unit.inputs] += 1
        self._running += 1
        self._workers.give(worker, unit.inputs, job(unit, self._plan, steering))

    def _settle(self, ended: Ended) -> None:
        """What has ended, in the journal."""
        unit = self._units[ended.key]
        self._running -= 1
        if ended.failure is None:
            self._journal.done(unit, ended.value)
            self._state[unit.inputs] = "done"
            self._over += 1
            self._next(unit)
        else:
            self._fail(unit, ended.failure)

    def _fail(self, unit: Unit, failure: Failure) -> None:
        if not failure.final and self._tried[unit.inputs] <= self._retries:
            self._journal.again(unit.inputs, failure.told)
            self._state[unit.inputs] = "waiting"
            self._offer(unit)
        else:
            self._give_up(unit, failure.told)

    def _give_up(self, unit: Unit, reason: str) -> None:
        self._journal.failed(unit.inputs, reason)
        self._state[unit.inputs] = "failed"
        self._over, self._failed = self._over + 1, self._failed + 1
        self._next(unit)

    def _next(self, unit: Unit) -> None:
        """Those that wait for it, where they aren't done by an earlier run."""
        for other in self._needed_by.get(unit.inputs, ()):
            if self._state[other.inputs] == "waiting":
                self._offer(other)
