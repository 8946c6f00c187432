"""A server over HTTP, as a client sees it: found at an address, or started as `steerlab serve` and stopped again."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event
from typing import Any, NamedTuple

import torch

from ..engines.hf import HFEngine
from ..errors import ArtefactError, ConfigError, UnsupportedError
from ..steering import Steering
from ._replies import Said
from .base import Options
from .vllm import python_of, write_checkpoint

SECONDS, COMPILED = 600.0, 3600.0  # that a server has to come up
PATIENCE = 300.0  # seconds for one answer
TRIES, LONGEST_WAIT = 20, 30.0  # where a server says to come again


class Answer(NamedTuple):
    """A reply as it came: what was said, the prompt as the server wrote it, what it says it applied, and from when to when."""

    said: Said
    prompt: tuple[int, ...]
    applied: list[tuple[str, float]]
    when: tuple[float, float]


class Client:
    """Asks one server. Raises `UnsupportedError` with the server's sentence where it refuses, `ArtefactError` where it fails."""

    def __init__(self, url: str, key: str | None = None, *, direct: bool = False) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the server's url is {url!r}; expected http://... or https://....")
        self.url, self._key = url.rstrip("/").removesuffix("/v1"), key
        proxies = [urllib.request.ProxyHandler({})] if direct else []
        self._open = urllib.request.build_opener(_Stays, *proxies).open

    def has(self, steering: Steering) -> bool:
        """Whether the server has it under any name."""
        with self._send("GET", "/v1/steerings") as response:
            return steering.digest in {row["digest"] for row in _json(response.read())["data"]}

    def upload(self, steering: Steering) -> str:
        """Put it there; the name."""
        name = f"verify-{steering.digest[:16]}"
        with tempfile.TemporaryDirectory(prefix="steerlab-") as folder:
            steering.save(Path(folder) / "it.safetensors")
            data = (Path(folder) / "it.safetensors").read_bytes()
        with self._send("PUT", f"/v1/steerings/{name}", data, "application/octet-stream") as response:
            response.read()
        return name

    def remove(self, name: str) -> str | None:
        """Take it away; why it couldn't be."""
        try:
            with self._send("DELETE", f"/v1/steerings/{name}") as response:
                response.read()
        except (UnsupportedError, ArtefactError) as problem:
            return str(problem)
        return None

    def ask(self, body: dict[str, Any]) -> Answer:
        """One reply, whole."""
        began = time.monotonic()
        with self._chat(body) as response:
            told = _json(response.read())
        try:
            choice = told["choices"][0]
            logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
            return _answer(choice["token_ids"], logprobs, told["prompt_token_ids"], told["steering"], began)
        except (KeyError, IndexError, TypeError) as problem:
            raise self._strange(problem) from problem

    def stream(self, body: dict[str, Any], begun: Callable[[], None] | None = None) -> Answer:
        """One reply, piece by piece; it begins with the first piece, when `begun` is called."""
        ids: list[int] = []
        logprobs: list[float] = []
        first: dict[str, Any] | None = None
        began, ended = 0.0, False
        with self._chat({**body, "stream": True}) as response:
            try:
                for line in response:
                    data = line.strip().removeprefix(b"data: ")
                    if data == b"[DONE]":
                        ended = True
                    if not data.startswith(b"{"):
                        continue
                    told = _json(data)
                    if "error" in told:
                        kind = ArtefactError if told["error"]["type"] == "server_error" else UnsupportedError
                        raise kind(f"{self.url} ended a stream: {told['error']['message']}")
                    if first is None:
                        first, began = told, time.monotonic()
                        if begun is not None:
                            begun()
                    for choice in told["choices"]:
                        ids += choice.get("token_ids") or []
                        logprobs += [t["logprob"] for t in (choice["logprobs"] or {"content": []})["content"]]
                if first is None or not ended:
                    raise ArtefactError(f"a stream of {self.url} broke off.")
                return _answer(ids, logprobs, first["prompt_token_ids"], first["steering"], began)
            except (KeyError, TypeError) as problem:
                raise self._strange(problem) from problem
            except (OSError, http.client.HTTPException) as problem:
                raise ArtefactError(f"a stream of {self.url} broke off: {problem}.") from problem

    def together(self, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        """Replies that are asked for at one moment, each streamed on a connection of its own."""
        gate = Barrier(len(bodies))

        def one(body: dict[str, Any]) -> Answer:
            gate.wait()
            return self.stream(body)

        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(one, bodies))

    def in_turn(self, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        """Streamed replies of which every second is asked for when the one before it has begun."""
        begun = [Event() for _ in bodies]

        def one(n: int) -> Answer:
            try:
                if n % 2:
                    begun[n - 1].wait()
                return self.stream(bodies[n], begun[n].set)
            finally:
                begun[n].set()

        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(one, range(len(bodies))))

    def _chat(self, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        return self._send("POST", "/v1/chat/completions", data, "application/json")

    def _send(self, method: str, path: str, data: bytes | None = None, kind: str | None = None) -> Any:
        """The response, open. Waits and tries again where the server is busy and says so."""
        head = {
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            **({"Content-Type": kind} if kind else {}),
        }
        for attempt in range(TRIES):
            request = urllib.request.Request(self.url + path, data, head, method=method)
            try:
                return self._open(request, timeout=PATIENCE)
            except urllib.error.HTTPError as problem:
                wait = problem.headers.get("Retry-After")
                if problem.code != 429 or attempt == TRIES - 1:
                    raise self._refused(problem) from problem
                problem.close()
                time.sleep(min(LONGEST_WAIT, float(wait) if wait and wait.isdigit() else 1.0))
            except (OSError, http.client.HTTPException) as problem:
                raise ArtefactError(f"{self.url} isn't reached: {getattr(problem, 'reason', problem)}.") from problem
        raise AssertionError

    def _refused(self, problem: urllib.error.HTTPError) -> Exception:
        with problem:
            raw = problem.read(4000)
        try:
            said = str(_json(raw)["error"]["message"])
        except (ArtefactError, KeyError, TypeError):
            said = f"{problem.reason}; is this a server of steerlab's?"
        if problem.code in (401, 403):
            said += " The key is read from the variable that --key-env names."
        kind = ArtefactError if problem.code >= 500 else UnsupportedError
        return kind(f"{self.url} answers {problem.code}: {said}")

    def _strange(self, problem: Exception) -> ArtefactError:
        return ArtefactError(
            f"{self.url} doesn't answer as steerlab's server does ({type(problem).__name__} {problem}); an older version?"
        )


class _Stays(urllib.request.HTTPRedirectHandler):
    """A redirection isn't followed: the key is for the address that was given."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """None: the caller gets the redirection as an error."""


def _answer(ids: Any, logprobs: Any, prompt: Any, steering: Any, began: float) -> Answer:
    applied = [(str(part["digest"]), float(part["strength"])) for part in steering["applied"]]
    said = Said(tuple(ids), torch.tensor(logprobs, dtype=torch.float64))
    return Answer(said, tuple(prompt), applied, (began, time.monotonic()))


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as problem:
        raise ArtefactError(f"the server's answer is no JSON: {raw[:80]!r}.") from problem


@contextmanager
def started(engine: HFEngine, steering: Steering, options: Options) -> Generator[Client]:
    """`steerlab serve` on the model as it is in memory, in a process of its own, with the steering and a key of its own."""
    vllm = options.server_engine == "vllm"
    python = python_of(options) if vllm else sys.executable
    key = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="steerlab-") as name:
        folder = Path(name)
        write_checkpoint(engine, folder / "model")
        steering.save(folder / "it.safetensors")
        words = [
            python, "-m", "steerlab", "serve", "it.safetensors", "--model", str(folder / "model"), "--port", "0",
            "--store", "store", "--dtype", str(engine.model.dtype).removeprefix("torch."), "--template",
            engine.renderer.template, *(_vllm(engine) if vllm else ("--device", str(engine.device))),
        ]  # fmt: skip
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1",
               "STEERLAB_API_KEY": key, "HF_HUB_OFFLINE": "1"}  # fmt: skip
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(words, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            yield Client(_address(process, log, COMPILED if vllm else SECONDS), key, direct=True)
        finally:
            _end(process)


def _vllm(engine: HFEngine) -> tuple[str, ...]:
    given = json.dumps({"enforce_eager": True, "max_model_len": min(engine.context, 4096)})
    return ("--engine", "vllm", "--engine-options", given)


def _address(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended = process.poll() is not None
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"serving .+ on (http://\S+)", text):
            return found[1]
        if ended:
            last = " ".join(text.strip().splitlines()[-3:])[-600:] or "nothing was said"
            kind = UnsupportedError if process.returncode == 2 else ArtefactError  # 2: said in a sentence
            raise kind(f"`steerlab serve` ended with {process.returncode} before it served: {last}")
        time.sleep(0.05)
    raise ArtefactError(f"`steerlab serve` didn't come up within {seconds:g} s.")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
