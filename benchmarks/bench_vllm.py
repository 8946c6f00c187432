"""What steering costs in compiled vLLM: tokens a second with the plug-in against vLLM without it, every block steered.

    python benchmarks/bench_vllm.py                       # the pilot, under a Python that has vLLM and steerlab
    python benchmarks/bench_vllm.py --width 512 --depth 8 # a random Llama of that size
    python benchmarks/bench_vllm.py --clock wall          # on a quiet machine, or a GPU

The tables are the default ones, of rank 1. Engines stand in processes of their own, one runs at a time, and all arms run in turn
within each round, in random order; a figure is the median over rounds of the paired ratio to vLLM without the plug-in. The same
arm twice is the A/A line. The clock is the engine's own CPU time unless told otherwise, so that other work on the machine harms
it little; on a GPU take the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DISTINCT = (1, 16, 64, 256)
GOAL, IDLE = 0.90, 0.99


def main() -> None:
    """Measure, and print the bars."""
    given = arguments()
    if given.child:
        child(json.loads(given.child))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = made_model(given, Path(folder))
        width, depth = steerings(model, Path(folder), given)
        print(
            f"{model}: width {width}, depth {depth}, batch {given.batch}, {given.tokens} tokens, {given.rounds} rounds, {given.clock}"
            f" clock, {'eager' if given.eager else 'compiled'}",
            flush=True,
        )
        common = {
            "model": model,
            "batch": given.batch,
            "tokens": given.tokens,
            "clock": given.clock,
            "eager": given.eager,
        }
        tables = {"steerings": str(Path(folder) / "steerings"), "adopt": True, "classes": 1}
        engines = {"none": Engine({**common}), "ours": Engine({**common, "steerlab": {**tables, "rank": 1}})}
        arms = [("none", "plain", 0), ("none", "again", 0), ("ours", "idle", 0)]
        arms += [("ours", kind, n) for kind in ("shift", "clamp") for n in DISTINCT if n <= given.batch]
        rates: dict[tuple[str, str, int], list[float]] = {arm: [] for arm in arms}
        for number in range(given.rounds + 1):
            order = random.Random(number).sample(arms, len(arms))
            for engine, kind, n in order:
                rate = engines[engine].run(None if n == 0 else kind, n, number)
                if number:  # the first round warms up
                    rates[engine, kind, n].append(rate)
        for engine in engines.values():
            engine.close()
    base = rates["none", "plain", 0]
    for (engine, kind, n), found in rates.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(
            f"{engine:6} {kind:6} {n:4} distinct  {statistics.median(found):9.1f} tokens/s  {statistics.median(ratios):.3f} ({spread})"
        )
    for (engine, kind, n), found in rates.items():
        value = statistics.median(a / b for a, b in zip(found, base, strict=True))
        if (engine, kind) == ("none", "again"):
            print(f"bar vllm-a-a {value:.3f} 0.97")
        elif kind == "idle":
            print(f"bar vllm-idle {value:.3f} {IDLE}")
        elif n:
            print(f"bar vllm-{kind}-{n} {value:.3f} {GOAL}")


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, help="of a random Llama; the pilot otherwise")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def made_model(given: argparse.Namespace, folder: Path) -> str:
    """A checkpoint's folder."""
    from steerlab import pilot

    if given.width is None:
        return str(pilot.folder("pilot"))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=given.width, num_hidden_layers=given.depth, intermediate_size=given.width * 8 // 3 // 32 * 32,
        num_attention_heads=given.width // 32, num_key_value_heads=given.width // 32, vocab_size=2048, tie_word_embeddings=True,
        max_position_embeddings=384, bos_token_id=1, eos_token_id=5, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(pilot.folder("pilot")).save_pretrained(folder / "model")
    return str(folder / "model")


def steerings(model: str, folder: Path, given: argparse.Namespace) -> tuple[int, int]:
    """Write as many shifts and rank-1 clamps as there are rows, each at every block; small, so that text goes on."""
    import torch

    import steerlab as sl

    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    width, depth = int(config["hidden_size"]), int(config["num_hidden_layers"])
    draw = torch.Generator().manual_seed(0)
    (folder / "steerings").mkdir()
    for n in range(min(max(DISTINCT), given.batch)):
        for kind in ("shift", "clamp"):
            rows = []
            for layer in range(depth):
                v = torch.randn(width, generator=draw)
                pole = torch.full((1,), 0.5)
                edit = sl.Shift(0.05 * v) if kind == "shift" else sl.Clamp((v / v.norm())[None], pole, -pole)
                rows.append(sl.Intervention(sl.Site(layer), edit, sl.ALL))
            sl.Steering(tuple(rows)).save(folder / "steerings" / f"{kind}{n}.safetensors")
    return width, depth


class Engine:
    """A vLLM in a process of its own."""

    def __init__(self, job: dict[str, object]) -> None:
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
               "VLLM_LOGGING_LEVEL": "ERROR", "OMP_WAIT_POLICY": "PASSIVE"}  # fmt: skip
        words = [sys.executable, __file__, "--child", json.dumps(job)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._read()

    def run(self, kind: str | None, distinct: int, seed: int) -> float:
        """Tokens a second over one batch."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, distinct, seed]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)

    def _read(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # vLLM writes there, too
            if line.startswith("figure "):
                return float(line.split()[1])
        raise SystemExit("an engine has ended; run it with VLLM_LOGGING_LEVEL=INFO to see why.")


def child(job: dict[str, object]) -> None:
    """Run batches as they are asked for on standard input."""
    from vllm import LLM, SamplingParams

    ours = {"additional_config": {"steerlab": job["steerlab"]}} if "steerlab" in job else {}
    llm = LLM(
        job["model"],
        dtype="float32" if not on_gpu() else "auto",
        enforce_eager=job["eager"],
        max_model_len=384,
        seed=0,
        max_num_seqs=job["batch"],
        enable_prefix_caching=False,
        **ours,
    )
    clock = time.process_time if job["clock"] == "cpu" else time.perf_counter
    print("figure 0", flush=True)
    for line in sys.stdin:
        kind, distinct, seed = json.loads(line)
        chance = random.Random(seed)
        prompts = [
            {"prompt_token_ids": [1, *(chance.randrange(20, 2000) for _ in range(15))]} for _ in range(job["batch"])
        ]
        how = [
            SamplingParams(
                max_tokens=job["tokens"],
                temperature=0,
                ignore_eos=True,
                detokenize=False,
                extra_args={"steerlab": f"{kind}{n % distinct}"} if kind else None,
            )
            for n in range(job["batch"])
        ]
        began = clock()
        replies = llm.generate(prompts, how, use_tqdm=False)
        took = clock() - began
        print(f"figure {sum(len(r.outputs[0].token_ids) for r in replies) / took}", flush=True)


def on_gpu() -> bool:
    """Whether vLLM runs on one."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike())


if __name__ == "__main__":
    main()
