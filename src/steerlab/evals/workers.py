"""Workers that each hold one engine and do one job after another: this process, or processes of their own.

A job is a picklable function of a `Bench`. Whoever has the jobs gives the next one to whichever worker is idle, so that a
slow unit holds up nobody else. `steerlab.evals.workers_ray` has the same on a Ray cluster.
"""

from __future__ import annotations

import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..errors import ConfigError, JudgeError, SteerlabError
from ..files import code_digest
from .measure import Amounts, CostMeter
from .suite import Split, Suite

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

    from ..engines.base import Trainable

METERS = 2  # kept by a bench: they hold the unsteered model's scores of the neutral prompts
PRELOADED = ["torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"]
STARTS = 3  # of workers that died while loading the model, one after another, before it is given up


class About(NamedTuple):
    """What there is to know of an engine that is somewhere else, and which code runs it."""

    name: str
    revision: str | None
    fingerprint: dict[str, Any]
    versions: dict[str, str]
    depth: int
    code: str

    @classmethod
    def of(cls, engine: Trainable) -> Self:
        """An engine here."""
        told = (engine.name, engine.revision, engine.fingerprint, engine.versions)
        return cls(*told, engine.depth, code_digest())


@dataclass
class Bench:
    """What a worker has: the suite and its engine, and the meters of what it measured last."""

    suite: Suite
    engine: Trainable
    _meters: dict[tuple[Split, Amounts, int], CostMeter] = field(
        default_factory=dict[tuple[Split, Amounts, int], CostMeter]
    )

    def meter(self, split: Split, amounts: Amounts, seed: int) -> CostMeter:
        """What costs are measured against; the same figures whether it was kept or is made anew."""
        key = (split, amounts, seed)
        if key not in self._meters:
            while len(self._meters) >= METERS:
                del self._meters[next(iter(self._meters))]
            self._meters[key] = CostMeter(self.suite, self.engine, split, amounts, seed)
        return self._meters[key]


Job = Callable[[Bench], Any]


class Failure(NamedTuple):
    """Why a job gave nothing; `final` where trying again would give the same."""

    told: str
    final: bool
    error: Exception

    @classmethod
    def of(cls, problem: Exception) -> Self:
        """Of an exception that a job raised."""
        final = isinstance(problem, SteerlabError) and not isinstance(problem, JudgeError)
        return cls(f"{type(problem).__name__}: {problem}", final, problem)

    def sent(self) -> Self:
        """The same with an error that goes from process to process whole."""
        if isinstance(self.error, SteerlabError):
            return self
        trace = "".join(traceback.format_exception(self.error))
        return self._replace(error=RuntimeError(f"{self.told}\n{trace}"))


class Ended(NamedTuple):
    """A job that is over: its value, or why there is none."""

    key: str
    worker: str
    value: Any
    failure: Failure | None


def died(how: str) -> Failure:
    """A worker that is gone took its job along."""
    told = f"the worker died ({how})"
    return Failure(told, False, SteerlabError(f"{told}. What was finished is kept; run the command again to go on."))


def done(job: Job, bench: Bench) -> tuple[Any, Failure | None]:
    """A job's value, or its failure."""
    try:
        return job(bench), None
    except Exception as problem:  # noqa: BLE001  whatever it is, it belongs to the job
        return None, Failure.of(problem)


