"""The connections of a server: how many there may be, from whom, and when one is given up.

A client that is slow, on purpose or not, holds a connection and nothing else, and not for long: its headers and its body have to
come within the patience, a body that nobody reads any more gets a short while to end, and an answer has to be taken. Where
there are as many connections as may be, whoever is least likely to be missed goes: one that was answered and whose body goes
on, one that is idle, one whose headers or body are due. What runs is never given up for another one. Probes are always answered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .metrics import Metrics
from .problems import Problem
from .settings import Settings

log = logging.getLogger("steerlab.serve")
PROBES = ("/health", "/ready")
LINGER = 2.0  # seconds that a body may go on after it was answered, and an answer take to leave once its connection is closed
GRACE = 0.5  # seconds that a connection is spared for a newer one
TURNS = 3  # rounds of the event loop until what a client sends with its connection was read, however busy it is
FILES = 256  # that the process opens beside its connections
LEAST = 16 << 10  # bytes of an answer that a reader takes within its patience
EVERY = 0.2  # seconds between two looks at all connections
State = Literal["headers", "body", "busy", "lingering", "idle", "closing"]


class Crowd:
    """Connections that are counted together, in the order in which they came, and those of them that linger."""

    def __init__(self) -> None:
        self.held: dict[Patient, None] = {}
        self.lingering: dict[Patient, None] = {}

    def drop(self, one: Patient) -> None:
        """One of them counts no more."""
        self.held.pop(one, None)
        self.lingering.pop(one, None)

    def least(self, many: int, now: float) -> list[Patient]:
        """Those who would be missed least, of those who don't have to stay."""
        ranked = [(rank, n, one) for n, one in enumerate(self.held) if (rank := one.missed(now)) is not None]
        return [one for _, _, one in sorted(ranked, key=lambda row: row[:2])[:many]]


class Door:
    """Who is in, and who has to go. `now` is the event loop's clock.

    Beyond a limit, one that lingers goes at once for a newer one. Where none does, the newer one is `refused`: only probes and
    somebody who has a key are answered on it, and the next sweep gives up whoever is missed least. Twice the limit is the end.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, most: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings, self.metrics, self.most, self.now = settings, metrics, most, now
        self.linger = min(LINGER, settings.patience)
        self.ending = False
        self._all = Crowd()
        self._peers: dict[str, Crowd] = {}
        self._going: dict[Patient, None] = {}  # closed, and not yet gone

    def __len__(self) -> int:
        return len(self._all.held)

    def enter(self, one: Patient) -> None:
        """A connection has come; where there are too many, another one goes, or this one is `refused`."""
        mine = self._peers.setdefault(one.peer, Crowd())
        self._all.held[one] = mine.held[one] = None
        for crowd, most, what in self._limits(one):
            if len(crowd.held) <= most or self._spare(crowd):
                continue
            if what == "server" and len(crowd.held) > 2 * most:
                self.metrics.refused.add(what)
                one.end("too many connections", self.refusal(what))
                return
            one.refused = what

    def leave(self, one: Patient) -> None:
        """A connection has ended, or counts no more."""
        self._going.pop(one, None)
        self._all.drop(one)
        if (mine := self._peers.get(one.peer)) is not None:
            mine.drop(one)
            if not mine.held:
                del self._peers[one.peer]

    def close(self, one: Patient) -> None:
        """A connection is being closed: it counts no more, and is looked at until it has ended."""
        self.leave(one)
        self._going[one] = None

    def lingers(self, one: Patient, *, over: bool = False) -> None:
        """A connection's body goes on after its answer, or (`over`) has come to its end after all."""
        for crowd in (self._all, self._peers.get(one.peer)):
            if crowd is not None and one in crowd.held:
                crowd.lingering.pop(one, None)
                if not over:
                    crowd.lingering[one] = None

    def admit(self, one: Patient, known: bool) -> Problem | None:
        """Why a request on a `refused` connection isn't answered; None for somebody who is known."""
        what = one.refused
        if known or what is None:
            one.refused = None
            return None
        self.metrics.refused.add(what)
        return self.refusal(what)

    def refusal(self, what: str) -> Problem:
        """The answer to one too many."""
        who, most = ("this client holds", self.settings.peer) if what == "peer" else ("there are", self.most)
        return Problem(
            503, f"{who} more than {most} connections; close some, or come again.", "too_many_connections", after=1
        )

    def sweep(self) -> None:
        """Give up what is overdue, and what is too many."""
        now = self.now()
        for one in [*self._all.held, *self._going]:
            one.look(now)
        crowds = [(self._all, self.most, "server")]
        if self.settings.peer:
            crowds += [(crowd, self.settings.peer, "peer") for crowd in self._peers.values()]
        for crowd, most, what in crowds:
            if (over := len(crowd.held) - most) > 0:
                for one in crowd.least(over, now):
                    one.end("given up for a newer one", self.refusal(what))

    def _limits(self, one: Patient) -> list[tuple[Crowd, int, str]]:
        mine = [(self._peers[one.peer], self.settings.peer, "peer")] if self.settings.peer else []
        return [*mine, (self._all, self.most, "server")]

    def _spare(self, crowd: Crowd) -> bool:
        """Whether one that lingers could be given up."""
        one = next(iter(crowd.lingering), None)
        if one is not None:
            one.end("given up for a newer one")
        return one is not None


