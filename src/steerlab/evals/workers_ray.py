"""Workers on a Ray cluster: actors, each with an engine of its own; the driver gives each idle one its next job.

Jobs and results travel by value and the driver alone writes, so that the machines need no common folder; the model and the
files of the suite must be there on each under the same names, and the same steerlab. (The extra `ray` brings Ray.)
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import SteerlabError, UnsupportedError
from .suite import Suite
from .workers import STARTS, About, Bench, Ended, Failure, Job, Workers, died, done, opened


class _Actor:
    """What runs in a worker's process."""

    def __init__(self, suite: Suite, threads: int) -> None:
        self._suite, self._threads = suite, threads
        self._bench: Bench | None = None

    def open(self) -> tuple[About | None, Failure | None, int]:
        """Load the model."""
        self._bench, failure = opened(self._suite, self._threads)
        return (None if self._bench is None else About.of(self._bench.engine)), failure, os.getpid()

    def do(self, job: Job) -> tuple[Any, Failure | None]:
        """One job."""
        assert self._bench is not None
        value, failure = done(job, self._bench)
        return value, None if failure is None else failure.sent()


@dataclass
class _Remote:
    """An actor as the driver sees it, and what it is doing; `key` is None while it loads the model or has nothing to do."""

    actor: Any
    doing: Any
    key: str | None = None


class RayWorkers(Workers):
    """At most `size` actors, each with `threads` processors and `gpus` GPUs of the cluster.

    `address` is the cluster's (none: the one that RAY_ADDRESS names, else one that is started here and ended at the close).
    Without `size` there are as many actors as the cluster has room for now.
    """

    def __init__(
        self, suite: Suite, size: int | None = None, *, threads: int = 1, gpus: int = 0, address: str | None = None
    ) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as problem:
            raise UnsupportedError(
                "Ray isn't installed, which --on ray needs: pip install 'steerlab[ray]'; or run on this machine without it."
            ) from problem
        self._ray = ray
        self._suite, self._threads, self._gpus = suite, threads, gpus
        self._mine = not ray.is_initialized()
        if self._mine:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            where = address or os.environ.get("RAY_ADDRESS")
            options: dict[str, Any] = {"address": where} if where else {"address": "local", "include_dashboard": False}
            try:
                ray.init(**options, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError) as problem:
                raise SteerlabError(
                    f"the Ray cluster {where or 'on this machine'} can't be reached: {problem}. Start one with `ray start"
                    " --head`, or give its address (--address)."
                ) from problem
        room: dict[str, float] = ray.cluster_resources()
        most = int(room.get("GPU", 0)) // gpus if gpus else int(room.get("CPU", 1)) // threads
        self._size = max(size or most, 1)
        self._options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": 0}
        self._all: dict[str, _Remote] = {}
        self._begun = self._dead_starts = 0

    def grow(self, jobs: int) -> None:
        while len(self._all) < min(jobs, self._size):
            self._start()

    def _start(self) -> None:
        actor = self._ray.remote(_Actor).options(**self._options).remote(self._suite, self._threads)
        self._begun += 1
        self._all[f"ray {self._begun}"] = _Remote(actor, actor.open.remote())

    @property
    def idle(self) -> Sequence[str]:
        return [name for name, worker in self._all.items() if worker.doing is None]

    def give(self, worker: str, key: str, job: Job) -> None:
        mine = self._all[worker]
        mine.key, mine.doing = key, mine.actor.do.remote(job)

    def wait(self, seconds: float | None = None) -> list[Ended]:
        doing = {worker.doing: name for name, worker in self._all.items() if worker.doing is not None}
        if not doing:
            return []
        ready, _ = self._ray.wait(list(doing), num_returns=1, timeout=seconds)
        found: list[Ended] = []
        for ref in ready:
            name = doing[ref]
            worker = self._all[name]
            try:
                told = self._ray.get(ref)
            except self._ray.exceptions.RayError as problem:
                found += self._gone(name, str(problem).strip().splitlines()[0])
                continue
            worker.doing = None
            if worker.key is None:
                self._opened(name, *told)
            else:
                found.append(Ended(worker.key, name, *told))
                worker.key = None
        return found

    def _opened(self, name: str, about: About | None, failure: Failure | None, process: int) -> None:
        if failure is not None:
            raise failure.error
        assert about is not None
        self.met(about)
        self._dead_starts = 0
        self._all[f"{name}:{process}"] = self._all.pop(name)

    def _gone(self, name: str, how: str) -> list[Ended]:
        worker = self._all.pop(name)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.actor)
        if worker.key is None:
            self._dead_starts += 1
            if self._dead_starts >= STARTS:
                raise SteerlabError(f"{STARTS} workers died one after another while loading the model: {how}")
        self._start()
        return [] if worker.key is None else [Ended(worker.key, name, None, died(how))]

    def close(self) -> None:
        for worker in self._all.values():
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(worker.actor)
        self._all = {}
        if self._mine:
            self._ray.shutdown()
