"""Steerings on the hub, against a stand-in of its HTTP interface on this machine (huggingface_hub itself is real)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import torch

import steerlab as sl
from steerlab import hub


class Handler(BaseHTTPRequestHandler):
    """Repositories are made, committed to, listed and fetched from; every path that was asked for is kept."""

    repos: dict[str, list[dict[str, bytes]]]
    asked: list[str]

    def log_message(self, *_):
        pass

    def _send(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        path, body = urlparse(self.path).path, self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.asked.append(f"POST {path}")
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self._send(401, {"error": "no"})
        words = path.strip("/").split("/")
        base = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}" if told.get("organization") else told["name"]
            self.repos.setdefault(name, [])
            return self._send(200, {"url": f"{base}/{name}"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        repo = "/".join(words[2:4])
        if words[4] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        rows = [json.loads(line) for line in body.splitlines()]
        files = {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
        commits = self.repos[repo]
        commits.append({**(commits[-1] if commits else {}), **files})
        oid = _oid(len(commits))
        return self._send(200, {"success": True, "commitOid": oid, "commitUrl": f"{base}/{repo}/commit/{oid}"})

    def do_HEAD(self):
        path = unquote(urlparse(self.path).path)
        self.asked.append(f"{self.command} {path}")
        words = path.strip("/").split("/")
        listing = words[0] == "api"
        repo = "/".join(words[2:4] if listing else words[:2])
        if repo not in self.repos:
            return self._send(404, {"error": "no"}, X_Error_Code="RepoNotFound")
        commits = self.repos[repo]
        revision = words[5] if listing else words[3]
        found = [n for n in range(len(commits), 0, -1) if revision in ("main", _oid(n))]
        if not found:
            return self._send(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
        files, file = commits[found[0] - 1], "/".join(words[4:])
        if listing:
            return self._send(
                200, [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in files.items()]
            )
        if file not in files:
            return self._send(404, {"error": "no"}, X_Error_Code="EntryNotFound", X_Repo_Commit=_oid(found[0]))
        data = files[file]
        return self._send(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=_oid(found[0]))

    do_GET = do_HEAD


def _oid(n):
    return f"{n:040x}"


@pytest.fixture
def served():
    Handler.repos, Handler.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(served, tmp_path):
    """A Python of its own, whose hub is the stand-in: huggingface_hub reads its settings when it is imported."""
    beside = Path(sl.__file__).parents[1]
    environment = {
        **os.environ, "HF_ENDPOINT": served, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret",
        "PYTHONPATH": str(beside), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip

    def go(*words, code=0, **more):
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, **more},
            check=False,
        )
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout, done.stderr

    return go


def made(scale=1.0):
    meta = sl.Meta(model="owner/model", method={"name": "diff_means"}, data={"concept": "tea <b>|"})
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(scale * torch.ones(8)), sl.ALL),), meta=meta)


def test_push_and_fetch(run, tmp_path):
    made().save(tmp_path / "a.safetensors")
    name = run("-m", "steerlab", "push", "a.safetensors", "me/tea", "--private")[0].strip()
    assert name == f"hf://me/tea@{_oid(1)}"
    assert Handler.repos["me/tea"][0].keys() == {"steering.safetensors", "README.md"}
    card = Handler.repos["me/tea"][0]["README.md"].decode()
    assert "base_model: owner/model" in card
    assert "| Shift | resid@1 | all | Constant |" in card
    assert made().digest in card
    assert "<b>" not in card
    shown = json.loads(run("-m", "steerlab", "show", "hf://me/tea", "--json")[0])
    assert shown["digest"] == made().digest

    made(2.0).save(tmp_path / "b.safetensors")
    script = (
        "import json, steerlab as sl\n"
        "from steerlab.errors import ArtefactError\n"
        "told = {'second': sl.push_to_hub(sl.Steering.load('b.safetensors'), 'me/tea')}\n"
        f"for key, name in {{'old': {name!r}, 'new': 'hf://me/tea'}}.items(): told[key] = sl.Steering.load(name).digest\n"
        "for bad in ('hf://me/none', 'hf://me/tea/other.safetensors', 'hf://me/tea@nowhere', 'hf://me/tea/model.pt', 'hf://me',\n"
        "            'hf://me/tea/../x.safetensors'):\n"
        "    try: told[bad] = sl.Steering.load(bad).digest\n"
        "    except ArtefactError as problem: told[bad] = str(problem)\n"
        "print(json.dumps(told))"
    )
    told = json.loads(run("-c", script)[0])
    assert told["second"] == f"hf://me/tea@{_oid(2)}"
    assert (told["old"], told["new"]) == (made().digest, made(2.0).digest)
    assert "steering.safetensors" in told["hf://me/tea/other.safetensors"]
    for bad in ("hf://me/none", "hf://me/tea@nowhere"):
        assert "can't be fetched" in told[bad]
    for bad in ("hf://me/tea/model.pt", "hf://me", "hf://me/tea/../x.safetensors"):
        assert "no name of a steering" in told[bad]
    assert not any(".pt" in path or "/me/tea/resolve/main/README" in path for path in Handler.asked)


def test_a_hub_that_refuses_or_is_away(run, tmp_path):
    made().save(tmp_path / "a.safetensors")
    _, said = run("-m", "steerlab", "push", "a.safetensors", "me/tea", code=2, HF_TOKEN="hf_wrong")
    assert "can't be written on the hub" in said
    _, said = run("-m", "steerlab", "show", "hf://me/tea", code=2, HF_HUB_OFFLINE="1")
    assert "can't be fetched" in said


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hf://a/b", ("a/b", None, "steering.safetensors")),
        ("hf:/a/b", ("a/b", None, "steering.safetensors")),
        ("hf://a/b@v1", ("a/b", "v1", "steering.safetensors")),
        ("hf://a/b@v1/x/y.safetensors", ("a/b", "v1", "x/y.safetensors")),
    ],
)
def test_names(name, wanted):
    assert hub.is_name(name)
    assert hub.parse(name) == wanted
