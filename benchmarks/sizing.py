"""What docs/sizing.md says, measured: memory of a thousand steerings, and tokens a second of one server. `make sizing`.

1. A thousand different files of each kind at a width of 4096 are written, read as a server reads them, and held: bytes on disk and
   resident bytes of the process.
2. `steerlab serve` on the built-in model, so many streams at once, each asking anew when its answer has ended: tokens a second and the time
   to the first token, unsteered, and each stream under its own of 64 distinct steerings; rounds in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import statistics
import tempfile
import time
import uuid
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httpx
import torch

import steerlab as sl
from steerlab.serve.store import Entry

WIDTH, LAYERS = 4096, 32
DISTINCT = 64


def resident() -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def steering(kind: str, width: int, block: int, seed: int, meta: sl.Meta | None = None) -> sl.Steering:
    generator = torch.Generator().manual_seed(seed)
    given = {} if meta is None else {"meta": meta}
    if kind == "clamp of rank 8":
        return sl.Steering((sl.Intervention(sl.Site(block), clamp(width, generator)),), **given)
    sites = range(LAYERS) if kind == "shift at 32 blocks" else [block]
    made = [sl.Intervention(sl.Site(n), sl.Shift(0.02 * torch.randn(width, generator=generator))) for n in sites]
    return sl.Steering(tuple(made), **given)


def clamp(width: int, generator: torch.Generator) -> sl.Clamp:
    q = torch.linalg.qr(torch.randn(width, 8, generator=generator)).Q.T.contiguous()
    return sl.Clamp(q, torch.ones(8), -torch.ones(8))


def memory(count: int, folder: Path) -> None:
    for kind in ("shift", "clamp of rank 8", "shift at 32 blocks"):
        many = max(50, count // 10) if kind == "shift at 32 blocks" else count
        paths = []
        for n in range(many):
            (folder / kind).mkdir(exist_ok=True)
            path = folder / kind / f"s{n}.safetensors"
            steering(kind, WIDTH, 16, n).save(path)
            paths.append(path)
        disk = sum(path.stat().st_size for path in paths)
        gc.collect()
        before = resident()
        held = [Entry.load(path) for path in paths]
        gc.collect()
        grown = resident() - before
        print(f"  {kind:20} {disk / many / 1024:8.1f} KiB on disk each; {many} held take {grown / 2**20:7.1f} MiB:"
              f" {grown / many * 1000 / 2**20:6.1f} MiB a thousand")  # fmt: skip
        for path in paths:
            path.unlink()
        del held


async def load(address: str, streams: int, seconds: float, distinct: bool) -> tuple[float, list[float]]:
    """Tokens a second of streams that go on asking, and the times to their first tokens."""
    made, first = 0, []
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=streams)) as client:

        async def go_on(n: int) -> None:
            nonlocal made
            rng = random.Random(n)
            while time.monotonic() < until:
                body = {"model": "base", "messages": [{"role": "user", "content": "Describe a kitchen."}], "max_tokens": 64,
                        "seed": rng.randrange(10**6), "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
                if distinct:
                    body["steering"] = f"s{n % DISTINCT}"
                began, waited = time.monotonic(), None
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    answer.raise_for_status()
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            if waited is None:
                                waited = time.monotonic() - began
                                first.append(waited)
                            made += (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", 0)

        began = time.monotonic()
        await asyncio.gather(*map(go_on, range(streams)))
        return made / (time.monotonic() - began), first


def throughput(seconds: float, rounds: int, folder: Path) -> None:
    from soak import Server

    engine = sl.load("pilot")
    store = folder / "store"
    store.mkdir()
    meta = sl.Meta(engine.name, fingerprint=engine.fingerprint, template=engine.template)
    width = engine.width(sl.Site(3))
    for n in range(DISTINCT):
        kind = "clamp of rank 8" if n % 2 else "shift"
        steering(kind, width, 3, n, meta).save(store / f"s{n}.safetensors")
    server = Server(folder, store)
    try:
        asyncio.run(load(server.address, 8, 2, True))
        for streams in (1, 4, 16, 64):
            rates: dict[bool, list[float]] = {False: [], True: []}
            waits: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(rounds):
                for distinct in random.Random(turn).sample([False, True], 2):
                    rate, first = asyncio.run(load(server.address, streams, seconds, distinct))
                    rates[distinct].append(rate)
                    waits[distinct] += first
            plain, own = (statistics.median(rates[d]) for d in (False, True))
            ms = [1000 * statistics.median(waits[d]) for d in (False, True)]
            print(f"  {streams:3} streams: {plain:7.1f} tokens/s unsteered (first after {ms[0]:5.0f} ms), {own:7.1f} each under its own"
                  f" ({ms[1]:5.0f} ms)")  # fmt: skip
        print(f"  the server holds {server.memory():.0f} MiB")
    finally:
        server.process.terminate()
        server.process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("memory", "throughput"))
    given = parser.parse_args()
    print(f"run {uuid.uuid4().hex[:8]}: {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "throughput":
            print(f"steerings of width {WIDTH}")
            memory(given.count, Path(folder))
        if given.only != "memory":
            print("the built-in model, replies of up to 64 tokens")
            throughput(given.seconds, given.rounds, Path(folder))


if __name__ == "__main__":
    main()
