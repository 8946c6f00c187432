"""Runs AxBench: each unit to whichever worker is idle, phase by phase, and keeps the journal.

Killed at any point, the same call goes on with the units that are missing and gives the same results. Replies whose ratings
nobody answered are rated again by the next run of the same command: the judge's answers are kept, so that only those are asked
for that are missing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import progress
from ...errors import ConfigError, JudgeError, nearest
from ...evals.workers import About, Ended, Workers
from ...files import clear_unfinished, write_bytes
from ...sweep.journal import STEERINGS, UNITS, Journal, locked
from ...sweep.run import BEAT, about_model
from ...sweep.units import Unit, basis_digest
from .data import AxSuite
from .metrics import Ratings, best_factor
from .steer import Attack, Nothing, Say, chosen_on
from .units import AxPlan, AxUnits, Fit, Read, Ready, planned

LATENTS = "latents"  # folder of a run: each token's latents, one file a unit


class Ran:
    """A finished run: its plan, its units, what the model is, and the results."""

    def __init__(self, suite: AxSuite, plan: AxPlan, units: AxUnits, journal: Journal, about: About) -> None:
        self.suite, self.plan, self.units, self.about = suite, plan, units, about
        self.rows = journal.rows()
        self.results = {
            u.inputs: journal.read(u.inputs, u.kind) for u in units.all if self.rows[u.inputs].state == "done"
        }

    def of(self, unit: Unit | None) -> dict[str, Any] | None:
        """A unit's result, or None where it failed."""
        return None if unit is None else self.results.get(unit.inputs)


def run(suite: AxSuite, plan: AxPlan, folder: str | os.PathLike[str], workers: Workers, *, retries: int = 2) -> Ran:
    """Every unit of a plan, those that the folder's journal holds taken from there.

    Raises `JudgeError` where the judge refuses or isn't there (what was finished is kept), `ArtefactError` where another run is
    at work in the folder.
    """
    _check(suite, plan)
    folder = Path(folder)
    with locked(folder), Journal(folder) as journal:
        for own in (UNITS, STEERINGS, LATENTS):
            clear_unfinished(folder / own)
        about = about_model(journal, basis_digest(suite), workers)
        units = planned(suite, plan)
        journal.begin(units.all)
        journal.note({"process": [platform.node(), os.getpid()], "beat": time.time(), "ended": None})
        turn = _Turn(journal, folder, suite, plan, units, workers, retries)
        turn.reopen()
        with progress.task("AxBench", len(units.all)) as bar:
            bar.advance(sum(journal.rows()[u.inputs].state == "done" for u in units.all))
            for phase in units.phases:
                turn.work(phase, bar)
        journal.note({"ended": time.time()})
        return Ran(suite, plan, units, journal, about)


def _check(suite: AxSuite, plan: AxPlan) -> None:
    known = {t.name for t in suite.tasks()}
    for task in plan.tasks:
        if task not in known:
            raise ConfigError(f"there is no concept {task!r} here. {nearest(task, known)}")
    if set(plan.parts) - {"detection"}:
        for task in plan.tasks:
            suite.rater(task)  # raises where nobody can rate, before anything is fitted


