"""Clients that drip, stop reading or hold connections: they are given up, everybody else is answered, and the log tells.

STEERLAB_DRIP sets how many connections drip (48 unless told otherwise; `make test-hostile` takes 2,000, against a process).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import statistics
import struct
import threading
import time

import httpx
import pytest

from dripping import HEAD, Dripping
from hostile import ADMIN, USE
from serving import Listening, process, shift
from steerlab.serve.guard import JsonLines
from steerlab.serve.keys import Keys
from steerlab.testing import tiny

DRIP = int(os.environ.get("STEERLAB_DRIP", "0"))
MANY = DRIP or 48
CHAT = {"model": "base", "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 3, "seed": 1}


@pytest.fixture(scope="module")
def engine():
    return tiny.engine("llama")


def keyed(tmp_path) -> Keys:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{name: app, key: {USE}}}]\n")
    return Keys.read(path, ADMIN)


@contextlib.contextmanager
def attacked(engine, tmp_path, caplog):
    """A server's address and what its log has said so far: in the full run a process, as a person starts it."""
    keys = keyed(tmp_path)
    if DRIP:
        words = ("--keys", str(tmp_path / "keys.yaml"), "--patience", "5")
        with process(*words, folder=tmp_path, environment={"STEERLAB_API_KEY": ADMIN}) as server:
            yield server.address, lambda: [json.loads(x) for x in server.log.read_text().splitlines() if x[:1] == "{"]
        return
    with (
        caplog.at_level(logging.INFO, "steerlab.serve"),
        Listening(engine, tmp_path / "store", keys, patience=1.0, connections=32, peer=16) as server,
    ):
        yield server.address, lambda: [json.loads(JsonLines().format(r)) for r in list(caplog.records)]


def pair(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def number(address: str, name: str) -> float:
    text = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {ADMIN}"}, timeout=30).text
    return sum(float(n) for n in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE))


class Asking:
    """Somebody with a key who asks again and again, on new connections and a kept one, and a probe; how long each took."""

    def __init__(self, address: str) -> None:
        self.address, self.took, self.probes, self.wrong = address, [], [], []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._asks, self._keeps, self._probes)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _once(self, client, method: str, path: str, took: list[float], **given) -> None:
        began = time.monotonic()
        try:
            told = client.request(method, f"{self.address}{path}", timeout=30, **given)
            if told.status_code != 200:
                self.wrong.append((path, told.status_code, told.text[:200]))
        except httpx.HTTPError as problem:
            self.wrong.append((path, repr(problem)))
        took.append(time.monotonic() - began)

    def _asks(self) -> None:
        while not self._over.wait(0.2):
            self._once(
                httpx, "POST", "/v1/chat/completions", self.took, json=CHAT, headers={"authorization": f"Bearer {USE}"}
            )

    def _keeps(self) -> None:
        with httpx.Client() as client:
            while not self._over.wait(0.1):
                self._once(
                    client,
                    "POST",
                    "/v1/chat/completions",
                    self.took,
                    json=CHAT,
                    headers={"authorization": f"Bearer {USE}"},
                )

    def _probes(self) -> None:
        while not self._over.wait(0.2):
            self._once(httpx, "GET", "/health", self.probes)
            self._once(httpx, "GET", "/ready", self.probes)