class Workers(ABC):
    """So many engines, loaded when there is something to do. Closed, they drop what they are doing."""

    about: About | None = None  # known once the first of them is ready

    @abstractmethod
    def grow(self, jobs: int) -> None:
        """See that there are workers for so many jobs, as far as there may be."""

    @property
    @abstractmethod
    def idle(self) -> Sequence[str]:
        """Those that can be given a job."""

    @abstractmethod
    def give(self, worker: str, key: str, job: Job) -> None:
        """A job for an idle worker."""

    @abstractmethod
    def wait(self, seconds: float | None = None) -> list[Ended]:
        """What has ended; perhaps nothing, when a worker became ready or the time is over.

        Raises what keeps the model from being loaded.
        """

    @abstractmethod
    def close(self) -> None:
        """End them all, at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self) -> About:
        """About their engine; waits for the first that is ready."""
        self.grow(1)
        while self.about is None:
            self.wait()
        return self.about

    def met(self, about: About) -> None:
        """A worker is ready. Raises `ConfigError` where it runs other code than this: figures of other code are others."""
        if about.code != code_digest():
            raise ConfigError(
                "a worker runs another steerlab than this one (their code differs). Was the package changed since this began?"
                " Run the command again. On a cluster, install the same version on every machine."
            )
        self.about = about


def completed(workers: Workers, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Any]]:
    """Every job's value as it comes. Raises the first failure."""
    waiting, running = list(jobs), 0
    workers.grow(len(jobs))
    while waiting or running:
        for worker in workers.idle:
            if waiting:
                key = waiting.pop(0)
                workers.give(worker, key, jobs[key])
                running += 1
        for ended in workers.wait():
            running -= 1
            if ended.failure is not None:
                raise ended.failure.error
            yield ended.key, ended.value


def local(suite: Suite, size: int, *, threads: int | None = None, gpus: int = 0) -> Workers:
    """Workers on this machine: processes, or this process itself where one is asked for and no choice of GPUs.

    Processes have one thread each unless told otherwise, this process those that it has.
    """
    if size <= 1 and not gpus:
        return Inline(suite, threads)
    return Processes(suite, size, threads=threads or 1, gpus=gpus)


class Inline(Workers):
    """This process, as it is, or with so many threads until it is closed."""

    def __init__(self, suite: Suite, threads: int | None = None) -> None:
        self._suite, self._threads = suite, threads
        self._bench: Bench | None = None
        self._before: int | None = None
        self._given: list[tuple[str, Job]] = []

    def grow(self, jobs: int) -> None:
        import torch

        if jobs and self._bench is None:
            if self._threads is not None:
                self._before = torch.get_num_threads()
                torch.set_num_threads(self._threads)
            self._bench = Bench(self._suite, self._suite.engine())
            self.met(About.of(self._bench.engine))

    @property
    def idle(self) -> Sequence[str]:
        return () if self._given or self._bench is None else ("here",)

    def give(self, worker: str, key: str, job: Job) -> None:
        self._given.append((key, job))

    def wait(self, seconds: float | None = None) -> list[Ended]:
        given, self._given = self._given, []
        return [] if self._bench is None else [Ended(key, "here", *done(job, self._bench)) for key, job in given]

    def close(self) -> None:
        import torch

        self._given = []
        if self._before is not None:
            torch.set_num_threads(self._before)


@dataclass
class _Process:
    """A worker process as its parent sees it."""

    process: BaseProcess
    pipe: Connection
    ready: bool = False
    key: str | None = None


