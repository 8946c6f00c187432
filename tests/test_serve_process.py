"""`steerlab serve` as its own process on the built-in model: clients, examples, signals, rude connections."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

import steerlab as sl
from serving import Process, process, shift, solo
from steerlab.errors import ArtefactError
from steerlab.serve.keys import Keys
from steerlab.serve.locks import Held
from steerlab.serve.run import _server
from steerlab.serve.service import Service
from steerlab.serve.settings import Settings
from steerlab.testing import tiny

DOCS = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
ASKED = "Describe a kitchen."
DRAWN = {"max_tokens": 24, "temperature": 0.7, "seed": 3}


@pytest.fixture(scope="module")
def engine():
    return sl.load("pilot")


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    shift(engine, 1, 1.5, "3").save(folder / "pirate.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with process("pirate.safetensors", "--patience", "2", "--body", "20000", folder=folder) as server:
        yield server


@pytest.fixture(scope="module")
def pirate(folder):
    return sl.Steering.load(folder / "pirate.safetensors")


def drawn():
    return {"max_new_tokens": 24, "temperature": 0.7}


def test_the_openai_client_works_unmodified(server, engine, pirate):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == ["pilot", "pilot+pirate"]
    messages = [{"role": "user", "content": ASKED}]
    alone = solo(engine, ASKED, pirate.scaled(0.8), 3, **drawn())[0]
    answer = client.chat.completions.create(
        model="pilot", messages=messages, extra_body={"steering": [{"name": "pirate", "strength": 0.8}]}, **DRAWN
    )
    assert answer.choices[0].message.content == alone.text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(alone.ids)
    assert answer.model_extra["steering"]["applied"][0]["digest"] == pirate.digest
    stream = client.chat.completions.create(
        model="base+0.8*pirate", messages=messages, stream=True, stream_options={"include_usage": True}, **DRAWN
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == alone.text
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    text = client.completions.create(model="pilot", prompt="The kitchen", max_tokens=5, logprobs=1, echo=False)
    assert len(text.choices[0].logprobs.tokens) <= 5
    with pytest.raises(openai.NotFoundError, match="Did you mean 'pirate'"):
        client.chat.completions.create(model="base+pirat", messages=messages)
    with pytest.raises(openai.BadRequestError, match="strength"):
        client.chat.completions.create(
            model="base", messages=messages, extra_body={"steering": [{"name": "pirate", "strength": "x"}]}
        )


def test_many_at_once_say_what_each_says_alone(server, engine, pirate):
    asks = [("Describe a kitchen.", 0.0), ("Tell me about tea.", 1.0), ("Write about the sea and a ship.", -0.7)] * 4
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        text, strength = asks[n]
        body = {
            "model": f"base{strength:+}*pirate",
            "messages": [{"role": "user", "content": text}],
            **DRAWN,
            "seed": n,
        }
        told = httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=300).json()
        found[n] = told["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, (text, strength) in enumerate(asks):
        assert found[n] == solo(engine, text, pirate.scaled(strength), n, **drawn())[0].text


def test_the_examples_of_the_page_run(server, folder):
    blocks = re.findall(r"(<!-- first -->\n)?```(bash|python)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    for first, kind, text in blocks:
        if first:
            continue
        text = text.replace("http://127.0.0.1:8000", server.address).replace("curl -s ", "curl -sS --fail-with-body ")
        words = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        ran = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
        assert ran.stdout.strip()
    assert (
        sl.Steering.load(folder / "copy.safetensors").digest == sl.Steering.load(folder / "pirate.safetensors").digest
    )


def raw(server: Process, data: bytes, seconds: float = 30) -> bytes:
    """What comes back for bytes as they are, until the server closes."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        got = b""
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                got += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return got