def test_clients_that_drip_hold_no_connections_and_others_are_answered(engine, tmp_path, caplog, capsys):
    with attacked(engine, tmp_path, caplog) as (address, log):
        seconds = 60.0 if DRIP else 4.0
        with Asking(address) as others, Dripping(pair(address), MANY, 2.0 if DRIP else 0.3, seconds) as drip:
            time.sleep(seconds)
        assert others.wrong == []
        assert len(others.took) >= 5 and len(others.probes) >= 5
        assert drip.opened == drip.times * MANY  # they were closed, and came again until they had no more to come
        assert drip.held[-1][1] == 0
        answered = sum(drip.statuses.values())
        assert set(drip.statuses) <= {401, 503}
        until = time.monotonic() + 20
        while len([r for r in log() if r["said"] == "request" and r.get("status") == 401]) < drip.statuses.get(401, 0):
            assert time.monotonic() < until
            time.sleep(0.2)
        rows = log()
        closed = [row for row in rows if row["said"] == "connection closed"]
        given_up = [
            row for row in closed if row["why"] in ("body unread", "given up for a newer one", "too many connections")
        ]
        refused = [row for row in rows if row["said"] == "request" and row["status"] == 503]
        assert len(given_up) + len(refused) == drip.opened  # each has its line
        assert number(address, 'steerlab_connections_closed_total{why="body unread"}') == len(
            [row for row in closed if row["why"] == "body unread"]
        )
        assert not [row for row in rows if row["level"] == "error" or "traceback" in row]
    if DRIP:
        peak = max(n for _, n in drip.held)
        with capsys.disabled():
            print(f"\n{drip.opened} connections dripped, {MANY} at a time wanted, at most {peak} up at once")
            print(f"  {answered} answers to them: {drip.statuses}")
            for name, took in (("keyed requests", others.took), ("probes", others.probes)):
                print(
                    f"  {name}: {len(took)}, all 200, median {statistics.median(took):.3f} s, longest {max(took):.3f} s"
                )


@pytest.mark.parametrize("what", ["a probe", "no keys", "half a header"])
def test_others_are_answered_whatever_it_is_that_drips(engine, tmp_path, caplog, what):
    heads = {
        "a probe": HEAD.replace(b"POST /v1/chat/completions", b"GET /health"),
        "half a header": b"GET /health HTTP/1.1\r\nx: ",
    }
    keys = Keys() if what == "no keys" else keyed(tmp_path)
    caplog.set_level(logging.INFO, "steerlab.serve")
    with Listening(engine, tmp_path / "store", keys, patience=1.0, connections=32, peer=16) as server:
        head = heads.get(what, HEAD)
        with Asking(server.address) as others, Dripping(pair(server.address), 40, 0.3, 4.0, head=head) as drip:
            time.sleep(4.0)
        assert others.wrong == []
        assert len(others.took) >= 5 and len(others.probes) >= 5
        assert drip.opened == 120 and drip.held[-1][1] == 0
        until(lambda: len(server._server._door) == 0, 20.0)


def silent(address: str, data: bytes = b"") -> socket.socket:
    one = socket.create_connection(pair(address), timeout=30)
    if data:
        one.sendall(data)
    return one


