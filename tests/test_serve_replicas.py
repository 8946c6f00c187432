"""Replicas on Ray Serve: `make test-ray`. A folder of steerings that several servers share is tested without Ray."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import steerlab as sl
from serving import Here, shift, solo
from steerlab.errors import ConfigError
from steerlab.serve.keys import Keys
from steerlab.serve.replicas import Plan, serve_replicas
from steerlab.serve.settings import Settings
from steerlab.testing import tiny

ASKED = "Describe a kitchen."
DRAWN = {"max_new_tokens": 16, "temperature": 0.7}


# --- servers that share a folder -----------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    engine = tiny.engine("llama")
    servers = [Here(engine, tmp_path / "store", shared=True) for _ in range(2)]
    yield engine, *servers
    for server in servers:
        server.close()


def put(server, name: str, steering, folder: Path):
    steering.save(folder / "s.safetensors")
    return server.ask("PUT", f"/v1/steerings/{name}", content=(folder / "s.safetensors").read_bytes())


def names(server) -> list[str]:
    return [row["name"] for row in server.ask("GET", "/v1/steerings").json()["data"]]


def test_what_one_server_takes_in_or_removes_is_so_for_the_other_at_once(pair, tmp_path):
    engine, one, two = pair
    first, second = shift(engine, 1), shift(engine, 2)
    assert put(one, "kept", first, tmp_path).status_code == 201
    asked = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 4, "temperature": 0, "steering": "kept"}
    told = [server.post("/v1/chat/completions", **asked).json() for server in (one, two)]
    assert [t["steering"]["applied"][0]["digest"] for t in told] == [first.digest] * 2
    assert told[0]["choices"][0]["message"] == told[1]["choices"][0]["message"]
    assert two.post("/v1/chat/completions", **{**asked, "steering": first.digest[:12]}).status_code == 200
    assert put(two, "kept", first, tmp_path).status_code == 200
    assert put(two, "kept", second, tmp_path).status_code == 409
    assert put(two, "other", second, tmp_path).status_code == 201
    assert names(one) == names(two) == ["kept", "other"]
    assert two.ask("DELETE", "/v1/steerings/kept").status_code == 200
    assert one.post("/v1/chat/completions", **asked).status_code == 404
    assert names(one) == ["other"]
    assert put(one, "kept", second, tmp_path).status_code == 201  # the name is free again, for something else
    assert two.post("/v1/chat/completions", **asked).json()["steering"]["applied"][0]["digest"] == second.digest


def test_of_two_at_once_one_has_the_name(pair, tmp_path):
    engine, one, two = pair
    bodies = []
    for seed in (1, 2):
        shift(engine, seed).save(tmp_path / "s.safetensors")
        bodies.append((tmp_path / "s.safetensors").read_bytes())
    for turn in range(8):
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda s=s, b=b, t=turn, to=found: to.append(_write(s, f"n{t}", b)))
            for s, b in zip((one, two), bodies)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [201, 409]


def _write(server, name: str, data: bytes) -> int:
    from steerlab.serve.problems import Problem

    store = server.service.store
    try:
        return 201 if store.write(store.read(name, data), data) else 200
    except Problem as problem:
        return problem.status


def test_what_somebody_puts_there_by_hand_is_held_against_the_model(pair, tmp_path):
    _, one, _ = pair
    shift(tiny.engine("gpt2"), 1).save(tmp_path / "store" / "alien.safetensors")
    told = one.chat("w1", steering="alien", max_tokens=1)
    assert told.status_code == 409
    assert "fitted on tiny gpt2" in told.json()["error"]["message"]
    assert names(one) == []


def test_replicas_need_ray_serve_keys_and_sense(tmp_path, monkeypatch):
    settings = Settings(store=tmp_path)
    with pytest.raises(ConfigError, match="expected at least 1, and no more than the most"):
        Plan("pilot", settings, Keys(), replicas=3, most=2)
    plan = Plan("pilot", settings, Keys(), replicas=2)
    with pytest.raises(ConfigError, match="there are no keys"):
        serve_replicas(plan, "0.0.0.0", 8000, address=None, told=print)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'steerlab\[ray,serve\]'"):
        serve_replicas(plan, "127.0.0.1", 8000, address=None, told=print)


# --- Ray Serve -------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    """A Ray cluster of this machine, in a process that is ended after."""
    if not os.environ.get("STEERLAB_RAY"):
        pytest.skip("takes Ray Serve and a minute: `make test-ray` installs it and runs this")
    head, address = None, ""
    for turn in range(6):  # Ray gives a node 30 seconds, which a busy machine may not have
        head, address = started(tmp_path / f"ray-{turn}.log")
        if head is not None:
            break
    assert head is not None, (tmp_path / "ray-5.log").read_text()[-3000:]
    yield address
    head.send_signal(signal.SIGTERM)
    head.wait(timeout=120)
    shutil.rmtree(f"/tmp/ray-{address.rsplit(':', 1)[1]}", ignore_errors=True)


def started(path: Path) -> tuple[subprocess.Popen | None, str]:
    """A head node and its address; none where it gave up."""
    port = free_port()
    words = [
        *(
            "start",
            "--head",
            "--block",
            f"--port={port}",
            "--num-cpus=4",
            "--include-dashboard=false",
            "--node-ip-address=127.0.0.1",
        ),
        *("--disable-usage-stats", f"--temp-dir=/tmp/ray-{port}", "--object-store-memory=100000000"),
    ]
    with path.open("wb") as log:
        head = subprocess.Popen([Path(sys.executable).parent / "ray", *words], stdout=log, stderr=log)
    while head.poll() is None:
        if "Ray runtime started" in path.read_text():
            return head, f"127.0.0.1:{port}"
        time.sleep(0.2)
    return None, ""


def deploy(folder: Path, cluster: str, port: int, *more: str) -> None:
    """`steerlab serve --replicas 2`, which comes back once the replicas are there."""
    words = [
        "serve",
        "kitchen-1.safetensors",
        "--store",
        "store",
        "--port",
        str(port),
        "--replicas",
        "2",
        "--ray-address",
        cluster,
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "steerlab", *words, *more], cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert re.search(rf"serving pilot on http://127.0.0.1:{port}", ran.stderr), ran.stderr[-2000:]


def test_steerings_and_replicas_are_replaced_under_load_and_no_request_fails(cluster, tmp_path, capsys):
    engine, port = sl.load("pilot"), free_port()
    versions = [shift(engine, n, 1.5, "3") for n in (1, 2)]
    for n, steering in enumerate(versions, 1):
        steering.save(tmp_path / f"kitchen-{n}.safetensors")
    wanted = {f"kitchen-{n}": solo(engine, ASKED, s, 3, **DRAWN)[0].text for n, s in enumerate(versions, 1)}
    address = f"http://127.0.0.1:{port}"
    deploy(tmp_path, cluster, port)

    current, over = ["kitchen-1"], threading.Event()
    failed: list[str] = []
    answered: list[tuple[str, str]] = []  # the steering, and the replica

    def ask_on_and_on() -> None:
        with httpx.Client(timeout=300) as client:
            while not over.is_set():
                name = current[0]
                body = {"model": f"base+{name}", "messages": [{"role": "user", "content": ASKED}], "seed": 3, "temperature": 0.7,
                        "max_tokens": 16}  # fmt: skip
                try:
                    told = client.post(f"{address}/v1/chat/completions", json=body)
                    text = told.json()["choices"][0]["message"]["content"] if told.status_code == 200 else told.text
                except (httpx.HTTPError, ValueError) as problem:
                    failed.append(repr(problem))
                    continue
                if told.status_code != 200 or text != wanted[name]:
                    failed.append(f"{told.status_code} {text[:200]}")
                answered.append((name, told.headers.get("x-replica", "")))

    def until(wish, what: str) -> None:
        end = time.monotonic() + 300
        while not wish() and time.monotonic() < end and len(failed) < 20:
            time.sleep(0.1)
        assert wish(), f"{what} didn't come; failed: {failed[:3]}"

    threads = [threading.Thread(target=ask_on_and_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len({replica for _, replica in answered}) == 2, "an answer of each replica")
        before = {replica for _, replica in answered}

        data = (tmp_path / "kitchen-2.safetensors").read_bytes()
        assert httpx.put(f"{address}/v1/steerings/kitchen-2", content=data, timeout=300).status_code == 201
        current[0], at = "kitchen-2", len(answered)  # every replica has it from this moment on
        until(lambda: {r for n, r in answered[at:] if n == "kitchen-2"} >= before, "the new version from each replica")
        until(lambda: all(n == "kitchen-2" for n, _ in answered[-8:]), "the end of the old version")
        assert httpx.delete(f"{address}/v1/steerings/kitchen-1", timeout=300).status_code == 200

        (tmp_path / "kitchen-1.safetensors").write_bytes(data)  # what the next deployment brings is the new version
        (tmp_path / "store" / "kitchen-1.safetensors").unlink(missing_ok=True)
        at = len(answered)
        deploy(tmp_path, cluster, port, "--most-tokens", "512")
        until(lambda: len({r for _, r in answered[at:]} - before) == 2, "an answer of each new replica")
        at = len(answered)
        until(lambda: len(answered) > at + 12, "more answers")
        assert not {replica for _, replica in answered[at + 4 :]} & before
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    with capsys.disabled():
        print(f"\n{len(answered)} answers of {len({r for _, r in answered})} replicas, {len(failed)} failed")
    assert failed == []
