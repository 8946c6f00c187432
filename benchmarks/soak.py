"""A soak of `steerlab serve`: many mixed streams for minutes, uploads and deletions under way, clients that vanish.

    python benchmarks/soak.py --seconds 300 --streams 64

Every finished answer is compared with what the model says alone with the same seed, in this process, one reply at a time. Where
the two differ, the first token that does is looked up in the solo run: it is a near-tie where the draw (or, greedy, the two best
scores) lay within 1e-4 of going the other way, as kernels that round by batch shape may turn it. Anything else is an error.

At the end SIGTERM comes while streams run (all must end well), then the server is started again, killed while steerings are
uploaded, and started a third time (none may be lost). Prints `bar NAME VALUE GOAL` lines; a value at or above its goal is good.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch

import steerlab as sl
from steerlab.engines import hf_generate

NEAR = 1e-4
PROMPTS = (
    "Describe a kitchen.", "Tell me about tea.", "Write about the sea and a ship.", "What is a tide?", "Name three animals.",
    "Tell me about bees and what they do all day in the garden.", "How does one make bread?", "Describe a garden in spring.",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One distinct request: what is asked, under what, and how it is drawn."""

    text: str
    terms: tuple[tuple[str, float, str | None], ...]
    temperature: float
    seed: int
    tokens: int

    def body(self, stream: bool) -> dict:
        steering = [{"name": n, "strength": s, **({"positions": p} if p else {})} for n, s, p in self.terms]
        return {
            "model": "base", "messages": [{"role": "user", "content": self.text}], "steering": steering, "stream": stream,
            "temperature": self.temperature, "seed": self.seed, "max_tokens": self.tokens,
        }  # fmt: skip

    def steering(self, held: dict[str, sl.Steering]) -> sl.Steering | None:
        whole = None
        for name, strength, positions in self.terms:
            one = held[name].scaled(strength)
            if positions:
                moved = [
                    sl.Intervention(i.site, i.edit, sl.Positions.parse(positions), i.control) for i in one.interventions
                ]
                one = sl.Steering(tuple(moved), meta=one.meta)
            whole = one if whole is None else whole + one
        return whole


@dataclass
class Tally:
    finished: list[tuple[Item, str]] = field(default_factory=list)
    vanished: int = 0
    busy: int = 0
    uploads: int = 0
    failed: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first piece of a stream
    memory: list[float] = field(default_factory=list)


def steerings(engine) -> dict[str, sl.Steering]:
    """Shifts from class means, clamps of random planes, and the same with a gate for each token."""
    made = {
        name: sl.method("diff_means").fit(engine, sl.read_data(f"pilot:{name}", n=16)) for name in ("pirate", "formal")
    }
    (one,) = made["pirate"].interventions
    generator = torch.Generator().manual_seed(1)
    q = torch.linalg.qr(torch.randn(one.edit.width, 4, generator=generator)).Q.T
    for name, site in (("plane", 2), ("deep", 5)):
        edit = sl.Clamp(q, torch.full((4,), 1.0), torch.full((4,), -1.0))
        made[name] = sl.Steering((sl.Intervention(sl.Site(site), edit),), meta=made["pirate"].meta)
    gate = sl.Gate(one.site, torch.randn(one.edit.width, generator=generator), 0.0)
    made["gated"] = sl.Steering((sl.Intervention(one.site, one.edit, one.positions, gate),), meta=made["pirate"].meta)
    return made


def items(names: list[str], how_many: int, rng: random.Random) -> list[Item]:
    """Distinct requests, a quarter of them unsteered, some greedy."""
    made = []
    for n in range(how_many):
        chosen = rng.sample(names, rng.choice((0, 1, 1, 2)))
        terms = tuple(
            (name, rng.choice((-1.0, -0.5, 0.5, 1.0)), rng.choice((None, None, "generated", "prompt")))
            for name in chosen
        )
        made.append(Item(rng.choice(PROMPTS), terms, rng.choice((0.0, 0.7, 1.0)), n, rng.choice((8, 24, 48))))
    return made


