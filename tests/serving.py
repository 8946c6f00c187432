"""What the tests of the server share: steerings made by hand, a server in this process, and one in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch

from steerlab.contrast import Message
from steerlab.controls import Gate
from steerlab.edits import Clamp, Shift
from steerlab.engines.base import Sampling
from steerlab.positions import NOT_TEMPLATE
from steerlab.serve.app import app_of
from steerlab.serve.keys import Keys
from steerlab.serve.run import _server
from steerlab.serve.service import Service
from steerlab.serve.settings import Settings
from steerlab.sites import Site
from steerlab.steering import Intervention, Meta, Steering


def made(engine, edit, site="1", positions=NOT_TEMPLATE, control=None, **meta) -> Steering:
    """A steering that belongs to an engine's model."""
    given = {} if control is None else {"control": control}
    known = Meta(engine.name, fingerprint=engine.fingerprint, template=engine.template, **meta)
    return Steering((Intervention(Site.parse(site), edit, positions, **given),), meta=known)


def shift(engine, seed: int, size: float = 2.0, site: str = "1", **told) -> Steering:
    width = engine.width(Site.parse(site))
    return made(engine, Shift(size * torch.randn(width, generator=torch.Generator().manual_seed(seed))), site, **told)


def clamp(engine, seed: int, rank: int = 2, site: str = "1", **told) -> Steering:
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(engine.width(Site.parse(site)), rank, generator=generator)).Q.T
    return made(engine, Clamp(q, torch.full((rank,), 3.0), torch.full((rank,), -2.0)), site, **told)


def gated(engine, steering: Steering, threshold: float, **how) -> Steering:
    """The steering with a gate of a random direction at block 1."""
    width = engine.width(Site.parse("1"))
    gate = Gate(Site.parse("1"), torch.randn(width, generator=torch.Generator().manual_seed(9)), threshold, **how)
    (one,) = steering.interventions
    return made(engine, one.edit, str(one.site), one.positions, gate)


class Here:
    """A server in this process, on an engine, asked through its ASGI interface."""

    def __init__(self, engine, folder: Path, keys: Keys | None = None, **settings) -> None:
        self.service = Service(engine, Settings(store=folder, **settings), keys or Keys())
        self.service.start()
        self.app = app_of(self.service)
        self.loop = asyncio.new_event_loop()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120)

    def ask(self, method: str, path: str, **given) -> httpx.Response:
        return self.loop.run_until_complete(self.client.request(method, path, **given))

    def post(self, path: str, **body) -> httpx.Response:
        return self.ask("POST", path, json={"model": "base", **body})

    def chat(self, text: str, **body) -> httpx.Response:
        return self.post("/v1/chat/completions", **{"messages": [{"role": "user", "content": text}], **body})

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()
        self.service.stop()


def solo(engine, text: str, steering, seed: int, n: int = 1, **drawn) -> list:
    """What the engine says alone, one reply at a time."""
    return [engine.generate([[Message("user", text)]], steering, Sampling(seed=seed + k, **drawn))[0] for k in range(n)]


def pieces(text: str) -> list[str]:
    """The data of server-sent events."""
    assert text.endswith("data: [DONE]\n\n"), text[-200:]
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: {")]


class Listening:
    """A server in a thread of this process that listens on a socket, as `steerlab serve` does in a process of its own."""

    def __init__(self, engine, folder: Path, keys: Keys | None = None, **settings) -> None:
        self.service = Service(engine, Settings(store=folder, **settings), keys or Keys())
        self._up = threading.Event()
        self._server = _server(self.service, "127.0.0.1", 0, self._heard)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self.address = ""

    def _heard(self, address: str) -> None:
        self.address = address
        self._up.set()

    def __enter__(self) -> Listening:
        self.service.start()
        self._thread.start()
        assert self._up.wait(60), "the server didn't come up"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        self.service.stop()


class Process:
    """`steerlab serve` as a person would start it, on a free port."""

    def __init__(
        self, *words: str, folder: Path, environment: dict[str, str] | None = None, python: str = sys.executable
    ) -> None:
        self.log = folder / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [python, "-m", "steerlab", "serve", "--port", "0", "--store", str(folder / "store"), *words],
                cwd=folder,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )
        self._began = self.log.stat().st_size
        self.address = self._listening()

    def _listening(self) -> str:
        import time

        until = time.monotonic() + 600
        while time.monotonic() < until and self.process.poll() is None:
            found = re.findall(r"serving \S+ on (http://\S+)", self.log.read_text()[self._began :])
            if found:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"the server didn't come up:\n{self.log.read_text()[-3000:]}")

    def end(self, sig: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout=300)


@contextlib.contextmanager
def process(
    *words: str, folder: Path, environment: dict[str, str] | None = None, python: str = sys.executable
) -> Iterator[Process]:
    server = Process(*words, folder=folder, environment=environment, python=python)
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)
