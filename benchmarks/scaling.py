"""How the time of a CDAS fit grows with tokens, vocabulary, layer, concepts and workers. `make scaling`.

The model of `bench_training.py`: random weights in the shape of Gemma-2 (26 blocks, width 256), short prompts, the
published recipe with a few epochs, caches included, CPU seconds of one thread; workers are processes, in wall-clock seconds.
One axis is varied at a time around 128 answer tokens, a vocabulary of 32k and block 20; its settings run in turn, and the
median of the runs is told. Predicted is what the operations that are counted from the shapes grow by (`record.py`, where
they are checked against torch's count); for concepts and workers it is one fit's time times their number, or shared among
them. An exponent is the slope of the best line through the logarithms; for layers, over the number of blocks above the
site and itself. Draws `runs/scaling/scaling.svg`; ends with `bar NAME VALUE GOAL RUN` lines.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench_many
import numpy as np
import torch
from bench_training import BLOCK, DEPTH, WIDTH, engine, of_lengths
from record import Shape, counted

import steerlab
from steerlab import progress
from steerlab.evals import charts
from steerlab.evals.charts import Axis, Chart, Mark, Series
from steerlab.methods.cdas import CDAS

PROMPT, ANSWER, VOCABULARY = 24, 128, 32_768
ANSWERS = (16, 32, 64, 128, 256)
VOCABULARIES = (4096, 16_384, 65_536, 262_144)
BLOCKS = (4, 9, 14, 18, 21, 23)
CONCEPTS = (1, 2, 4, 8, 16)
OFF = 0.15  # an exponent may be off by so much


class Along(NamedTuple):
    """One axis: its values, what each takes and what it should take (in units of its own)."""

    name: str
    label: str
    values: Sequence[int]
    seconds: list[float]
    predicted: list[float]

    def exponents(self) -> tuple[float, float]:
        """Measured and predicted."""
        x = np.log(self.values)
        return tuple(float(np.polyfit(x, np.log(y), 1)[0]) for y in (self.seconds, self.predicted))  # pyright: ignore


def fitting(
    pairs: int, epochs: int, answer: int = ANSWER, vocabulary: int = VOCABULARY, block: int = BLOCK
) -> tuple[Callable[[], object], float]:
    """A fit, and the operations that it takes."""
    made, data = engine(vocabulary), of_lengths(PROMPT, answer, pairs)
    made.head  # noqa: B018 (found before the clock starts)
    recipe = CDAS.published(site=str(block), epochs=epochs)
    shape = Shape(WIDTH, 4 * WIDTH, DEPTH, 4, 2, 64, vocabulary, block)
    return lambda: recipe.fit(made, data), sum(counted(shape, made, recipe, data).values())


def timed(runs: Sequence[Callable[[], object]], repeats: int, label: str) -> list[float]:
    """The median CPU seconds of each, run in turn after one round that isn't counted."""
    found: list[list[float]] = [[] for _ in runs]
    with progress.task(label, (repeats + 1) * len(runs)) as bar:
        for turn in range(repeats + 1):
            for n, run in enumerate(runs):
                began = time.process_time()
                run()
                if turn:
                    found[n].append(time.process_time() - began)
                bar.advance()
    return [statistics.median(f) for f in found]


def axes(pairs: int, epochs: int, repeats: int) -> list[Along]:
    found = []
    for name, label, values, made in (
        ("tokens", "answer tokens", ANSWERS, [fitting(pairs, epochs, answer=n) for n in ANSWERS]),
        ("vocabulary", "vocabulary", VOCABULARIES, [fitting(pairs, epochs, vocabulary=n) for n in VOCABULARIES]),
        ("layer", "blocks from the site on", [DEPTH - n for n in BLOCKS], [fitting(pairs, epochs, block=n) for n in BLOCKS]),
    ):  # fmt: skip
        found.append(Along(name, label, values, timed([f for f, _ in made], repeats, name), [w for _, w in made]))
        told(found[-1])
    few, data, made = max(pairs // 2, 2), bench_many.concepts(max(CONCEPTS), max(pairs // 2, 2)), engine(VOCABULARY)
    recipe = CDAS.published(site=str(BLOCK), epochs=epochs)
    many = timed([lambda n=n: recipe.fit_many(made, data[:n]) for n in CONCEPTS], repeats, "concepts")
    found.append(Along("concepts", "concepts in one batch", CONCEPTS, many, [float(n) for n in CONCEPTS]))
    told(found[-1])
    crowd, cores = 8, os.cpu_count() or 1
    of = [n for n in (1, 2, 4, 8) if n <= cores]
    if len(of) > 1:
        took = [
            statistics.median(
                bench_many.workers([(i * crowd // n, (i + 1) * crowd // n) for i in range(n)], crowd, few, epochs)
                for _ in range(repeats)
            )
            for n in of
        ]
        found.append(Along("workers", f"workers, {crowd} concepts", of, took, [1 / n for n in of]))
        told(found[-1])
    return found


def told(along: Along) -> None:
    cells = ", ".join(f"{v:,}: {s:.2f} s" for v, s in zip(along.values, along.seconds, strict=True))
    measured, predicted = along.exponents()
    print(f"{along.label}: {cells}; exponent {measured:.2f}, predicted {predicted:.2f}", flush=True)


def drawn(found: Sequence[Along], path: Path) -> Path:
    """Each axis as a panel of logarithms: times as marks, the prediction (scaled to go through their middle) dotted."""
    panels = []
    for along in found:
        x, y, wanted = (np.log2(v) for v in (along.values, along.seconds, along.predicted))
        wanted = wanted + np.mean(y - wanted)
        notes = [f"{v:,}: {s:.2f} s" for v, s in zip(along.values, along.seconds, strict=True)]
        marks = [Mark(float(a), float(b), note=n) for a, b, n in zip(x, y, notes, strict=True)]
        line = [Mark(float(a), float(b)) for a, b in zip(x, wanted, strict=True)]
        measured, predicted = along.exponents()
        series = [
            Series(line, "ref", "predicted", shape=None, dotted=True, band=False),
            Series(marks, "effect", "measured", band=False),
        ]
        title = f"{along.name}: exponent {measured:.2f}, predicted {predicted:.2f}"
        words = f"Time of a fit against {along.label}: " + ", ".join(notes)
        panels.append(
            Chart(Axis.over(x, label=f"log₂ {along.label}", count=6), Axis.over([*y, *wanted], label="log₂ seconds"), series, title, words,
                  width=320, height=210)
        )  # fmt: skip
    return charts.save(panels, path, columns=3, title="The time of a CDAS fit, measured and predicted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = uuid.uuid4().hex[:8]
    print(
        f"run {run}: steerlab {steerlab.__version__}, torch {torch.__version__}, one thread; {given.pairs} pairs, {given.epochs}"
        f" epochs, median of {given.repeats}",
        flush=True,
    )
    with progress.shown():
        found = axes(given.pairs, given.epochs, given.repeats)
    print(f"wrote {drawn(found, given.out / 'scaling.svg')}")
    for along in found:
        measured, predicted = along.exponents()
        off = abs(measured - predicted)
        print(f"bar scaling_{along.name}_exponent_off {-off:.2f} {-OFF:.2f} {run}{'' if off <= OFF else '   (short)'}")


if __name__ == "__main__":
    main()
