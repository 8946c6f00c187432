"""What steering costs when replies are made and served. `make bench-serving`.

1. One-layer hooks: a batch of 8 prompts of 64 tokens and 128 new ones, greedy, cached, on a Llama of random weights (width 256, 12
   blocks, vocabulary 8192, steered at block 6) and on the built-in model: a shift, a rank-1 clamp, the shift baked into a checkpoint, and
   nothing twice (the A/A line). Arms in turn in one process, CPU seconds of one thread; the median of the ratios to the nearest
   unsteered run, with their quartiles. Beside them what a step's hooks take by themselves, which noise hides less.
2. The published CDAS steering call, transcribed (`published_call`), against ours on the same clamp: the replies have to be the same.
3. The time to the first token of 16 streams at once at `steerlab serve` on the built-in model: all unsteered, unsteered again, and mixed
   (shifts, clamps, gates, several at once), rounds in turn, wall-clock seconds.

Ends with `bar NAME VALUE GOAL RUN` lines (at or above its goal is good) and `aim` lines, which are printed and decide nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httpx
import torch
import transformers

import steerlab as sl
from steerlab import exports
from steerlab.controls import Tokens
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.engines.hf_hooks import Hooks, Plan
from steerlab.testing import tiny

WIDTH, DEPTH, BLOCK, VOCABULARY, BATCH, PROMPT = 256, 12, 6, 8192, 8, 64
STREAMS = 16


class Line(NamedTuple):
    name: str
    value: float
    goal: float


# --- the model, the arms -----------------------------------------------------------------------------------------------


def llama() -> HFEngine:
    """Random weights that never say the end token."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[2] = 0  # its score is 0, and the best of thousands of others is above
    return HFEngine(model, tiny.tokenizer(chat=False), template="plain", batch_size=BATCH, name="random llama")


def shift_of(engine: HFEngine, block: int, positions: sl.Positions = sl.ALL) -> sl.Steering:
    width = engine.width(sl.Site(block))
    v = torch.randn(width, generator=torch.Generator().manual_seed(1))
    return sl.Steering((sl.Intervention(sl.Site(block), sl.Shift(v / v.norm()), positions),))


