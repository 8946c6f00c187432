"""The thread that owns the model: admits replies, steps those that run, and sends what is new to whoever asked.

Between two steps it takes in as many waiting replies as fit (continuous batching), drops those nobody waits for any more, and
does what else needs the model to itself (`call`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import uuid4

from ..engines.base import Reply
from ..engines.hf_generate import Row
from ..engines.hf_hooks import Tally
from ..engines.hf_serving import Ask
from .metrics import Metrics
from .problems import Problem
from .settings import Settings

if TYPE_CHECKING:
    from ..engines.hf import HFEngine
    from ..engines.hf_serving import Running
    from ..vllm.engine import Running as VLLMRunning
    from ..vllm.engine import VLLMEngine

T = TypeVar("T")
log = logging.getLogger("steerlab.serve")


class Moved(NamedTuple):
    """Something new of a reply: text that is certain, and the tokens that came since (which may run ahead of it)."""

    text: str
    ids: list[int]
    logprobs: list[float]
    likeliest: list[list[tuple[int, float]]]
    readings: list[tuple[float, ...]]


class Done(NamedTuple):
    """A reply is whole. `row` holds what was noted on the way, `tallies` what each control did, by the control's id."""

    reply: Reply
    row: Row
    tallies: dict[int, Tally]


class Failed(NamedTuple):
    """A reply can't be made."""

    problem: Problem


Event = Moved | Done | Failed


@dataclass(eq=False)
class Job:
    """One reply that somebody waits for; `tell` is called from the scheduler's thread."""

    ask: Ask
    tell: Callable[[Event], None]
    streams: bool = False
    cancelled: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    row: Row | None = None
    sent: int = 0  # tokens told of
    counted: int = 0  # tokens that the metrics know of


