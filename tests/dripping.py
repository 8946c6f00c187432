"""Clients that hold a server's connections: each asks without a key, drips its body byte by byte, and comes again when closed.

Bounded in connections, in time and in how often they come again; for servers of one's own alone.
"""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    b"content-type: application/json\r\ncontent-length: 1000000000\r\n\r\n"
)


@dataclass
class Dripping:
    """`many` connections at once for `seconds`, `times` as many in all at most."""

    address: tuple[str, int]
    many: int
    pause: float = 2.0
    seconds: float = 30.0
    times: int = 3
    head: bytes = HEAD
    opened: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    held: list[tuple[float, int]] = field(default_factory=list)  # seconds since the beginning, connections that are up

    def __post_init__(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, self.many + 1024)), hard))
        self._over, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Dripping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        began, up, look = time.monotonic(), {}, selectors.DefaultSelector()
        try:
            while not self._over.is_set() and time.monotonic() < began + self.seconds:
                now = time.monotonic()
                fresh = 0
                while len(up) < self.many and self.opened < self.times * self.many and fresh < 100:
                    fresh += 1
                    if (one := self._open()) is None:
                        break
                    look.register(one, selectors.EVENT_READ)
                    up[one] = now + self.pause
                for key, _ in look.select(timeout=0.05):
                    if not self._hear(key.fileobj):
                        look.unregister(key.fileobj)
                        del up[key.fileobj]
                        key.fileobj.close()
                for one, due in list(up.items()):
                    if due <= now:
                        up[one] = now + self.pause
                        try:
                            one.send(b" ")
                        except OSError:
                            look.unregister(one)
                            del up[one]
                            one.close()
                self.held.append((now - began, len(up)))
        finally:
            for one in up:
                one.close()
            look.close()

    def _open(self) -> socket.socket | None:
        try:
            one = socket.create_connection(self.address, timeout=2)
        except OSError:
            return None
        self.opened += 1
        one.setblocking(False)
        with contextlib.suppress(OSError):
            one.send(self.head)
        return one

    def _hear(self, one: socket.socket) -> bool:
        """Whether it is still up."""
        try:
            got = one.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        words = got.split(b" ", 2)
        if got.startswith(b"HTTP/") and len(words) > 1:
            self.statuses[int(words[1])] = self.statuses.get(int(words[1]), 0) + 1
        return bool(got)