def clamp_of(engine: HFEngine, block: int) -> sl.Steering:
    width = engine.width(sl.Site(block))
    q = torch.randn(1, width, generator=torch.Generator().manual_seed(2))
    edit = sl.Clamp(q / q.norm(), torch.tensor([1.5]), torch.tensor([-1.5]))
    return sl.Steering((sl.Intervention(sl.Site(block), edit, sl.ALL),))


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def compared(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Each arm's speed against the unsteered run before or after it; `again` is the unsteered arm once more."""
    for work in arms.values():
        work()  # warm
    found: dict[str, list[float]] = {name: [] for name in (*arms, "again") if name != "unsteered"}
    for turn in range(repeats):
        names = list(found)
        random.Random(turn).shuffle(names)
        before = seconds(arms["unsteered"])
        for name in names:
            took = seconds(arms["unsteered" if name == "again" else name])
            after = seconds(arms["unsteered"])
            found[name].append((before + after) / 2 / took)
            before = after
    return found


def alone(engine: HFEngine, steering: sl.Steering | None, block: int, chunks: int = 20, times: int = 200) -> float:
    """CPU seconds of a step's hooks by themselves: put up, run at a block that does nothing, taken down. The median of chunks."""
    hooks = Hooks(engine.anatomy, Plan([steering] * BATCH))
    lengths, last = torch.full((BATCH,), PROMPT), torch.full((BATCH, 1), PROMPT + 5)
    hooks.tokens, hooks.head, hooks.generated = Tokens(last, last, lengths), torch.zeros_like(lengths), 5
    h, module = torch.randn(BATCH, 1, engine.width(sl.Site(block))), engine.anatomy.blocks[block]

    def steps() -> None:
        for _ in range(times):
            with hooks.attached():
                module(h)

    module.forward = lambda h: h
    try:
        with torch.no_grad():
            return statistics.median(seconds(steps) for _ in range(chunks)) / times
    finally:
        del module.forward


def told(name: str, ratios: list[float]) -> float:
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    print(
        f"  {name:12} {100 * quarters[1]:6.2f} % of the unsteered speed  (quartiles {100 * quarters[0]:.2f} to {100 * quarters[2]:.2f})"
    )
    return 100 * quarters[1]


# --- 1. hooks -----------------------------------------------------------------------------------------------------------


def hooks(engine: HFEngine, block: int, repeats: int, tokens: int, folder: Path) -> list[Line]:
    generator = torch.Generator().manual_seed(3)
    if engine.template == "plain":
        prompts = [tiny.words(generator, PROMPT) for _ in range(BATCH)]
    else:
        prompts = [f"Describe a kitchen, part {n}, and say what one does there in the morning." for n in range(BATCH)]
    asked = Sampling(tokens)

    def run(engine: HFEngine, steering: sl.Steering | None) -> Callable[[], object]:
        def work() -> list[int]:
            return [len(r.ids) for r in engine.generate(prompts, steering, asked)]

        return work

    engine.renderer.ends = ()  # every arm says as much
    shift = shift_of(engine, block)
    arms = {"unsteered": run(engine, None), "shift": run(engine, shift), "clamp": run(engine, clamp_of(engine, block))}
    plain = engine.template == "plain"
    if plain:
        exports.write(shift, folder / "baked", "baked", engine=engine)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "baked").eval()
        baked = HFEngine(model, engine.tokenizer, template="plain", batch_size=BATCH)
        arms["baked"] = run(baked, None)
        said = [[r.ids for r in e.generate(prompts, s, asked)] for e, s in ((engine, shift), (baked, None))]
        same = sum(a == b for a, b in zip(*said, strict=True))
        print(f"  of {BATCH} replies {same} of the baked checkpoint are the hook's, token by token")
    for arm, work in arms.items():
        assert (made := work()) == [tokens] * BATCH, (arm, made)
    nothing = alone(engine, None, block)
    for name, steering in (("shift", shift), ("clamp", clamp_of(engine, block))):
        took = alone(engine, steering, block) - nothing
        step = seconds(arms["unsteered"]) / tokens
        print(
            f"  {name}: {1e6 * took:.0f} µs of hooks a step by themselves, {100 * took / step:.2f} % of {1e3 * step:.1f} ms"
        )
    found = compared(arms, repeats)
    shares = {name: told(name, ratios) for name, ratios in found.items()}
    least = 100 * statistics.quantiles(found["again"], n=4)[0] if repeats > 1 else 100.0
    name = "llama" if plain else "pilot"
    lines = [Line(f"{name}_{arm}_speed", shares[arm], 98.0) for arm in ("shift", "clamp")]
    if plain and least < 95:
        print(
            f"no bar llama_baked_speed: the same arm twice is at {least:.1f} % in a quarter of the pairs; too noisy to tell"
        )
    elif plain:
        lines.append(Line("llama_baked_speed", shares["baked"], min(100.0, least)))
    return lines


# --- 2. the published call ------------------------------------------------------------------------------------------------


