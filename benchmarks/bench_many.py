"""Many concepts in one batch: equal to single fits, what it costs each, and what a second worker gives. `make bench-many`.

The models and data of `bench_training.py`: random weights in the shape of Gemma-2, steered at block 20 of 26, short prompts
and 128 answer tokens. `fit_many` trains 16 concepts whose negative examples are the same (as a sweep's are), the other
arm fits them one by one; both in one process in turn, CPU seconds. Two workers are two processes with half of the concepts
each, against one with all, in wall-clock seconds. Ends with `bar NAME VALUE GOAL RUN` lines.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench_training import BLOCK, DEPTH, WIDTH, contrast, engine

import steerlab
from steerlab.contrast import Contrast
from steerlab.methods.cdas import CDAS

PROFILE, VOCABULARY = "axbench", 32768


def concepts(count: int, pairs: int) -> list[Contrast]:
    shared = contrast(PROFILE, pairs).negative
    return [
        replace(contrast(PROFILE, pairs, seed), negative=shared, concept=f"random {seed}")
        for seed in range(1, count + 1)
    ]


def recipe(epochs: int) -> CDAS:
    return CDAS.published(site=str(BLOCK), epochs=epochs)


def directions(steerings: list[steerlab.Steering]) -> torch.Tensor:
    return torch.cat([s.interventions[0].edit.q for s in steerings])


def child(first: int, last: int, count: int, pairs: int, epochs: int) -> None:
    """Fits a part of the concepts when told to; what comes before (the model) isn't timed."""
    torch.set_num_threads(1)
    made, data = engine(VOCABULARY), concepts(count, pairs)[first:last]
    print("ready", flush=True)
    sys.stdin.readline()
    recipe(epochs).fit_many(made, data)
    print("done", flush=True)


def workers(parts: list[tuple[int, int]], count: int, pairs: int, epochs: int) -> float:
    """Wall-clock seconds until all parts are fitted, each by a process of its own."""
    command = [sys.executable, __file__, "--child"]
    started = [
        subprocess.Popen([*command, json.dumps([*part, count, pairs, epochs])], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for part in parts
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    began = time.perf_counter()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "done":
            raise SystemExit("a worker failed; its error stands above.")
    took = time.perf_counter() - began
    for process in started:
        process.communicate()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*json.loads(given.child))
        return
    torch.set_num_threads(1)
    run, made, data = uuid.uuid4().hex[:8], engine(VOCABULARY), concepts(given.concepts, given.pairs)
    made.head  # noqa: B018 (found before the clock starts)
    print(
        f"run {run}: steerlab {steerlab.__version__}, torch {torch.__version__}, one thread; {DEPTH} blocks, width {WIDTH},"
        f" block {BLOCK}; {given.concepts} concepts of {given.pairs} pairs, {given.epochs} epochs, {given.repeats} interleaved runs",
        flush=True,
    )
    times: dict[str, list[float]] = {"alone": [], "together": []}
    found: dict[str, torch.Tensor] = {}
    for _ in range(given.repeats):
        began = time.process_time()
        found["alone"] = directions([recipe(given.epochs).fit(made, one) for one in data])
        times["alone"].append(time.process_time() - began)
        began = time.process_time()
        found["together"] = directions(recipe(given.epochs).fit_many(made, data))
        times["together"].append(time.process_time() - began)
    ratios = [a / b for a, b in zip(times["alone"], times["together"], strict=True)]
    off = float((found["alone"] - found["together"]).abs().max())
    each = {arm: statistics.median(took) / given.concepts for arm, took in times.items()}
    print(
        f"a concept: alone {each['alone']:.2f} s, together {each['together']:.2f} s, {statistics.median(ratios):.2f}x"
        f" [{min(ratios):.2f}, {max(ratios):.2f}]; greatest difference of a direction {off:.1e}",
        flush=True,
    )
    half = given.concepts // 2
    gains: list[float] = []
    for _ in range(given.repeats):
        sizes = (given.concepts, given.pairs, given.epochs)
        one = workers([(0, given.concepts)], *sizes)
        two = workers([(0, half), (half, given.concepts)], *sizes)
        gains.append(one / two)
    print(f"two workers: {statistics.median(gains):.2f}x the throughput of one [{min(gains):.2f}, {max(gains):.2f}]")
    for name, value, goal in (
        ("many_equal_1e-6_over", 1e-6 / max(off, 1e-12), 1.0), ("many_cost_of_a_concept", statistics.median(ratios), 1 / 1.05),
        ("many_two_workers", statistics.median(gains), 1.8),
    ):  # fmt: skip
        print(f"bar {name} {value:.2f} {goal:.2f} {run}{'' if value >= goal else '   (short)'}")


if __name__ == "__main__":
    main()
