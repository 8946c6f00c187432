"""500 AxBench concepts on Gemma-2-2B: timed where there is an accelerator, counted and extrapolated where there is none.

CDAS through `fit_many` at block 20 of 26, 72 pairs of AxBench's lengths a concept (24 tokens asked, 128 answered), the
published recipe (18 epochs) and the defaults with two epochs (`--epochs`). The weights are random: they change no time.

On an accelerator (`--shape 2b`): two numbers of concepts are timed, so that whether time is linear shows, and 500 are
extrapolated from the slope; steps a second, peak memory, and the share of the limit that a large matrix product reaches.

Without one (`--shape small`, the default): the same on 8 narrow blocks, where the floating-point operations that are
counted from the shapes are checked against those that torch counts as it runs; then the count for Gemma-2-2B's shape,
at `--tflops` of effective speed.
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench_training import contrast
from torch.utils.flop_counter import FlopCounterMode

import steerlab
from steerlab.contrast import Contrast
from steerlab.engines.hf import HFEngine
from steerlab.methods.cdas import CDAS
from steerlab.methods.interchange import REACHES, SCANNED, both_ways
from steerlab.methods.trained import Row
from steerlab.testing import tiny

CONCEPTS, PAIRS, PROFILE = 500, 72, "axbench"


@dataclass(frozen=True)
class Shape:
    """A Gemma-2 and where it is steered."""

    width: int
    inner: int
    depth: int
    heads: int
    groups: int
    head: int
    vocabulary: int
    block: int

    def engine(self, device: str) -> HFEngine:
        from transformers import Gemma2Config, Gemma2ForCausalLM

        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.inner, num_hidden_layers=self.depth,
            num_attention_heads=self.heads, num_key_value_heads=self.groups, head_dim=self.head,
            query_pre_attn_scalar=self.head, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with torch.device(device):
            model = Gemma2ForCausalLM(config).to(dtype)
        return HFEngine(model.eval().requires_grad_(False), tiny.tokenizer(), name="random weights", batch_size=32)

    # --- floating-point operations, a multiplication and an addition counted as two -------------------------------------

    def blocks(self, count: float, lengths: Sequence[int]) -> float:
        """So many blocks, forward, on sequences of these lengths."""
        matrices = self.width * self.head * (2 * self.heads + 2 * self.groups) + 3 * self.width * self.inner
        return count * sum(2 * matrices * n + 4 * n * n * self.heads * self.head for n in lengths)

    def last(self, lengths: Sequence[int], answers: Sequence[int]) -> float:
        """The last block, which computes queries, outputs and MLP for what predicts answers alone."""
        whole = self.width * self.head * 2 * self.groups
        narrow = self.width * self.head * 2 * self.heads + 3 * self.width * self.inner
        seen = 4 * self.heads * self.head
        return sum(2 * whole * n + 2 * narrow * a + seen * n * n for n, a in zip(lengths, answers, strict=True))

    def scores(self, answers: Sequence[int]) -> float:
        return 2.0 * self.width * self.vocabulary * sum(answers)

    def fit(self, rows: Rows, held_out: Rows, epochs: int, scanned: int) -> dict[str, float]:
        """Of one concept: what is computed once, where its poles begin (tried on the first rows), what each epoch takes."""
        every = rows + held_out
        above = self.depth - 2 - self.block
        once = self.blocks(self.block + 1, every.lengths) + self.blocks(self.depth - 1, every.sources)
        once += self.last(every.sources, every.answers) + self.scores(every.answers)
        forward = self.blocks(above, rows.lengths) + self.last(rows.lengths, rows.answers) + self.scores(rows.answers)
        looked = self.blocks(above, held_out.lengths) + self.last(held_out.lengths, held_out.answers) + self.scores(held_out.answers)  # fmt: skip
        scan = forward * len(REACHES) * scanned / len(rows.lengths)
        return {"once": once, "start": scan, "epochs": epochs * 2 * forward, "held out": (epochs + 3) * looked}


SHAPES = {
    "2b": Shape(2304, 9216, 26, 8, 4, 256, 256_000, 20),
    "small": Shape(256, 1024, 8, 4, 2, 64, 8192, 5),
}


@dataclass(frozen=True)
class Rows:
    """Tokens of base rows, of their sources, and of their answers."""

    lengths: list[int]
    sources: list[int]
    answers: list[int]

    @classmethod
    def of(cls, engine: HFEngine, made: CDAS, rows: Sequence[Row]) -> Rows:
        lengths, sources, answers = list[int](), list[int](), list[int]()
        for row in rows:
            assert row.source is not None
            base, source = (engine.batch([e], close=made.close) for e in (row.example, row.source))
            lengths.append(base.ids.shape[1])
            sources.append(source.ids.shape[1])
            answers.append(int(base.predicts.sum()))
        return cls(lengths, sources, answers)

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.lengths + other.lengths, self.sources + other.sources, self.answers + other.answers)


def concepts(count: int, pairs: int) -> list[Contrast]:
    return [contrast(PROFILE, pairs, seed) for seed in range(count)]


def counted(shape: Shape, engine: HFEngine, made: CDAS, data: Contrast) -> dict[str, float]:
    split = int(len(data.pairs) * (1 - made.held_out)) if made.held_out else len(data.pairs)
    train, held_out = (
        Rows.of(engine, made, [row for pair in part for row in both_ways(*pair)])
        for part in (data.pairs[:split], data.pairs[split:])
    )
    scanned = min(2 * SCANNED, len(train.lengths)) if made.poles == "trained" else 0
    return shape.fit(train, held_out, made.epochs, scanned)


def limit(device: str, size: int) -> float:
    """TFLOP/s of a product of square matrices."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        began = now(device)
        for _ in range(4):
            a @ b
        best = max(best, 8 * size**3 / (now(device) - began))
    return best / 1e12


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(engine: HFEngine, made: CDAS, data: Sequence[Contrast], together: int, device: str) -> float:
    """Seconds to fit these concepts, so many at a time."""
    began = now(device)
    for at in range(0, len(data), together):
        made.fit_many(engine, data[at : at + together])
    return now(device) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--concepts", default=None, help="two numbers of concepts  [default: 20,40; small: 2,4]")
    parser.add_argument("--pairs", type=int, default=None, help=f"of a concept  [default: {PAIRS}; small: 8]")
    parser.add_argument("--together", type=int, default=4, help="concepts in one pass")
    parser.add_argument("--published-epochs", type=int, default=18)
    parser.add_argument("--epochs", type=int, default=2, help="of the defaults")
    parser.add_argument(
        "--tflops", type=float, default=400.0, help="effective speed that is assumed where none is measured"
    )
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, small = SHAPES[given.shape], given.shape == "small"
    few, many = map(int, (given.concepts or ("2,4" if small else "20,40")).split(","))
    engine, data = shape.engine(device), concepts(many, given.pairs or (8 if small else PAIRS))
    whole, gemma, run = concepts(1, PAIRS)[0], SHAPES["2b"], uuid.uuid4().hex[:8]
    engine.head  # noqa: B018 (found before the clock starts)
    at_most = limit(device, 8192 if device == "cuda" else 1536)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} thread"
    print(f"run {run}: steerlab {steerlab.__version__}, torch {torch.__version__}, {name}, {given.shape}: {shape}")
    print(f"a large matrix product: {at_most:.3g} TFLOP/s")
    recipes: dict[str, Any] = {
        "published": CDAS.published(site=str(shape.block), epochs=given.published_epochs),
        "defaults": CDAS(site=str(shape.block), epochs=given.epochs),
    }
    for recipe, made in recipes.items():
        timed(engine, made, data[:1], 1, device)  # everything is loaded once
        took = [timed(engine, made, data[:n], given.together, device) for n in (few, many)]
        each = (took[1] - took[0]) / (many - few)
        told = counted(shape, engine, made, data[0])
        speed = sum(told.values()) / each / 1e12
        steps = -(-len(data[0].pairs) // made.batch_size) * made.epochs / each
        print(
            f"\n{recipe}, {made.epochs} epochs: {few} concepts {took[0]:.1f} s, {many} {took[1]:.1f} s"
            f" (linear: {took[1] / took[0] * few / many:.2f} of proportional); {each:.2f} s a concept, {steps:.1f} steps/s,"
            f" {sum(told.values()) / 1e12:.3g} TFLOP, {speed:.3g} TFLOP/s, {speed / at_most:.0%} of a large product"
        )
        if device == "cuda":
            print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        else:
            with FlopCounterMode(display=False) as counter:
                made.fit(engine, data[0])
            ran = counter.get_total_flops()
            print(
                f"counted from the shapes {sum(told.values()):.4g}, as torch counts them {ran:.4g}: {sum(told.values()) / ran:.3f}"
            )
        work = counted(gemma, engine, CDAS.published() if recipe == "published" else made, whole)
        total = CONCEPTS * sum(work.values())
        parts = ", ".join(f"{part} {amount / sum(work.values()):.0%}" for part, amount in work.items())
        if shape is gemma and device == "cuda":
            print(f"{CONCEPTS} concepts: {CONCEPTS * each / 60:.1f} min by the slope")
        else:
            print(
                f"Gemma-2-2B, {CONCEPTS} concepts of {PAIRS} pairs: {total / 1e15:.0f} PFLOP ({parts}); at an effective"
                f" {given.tflops:g} TFLOP/s, which is assumed and not measured, {total / given.tflops / 1e12 / 60:.1f} min"
            )


if __name__ == "__main__":
    main()
