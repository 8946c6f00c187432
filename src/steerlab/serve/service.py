"""What a server holds: the model, the steerings, the keys, the counts."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from ..contrast import Message
from ..engines.base import Sampling
from ..engines.hf_serving import Ask, Prompts
from ..engines.likeness import compared
from ..errors import ArtefactError, ConfigError, DataError, SteerlabError
from ..steering import Steering
from .guard import Room
from .keys import Buckets, Keys
from .metrics import Metrics
from .problems import Problem
from .resolve import split
from .scheduler import Done, Event, Failed, Job, Scheduler
from .settings import Settings, model_name
from .store import Entry, Store
from .talk import Form

if TYPE_CHECKING:
    from ..engines.hf import HFEngine
    from ..vllm.engine import VLLMEngine

log = logging.getLogger("steerlab.serve")
UPLOADS = 2  # at a time
CHARACTERS, MARGIN = 8, 64  # of a token, at most, in most texts; tokens that a cut may change
BODIES = 8  # whole uploads that are held in memory


class Service:
    """Built on an engine; `start` before the first request, `stop` after the last.

    Raises `ConfigError` where every origin's pages may call and nobody needs a key.
    """

    def __init__(self, engine: HFEngine | VLLMEngine, settings: Settings, keys: Keys) -> None:
        if "*" in settings.cors and not keys.keys:
            raise ConfigError(
                "all origins may call (cors '*') and there are no keys, so any page that is open on this machine could use,"
                " upload and remove; name the origins, or give --keys FILE."
            )
        self.engine, self.settings, self.keys = engine, settings, keys
        self.model, self.began = settings.name or model_name(engine.name), int(time.time())
        self.metrics, self.prompts = Metrics(), Prompts(engine)
        self.form = Form.of(self.prompts.template)
        self.scheduler = Scheduler(engine, settings, self.metrics)
        self.store = Store(
            settings.store, settings.stored, shared=settings.shared, accept=self._accept, take=self._taken,
            reserved=(self.model, self.model.rpartition("/")[2]),
        )  # fmt: skip
        self.buckets, self.uploads = Buckets(settings.rate), asyncio.Semaphore(UPLOADS)
        self.room = Room(BODIES * settings.upload)
        self.draining = False
        self._brought: list[tuple[Path, Entry]] = []
        for name, about, read in (
            ("steerlab_running", "Replies that are being decoded.", lambda: self.scheduler.running),
            ("steerlab_waiting", "Replies that wait to be admitted.", lambda: self.scheduler.waiting),
            ("steerlab_steerings", "Steerings that are kept.", lambda: len(self.store)),
            ("steerlab_steerings_aside", "Files of the store that can't be served.", lambda: len(self.store.aside)),
        ):
            self.metrics.gauge(name, about, read)

    def bring(self, path: Path) -> None:
        """Serve a file beside those of the store, under its own name. Raises `ArtefactError`."""
        try:
            self.store.check_name(path.stem)
            entry = self.store.load(path)
            self.engine.accept(entry.steering)
        except (Problem, SteerlabError) as problem:
            raise ArtefactError(f"{path} can't be served: {problem}") from problem
        self._brought.append((path, entry))

    def start(self) -> None:
        """Read the store, check it against the model, and begin.

        What can't be served of the store is set aside and logged. Raises `ArtefactError` for a folder that can't be used or that
        another server has, and for a file that was brought and can't be served.
        """
        self.store.open()
        try:
            self._bring()
        except BaseException:
            self.store.close()
            raise
        missing = [name for name in self.settings.monitors if self.store.find(name) is None]
        if missing:
            log.warning("monitors that aren't there yet: %s", ", ".join(missing))
        self.scheduler.start()

    def _bring(self) -> None:
        for path, entry in self._brought:
            try:
                self.store.write(entry, path.read_bytes())
            except (Problem, OSError) as problem:
                raise ArtefactError(f"{path} can't be served: {problem}") from problem

    def stop(self) -> None:
        """End."""
        self.draining = True
        self.scheduler.stop()
        self.store.close()

    @property
    def unready(self) -> str | None:
        """Why no request should be sent here now; None where they may come."""
        if self.draining:
            return "ending"
        if not self.scheduler.alive:
            return "the model's thread isn't running"
        return "as many replies wait as are taken" if self.scheduler.full else None

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.scheduler.running and not self.scheduler.waiting

    def known(self, model: str) -> None:
        """Raise `Problem` 400 or 404 for the name of a model that isn't served, alone or steered."""
        if model in (self.model, "base"):
            return
        base, terms = split("base" + model[len(self.model) :] if model.startswith(self.model) else model)
        if base != "base":
            raise Problem(
                404, f"there is no model {model[:80]!r} here; the one served is {self.model!r}.", "model_not_found"
            )
        for _, name in terms:
            self.store.get(name)

    def check_length(self, text: str) -> None:
        """Raise a `DataError` for a text whose beginning is more tokens than the context holds; the rest isn't looked at.

        A cut can merge or split a few tokens at its place, so what is only a little too long is left to who counts exactly.
        """
        context, size = self.engine.context, 0
        while (size := max(2 * size, CHARACTERS * self.engine.context)) < len(text):
            tokens = 0
            with suppress(DataError):  # nothing but blanks so far
                tokens = len(self.prompts.text(text[:size]).ids)
            if tokens > context + MARGIN:
                raise DataError(
                    f"the prompt has {len(text)} characters, of which the first {size} are {tokens} tokens already, and the"
                    f" model's context holds {context}; expected room for at least one token of reply. Shorten the prompt."
                )

    async def upload(self, name: str, data: bytes) -> tuple[Entry, bool]:
        """Take a steering in once it was checked and tried. Raises `Problem`."""
        entry = await run_in_threadpool(self.store.read, name, data)
        try:
            await asyncio.wrap_future(self.scheduler.call(lambda: self.engine.accept(entry.steering)))
        except SteerlabError as problem:
            raise Problem(400, str(problem), "refused") from problem
        await self._tried(entry.steering)
        return entry, await run_in_threadpool(self.store.write, entry, data)

    def remove(self, name: str) -> Entry | None:
        """Forget a steering; None for a file that couldn't be served. Raises `Problem` 404."""
        entry = self.store.remove(name)
        for site in () if entry is None else entry.steering.sites:
            self.metrics.readout.forget(name, str(site))
        return entry

    def _taken(self, steering: Steering) -> Steering:
        """The steering as it is served: taken over for this model where that is allowed and it was fitted on another one."""
        if not self.settings.adopt or not compared(
            steering.meta, self.engine.name, self.engine.fingerprint or {}, self.engine.template
        ):
            return steering
        log.warning("a steering of %s is taken over as it is (--adopt), without its range", steering.meta.model)
        return steering.adopted(self.engine)

    def _accept(self, steering: Steering) -> None:
        """Hold a steering that another server took in against the model. Raises a `SteerlabError`."""
        if self.scheduler.alive:
            self.scheduler.call(lambda: self.engine.accept(steering)).result(timeout=60)
        else:
            self.engine.accept(steering)

    async def _tried(self, steering: Steering) -> None:
        """A reply of two tokens at full strength, so that what can't run is told to who brings it."""
        loop, found = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(lambda: found.done() or found.set_result(event))

        ask = Ask(self.prompts.chat([Message("user", "Hello.")], steering), steering, Sampling(2))
        self.scheduler.submit([Job(ask, tell)])
        event = await found
        if isinstance(event, Failed):
            reason = event.problem.sentence if event.problem.status < 500 else "it fails inside the model."
            status = 400 if event.problem.code in ("not_finite", "internal") else event.problem.status
            raise Problem(status, f"the steering was tried at strength 1: {reason}", "fails")
        assert isinstance(event, Done)
