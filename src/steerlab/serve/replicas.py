"""Several servers behind one address, on Ray Serve: `steerlab serve --replicas N`.

Each replica is the whole server with an engine of its own, and they share the folder of steerings, so that what one has taken
in or removed is so for all at the next request. Ray's proxy gives requests out, starts replicas anew that fail, and replaces them
a few at a time when something else is deployed; one ends once what it runs has ended. (The extra `ray` brings Ray Serve.)
"""

from __future__ import annotations

import importlib
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ConfigError, SteerlabError
from ..loading import load
from .app import app_of
from .guard import log_lines
from .keys import Keys
from .run import check_host
from .service import Service
from .settings import Settings

NAME = "steerlab"
ALONE = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}  # a cluster that only this machine reaches
UP = 1800.0  # seconds for replicas to load the model


@dataclass(frozen=True)
class Plan:
    """What each replica serves; `most` replicas at busy times (None: always as many), with `gpus` and `cpus` each."""

    model: str
    settings: Settings
    keys: Keys
    files: tuple[Path, ...] = ()
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    template: str = "chat"
    replicas: int = 1
    most: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.replicas < 1 or (self.most is not None and self.most < self.replicas):
            raise ConfigError(
                f"replicas is {self.replicas} and the most of them {self.most}; expected at least 1, and no more than the most."
            )


class Replica:
    """What runs in a replica's process."""

    def __init__(self, plan: Plan) -> None:
        log_lines()
        engine = load(
            plan.model, revision=plan.revision, dtype=plan.dtype, device=plan.device,
            template=plan.template, batch_size=plan.settings.rows,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        self._service = Service(engine, replace(plan.settings, shared=True), plan.keys)
        for path in plan.files:
            self._service.bring(path)
        self._service.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, which Ray Serve asks for once the replica is made."""
        serve: Any = importlib.import_module("ray.serve")
        name = str(serve.get_replica_context().replica_id.unique_id)
        return Named(app_of(self._service), name)

    def check_health(self) -> None:
        """Raise where the model's thread has ended: Ray starts another replica."""
        if not self._service.scheduler.alive:
            raise RuntimeError("the model's thread has ended")

    def __del__(self) -> None:
        """Ray deletes a replica once its requests have ended."""
        with suppress(AttributeError):
            self._service.stop()


class Named:
    """An application whose answers say in the header `x-replica` who gave them."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app, self._name = app, name.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-replica", self._name)]
            await send(message)

        await self._app(scope, receive, sending)


def serve_replicas(plan: Plan, host: str, port: int, *, address: str | None, told: Callable[[str], None]) -> None:
    """Deploy, or replace what is deployed a replica at a time without losing a request; `told` gets the address.

    Without a cluster's `address` one is started on this machine and ended by a signal; on a cluster what is deployed stays when
    this returns. Raises `ConfigError` and `SteerlabError`.
    """
    check_host(host, plan.keys)
    try:
        ray, serve = importlib.import_module("ray"), importlib.import_module("ray.serve")
    except ImportError as problem:
        raise ConfigError(
            "replicas need Ray Serve: pip install 'steerlab[ray,serve]'; or leave --replicas out."
        ) from problem
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address} if address else {"address": "local", **ALONE}
    try:
        ray.init(**options, log_to_driver=address is None, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as problem:
        raise SteerlabError(f"the Ray cluster {address or 'on this machine'} can't be reached: {problem}") from problem
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(_deployment(serve, plan), name=NAME, route_prefix="/")
        where = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        _wait(where)
        told(where)
        if address is None:
            _until_a_signal()
            serve.shutdown()
    except RuntimeError as problem:
        raise SteerlabError(f"the replicas didn't come up: {problem}") from problem
    finally:
        ray.shutdown()


def _deployment(serve: Any, plan: Plan) -> Any:
    most = plan.settings.rows + plan.settings.waiting
    given: dict[str, Any] = {
        "name": NAME,
        "max_ongoing_requests": most,
        "ray_actor_options": {"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        "graceful_shutdown_timeout_s": plan.settings.drain,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 5,
    }
    if plan.most is None:
        given["num_replicas"] = plan.replicas
    else:
        scaling = {
            "min_replicas": plan.replicas,
            "max_replicas": plan.most,
            "target_ongoing_requests": plan.settings.rows,
        }
        given["autoscaling_config"] = scaling
    return serve.deployment(**given)(serve.ingress()(Replica)).bind(plan)


def _wait(where: str) -> None:
    """Until the proxy knows the way: it may take a moment longer than the replicas."""
    until = time.monotonic() + UP
    while time.monotonic() < until:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{where}/health", timeout=10):
            return
        time.sleep(0.2)
    raise SteerlabError(f"nothing answers at {where}; is the port taken?")


def _until_a_signal() -> None:
    over = Event()

    def end(sig: int, frame: FrameType | None) -> None:
        over.set()

    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, end)
    while not over.wait(1.0):
        pass