class Counted:
    """A transport that knows how much was written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self.written = transport, 0

    def write(self, data: bytes) -> None:
        """Write."""
        self.written += len(data)
        self._transport.write(data)

    @property
    def taken(self) -> int:
        """Bytes that have left this process."""
        return self.written - self.waiting

    @property
    def waiting(self) -> int:
        """Bytes that the client hasn't taken yet, as far as this process sees."""
        return self._transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Patient(H11Protocol):
    """A connection under the rules of a `Door`."""

    door: Door
    peer = ""
    left = False  # whether the client was gone before its answer was whole
    proven = False  # whether somebody who may has asked on it
    refused: str | None = None  # one too many: of the peer, or of the server

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come; its headers are due."""
        now = self.door.now()
        self._due: float | None = now  # since when headers are awaited
        self._touched = self._asked = now  # when something last came; when the request was whole
        self._lingers: float | None = None  # since when a body goes on that was answered
        self._closes: float | None = None
        self._took = (now, 0)  # when the answer last moved on, and how far it was
        self._turns = TURNS
        self.loop.call_soon(self._turn)
        self._counted = Counted(transport)
        super().connection_made(self._counted)  # pyright: ignore[reportArgumentType]
        self.peer = peer_of(self.client[0] if self.client else "")
        self.door.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self.door.leave(self)
        self.left = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The clock runs while headers are begun and not whole, and after a body that nobody reads."""
        if self.transport.is_closing():
            return
        now = self.door.now()
        self._touched = now
        before = self.conn.their_state
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if self._due is None and self.conn.trailing_data[0]:
                self._due = now
        else:
            self._due = None
        if self.conn.their_state is not before:
            self._asked = now
        if self._lingers is not None and self.conn.their_state is not h11.SEND_BODY:
            self._lingers = None
            self.door.lingers(self, over=True)

    def handle_events(self) -> None:
        """What has come; a request knows its connection."""
        super().handle_events()
        if self.scope is not None:  # pyright: ignore[reportUnnecessaryComparison]
            self.scope["connection"] = self  # pyright: ignore[reportGeneralTypeIssues]

    def on_response_complete(self) -> None:
        """An answer is whole; what is still to come of its request's body gets a short while."""
        self._asked = self._touched = now = self.door.now()
        super().on_response_complete()
        if self.refused is not None:
            self.end("too many connections", None, logs=False)
        elif self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._lingers = now
            self.door.lingers(self)

    def send_400_response(self, msg: str) -> None:
        """What isn't HTTP is told so in OpenAI's form."""
        self.door.metrics.requests.add("other", "400")
        self.end("not HTTP", Problem(400, "this isn't a request as HTTP has it.", "bad_http"), logs=False)

    @property
    def state(self) -> State:
        """What it is doing."""
        if self.transport.is_closing():
            return "closing"
        if self._lingers is not None:
            return "lingering"
        if self.cycle is not None and not self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            return "body" if self.conn.their_state is h11.SEND_BODY else "busy"
        return "idle" if self._due is None else "headers"

    def missed(self, now: float) -> tuple[int, float] | None:
        """How much it would be missed, and since when it is as it is; None where it has to stay."""
        state = self.state
        if state in ("busy", "closing") or self._turns:
            return None
        since = {"lingering": self._lingers, "idle": self._touched, "headers": self._due}.get(state) or self._asked
        if state != "lingering" and now - since < GRACE:
            return None
        ranks = {"lingering": 0, "idle": 4 if self.proven else 1, "headers": 2, "body": 5 if self.proven else 3}
        return (ranks[state], since)

    def look(self, now: float) -> None:
        """Give it up where something is overdue."""
        limits, state = self.door.settings, self.state
        if state == "closing":
            self._closes = now if self._closes is None else self._closes
            if now - self._closes > self.door.linger:
                self.transport.abort()
        elif state == "headers" and self._due is not None and now - self._due > limits.patience:
            self.door.metrics.requests.add("other", "408")
            self.end("headers late", Problem(408, "the request's headers didn't come in time.", "slow"))
        elif state == "lingering" and self._lingers is not None and now - self._lingers > self.door.linger:
            self.end("body unread")
        elif state == "idle" and now - self._touched > max(5.0, limits.patience):
            self.end("idle", logs=False)
        elif state in ("busy", "body") and self._stopped(now):
            self.end("answer not read")
            self.transport.abort()

    def end(self, why: str, problem: Problem | None = None, *, logs: bool = True) -> None:
        """Close it, with an answer where there is none yet; what the client doesn't take is dropped after a while."""
        state = self.state
        if state == "closing":
            return
        begun = state == "body" and self.cycle.response_started
        self.door.close(self)
        self.door.metrics.closed.add(why)
        if logs:
            log.warning("connection closed", extra={"told": {"why": why, "state": state, "peer": self.peer}})
        if problem is not None and state in ("headers", "body") and not begun:
            self.transport.write(written(problem))
        self.transport.close()

    def _turn(self) -> None:
        """The event loop has come round: what the client had sent was read."""
        self._turns -= 1
        if self._turns:
            self.loop.call_soon(self._turn)

    def _stopped(self, now: float) -> bool:
        """Whether the client has stopped taking its answer, or its time is up with some of it not taken."""
        limits, taken = self.door.settings, self._counted.taken
        if not self._counted.waiting or taken >= self._took[1] + LEAST:
            self._took = (now, taken)
            return False
        most = min(limits.patience, limits.timeout, self.door.linger if self.door.ending else limits.timeout)
        return now - self._took[0] > most or now - self._asked > limits.timeout


def peer_of(address: str) -> str:
    """Who a client is: its address, and of IPv6 the network that one client has to itself (64 bits)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def written(problem: Problem) -> bytes:
    """A whole answer that ends its connection."""
    words = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
    body = json.dumps(problem.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **problem.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {problem.status} {words.get(problem.status, 'Refused')}\r\n{lines}\r\n".encode() + body


def descriptors(most: int) -> int:
    """How many connections there can be, at most so many: the process's own limit of open files is raised as far as it goes."""
    try:
        import resource
    except ImportError:  # a system without it
        return most
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * most + FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    found = max(16, (soft - FILES) // 2)
    log.warning("at most %d connections, as %d files may be open (ulimit -n)", found, soft)
    return found
