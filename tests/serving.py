"""What the tests of the server share: steerings made by hand, a server in this process, one in a process of its own, answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import torch
from safetensors.torch import save_file

import children
from steerlab.artefact import KEY
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

TEXT = "w5 w6 w7 w8"
DRAWN = {"max_tokens": 12, "temperature": 0.8, "seed": 7}


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


def several(engine) -> dict[str, Steering]:
    """Steerings of every kind that a request may name."""
    return {
        "formal": shift(engine, 1),
        "verbose": clamp(engine, 2, site="2"),
        "anti-dry": shift(engine, 3, site="0"),
        "shut": gated(engine, shift(engine, 1), 1e9, ahead=True),
        "open": gated(engine, shift(engine, 1), -1e9, ahead=True),
        "each": gated(engine, shift(engine, 1), 0.0),
    }


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


@contextlib.contextmanager
def holding(engine, folder: Path, steerings: dict[str, Steering] | None = None) -> Iterator[Here]:
    """A server in this process that was given steerings."""
    here = Here(engine, folder)
    for name, steering in (steerings or {}).items():
        assert put(here, name, steering).status_code == 201
    yield here
    here.close()


def put(here, name, steering, **given):
    with tempfile.TemporaryDirectory() as folder:
        steering.save(Path(folder) / "x.safetensors")
        data = (Path(folder) / "x.safetensors").read_bytes()
    return here.ask("PUT", f"/v1/steerings/{name}", content=data, **given)


def write_header(steering, path: Path, change: Callable[[dict], object]) -> None:
    """A steering's file with something of its header's document changed."""
    document, tensors = steering._document()
    document = json.loads(json.dumps(document))
    change(document)
    save_file(tensors, path, metadata={KEY: json.dumps(document)})


def saved(steering, tmp_path) -> bytes:
    steering.save(tmp_path / "s.safetensors")
    return (tmp_path / "s.safetensors").read_bytes()


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def refused(response, status, *words):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    for word in words:
        assert word in error["message"]
    return error


def drawn(**more):
    return {"max_new_tokens": 12, "temperature": 0.8, **more}


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
        self.log.touch()
        self._began = self.log.stat().st_size
        asked = ["-m", "steerlab", "serve", "--port", "0", "--store", str(folder / "store"), *words]
        around = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        if python == sys.executable:
            self.process = children.start(asked, cwd=folder, env=around, stderr=self.log)
        else:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen([python, *asked], cwd=folder, stderr=log, env=around)
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
