"""CDAS, the language-model objective, ReFT-r1 and RePS against the published loops: time, memory, equality. `make bench-training`.

Models of random weights in the shape of Gemma-2 (26 blocks, width 256, steered at block 20), one thread, both arms in one
process in turn (reference, ours, reference, ours, …), the same data, order, start and number of steps; every process begins
with an A/A line, the same arm twice. The published loops are transcribed (`peers/published.py`), which spares them what pyvene
adds. "End to end" is a whole fit: what is kept is computed anew in each. Memory is a fresh process's peak less what it held
before its first step. Ends with `bar NAME VALUE GOAL RUN` lines.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from peers import published
from torch import Tensor

import steerlab
from steerlab import progress
from steerlab.contrast import Contrast, Example
from steerlab.engines.hf import HFEngine
from steerlab.meter import Meter
from steerlab.methods.cdas import CDAS
from steerlab.methods.lm_vector import LMVector
from steerlab.methods.objectives import scaled_preference
from steerlab.methods.reft_r1 import ReFTR1
from steerlab.methods.reps import RePS
from steerlab.testing import tiny

BLOCK, DEPTH, WIDTH = 20, 26, 256
PROFILES = {"128+64": (128, 64), "axbench": (24, 128)}  # tokens of a prompt, of an answer
GOALS = {("128+64", 32768): 7.0, ("axbench", 32768): 6.0, ("128+64", 262144): 5.0}


@functools.cache
def engine(vocabulary: int) -> HFEngine:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, query_pre_attn_scalar=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    return HFEngine(model, tiny.tokenizer(), name="random weights in Gemma-2's shape", batch_size=16)


def contrast(profile: str, pairs: int, seed: int = 0) -> Contrast:
    """Pairs of a profile's lengths."""
    return of_lengths(*PROFILES[profile], pairs, seed)


def of_lengths(prompt: int, answer: int, pairs: int, seed: int = 0) -> Contrast:
    """Random words; the concept's prompt is the plain one with some words before it."""
    generator = torch.Generator().manual_seed(seed)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for _ in range(pairs):
        plain = tiny.words(generator, prompt - 18)
        sides[0].append(Example.ask(f"{tiny.words(generator, 12)} {plain}", tiny.words(generator, answer)))
        sides[1].append(Example.ask(plain, tiny.words(generator, answer)))
    return Contrast(tuple(sides[0]), tuple(sides[1]), paired=True, concept="random")


def rows_of(made: HFEngine, examples: list[Example], *, close: bool = False) -> published.Rows:
    found: published.Rows = []
    for e in examples:
        batch = made.batch([e], close=close)
        found.append((batch.ids[0].tolist(), int(batch.prompt_length[0])))
    return found


def loop_of(made: HFEngine) -> published.Loop:
    head = int(made.batch([Example.ask("w1")]).head[0])
    return published.Loop(made.model, made.anatomy.blocks[BLOCK], head)


def cdas_arms(profile: str, vocabulary: int, pairs: int, epochs: int) -> dict[str, Callable[[], Tensor]]:
    made, data, seed = engine(vocabulary), contrast(profile, pairs), 42
    recipe = CDAS.published(site=str(BLOCK), epochs=epochs, seed=seed)
    start = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed))[0]
    orders = torch.Generator().manual_seed(seed)
    order = [torch.randperm(pairs, generator=orders).tolist() for _ in range(epochs)]
    ways = []
    for p, n in data.pairs:
        crossed = [Example(n.messages, p.answer), Example(p.messages, n.answer)]
        ways.append((rows_of(made, crossed), rows_of(made, [p, n])))

    def reference() -> Tensor:
        return published.train_cdas(
            loop_of(made), ways, start / start.norm(), order, step=recipe.step, batch=recipe.batch_size
        )

    def ours() -> Tensor:
        return recipe.fit(made, data).interventions[0].edit.q[0]

    return {"reference": reference, "ours": ours}


def orders(seed: int, count: int, epochs: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator).tolist() for _ in range(epochs)]


