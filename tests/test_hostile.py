"""Five hundred hostile requests on real sockets (`make test-hostile`), and a few of each kind in the ordinary tests.

Each gets a clear 4xx; meanwhile another client's requests are answered as ever; nothing of its words, of a key, or of the
inside is told to anybody; and the server's process, folder and log are afterwards as they were.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import steerlab as sl
from hostile import ADMIN, BODY, CHAT, KINDS, UPLOAD, USE, Attack, answer_to, corpus
from serving import Listening, process, shift
from steerlab.serve.keys import Keys
from steerlab.testing import tiny

FULL = bool(os.environ.get("STEERLAB_HOSTILE"))
SECRET = "w77 w78 w79"
PLAIN = (
    "Invalid HTTP request received.",
    "the request's headers didn't come in time",
)  # before there is a request to answer


@contextlib.contextmanager
def under_attack(tmp_path):
    """A server's address and what its log says in the end; in the full run a process of its own, with the built-in model."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys: [{{name: app, key: {USE}}}]\n")
    engine = sl.load("pilot") if FULL else tiny.engine("llama")
    shift(engine, 1, 1.5).save(tmp_path / "formal.safetensors")
    if not FULL:
        store = tmp_path / "store"
        store.mkdir()
        shutil.copy(tmp_path / "formal.safetensors", store)
        known = Keys.read(keys, ADMIN)
        with Listening(engine, store, known, body=BODY, upload=UPLOAD, patience=1.0) as server:
            yield server.address, lambda: ""
        return
    words = ("formal.safetensors", "--keys", str(keys), "--body", str(BODY), "--upload", str(UPLOAD), "--patience", "1")
    with process(*words, folder=tmp_path, environment={"STEERLAB_API_KEY": ADMIN}) as server:
        yield server.address, server.log.read_text
        assert server.process.poll() is None


def other_client(address: str, model: str = "base+0.5*formal") -> str:
    body = {"model": model, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 6, "seed": 5}
    headers = {"authorization": f"Bearer {USE}"}
    told = httpx.post(f"{address}{CHAT}", json=body, headers=headers, timeout=120)
    assert told.status_code == 200, told.text
    return told.json()["choices"][0]["message"]["content"]


def clear(attack: Attack, status: int, body: str) -> str | None:
    """What is wrong with an answer; None where it is a 4xx with a sentence that tells nothing of the inside."""
    if status not in attack.statuses:
        return f"{status}; expected one of {attack.statuses[:3]}…"
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body
        if not any(words in body for words in PLAIN) or len(body) > 80:
            return "no sentence"
    if len(message) < 10 or len(message) > 1500:
        return f"a message of {len(message)} characters"
    inside = ("Traceback", "site-packages", "/tmp", ".py", "object at 0x", ADMIN, USE, SECRET, "root:")
    return next((f"tells {word!r}" for word in inside if word in message), None)


def test_hostile_requests_get_a_clear_4xx_and_harm_nobody(tmp_path, capsys):
    many = 40 if FULL else 2
    attacks = list(corpus((made := good(tmp_path)), many))
    assert len({hashlib.sha256(repr(a.parts).encode()).digest() for a in attacks}) == len(attacks)
    assert len(attacks) == many * len(KINDS) and made
    with under_attack(tmp_path) as (address, log):
        store = tmp_path / "store"
        host, port = address.removeprefix("http://").split(":")
        before, kept = other_client(address), contents(store)
        undisturbed, over = [], threading.Event()

        def go_on() -> None:
            while not over.wait(0.5):
                undisturbed.append(other_client(address))

        beside = threading.Thread(target=go_on)
        beside.start()
        with ThreadPoolExecutor(24) as pool:
            found = list(pool.map(lambda attack: answer_to((host, int(port)), attack), attacks))
        over.set()
        beside.join()
        wrong = [(a.kind, n % many, s, why, body[:300]) for n, (a, (s, body)) in enumerate(zip(attacks, found))
                 if (why := clear(a, s, body))]  # fmt: skip
        assert not wrong, "\n".join(map(str, wrong))
        assert set(undisturbed) <= {before}
        assert other_client(address) == before
        assert contents(store) == kept
        assert not list(tmp_path.rglob("pickled-*"))
        for line in log().splitlines():
            assert '"level": "error"' not in line and "Traceback" not in line, line
    if FULL:
        statuses = collections.Counter((a.kind, s) for a, (s, _) in zip(attacks, found))
        with capsys.disabled():
            print(f"\n{len(attacks)} different hostile requests, {len(undisturbed)} fair ones beside them")
            for (kind, status), count in sorted(statuses.items()):
                print(f"  {kind:24} {status}  {count}")


def good(tmp_path) -> bytes:
    path = tmp_path / "good.safetensors"
    shift(sl.load("pilot") if FULL else tiny.engine("llama"), 2, 1.5).save(path)
    return path.read_bytes()


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_schemathesis_finds_nothing(tmp_path):
    """What the server says of itself in /openapi.json, tried by schemathesis: no 5xx, nothing undocumented."""
    tool = os.environ.get("STEERLAB_SCHEMATHESIS")
    if not tool:
        pytest.skip("schemathesis isn't installed: `make test-hostile` installs it and runs this")
    with under_attack(tmp_path) as (address, log):
        checks = (
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
        )
        words = [
            *(
                tool,
                "run",
                f"{address}/openapi.json",
                "--header",
                f"Authorization: Bearer {ADMIN}",
                "--max-examples",
                "100",
            ),
            *("--seed", "1", "--no-color", "--request-timeout", "60", "--checks", ",".join(checks)),
        ]
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        assert "Traceback" not in log()
        assert other_client(address, "base")  # it was let remove steerings
