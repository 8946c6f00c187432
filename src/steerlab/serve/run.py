"""The process: uvicorn on the application, which gives slow clients up and ends gracefully.

On SIGTERM (or Ctrl-C) the server turns unready and takes no more work, goes on listening, so that nobody is refused a connection
before the balancer has noticed, lets what runs end, and only then closes. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ConfigError
from .app import app_of
from .guard import HEADERS, log_lines
from .keys import Keys
from .service import Service
from .settings import LOOPBACK

log = logging.getLogger("steerlab.serve")
CONNECTIONS = 2048


def serve(service: Service, host: str, port: int, *, told: Callable[[str], None] | None = None) -> None:
    """Serve until a signal comes. `told` gets the address once requests may come.

    Raises `ConfigError` for an address beyond this machine without keys, or one that can't be had.
    """
    check_host(host, service.keys)
    log_lines()
    service.start()
    try:
        server = _server(service, host, port, told)
        try:
            server.run()
        except SystemExit as end:  # how uvicorn says that it couldn't begin
            raise ConfigError(f"the server can't listen on {host}:{port}; is the port taken?") from end
    finally:
        service.stop()


def check_host(host: str, keys: Keys) -> None:
    """Raise `ConfigError` for an address beyond this machine without keys."""
    if not keys.keys and host not in LOOPBACK:
        raise ConfigError(
            f"the address {host} can be reached from other machines, and there are no keys; give --keys FILE (or the variable"
            " STEERLAB_API_KEY), or listen on 127.0.0.1."
        )


def _server(service: Service, host: str, port: int, told: Callable[[str], None] | None) -> Server:
    patience = service.settings.patience
    config = uvicorn.Config(
        app_of(service),
        host=host,
        port=port,
        http=type("Patient", (Patient,), {"patience": patience}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADERS,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=max(5, int(patience)),
        timeout_graceful_shutdown=max(1, int(service.settings.drain)),
    )
    return Server(config, service, told)


class Server(uvicorn.Server):
    """Ends in two steps: first no new work, then, once nothing runs, the connections."""

    def __init__(self, config: uvicorn.Config, service: Service, told: Callable[[str], None] | None) -> None:
        super().__init__(config)
        self._service, self._told, self._until = service, told, 0.0

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self._told is not None and self.started:
            name, port = self.servers[0].sockets[0].getsockname()[:2]
            self._told(f"http://{f'[{name}]' if ':' in name else name}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first drains, the second ends."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._until = time.monotonic() + self._service.settings.drain
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._service.draining and not self.should_exit:
            self.should_exit = self._service.idle or time.monotonic() > self._until
        return await super().on_tick(counter)


class Patient(H11Protocol):
    """A connection that is closed when a request's headers don't come within `patience` seconds."""

    patience: float = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come; its headers are due."""
        super().connection_made(transport)
        self._late = self.loop.call_later(self.patience, self._give_up)

    def data_received(self, data: bytes) -> None:
        """The clock runs while headers are begun and not whole."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._rest()
        elif self._late is None and self.conn.trailing_data[0]:
            self._late = self.loop.call_later(self.patience, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self._rest()
        super().connection_lost(exc)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            body = b"the request's headers didn't come in time"
            head = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: "
            self.transport.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)
            self.transport.close()