def language_arms(profile: str, vocabulary: int, pairs: int, epochs: int) -> dict[str, Callable[[], Tensor]]:
    made, data = engine(vocabulary), contrast(profile, pairs)
    recipe = LMVector(site=str(BLOCK), factors=(2.0,), epochs=epochs, batch_size=6)
    start = (2 * torch.rand(1, WIDTH, generator=torch.Generator().manual_seed(0)) - 1) / math.sqrt(WIDTH)
    rows = rows_of(made, [Example(n.messages, p.answer) for p, n in data.pairs], close=True)

    def reference() -> Tensor:
        loop = loop_of(made)
        return 2 * published.descend(
            {"v": start[0]},
            lambda free, items, _: published.language_loss(loop, published.added(free["v"], 2.0), [rows[i] for i in items]),
            orders(0, pairs, epochs), step=recipe.step, batch=recipe.batch_size,
        )["v"]  # fmt: skip

    return {"reference": reference, "ours": lambda: recipe.fit(made, data).interventions[0].edit.v}


def reft_arms(profile: str, vocabulary: int, pairs: int, epochs: int) -> dict[str, Callable[[], Tensor]]:
    made, data = engine(vocabulary), contrast(profile, pairs)
    recipe = ReFTR1(site=str(BLOCK), epochs=epochs)
    start = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))[0]
    examples = [e for p, n in data.pairs for e in (Example(n.messages, p.answer), n)]
    rows = rows_of(made, examples, close=True)

    def reference() -> Tensor:
        loop = loop_of(made)

        def loss(free: dict[str, Tensor], items: list[int], gone: float) -> Tensor:
            seen: list[Tensor] = []
            cost = published.language_loss(loop, published.topped(free["q"], recipe.k, seen), [rows[i] for i in items])
            return cost + recipe.sparsity * gone * torch.cat(seen).mean()

        def tangent(free: dict[str, Tensor]) -> None:
            q = free["q"]
            q.grad -= (q.grad @ q.detach()) * q.detach()

        return published.descend(
            {"q": start / start.norm()}, loss, orders(0, len(rows), epochs), step=recipe.step, batch=recipe.batch_size,
            before=tangent, after=lambda free: free["q"].div_(free["q"].norm()),
        )["q"]  # fmt: skip

    def ours() -> Tensor:
        v = recipe.fit(made, data).interventions[0].edit.v
        return v / v.norm()

    return {"reference": reference, "ours": ours}