class Server:
    """`steerlab serve` in a process of its own."""

    def __init__(self, folder: Path, store: Path, *words: str) -> None:
        self.log = folder / f"server-{time.time_ns()}.log"
        command = [sys.executable, "-m", "steerlab", "serve", "--port", "0", "--store", str(store), *words]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stderr=log)
        while not (found := re.findall(r" on (http://\S+)", self.log.read_text())):
            if self.process.poll() is not None:
                raise SystemExit(f"the server didn't come up:\n{self.log.read_text()}")
            time.sleep(0.05)
        self.address = found[0]

    def memory(self) -> float:
        """Resident MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


async def said(
    client: httpx.AsyncClient, item: Item, stream: bool, leave_after: float | None, first: list[float] | None = None
) -> str | None:
    """The text of an answer; None where this client left before its end. `first` gets the seconds to its first piece."""
    path = "/v1/chat/completions"
    if not stream:
        try:
            answer = await client.post(path, json=item.body(False), timeout=httpx.Timeout(600, read=leave_after or 600))
        except httpx.ReadTimeout:
            return None
        answer.raise_for_status()
        return answer.json()["choices"][0]["message"]["content"]
    text, began, ended = "", time.monotonic(), False
    async with client.stream("POST", path, json=item.body(True), timeout=600) as answer:
        if answer.status_code != 200:
            await answer.aread()
            answer.raise_for_status()
        async for line in answer.aiter_lines():
            if leave_after is not None and time.monotonic() - began > leave_after:
                return None
            ended = ended or line == "data: [DONE]"
            if line.startswith("data: {"):
                if first is not None and not text:
                    first.append(time.monotonic() - began)
                    first = None
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                text += "".join(c["delta"].get("content", "") for c in event["choices"])
    if not ended:
        raise RuntimeError("the stream ended before its end")
    return text


async def ask_on(client, pool, until, rng, tally) -> None:
    while time.monotonic() < until:
        item, stream = rng.choice(pool), rng.random() < 0.6
        leaves = rng.uniform(0.05, 2.0) if rng.random() < 0.1 else None
        try:
            text = await said(client, item, stream, leaves, tally.first)
        except httpx.HTTPStatusError as problem:
            if problem.response.status_code == 429:
                tally.busy += 1
                await asyncio.sleep(0.5)
                continue
            tally.failed.append(f"{problem.response.status_code} {problem.response.text[:200]}")
        except (httpx.HTTPError, RuntimeError) as problem:
            tally.failed.append(repr(problem))
        else:
            if text is None:
                tally.vanished += 1
            else:
                tally.finished.append((item, text))


async def upload_on(client, data: bytes, until: float, tally: Tally) -> None:
    """Steerings come, are used, and go while they are used."""
    n = 0
    while time.monotonic() < until:
        name, n = f"passing-{n}", n + 1
        answer = await client.put(f"/v1/steerings/{name}", content=data, timeout=600)
        if answer.status_code != 201:
            tally.failed.append(f"upload {answer.status_code} {answer.text[:200]}")
        item = Item(PROMPTS[0], ((name, 1.0, None),), 0.7, n, 16)
        running = asyncio.create_task(said(client, item, True, None))
        await asyncio.sleep(0.2)
        await client.delete(f"/v1/steerings/{name}", timeout=600)
        try:
            tally.finished.append((Item(PROMPTS[0], (("pirate", 1.0, None),), 0.7, n, 16), await running))
        except httpx.HTTPStatusError as problem:
            if problem.response.status_code != 404:  # it went before the request came
                tally.failed.append(f"{problem.response.status_code} {problem.response.text[:200]}")
        tally.uploads += 1
        await asyncio.sleep(0.5)


async def watch(server: Server, until: float, tally: Tally) -> None:
    while time.monotonic() < until:
        tally.memory.append(server.memory())
        await asyncio.sleep(1)


async def soak(server: Server, pool, data: bytes, args, tally: Tally) -> None:
    until = time.monotonic() + args.seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.address, limits=limits) as client:
        asks = [ask_on(client, pool, until, random.Random(n), tally) for n in range(args.streams)]
        await asyncio.gather(*asks, upload_on(client, data, until, tally), watch(server, until, tally))


async def drained(server: Server, pool, streams: int) -> tuple[int, int, int]:
    """Streams that ended well after SIGTERM came, of how many, and the exit code."""
    async with httpx.AsyncClient(base_url=server.address, limits=httpx.Limits(max_connections=None)) as client:
        tasks = [asyncio.create_task(said(client, item, True, None)) for item in pool[:streams]]
        while True:  # until all are in
            text = (await client.get("/metrics", timeout=600)).text
            counts = [int(re.search(rf"^steerlab_{k} (\d+)", text, re.MULTILINE)[1]) for k in ("running", "waiting")]
            if sum(counts) >= len(tasks) or any(task.done() for task in tasks):
                break
            await asyncio.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        found = await asyncio.gather(*tasks, return_exceptions=True)
    return sum(isinstance(one, str) for one in found), len(found), server.process.wait(timeout=600)


async def killed(server: Server, data: bytes, names: list[str]) -> list[str]:
    """Names whose upload was confirmed before SIGKILL came in the middle of others."""
    kept: list[str] = []
    async with httpx.AsyncClient(base_url=server.address) as client:

        async def put(name: str) -> None:
            if (await client.put(f"/v1/steerings/{name}", content=data, timeout=600)).status_code == 201:
                kept.append(name)
                if len(kept) == len(names) // 2:
                    server.process.kill()

        await asyncio.gather(*(put(name) for name in names), return_exceptions=True)
    server.process.wait()
    return kept


class Margins:
    """How near each step of a solo run was to another token."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._sample, self._chosen = hf_generate.sample, hf_generate.Decoder._chosen

    def __enter__(self) -> Margins:
        def sample(scores, sampling, uniform):
            probs = torch.softmax(scores.double() / sampling.temperature, dim=-1)
            summed = probs.sort(dim=-1, descending=True, stable=True).values.cumsum(dim=-1)
            self.steps[-1] = float((summed - uniform[:, None]).abs().min())
            return self._sample(scores, sampling, uniform)

        def chosen(decoder, scores):
            best = scores.topk(2, dim=-1).values
            self.steps.append(float(best[0, 0] - best[0, 1]))
            return self._chosen(decoder, scores)

        hf_generate.sample, hf_generate.Decoder._chosen = sample, chosen
        return self

    def __exit__(self, *_) -> None:
        hf_generate.sample, hf_generate.Decoder._chosen = self._sample, self._chosen


