"""Activations for a difference of means against steering-vectors and repeng, in time. `make bench-extraction`.

A model of random weights in the shape of Gemma-2 (26 blocks, width 256, vocabulary 32k), read at its middle block, one
thread. The peers are their packages as they are published, in an environment of their own (they want older transformers and
numpy); child processes of both environments run in turn on the same weights and texts, and each ends with an A/A line (the
same arm twice). steering-vectors runs at the best of several batch sizes, told to read the one block; repeng reads as it
always does: all blocks, 32 texts a batch, then a PCA, whose time is not counted. Two kinds of pairs: a question with two answers of one token (they
share the prompt), and unrelated texts of 8 to 96 tokens. The directions of steering-vectors and ours are compared in every
run. Ends with `bar NAME VALUE GOAL RUN` lines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

BLOCK, DEPTH, WIDTH, VOCABULARY = 12, 26, 256, 32768
SIZES = (4, 8, 16, 32)  # batch sizes that steering-vectors may choose from
GOALS = {
    ("shared", "steering-vectors"): 4.0, ("shared", "repeng"): 9.0,
    ("unrelated", "steering-vectors"): 2.3, ("unrelated", "repeng"): 5.0,
}  # fmt: skip
Pairs = list[tuple[str, str, str, str]]  # prompt and answer of the positive, prompt and answer of the negative


def pairs(kind: str, n: int) -> Pairs:
    import torch

    from steerlab.testing import tiny

    generator = torch.Generator().manual_seed(0)

    def text(low: int, high: int) -> str:
        return tiny.words(generator, int(torch.randint(low, high + 1, (1,), generator=generator)))

    if kind == "unrelated":
        return [(text(8, 96), "", text(8, 96), "") for _ in range(n)]
    prompts = [text(48, 144) for _ in range(n)]
    return [(prompt, "w1", prompt, "w2") for prompt in prompts]


def write_model(folder: Path) -> None:
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from steerlab.testing import tiny

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, query_pre_attn_scalar=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer = tiny.tokenizer(chat=False)
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(folder)


def loaded(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, PreTrainedTokenizerFast(
        tokenizer_file=str(Path(folder) / "tokenizer.json"), pad_token="<pad>", eos_token="<end>"
    )


def ours(folder: str, data: Pairs) -> dict[str, Callable[[], list[float]]]:
    from steerlab.contrast import Example
    from steerlab.engines.hf import HFEngine
    from steerlab.positions import LAST_PROMPT, Positions, Window
    from steerlab.sites import Site

    engine, site = HFEngine(*loaded(folder), name="random weights", template="plain", batch_size=16), Site(BLOCK)
    positive = [Example.ask(prompt, answer or None) for prompt, answer, _, _ in data]
    negative = [Example.ask(prompt, answer or None) for _, _, prompt, answer in data]
    where = (
        Positions(generated=(Window(0, 1),)) if data[0][1] else LAST_PROMPT
    )  # the answer's token, or the text's last

    def run() -> list[float]:
        found = engine.capture([*positive, *negative], [site], where)[site].values
        return (found[: len(data)].mean(dim=0) - found[len(data) :].mean(dim=0)).tolist()

    return {"ours": run}


def texts(data: Pairs) -> list[tuple[str, str]]:
    return [(" ".join((p, a)).strip(), " ".join((q, b)).strip()) for p, a, q, b in data]


def steering_vectors(folder: str, data: Pairs) -> dict[str, Callable[[], list[float]]]:
    from steering_vectors import train_steering_vector

    model, tokenizer = loaded(folder)

    def run(size: int) -> list[float]:
        made = train_steering_vector(model, tokenizer, texts(data), layers=[BLOCK], batch_size=size)
        return made.layer_activations[BLOCK].tolist()

    return {f"batches of {size}": lambda size=size: run(size) for size in SIZES}


def repeng(folder: str, data: Pairs) -> dict[str, Callable[[], list[float]]]:
    from repeng.extract import batched_get_hiddens

    model, tokenizer = loaded(folder)
    layers = [DEPTH - n for n in range(1, DEPTH)]

    def run() -> list[float]:
        found = batched_get_hiddens(model, tokenizer, [t for pair in texts(data) for t in pair], layers, 32)[BLOCK]
        return (found[::2] - found[1::2]).mean(axis=0).tolist()

    return {"repeng": run}


ARMS = {"ours": ours, "steering-vectors": steering_vectors, "repeng": repeng}


def child(arm: str, kind: str, folder: str) -> None:
    """Times every setting of an arm twice, after a warm-up, and prints what it found."""
    import torch

    torch.set_num_threads(1)
    data: Pairs = json.loads((Path(folder) / f"{kind}.json").read_text())
    found: dict[str, Any] = {}
    runs = ARMS[arm](folder, data)
    for name, run in runs.items():
        run()
        times: list[float] = []
        for _ in range(2):
            started = time.process_time()
            vector = run()
            times.append(time.process_time() - started)
        found[name] = {"times": times, "vector": vector}
    print(json.dumps(found))


def measured(arm: str, kind: str, folder: Path, python: str) -> tuple[str, list[float], list[float]]:
    """The best setting of an arm in a fresh process: its name, its two times, its direction."""
    command = [python, __file__, "--child", arm, kind, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"the arm {arm} failed on {kind} pairs:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    best = min(found, key=lambda name: min(found[name]["times"]))
    return best, found[best]["times"], found[best]["vector"]


def versions(python: str) -> str:
    names = ("torch", "transformers", "steering-vectors", "repeng", "numpy")
    code = f"from importlib.metadata import version as v\nprint(', '.join(f'{{n}} {{v(n)}}' for n in {names!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def compared(kind: str, folder: Path, peers: str, repeats: int, arms: Sequence[str]) -> dict[str, float]:
    """Median ratio of each peer over interleaved processes, with its spread."""
    times: dict[str, list[float]] = {}
    same: dict[str, list[float]] = {}
    chosen: dict[str, str] = {}
    vectors: dict[str, list[float]] = {}
    for _ in range(repeats):
        for arm in ("ours", *arms):
            name, took, vectors[arm] = measured(arm, kind, folder, sys.executable if arm == "ours" else peers)
            chosen[arm] = name
            times.setdefault(arm, []).append(min(took))
            same.setdefault(arm, []).append(took[0] / took[1])
    for arm in arms:
        off = max(abs(a - b) for a, b in zip(vectors["ours"], vectors[arm], strict=True))
        size = max(map(abs, vectors["ours"]))
        if off > 1e-4 * size:
            raise SystemExit(f"{kind}: the direction of {arm} differs from ours by {off:.2e} of {size:.2e}.")
    ratios = {arm: [a / b for a, b in zip(times[arm], times["ours"], strict=True)] for arm in times if arm != "ours"}
    for arm, took in times.items():
        against = "" if arm == "ours" else _spread(ratios[arm])
        print(
            f"{kind:10} {arm:17} {chosen[arm]:14} {statistics.median(took):7.2f} s  A/A {min(same[arm]):.2f} to"
            f" {max(same[arm]):.2f}{against}",
            flush=True,
        )
    return {arm: statistics.median(found) for arm, found in ratios.items()}


def _spread(ratios: Sequence[float]) -> str:
    return f"  {statistics.median(ratios):5.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of the environment that holds the peers")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each arm")
    parser.add_argument("--against", default="steering-vectors,repeng", help="peers, with commas between")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    if not given.peers:
        parser.error("--peers names the Python of an environment with steering-vectors and repeng; `make bench-extraction`"
                     " makes one.")  # fmt: skip
    run = uuid.uuid4().hex[:8]
    print(f"run {run}: {platform.machine()}, one thread, {given.pairs} pairs, block {BLOCK} of {DEPTH}, width {WIDTH}; CPU"
          f" seconds\n  peers: {versions(given.peers)}")  # fmt: skip
    bars: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for kind in ("shared", "unrelated"):
            (Path(folder) / f"{kind}.json").write_text(json.dumps(pairs(kind, given.pairs)))
            for peer, ratio in compared(
                kind, Path(folder), given.peers, given.repeats, given.against.split(",")
            ).items():
                bars.append((f"{kind}_{peer.replace('-', '_')}", ratio, GOALS[kind, peer]))
    for name, value, goal in bars:
        print(f"bar {name} {value:.2f} {goal:.2f} {run}{'' if value >= goal else '   (short)'}")


if __name__ == "__main__":
    main()