HEAD = b"HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
POST = b"POST /v1/completions " + HEAD + b"content-type: application/json\r\n"
RUDE = {
    "noise": (b"\0\1\2\3\r\n\r\n", b"400"),
    "version": (b"GET / HTTP/9.9\r\nconnection: close\r\n\r\n", b"404"),
    "two hosts": (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"400"),
    "many headers": (b"GET /health " + HEAD + b"".join(b"x-%d: y\r\n" % n for n in range(150)) + b"\r\n", b"431"),
    "long header": (b"GET /health " + HEAD + b"x: " + b"y" * 200_000 + b"\r\n\r\n", b"400"),
    "long path": (b"GET /" + b"a" * 10_000 + b" " + HEAD + b"\r\n", b"414"),
    "slow header": (b"GET /health " + HEAD + b"x", b"408"),
    "silent": (b"", b"408"),
    "slow body": (POST + b"content-length: 50\r\n\r\n{", b"408"),
    "large body": (POST + b"content-length: 99999999\r\n\r\n" + b" " * 90_000, b"413"),
    "negative": (POST + b"content-length: -5\r\n\r\n", b"400"),
    "bad chunk": (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
}


@pytest.mark.parametrize("kind", RUDE)
def test_rude_connections_get_a_4xx_and_harm_nobody(server, kind):
    data, status = RUDE[kind]
    got = raw(server, data)
    assert got.split(b" ")[1:2] == [status] or (not got and status == b"400"), got[:300]
    assert httpx.get(f"{server.address}/health").status_code == 200


def running(server: Process) -> int:
    text = httpx.get(f"{server.address}/metrics").text
    return int(re.search(r"^steerlab_running (\d+)", text, re.MULTILINE)[1])


def test_a_client_that_leaves_ends_its_replies(server):
    body = {"model": "base", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 300, "n": 4, "top_k": 2000}
    with httpx.stream(
        "POST", f"{server.address}/v1/chat/completions", json={**body, "stream": True}, timeout=60
    ) as stream:
        next(stream.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=httpx.Timeout(60, read=0.05))
    until = time.monotonic() + 60
    while running(server) and time.monotonic() < until:
        time.sleep(0.05)
    assert running(server) == 0


def test_the_log_holds_no_prompt(server):
    body = {"model": "base", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 1}
    assert httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=60).status_code == 200
    until = time.monotonic() + 30
    while '"said": "request"' not in (log := server.log.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    assert '"said": "request"' in log
    assert "kitchen" not in log


def test_uploads_survive_a_kill_and_sigterm_drains(engine, tmp_path):
    fresh = shift(engine, 5, 1.5, "3")
    fresh.save(tmp_path / "fresh.safetensors")
    first = Process("--served-model-name", "my-model", folder=tmp_path)
    assert [m["id"] for m in httpx.get(f"{first.address}/v1/models").json()["data"]] == ["my-model"]
    with pytest.raises(ArtefactError, match="in use by another server"):  # until its holder ends, killed or not
        Held(tmp_path / "store", shared=False).take()
    with (tmp_path / "fresh.safetensors").open("rb") as file:
        assert httpx.put(f"{first.address}/v1/steerings/fresh", content=file.read(), timeout=60).status_code == 201
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    with process(folder=tmp_path) as second:
        assert httpx.get(f"{second.address}/v1/steerings/fresh").json()["digest"] == fresh.digest
        body = {
            "model": "base+fresh",
            "messages": [{"role": "user", "content": ASKED}],
            **DRAWN,
            "stream": True,
            "n": 8,
        }
        with httpx.stream("POST", f"{second.address}/v1/chat/completions", json=body, timeout=300) as stream:
            lines = stream.iter_lines()
            next(lines)
            second.process.send_signal(signal.SIGTERM)
            late = httpx.post(f"{second.address}/v1/chat/completions", json={**body, "stream": False}, timeout=60)
            assert late.status_code == 503
            assert httpx.get(f"{second.address}/ready", timeout=60).status_code == 503
            said = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
            ends = [c["finish_reason"] for e in said for c in e["choices"] if c["finish_reason"]]
            assert len(ends) == 8
        assert second.process.wait(timeout=120) == 0


def rows_of(log: Path) -> list[dict]:
    """Every line of a log: each is JSON."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_second_signal_ends_streams_with_an_error_and_quietly(tmp_path):
    body = {"model": "base", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 1000, "stream": True,
            "ignore_eos": True}  # fmt: skip
    with process("--drain", "300", folder=tmp_path) as server:
        if (
            httpx.post(f"{server.address}/v1/chat/completions", json={**body, "max_tokens": 1}, timeout=60).status_code
            == 400
        ):
            body = {k: v for k, v in body.items() if k != "ignore_eos"} | {"n": 8, "temperature": 2.0}
        ends: list[dict] = []
        begun = threading.Barrier(13)

        def listen() -> None:
            with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=120) as stream:
                lines = stream.iter_lines()
                next(lines)
                begun.wait(60)
                ends.append(json.loads([line for line in lines if line][-1].removeprefix("data: ")))

        threads = [threading.Thread(target=listen) for _ in range(12)]
        for thread in threads:
            thread.start()
        begun.wait(60)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        assert time.monotonic() - began < 20
        for thread in threads:
            thread.join(60)
    assert [end["error"]["code"] for end in ends] == ["ending"] * 12
    rows = rows_of(server.log)
    assert not [row for row in rows if "traceback" in row or row["level"] in ("error", "critical")]
    assert [row["status"] for row in rows if row["said"] == "request" and row["route"].startswith("/v1/chat")]


def test_replies_given_up_in_a_hurry_are_no_death_of_the_models_thread(tmp_path):
    service = Service(tiny.engine("llama"), Settings(store=tmp_path / "store"), Keys())
    service.start()
    try:
        server = _server(service, "127.0.0.1", 0, None)
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        service.scheduler.give_up()  # the sweep may come before the next tick
        service.scheduler._thread.join(60)
        assert asyncio.run(server.on_tick(1))
    finally:
        service.stop()
    assert not server.died


def test_a_reader_that_stops_holds_up_no_end(tmp_path):
    body = {"model": "base", "prompt": "The kitchen", "max_tokens": 200, "n": 8, "logprobs": 5, "stream": True}
    with process("--timeout", "15", "--patience", "5", folder=tmp_path) as server:
        host, port = server.address.removeprefix("http://").split(":")
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.connect((host, int(port)))
            data = json.dumps(body).encode()
            one.sendall(POST.replace(b"connection: close\r\n", b"") + b"content-length: %d\r\n\r\n" % len(data) + data)
            until = time.monotonic() + 60
            while not running(server) and time.monotonic() < until:
                time.sleep(0.05)
            began = time.monotonic()
            assert server.end() == 0
            assert time.monotonic() - began < 15 + 5


FAILS = """
import sys
from pathlib import Path
from steerlab.serve.guard import tell
from steerlab.serve.keys import Keys
from steerlab.serve.run import serve
from steerlab.serve.service import Service
from steerlab.serve.settings import Settings
from steerlab.testing import tiny

service = Service(tiny.engine("llama"), Settings(store=Path(sys.argv[1])), Keys())
problems = [MemoryError("injected"), MemoryError("injected"), SystemExit("injected")]

def broken():
    raise problems.pop(0)

service.scheduler._running.step = broken
serve(service, "127.0.0.1", 0, told=lambda address: tell(f"serving it on {address} until a signal comes"))
"""


def test_what_fails_gets_500_with_a_name_and_where_the_models_thread_dies_the_process_ends_with_1(tmp_path):
    log = tmp_path / "log"
    asked = {"model": "base", "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 5}
    body = {**asked, "temperature": 0, "min_tokens": 5}  # a reply that ended with its first token would need no step
    with log.open("wb") as file:
        fails = subprocess.Popen([sys.executable, "-c", FAILS, str(tmp_path / "store")], stderr=file)
    try:
        until = time.monotonic() + 120
        while not (found := re.findall(r"on (http://\S+)", log.read_text())) and time.monotonic() < until:
            time.sleep(0.1)
        for _ in range(2):
            told = httpx.post(f"{found[0]}/v1/chat/completions", json=body, timeout=60)
            assert told.status_code == 500
            name = re.findall(r"under ([0-9a-f]{32})", told.json()["error"]["message"])[0]
            why = [row["traceback"].splitlines()[-1] for row in rows_of(log) if row.get("id") == name]
            assert why == ["MemoryError: injected"]
            assert httpx.get(f"{found[0]}/ready").status_code == 200
        told = httpx.post(f"{found[0]}/v1/chat/completions", json={**body, "stream": True}, timeout=60)
        assert "the server has ended" in told.text
        assert fails.wait(timeout=60) == 1
    finally:
        fails.kill()
        fails.wait()
    rows = rows_of(log)
    assert [row["said"] for row in rows if row["level"] == "critical"] == [
        "the model's thread has ended; the server answers no more",
        "the server ends, as the model's thread has ended",
    ]
    assert rows[-1].get("traceback") is None
    assert [row["traceback"].splitlines()[-1] for row in rows if "traceback" in row][-1] == "SystemExit: injected"


def test_all_that_was_logged_is_json_lines(server):
    raw(server, RUDE["noise"][0])
    raw(server, RUDE["negative"][0])
    assert httpx.get(f"{server.address}/nothing").status_code == 404
    until = time.monotonic() + 30
    while not any(row.get("status") == 404 for row in rows_of(server.log)) and time.monotonic() < until:
        time.sleep(0.05)
    assert {"level", "said", "time"} <= {key for row in rows_of(server.log) for key in row}
    assert any(row["said"].startswith("serving pilot on http://") for row in rows_of(server.log))


def test_an_open_address_takes_keys(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "steerlab", "serve", "--host", "0.0.0.0", "--port", "0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "there are no keys" in ran.stderr