def reps_arms(profile: str, vocabulary: int, pairs: int, epochs: int) -> dict[str, Callable[[], Tensor]]:
    made, data = engine(vocabulary), contrast(profile, pairs)
    recipe = RePS(site=str(BLOCK), factors=(2.0,), epochs=epochs)
    start = (2 * torch.rand(1, WIDTH, generator=torch.Generator().manual_seed(0)) - 1) / math.sqrt(WIDTH)
    concept = rows_of(made, [Example(n.messages, p.answer) for p, n in data.pairs], close=True)
    plain = rows_of(made, list(data.negative), close=True)

    def reference() -> Tensor:
        loop = loop_of(made)

        def loss(free: dict[str, Tensor], items: list[int], _: float) -> Tensor:
            total: list[Tensor] = []
            ways = ((concept, plain, None), (plain, concept, published.nulled(free["v"], free["b"])))
            for winners, losers, edit in ways:
                edit = edit or (lambda h, touched: torch.where(touched, h + (2.0 + free["b"]) * free["v"], h))
                found = []
                for side in (winners, losers):
                    mine = [side[i] for i in items]
                    with torch.no_grad():
                        before, _count = published.summed(loop, None, mine)
                    found.append((*published.summed(loop, edit, mine), before))
                (won, n, won_before), (lost, m, lost_before) = found
                total.append(scaled_preference(won, lost, won_before, lost_before, n, m).mean())
            return torch.stack(total).mean()

        free = published.descend(
            {"v": start[0], "b": torch.zeros(1)},
            loss,
            orders(0, pairs, epochs),
            step=recipe.step,
            batch=recipe.batch_size,
        )
        return (2 + free["b"]) * free["v"]

    return {"reference": reference, "ours": lambda: recipe.fit(made, data).interventions[0].edit.v}


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def compared(arms: dict[str, Callable[[], Tensor]], repeats: int, name: str) -> float:
    """The median ratio over interleaved pairs, printed with its spread, the A/A line and the greatest difference."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    found: dict[str, Tensor] = {}
    with progress.shown(), progress.task(name, repeats * len(arms)) as bar:
        for _ in range(repeats):
            for arm, run in arms.items():
                bar.tell(arm)
                took, found[arm] = timed(run)
                times[arm].append(took)
                bar.advance()
    ratios = [a / b for a, b in zip(times["reference"], times["ours"], strict=True)]
    same = [a / b for a, b in zip(times["ours"][:-1], times["ours"][1:], strict=True)]
    off = float((found["reference"] - found["ours"]).abs().max())
    print(
        f"{name:42} reference {statistics.median(times['reference']):7.2f} s  ours {statistics.median(times['ours']):7.2f} s"
        f"  {statistics.median(ratios):5.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"
        f"  A/A {min(same, default=1):.2f} to {max(same, default=1):.2f}  |Δv| {off:.1e}",
        flush=True,
    )
    return statistics.median(ratios)


def peak(arm: str, profile: str, vocabulary: int) -> float:
    """Peak memory of one step in a fresh process, less what it held before, in MiB.

    What is freed goes back to the system at once; else the allocator's own choices make 570 or 760 MiB of the same fit.
    """
    command = [sys.executable, __file__, "--child", json.dumps([arm, profile, vocabulary])]
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
    return float(found.stdout.splitlines()[-1])


def child(arm: str, profile: str, vocabulary: int) -> None:
    torch.set_num_threads(1)
    arms = cdas_arms(profile, vocabulary, pairs=8, epochs=1)
    engine(vocabulary).head  # noqa: B018 (found before the clock starts: two tokens)
    with Meter(apart=True) as meter:  # making the model reaches higher than our fit
        arms[arm]()
        print(meter.figures()["added_mib"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4, help="of one concept")
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="parts of names, with commas between")
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        child(*json.loads(given.child))
        return
    torch.set_num_threads(1)
    run = uuid.uuid4().hex[:8]
    print(
        f"run {run}: steerlab {steerlab.__version__}, torch {torch.__version__}, transformers {transformers.__version__},"
        f" {platform.processor() or platform.machine()}, one thread; {DEPTH} blocks, width {WIDTH}, block {BLOCK};"
        f" {given.pairs} pairs, {given.epochs} epochs, {given.repeats} interleaved pairs of runs; CPU seconds",
        flush=True,
    )
    bars: list[tuple[str, float, float]] = []
    for (profile, vocabulary), goal in GOALS.items():
        name = f"cdas {profile} tokens, vocabulary {vocabulary // 1024}k"
        if given.only and not any(part in name for part in given.only.split(",")):
            continue
        repeats = given.repeats if vocabulary < 2**17 else max(2, given.repeats - 1)
        ratio = compared(cdas_arms(profile, vocabulary, given.pairs, given.epochs), repeats, name)
        bars.append((f"cdas_{profile.replace('+', '_')}_{vocabulary // 1024}k", ratio, goal))
    for kind, arms, goals in (
        ("language model", language_arms, (2.5, 2.0)), ("reft_r1", reft_arms, (2.5, 2.0)), ("reps", reps_arms, (5.0, 3.2)),
    ):  # fmt: skip
        for profile, goal in zip(PROFILES, goals, strict=True):
            name = f"{kind} {profile} tokens, vocabulary 32k"
            if given.only and not any(part in name for part in given.only.split(",")):
                continue
            ratio = compared(arms(profile, 32768, given.pairs, given.epochs), given.repeats, name)
            bars.append((f"{kind.replace(' ', '_')}_{profile.replace('+', '_')}", ratio, goal))
    for vocabulary, goal in ((32768, 3.0), (262144, 8.0)):
        name = f"memory, vocabulary {vocabulary // 1024}k"
        if given.only and not any(part in name for part in given.only.split(",")):
            continue
        theirs, ours = (peak(arm, "128+64", vocabulary) for arm in ("reference", "ours"))
        print(f"{name:42} reference {theirs:7.0f} MiB  ours {ours:7.0f} MiB  {theirs / ours:5.2f}x less", flush=True)
        bars.append((f"memory_{vocabulary // 1024}k", theirs / ours, goal))
    for name, value, goal in bars:
        print(f"bar {name} {value:.2f} {goal:.2f} {run}{'' if value >= goal else '   (short)'}")


if __name__ == "__main__":
    main()