class Processes(Workers):
    """Processes of this machine, each with `threads` threads; with `gpus`, each sees so many GPUs of its own.

    One that dies gives its job up and is replaced.
    """

    def __init__(self, suite: Suite, size: int, *, threads: int = 1, gpus: int = 0) -> None:
        self._suite, self._size, self._threads, self._gpus = suite, size, threads, gpus
        self._all: dict[str, _Process] = {}
        self._dead_starts = 0

    def grow(self, jobs: int) -> None:
        for place in range(len(self._all), min(jobs, self._size)):
            self._start(place)

    def _start(self, place: int) -> None:
        context = _starting(self._gpus)
        here, there = context.Pipe()
        with _seeing(place, self._gpus):
            given = (there, self._suite, self._threads, dict(os.environ))
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
        there.close()
        self._all[f"{place}:{process.pid}"] = _Process(process, here)

    @property
    def idle(self) -> Sequence[str]:
        return [name for name, worker in self._all.items() if worker.ready and worker.key is None]

    def give(self, worker: str, key: str, job: Job) -> None:
        mine = self._all[worker]
        mine.key = key
        with suppress(OSError):  # it has just died: `wait` will notice
            mine.pipe.send((key, job))

    def wait(self, seconds: float | None = None) -> list[Ended]:
        found: list[Ended] = []
        pipes = {worker.pipe: name for name, worker in self._all.items()}
        for pipe in connection.wait(list(pipes), seconds):
            name = pipes[pipe]  # pyright: ignore[reportArgumentType]
            worker = self._all[name]
            try:
                kind, told = worker.pipe.recv()
            except (EOFError, OSError):
                found += self._gone(name)
                continue
            if kind == "ready":
                self.met(told)
                worker.ready, self._dead_starts = True, 0
            elif kind == "unable":
                raise told.error
            else:
                worker.key = None
                found.append(Ended(told[0], name, told[1], told[2]))
        return found

    def _gone(self, name: str) -> list[Ended]:
        worker = self._all.pop(name)
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {-code}{', out of memory?' if code == -9 else ''}" if code < 0 else f"exit code {code}"
        if not worker.ready:
            self._dead_starts += 1
            if self._dead_starts >= STARTS:
                raise SteerlabError(
                    f"{STARTS} workers died one after another while loading the model ({how}). Is there memory for so many"
                    " models? Try fewer workers."
                )
        self._start(int(name.partition(":")[0]))
        return [] if worker.key is None else [Ended(worker.key, name, None, died(how))]

    def close(self) -> None:
        for worker in self._all.values():
            worker.process.kill()
        for worker in self._all.values():
            worker.process.join()
            worker.pipe.close()
        self._all = {}


def _starting(gpus: int) -> ForkServerContext | SpawnContext:
    """How processes are started: from one that has PyTorch and transformers loaded, which saves each worker some seconds.

    It has none of steerlab, so that a worker runs the code that is there when it starts. Those with GPUs of their own start anew,
    as do all where a process that has loaded so much can't be forked safely (macOS, Windows).
    """
    if gpus or sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextmanager
def _seeing(place: int, gpus: int) -> Generator[None]:
    """What is started in the block sees its own GPUs alone: the first worker 0 to `gpus` - 1, the second the next ones."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus:
        all_of_them = before.split(",") if before else [str(n) for n in range(gpus * (place + 1))]
        mine = all_of_them[gpus * place : gpus * (place + 1)]
        if len(mine) < gpus:
            raise ConfigError(
                f"worker {place + 1} is to have {gpus} GPUs, and CUDA_VISIBLE_DEVICES={before} has no more."
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    try:
        yield
    finally:
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        elif gpus:
            del os.environ["CUDA_VISIBLE_DEVICES"]


def _serve(pipe: Connection, suite: Suite, threads: int, environment: Mapping[str, str]) -> None:
    """A worker process: load, say so, then one job after another until nobody is there to give any."""
    os.environ.clear()
    os.environ.update(environment)
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _end_with_parent()
    bench, problem = opened(suite, threads)
    if bench is None:
        pipe.send(("unable", problem))
        return
    pipe.send(("ready", About.of(bench.engine)))
    with suppress(EOFError, OSError):
        while True:
            key, job = pipe.recv()
            value, failure = done(job, bench)
            pipe.send(("ended", (key, value, None if failure is None else failure.sent())))


def opened(suite: Suite, threads: int) -> tuple[Bench | None, Failure | None]:
    """A bench in a worker's own process, or why there is none."""
    import torch

    torch.set_num_threads(threads)
    try:
        return Bench(suite, suite.engine()), None
    except Exception as problem:  # noqa: BLE001  told to whoever asked for workers
        return None, Failure.of(problem).sent()


def _end_with_parent() -> None:
    """A worker whose parent was killed ends at once, in the middle of its job."""
    from threading import Thread

    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()
