"""The process: uvicorn on the application, which gives slow clients up and ends gracefully.

On SIGTERM (or Ctrl-C) the server turns unready and takes no more work, goes on listening, so that nobody is refused a connection
before the balancer has noticed, lets what runs end, and only then closes. A second signal ends what runs with an error, and a
third one ends at once. Where the model's thread ends by itself, so does the process, with 1.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from ..errors import ConfigError
from .app import app_of
from .connections import EVERY, Door, Patient, descriptors
from .guard import HEADERS, log_lines
from .keys import Keys
from .service import Service
from .settings import LOOPBACK

log = logging.getLogger("steerlab.serve")
HURRY = 5  # seconds that answers have to leave once the server is told to hurry


def serve(service: Service, host: str, port: int, *, told: Callable[[str], None] | None = None) -> None:
    """Serve until a signal comes. `told` gets the address once requests may come.

    Raises `ConfigError` for an address beyond this machine without keys, or one that can't be had, and `SystemExit` where the
    model's thread has ended.
    """
    check_host(host, service.keys)
    log_lines()
    service.start()
    try:
        server = _server(service, host, port, told)
        try:
            server.run()
            died = server.died
        except SystemExit as end:  # how uvicorn says that it couldn't begin
            raise ConfigError(f"the server can't listen on {host}:{port}; is the port taken?") from end
    finally:
        service.stop()
    if died:
        sys.exit(1)


def check_host(host: str, keys: Keys) -> None:
    """Raise `ConfigError` for an address beyond this machine without keys."""
    if not keys.keys and host not in LOOPBACK:
        raise ConfigError(
            f"the address {host} can be reached from other machines, and there are no keys; give --keys FILE (or the variable"
            " STEERLAB_API_KEY), or listen on 127.0.0.1."
        )


def _server(service: Service, host: str, port: int, told: Callable[[str], None] | None) -> Server:
    settings = service.settings
    door = Door(settings, service.metrics, descriptors(settings.connections))
    service.metrics.gauge("steerlab_connections", "Connections that are open.", lambda: len(door))
    config = uvicorn.Config(
        app_of(service),
        host=host,
        port=port,
        http=type("Patient", (Patient,), {"door": door}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADERS,
        timeout_keep_alive=max(5, int(settings.patience)),
        timeout_graceful_shutdown=max(1, int(settings.drain)),
    )
    return Server(config, service, door, told)


class Server(uvicorn.Server):
    """Ends in two steps: first no new work, then, once nothing runs, the connections. `died` where the model's thread did."""

    def __init__(
        self, config: uvicorn.Config, service: Service, door: Door, told: Callable[[str], None] | None
    ) -> None:
        super().__init__(config)
        self._service, self._door, self._told, self._until = service, door, told, 0.0
        self._hurry = self.died = False
        self._sweeping: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        self._sweeping = asyncio.create_task(self._sweep())
        if self._told is not None and self.started:
            name, port = self.servers[0].sockets[0].getsockname()[:2]
            self._told(f"http://{f'[{name}]' if ':' in name else name}:{port}")

    async def shutdown(self, sockets: Any = None) -> None:
        """Close what is open, by and by."""
        await super().shutdown(sockets)
        if self._sweeping is not None:
            self._sweeping.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first drains, the second ends what runs with an error, the third ends at once."""
        if self._hurry:
            self.should_exit = self.force_exit = True
        elif self._service.draining:
            self._hurry = True
        else:
            self._until = time.monotonic() + self._service.settings.drain
            self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        service = self._service
        if service.scheduler.died and not self.died:
            log.critical("the server ends, as the model's thread has ended")
            self.died = service.draining = self._hurry = True
        if service.draining and not self.should_exit:
            late = time.monotonic() > self._until
            self.should_exit = service.idle or late or self._hurry
            self._hurry = self._hurry or (late and not service.idle)
        if self._hurry:
            self.config.timeout_graceful_shutdown = HURRY
        return await super().on_tick(counter)

    async def _sweep(self) -> None:
        """Give up connections that are overdue, and, in a hurry, what runs."""
        hurried = False
        while True:
            self._door.ending = self._service.draining
            self._door.sweep()
            if self._hurry and not hurried:
                hurried = True
                self._service.scheduler.give_up()
            await asyncio.sleep(EVERY)