class Scheduler:
    """Runs jobs on an engine until it is stopped."""

    def __init__(self, engine: HFEngine | VLLMEngine, settings: Settings, metrics: Metrics) -> None:
        self._running: Running | VLLMRunning = engine.running()
        self._settings, self._metrics = settings, metrics
        self._context = engine.context
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._jobs: list[Job] = []
        self._taking: list[Job] = []  # those that are being admitted
        self._wake, self._stopped = Condition(), False
        self.died = False  # whether the thread ended without having been told to
        self._thread = Thread(target=self._run, name="steerlab-model", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step that runs; whoever waits is told."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def give_up(self) -> None:
        """Tell whoever waits that the server has ended, without waiting for the step that runs."""
        over = Failed(Problem(503, "the server has ended.", "ending", after=5))
        with self._wake:
            self._stopped = True
            for job in [*self._jobs, *self._waiting, *self._taking]:
                job.tell(over)
            self._wake.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and goes on."""
        return self._thread.is_alive() and not self._stopped

    @property
    def running(self) -> int:
        """Replies that are being decoded."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Replies that wait to be admitted."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return self.waiting + self.running >= self._settings.rows + self._settings.waiting

    def check(self, ask: Ask) -> None:
        """Raise a `SteerlabError` for what can't run."""
        self._running.check(ask)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take replies in, all or none. Raises `Problem` 429 where too many wait, 503 where the server ends."""
        with self._wake:
            if not self.alive:
                raise Problem(503, "the server is ending; ask another one.", "ending", after=5)
            room = self._settings.rows + self._settings.waiting - self.waiting - self.running
            if len(jobs) > room:
                raise Problem(
                    429, f"{self.waiting + self.running} replies are under way or waiting, which is as many as are taken; try"
                    " again shortly.", "too_busy", after=1,
                )  # fmt: skip
            self._waiting.extend(jobs)
            self._wake.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more."""
        with self._wake:
            for job in jobs:
                job.cancelled = True
            if any(job.cancelled for job in self._waiting):
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
            self._wake.notify()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run something between two steps, with the model to itself."""
        future: Future[T] = Future()
        with self._wake:
            if not self.alive:
                raise Problem(503, "the server is ending; ask another one.", "ending", after=5)
            self._calls.append((function, future))
            self._wake.notify()
        return future

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:
            log.critical("the model's thread has ended; the server answers no more", exc_info=True)
            self.died = True
        with self._wake:
            self._stopped = True
        over = Problem(503, "the server has ended.", "ending", after=5)
        for job in [*self._jobs, *self._waiting, *self._taking]:
            job.tell(Failed(over))
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(over)
        self._jobs, self._waiting, self._taking = [], deque(), []
        with suppress(Exception):
            self._running.clear()

    def _turn(self) -> bool:
        """What there is to do, once; False at the end. What fails unexpectedly fails its replies, and those after it run."""
        with self._wake:
            while not (self._waiting or self._jobs or self._calls or self._stopped):
                self._wake.wait()
            if self._stopped:
                return False
            calls, self._calls = self._calls, deque()
        for function, future in calls:
            if not future.set_running_or_notify_cancel():  # whoever asked has left
                continue
            try:
                future.set_result(function())
            except BaseException as problem:  # noqa: BLE001  (whoever waits for it gets it)
                future.set_exception(problem)
        try:
            self._drop()
            if self._jobs:
                self._step()
            self._admit(self._taken())
        except Exception as problem:
            self._fail([*self._jobs, *self._taking], problem)
            self._jobs, self._taking = [], []
            self._running.clear()
            if _for_good(problem):
                raise
        return True

    def _fail(self, jobs: Sequence[Job], problem: Exception) -> None:
        """Tell whoever waits, under a name that the log has, too."""
        name = uuid4().hex
        log.error(
            "the model failed; %d replies are given up", len(jobs), exc_info=problem, extra={"told": {"id": name}}
        )
        self._metrics.failures.add()
        sentence = f"this reply failed inside the model; the server's log says why under {name}."
        for job in jobs:
            job.tell(Failed(Problem(500, sentence, "internal")))

    def _drop(self) -> None:
        gone = [job for job in self._jobs if job.cancelled]
        if gone:
            self._running.drop([job.row for job in gone if job.row is not None])
            self._jobs = [job for job in self._jobs if not job.cancelled]

    def _taken(self) -> list[Job]:
        """What is admitted next: as many as there are rows free, and no more prompt tokens at once than are allowed."""
        taken: list[Job] = []
        widest = 0
        with self._wake:
            while self._waiting and len(self._jobs) + len(taken) < self._settings.rows:
                job = self._waiting[0]
                widest = max(widest, len(job.ask.prompt.ids))
                if taken and not job.cancelled and widest * (len(taken) + 1) > self._settings.prefill:
                    break
                self._waiting.popleft()
                if not job.cancelled:
                    taken.append(job)
        return taken

    def _admit(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        self._taking = list(jobs)
        began, rows = time.monotonic(), self._begun(jobs)
        self._jobs += (joined := [job for job in jobs if job.row is not None])
        self._taking = []
        for job, row in zip(joined, rows, strict=True):
            self._metrics.queued.note(began - job.asked_at)
            self._metrics.tokens.add("prompt", by=len(row.prompt.ids))
        self._tell(joined)

    def _begun(self, jobs: Sequence[Job]) -> list[Row]:
        """The rows of jobs that could be begun; where one couldn't, whose fault it is shows one by one."""
        try:
            rows = self._running.admit([job.ask for job in jobs])
        except Exception as problem:
            if _for_good(problem):
                raise
            if len(jobs) > 1:
                return [row for job in jobs for row in self._begun([job])]
            self._fail(jobs, problem)
            self._taking = [job for job in self._taking if job is not jobs[0]]
            return []
        for job, row in zip(jobs, rows, strict=True):
            job.row = row
        return rows

    def _step(self) -> None:
        began = time.monotonic()
        self._running.step()
        self._metrics.step.note(time.monotonic() - began)
        self._tell(list(self._jobs))

    def _tell(self, jobs: Sequence[Job]) -> None:
        """Send what is new; replies that have ended leave before anybody hears that they have."""
        ended: list[tuple[Job, Event]] = []
        now = time.monotonic()
        for job in jobs:
            row = job.row
            assert row is not None
            self._count(job, len(row.ids), now)
            if row.problem is not None:
                ended.append((job, Failed(Problem(400, f"this reply can't go on: {row.problem}", "not_finite"))))
                continue
            if job.streams:
                self._tell_moved(job, row)
            if row.finish is not None:
                ended.append((job, Done(self._running.reply(row), row, self._running.decisions(row))))
        if ended:
            self._running.drop([job.row for job, _ in ended if job.row is not None])
            gone = {id(job) for job, _ in ended}
            self._jobs = [job for job in self._jobs if id(job) not in gone]
            for job, event in ended:
                job.tell(event)

    def _count(self, job: Job, made: int, now: float) -> None:
        if made and not job.counted:
            self._metrics.first.note(now - job.asked_at)
        self._metrics.tokens.add("generated", by=made - job.counted)
        job.counted = made

    def _tell_moved(self, job: Job, row: Row) -> None:
        piece = self._running.piece(row)
        if piece is None or (not piece.text and len(row.ids) == job.sent):
            return
        until = len(row.ids) if row.finish is None else len(self._running.reply(row).ids)  # the end token isn't told
        new = slice(job.sent, until)
        job.sent = len(row.ids)
        job.tell(Moved(piece.text, row.ids[new], row.logprobs[new], row.likeliest[new], row.readings[new]))


def _for_good(problem: Exception) -> bool:
    """Whether nothing will run any more: an accelerator that has failed fails at every later call, as does an ended engine."""
    names = {kind.__name__ for kind in type(problem).__mro__}
    return bool(names & {"AcceleratorError", "EngineDeadError"}) or "CUDA error" in str(problem)