def compare(engine, held, finished) -> tuple[int, int, list[str]]:
    """Answers that equal their solo runs, near-ties, and the others in words."""
    alone: dict[Item, tuple[sl.Reply, list[float]]] = {}
    equal, near, wrong = 0, 0, []
    for item, text in finished:
        if item not in alone:
            with Margins() as margins:
                sampling = sl.Sampling(item.tokens, item.temperature, seed=item.seed)
                reply = engine.generate([item.text], item.steering(held), sampling)[0]
            alone[item] = (reply, margins.steps)
        reply, steps = alone[item]
        if text == reply.text:
            equal += 1
            continue
        said = [engine.renderer.text(reply.ids[: k + 1]) for k in range(len(reply.ids))]
        at = next((k for k, s in enumerate(said) if not text.startswith(s.rstrip("\ufffd"))), len(said))
        if at < len(steps) and steps[at] < NEAR:
            near += 1
        else:
            margin = steps[at] if at < len(steps) else float("nan")
            wrong.append(f"{item}: {text!r} for {reply.text!r} (token {at}, margin {margin:.2g})")
    return equal, near, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--items", type=int, default=200, help="Distinct requests.")
    parser.add_argument("--model", default="pilot")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = sl.load(args.model)
    held, rng, tally = steerings(engine), random.Random(0), Tally()
    pool = items(list(held), args.items, rng)
    print(f"{args.streams} streams for {args.seconds:g} s on {engine.name}, {args.items} distinct requests,"
          f" {os.cpu_count()} cores, torch {torch.__version__}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "store"
        store.mkdir()
        for key, steering in held.items():
            steering.save(store / f"{key}.safetensors")
        data = (store / "pirate.safetensors").read_bytes()
        words = ("--model", args.model, "--timeout", "600", "--drain", "600")
        server = Server(folder, store, *words)
        asyncio.run(soak(server, pool, data, args, tally))
        long = [i for i in pool if i.tokens == 48]
        well, of, code = asyncio.run(drained(server, long, args.streams))
        names = [f"kept-{n}" for n in range(10)]
        kept = asyncio.run(killed(Server(folder, store, *words), data, names))
        third = Server(folder, store, *words)
        listed = {row["name"] for row in httpx.get(f"{third.address}/v1/steerings").json()["data"]}
        third.process.terminate()
        third.process.wait()
        if "traceback" in server.log.read_text():
            tally.failed.append(f"the server's log has a traceback: {server.log.read_text()[-2000:]}")
    print(
        f"{len(tally.finished)} finished, {tally.vanished} left, {tally.busy} were told to come again, {tally.uploads} uploads"
    )
    equal, near, wrong = compare(engine, held, tally.finished)
    if tally.first:
        first = sorted(tally.first)
        at = [first[int(q * (len(first) - 1))] for q in (0.5, 0.95)]
        print(f"time to a stream's first piece: median {at[0]:.2f} s, 95 % within {at[1]:.2f} s")
    print(f"{equal} equal their solo runs, {near} differ from a recorded near-tie on, {len(wrong)} differ otherwise")
    for line in (wrong + tally.failed)[:20]:
        print(" ", line)
    half = len(tally.memory) // 2
    early, late = (
        sorted(part)[len(part) // 2] for part in (tally.memory[half // 2 : half], tally.memory[-half // 2 :])
    )
    print(f"memory: {early:.0f} MiB in the second quarter, {late:.0f} MiB in the last")
    total = max(1, len(tally.finished))
    print(f"bar soak-equal-or-near-tie {(equal + near) / total:.6f} 1")
    print(f"bar soak-equal {equal / total:.6f} 0.99")
    print(f"bar soak-answered {total / (total + len(tally.failed)):.6f} 1")
    print(f"bar soak-memory-flat {early / late:.4f} 0.95")
    print(f"bar soak-drained {well / of * (code == 0):.4f} 1")
    print(f"bar soak-kept {len(listed & set(kept)) / max(1, len(kept)):.4f} 1")
    return 0 if not wrong and not tally.failed else 1


if __name__ == "__main__":
    sys.exit(main())