@torch.no_grad()
def published_call(
    engine: HFEngine, prompts: list[str], w: torch.Tensor, factor: float, block: int, tokens: int
) -> list[list[int]]:
    """concept_das's steering call (its AxBench copy, `models/model.py`: `predict_steer`, through pyvene) as its parts do it.

    Left padding; `generate(use_cache=False)`, so that each new token runs the whole sequence through the whole model; and at each
    run the block's output is gathered at the positions from the prefix on (here: all), clamped to the factor, and scattered back.
    """
    ids = [engine.renderer.prompt([sl.Message("user", p)]).ids for p in prompts]
    width = max(map(len, ids))
    rows = torch.tensor([[0] * (width - len(i)) + i for i in ids])
    mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids])

    def intervene(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        h = output if isinstance(output, torch.Tensor) else output[0]
        places = torch.arange(h.shape[1])[None, :, None].expand_as(h)
        base = torch.gather(h, 1, places)
        base = base + (factor - (base * w).sum(-1, keepdim=True)) * w
        h.scatter_(1, places, base)
        return output

    handle = engine.model.model.layers[block].register_forward_hook(intervene)
    try:
        made = engine.model.generate(
            rows, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, use_cache=False,
            pad_token_id=0,
        )  # fmt: skip
    finally:
        handle.remove()
    return made[:, width:].tolist()


def against_published(engine: HFEngine, repeats: int, tokens: int) -> list[Line]:
    generator = torch.Generator().manual_seed(4)
    prompts = [tiny.words(generator, 24 + 5 * n) for n in range(BATCH)]
    steering = clamp_of(engine, BLOCK)
    (one,) = steering.interventions
    w, factor = one.edit.q[0], float(one.edit.positive[0])
    replies: dict[str, list[list[int]]] = {}

    def theirs() -> None:
        replies["theirs"] = published_call(engine, prompts, w, factor, BLOCK, tokens)

    def ours() -> None:
        replies["ours"] = [list(r.ids) for r in engine.generate(prompts, steering, Sampling(tokens))]

    ours()
    ratios, again = [], []
    for _ in range(repeats):
        first, peer, second = seconds(ours), seconds(theirs), seconds(ours)
        ratios.append(peer / ((first + second) / 2))
        again.append(second / first)
    differ = [next((k for k, (a, b) in enumerate(zip(x, y)) if a != b), None) for x, y in zip(*replies.values())]
    print(f"  ratios {', '.join(f'{r:.1f}' for r in ratios)}; A/A {', '.join(f'{a:.2f}' for a in again)}; replies that differ:"
          f" {sum(d is not None for d in differ)} of {BATCH} (first at token {min((d for d in differ if d is not None), default='-')})")  # fmt: skip
    assert sum(d is None for d in differ) >= BATCH - 1, "more than one reply differs: that is no near-tie"
    return [Line("published_call_ratio", statistics.median(ratios), 10.0)]


# --- 3. streams -----------------------------------------------------------------------------------------------------------


async def first_tokens(address: str, bodies: list[dict]) -> list[float]:
    """Seconds to the first piece of each stream, all begun at once and read to their ends."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=600) as client:

        async def one(body: dict) -> float:
            began, first = time.monotonic(), None
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if first is None and line.startswith("data: {"):
                        first = time.monotonic() - began
            assert first is not None
            return first

        return await asyncio.gather(*map(one, bodies))


def streams(rounds: int, tokens: int, folder: Path) -> list[Line]:
    from soak import PROMPTS, Server, steerings

    engine = sl.load("pilot")
    store = folder / "store"
    store.mkdir()
    names = []
    for name, steering in steerings(engine).items():
        steering.save(store / f"{name}.safetensors")
        names.append(name)

    def bodies(mixed: bool, seed: int) -> list[dict]:
        made = []
        for n in range(STREAMS):
            chosen = random.Random(n).sample(names, 1 + n % 2) if mixed else []
            body = {"model": "base", "messages": [{"role": "user", "content": PROMPTS[n % len(PROMPTS)]}], "stream": True,
                    "max_tokens": tokens, "temperature": 0.7, "seed": seed + n,
                    "steering": [{"name": name, "strength": 0.5 + 0.1 * (n % 5)} for name in chosen]}  # fmt: skip
            made.append(body)
        return made

    server = Server(folder, store)
    found: dict[str, list[float]] = {"unsteered": [], "again": [], "mixed": []}
    try:
        asyncio.run(first_tokens(server.address, bodies(True, 0)))  # warm
        for turn in range(rounds):
            for name in random.Random(turn).sample(list(found), len(found)):
                found[name] += asyncio.run(first_tokens(server.address, bodies(name == "mixed", turn)))
    finally:
        server.process.terminate()
        server.process.wait(60)
    for name, times in found.items():
        deciles = statistics.quantiles(times, n=20)
        print(
            f"  {name:12} first token after {1000 * statistics.median(times):.0f} ms (95th percentile {1000 * deciles[-1]:.0f}), {len(times)} streams"
        )
    shares = {n: statistics.median(found["unsteered"]) / statistics.median(found[n]) for n in ("again", "mixed")}
    print(f"  A/A {shares['again']:.2f}")
    return [Line("first_token_mixed_share", shares["mixed"], 0.9)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--only", choices=("hooks", "published", "streams"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = uuid.uuid4().hex[:8]
    print(f"run {run}: {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, one thread; width {WIDTH},"
          f" {DEPTH} blocks, vocabulary {VOCABULARY}, batch {BATCH}, {given.tokens} new tokens, {given.repeats} repeats")  # fmt: skip
    bars: list[Line] = []
    aims: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        if given.only in (None, "hooks"):
            print("hooks on a Llama of random weights")
            bars += hooks(llama(), BLOCK, given.repeats, given.tokens, Path(folder))
            print("hooks on the built-in model")
            pilot = sl.load("pilot")
            aims += hooks(pilot, pilot.depth // 2, given.repeats, given.tokens, Path(folder))
        if given.only in (None, "published"):
            print("the published steering call, in CPU seconds over ours")
            bars += against_published(llama(), max(1, given.repeats // 4), given.tokens)
        if given.only in (None, "streams"):
            print(f"{STREAMS} streams at once on the built-in model")
            bars += streams(given.repeats, min(given.tokens, 24), Path(folder))
    for kind, lines in (("aim", aims), ("bar", bars)):
        for line in lines:
            short = "" if line.value >= line.goal else "   (short)"
            print(f"{kind} {line.name} {line.value:.2f} {line.goal:.2f} {run}{short}")


if __name__ == "__main__":
    main()