def heard(one: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := one.recv(65536):
            got += part
    one.close()
    return got


def test_a_body_that_nobody_reads_is_closed_after_a_while_and_one_that_ends_is_not(engine, tmp_path):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    with Listening(engine, tmp_path / "store", keyed(tmp_path), patience=0.5) as server:
        began, one = time.monotonic(), silent(server.address, head % 10**9)
        got = b""
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 20:
                one.sendall(b" ")
                one.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not (part := one.recv(65536)):
                        break
                    got += part
        one.close()
        assert b" 401 " in got and time.monotonic() - began < 5
        kept = silent(server.address, head % 4)
        assert b" 401 " in kept.recv(65536)
        kept.sendall(b"more")  # the body is whole: the connection may go on
        time.sleep(1.0)
        kept.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert b"200 OK" in heard(kept)


def test_one_too_many_gets_503_in_openais_form_and_probes_and_keys_are_let_in(engine, tmp_path, caplog):
    keys = keyed(tmp_path)
    with (
        caplog.at_level(logging.INFO, "steerlab.serve"),
        Listening(engine, tmp_path / "store", keys, patience=30.0, connections=64, peer=4) as server,
    ):
        held = [silent(server.address, b"GET /he") for _ in range(4)]
        time.sleep(0.1)
        refused = silent(server.address, b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head, _, body = heard(refused).partition(b"\r\n\r\n")
        assert b" 503 " in head and b"application/json" in head and b"retry-after" in head
        error = json.loads(body)["error"]
        assert error["code"] == "too_many_connections" and "4 connections" in error["message"]
        assert httpx.get(f"{server.address}/health").status_code == 200
        answer = httpx.get(f"{server.address}/v1/models", headers={"authorization": f"Bearer {USE}"})
        assert answer.status_code == 200
        assert number(server.address, 'steerlab_connections_refused_total{limit="peer"}') >= 1
        rows = [r.told for r in caplog.records if r.getMessage() == "request"]
        assert any(row["status"] == 503 for row in rows)
        for one in held:
            one.close()


STREAM = {"model": "base", "prompt": [5], "max_tokens": 500, "logprobs": 5, "n": 8, "temperature": 1.0, "stream": True}


def posted(body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def asked_and_unread(address: str, body: dict) -> socket.socket:
    """A request whose answer nobody reads, over a connection with little room."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.connect(pair(address))
    one.sendall(posted(body))
    return one


def little_room(server: Listening) -> None:
    """What the system keeps of answers that nobody reads is little, as over a long way."""
    server._server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def until(found, seconds: float = 30.0) -> float:
    began = time.monotonic()
    while not found():
        assert time.monotonic() < began + seconds, "it didn't come to that"
        time.sleep(0.02)
    return time.monotonic() - began


def test_a_reader_that_stops_is_gone_within_the_timeout(engine, tmp_path, caplog):
    caplog.set_level(logging.INFO, "steerlab.serve")
    with contextlib.ExitStack() as stack, Listening(engine, tmp_path / "store", timeout=3.0, patience=1.0) as server:
        little_room(server)
        one = stack.enter_context(asked_and_unread(server.address, STREAM))
        until(lambda: server.service.scheduler.running)
        until(lambda: caplog.records and len(server._server._door) == 0, 6.0)
        until(lambda: server.service.idle)
        assert [r.told["why"] for r in caplog.records if r.getMessage() == "connection closed"] == ["answer not read"]
        until(lambda: [r for r in caplog.records if r.getMessage() == "request"])
        assert [r.told["status"] for r in caplog.records if r.getMessage() == "request"] == [499]
        assert one.fileno() > 0  # it hasn't left by itself


def test_stalled_uploads_keep_no_good_one_waiting(engine, tmp_path):
    shift(engine, 1).save(tmp_path / "s.safetensors")
    with Listening(engine, tmp_path / "store", patience=20.0) as server:
        head = b"PUT /v1/steerings/stalled HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nx"
        stalled = [silent(server.address, head) for _ in range(6)]
        time.sleep(0.3)
        began = time.monotonic()
        told = httpx.put(
            f"{server.address}/v1/steerings/good", content=(tmp_path / "s.safetensors").read_bytes(), timeout=30
        )
        assert told.status_code == 201
        assert time.monotonic() - began < 10
        for one in stalled:
            one.close()


def test_bodies_that_are_read_are_bounded_together():
    from steerlab.serve.guard import Room
    from steerlab.serve.problems import Problem

    room = Room(10)
    with room.taking() as one:
        one.take(6)
        with room.taking() as other, pytest.raises(Problem, match="memory"):
            other.take(5)
        with room.taking() as third:
            third.take(4)
    with room.taking() as again:
        again.take(10)


def test_a_client_that_leaves_counts_as_499(engine, tmp_path, caplog):
    caplog.set_level(logging.INFO, "steerlab.serve")
    with Listening(engine, tmp_path / "store") as server:
        for body in (STREAM, {**STREAM, "stream": False}):
            one = silent(server.address, posted(body))
            until(lambda: server.service.scheduler.running)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
            until(lambda: server.service.idle)
        half = silent(
            server.address, b"PUT /v1/steerings/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nx"
        )
        time.sleep(0.2)
        half.close()
        until(lambda: len([r for r in caplog.records if r.getMessage() == "request"]) == 3)
        assert [r.told["status"] for r in caplog.records if r.getMessage() == "request"] == [499] * 3
        text = httpx.get(f"{server.address}/metrics").text
        assert 'route="/v1/completions",status="499"} 2' in text and 'status="400"' not in text


def test_two_lengths_of_one_body_are_refused_and_the_connection_closed(engine, tmp_path):
    smuggled = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
    body = b"0\r\n\r\n" + smuggled
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    data = head + b"transfer-encoding: chunked\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with Listening(engine, tmp_path / "store") as server:
        got = heard(silent(server.address, data))
        assert got.count(b"HTTP/1.1") == 1 and b" 400 " in got
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "two_lengths"
        told = json.loads(heard(silent(server.address, b"\0\1\2\3\r\n\r\n")).partition(b"\r\n\r\n")[2])
        assert told["error"]["type"] == "invalid_request_error"