class _Turn:
    """One run of what a journal lacks."""

    def __init__(
        self,
        journal: Journal,
        folder: Path,
        suite: AxSuite,
        plan: AxPlan,
        units: AxUnits,
        workers: Workers,
        retries: int,
    ) -> None:
        self._journal, self._folder, self._suite, self._plan = journal, folder, suite, plan
        self._units, self._workers, self._retries = units, workers, retries
        self._tried: dict[str, int] = {}

    def reopen(self) -> None:
        """What was done and isn't whole: ratings that nobody answered, latents whose file is gone."""
        rows = self._journal.rows()
        for unit in self._units.all:
            if rows[unit.inputs].state != "done":
                continue
            result = self._journal.read(unit.inputs, unit.kind)
            assert result is not None  # `begin` has looked
            if result["meter"].get("asked", {}).get("unanswered"):
                self._journal.reopen(unit.inputs, "some ratings were not answered")
            elif (
                unit.kind == LATENTS
                and _digest(self._folder / LATENTS / f"{unit.inputs}.safetensors") != result["tokens"]
            ):
                self._journal.reopen(unit.inputs, "the file of latents is gone")

    def work(self, phase: Sequence[Unit], bar: progress.Task) -> None:
        """Until every unit of a phase is done or has failed."""
        rows, waiting = self._journal.rows(), list[Unit]()
        for unit in phase:
            if rows[unit.inputs].state == "done" and self._stale(unit):
                self._journal.reopen(unit.inputs, "what it rests on has changed")
                bar.advance(-1)
            elif rows[unit.inputs].state == "done":
                continue
            waiting.append(unit)
        by_inputs, running = {u.inputs: u for u in waiting}, 0
        while waiting or running:
            self._workers.grow(len(waiting) + running)
            for worker in self._workers.idle:
                while waiting:
                    if self._give(worker, waiting.pop(0)):
                        running += 1
                        break
                    bar.advance()
            if not waiting and not running:
                break
            for ended in self._workers.wait(BEAT):
                running -= 1
                unit = by_inputs[ended.key]
                if self._settle(unit, ended):
                    bar.advance()
                    bar.tell(unit.name)
                else:
                    waiting.append(unit)
            self._journal.note({"beat": time.time()})

    def _give(self, worker: str, unit: Unit) -> bool:
        """Whether there was something to give."""
        ready = self._ready(unit)
        if ready.job is None:
            self._journal.failed(unit.inputs, ready.reason)
            return False
        self._journal.claim(unit.inputs, worker)
        self._tried[unit.inputs] = self._tried.get(unit.inputs, 0) + 1
        self._workers.give(worker, unit.inputs, ready.job)
        return True

    def _settle(self, unit: Unit, ended: Ended) -> bool:
        """Note what has ended; whether it is over."""
        if ended.failure is None:
            result = ended.value
            if unit.kind == LATENTS:
                write_bytes(self._folder / LATENTS / f"{unit.inputs}.safetensors", result["files"]["latents"])
            self._journal.done(unit, result)
            return True
        final = ended.failure.final or self._tried[unit.inputs] > self._retries
        if isinstance(ended.failure.error, JudgeError):
            self._journal.again(unit.inputs, ended.failure.told)
            raise ended.failure.error
        (self._journal.failed if final else self._journal.again)(unit.inputs, ended.failure.told)
        return final

    # --- what a unit's work is ------------------------------------------------------------------------------------------

    def _ready(self, unit: Unit) -> Ready:
        plan = self._plan
        if unit.kind == "fit":
            return Ready(Fit(plan, plan.arm(unit.arm), unit.tasks))
        if unit.kind == LATENTS:
            return Ready(Read(plan, unit.tasks, self._steerings(unit.tasks)))
        task, arm = unit.tasks[0], plan.arm(unit.arm)
        steering, reason = self._steering(unit.arm, task) if arm.method else (b"", "")
        if steering is None:
            return Ready(None, reason)
        if unit.kind != "attack":
            return Ready(Say(plan, arm, task, unit.kind == "suppress", steering))
        factor, why = self._factor(unit.arm, task)
        return Ready(Nothing(why) if factor is None else Attack(plan, arm, task, factor, steering))

    def _steering(self, arm: str, task: str) -> tuple[bytes | None, str]:
        unit = self._units.fits[arm, task]
        result = self._journal.read(unit.inputs, "fit") if self._journal.rows()[unit.inputs].state == "done" else None
        if result is None:
            return None, "the fit that it needs failed"
        if task not in result["digests"]:
            return None, result["reasons"].get(task, "the fit that it needs gave nothing")
        return self._journal.steering_path(unit, task).read_bytes(), ""

    def _steerings(self, tasks: Sequence[str]) -> dict[tuple[str, str], bytes]:
        """What was fitted for some concepts, by arm and concept."""
        found = {key: self._steering(*key)[0] for key in self._units.fits if key[1] in tasks}
        return {key: steering for key, steering in found.items() if steering is not None}

    def _factor(self, arm: str, task: str) -> tuple[float | None, str]:
        """The factor at which a suppression is attacked: the one that its own half of the prompts chooses."""
        unit = self._units.said["suppress", arm, task]
        result = (
            self._journal.read(unit.inputs, "suppress") if self._journal.rows()[unit.inputs].state == "done" else None
        )
        if result is None:
            return None, "the suppression that it attacks failed"
        best = chosen_factor(result, suppress=True)
        if best is None:
            return None, "there is no suppression to attack: the arm doesn't act that way" if not result[
                "factors"
            ] else "no reply was rated"
        return result["factors"][best], ""

    def _stale(self, unit: Unit) -> bool:
        """Whether a finished unit rests on what is otherwise now: a factor chosen anew, a fit that has succeeded since."""
        result = self._journal.read(unit.inputs, unit.kind)
        if result is None:
            return True
        if unit.kind == "attack":
            return result["factor"] != self._factor(unit.arm, unit.tasks[0])[0]
        if unit.kind == LATENTS:
            read = {(arm, task) for task, of in result["concepts"].items() for arm in (*of["arms"], *of["none"])}
            return read != set(self._steerings(unit.tasks))
        return False


def scores(result: dict[str, Any], *, suppress: bool) -> list[list[float | None]]:
    """The harmonic means of a result, factor by factor, prompt by prompt."""
    return [[Ratings(*rating).score(suppress=suppress) for rating in row] for row in result["ratings"]]


def chosen_factor(result: dict[str, Any], *, suppress: bool) -> int | None:
    """The place of the factor that the first half of the prompts chooses."""
    return best_factor([chosen_on(row) for row in scores(result, suppress=suppress)])


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
