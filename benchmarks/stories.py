"""A model that nobody here trained: sentiment on stories260k, pushed both ways. `make stories`.

Contrast: a real movie-review sentence, positive or negative, followed by the opening of a story; the answers are what the
model itself goes on to write. Measured on other openings without any review: the mean valence of the words of the
continuation by the VADER lexicon (which made none of the data), the share of texts with a positive sum, and KL to the
unsteered model. A text without any word of the lexicon is missing, not zero. The model has no chat template and is
rendered as plain text.

Also read here, as a check that the readers take the real layouts: the CDAS backdoor sets, AxBench sets, and two persona
files as CAA contrast (fitted, not scored: the model follows no instructions).
"""

from __future__ import annotations

import argparse
import math
import os
import re
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import steerlab as sl
from steerlab.config import to_dict
from steerlab.engines.base import Sampling
from steerlab.evals.stats import bootstrap
from steerlab.methods.base import method
from steerlab.methods.cdas import CDAS
from steerlab.methods.objectives import kl
from steerlab.progress import shown

SHARED = Path(os.environ.get("STEERLAB_SHARED", Path(__file__).resolve().parents[2] / "shared"))
NAMES = ("Lily", "Tom", "Sara", "Ben", "Mia", "Max", "Anna", "Tim", "Lucy", "Sam")
OPENINGS = (
    "One day, {} went to the park. {}", "Once upon a time, there was a child named {}. {}", "{} had a big box. {}",
    "In the morning, {} looked out of the window. {}", "{} and a friend were in the garden. {}", "{} saw a dog. {}",
    "It was late and {} was at home. {}", "{} found something under the bed. {}",
)  # fmt: skip
ARMS = {
    "cdas": ("cdas", {}),
    "cdas published": ("cdas", to_dict(CDAS.published())),
    "diff_means last": ("diff_means", {"pooling": "last"}),
    "diff_means paired": ("diff_means", {"pooling": "paired"}),
    "random": ("random", {}),
}  # fmt: skip
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def lexicon() -> dict[str, float]:
    rows = (SHARED / "data/sentiment_lexicon/vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
    return {word: float(value) for word, value, *_ in (row.split("\t") for row in rows if row.strip())}


def openings(split: str) -> list[str]:
    """Openings for fitting and for testing share neither frame nor name."""
    frames, names = (OPENINGS[:4], NAMES[:5]) if split == "train" else (OPENINGS[4:], NAMES[5:])
    return [frame.format(name, "").strip() for frame in frames for name in names]


def contrast(engine: sl.HFEngine, n: int, seed: int) -> sl.Contrast:
    """Pairs: the same opening after a positive and after a negative sentence, each with the model's own continuation."""
    rng = np.random.default_rng(seed)
    sides: list[list[sl.Example]] = []
    starts = openings("train")
    for name in ("pos", "neg"):
        lines = (
            (SHARED / f"data/sentiment_sentences/polarity_first4000.{name}")
            .read_bytes()
            .decode("utf-8", "replace")
            .splitlines()
        )
        short = [line.strip() for line in lines if 30 < len(line) < 110 and "�" not in line]
        drawn = [short[i] for i in rng.choice(len(short), n, replace=False)]
        prompts = [
            sl.Example.ask(f"{text}\n{starts[i % len(starts)]}", family=starts[i % len(starts)])
            for i, text in enumerate(drawn)
        ]
        replies = engine.generate(prompts, None, Sampling(40, temperature=0.8, seed=seed))
        sides.append([replace(p, answer=r.text) for p, r in zip(prompts, replies, strict=True)])
    kept = [(p, q) for p, q in zip(*sides, strict=True) if p.answer and q.answer]
    return sl.Contrast(
        tuple(p for p, _ in kept),
        tuple(q for _, q in kept),
        True,
        "a positive mood",
        f"polarity sentences, seed {seed}",
    )


def valence(text: str, words: dict[str, float]) -> float | None:
    found = [words[w] for w in re.findall(r"[a-z']+", text.lower()) if w in words]
    return sum(found) / len(found) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--site", default="2")
    given = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"no shared data at {SHARED} (set STEERLAB_SHARED); nothing was measured.")
    torch.set_num_threads(1)
    engine = sl.load(str(SHARED / "models/stories260k"), template="plain", batch_size=64)
    engine.name = "stories260k"
    words, run = lexicon(), uuid.uuid4().hex[:8]
    tests = openings("test") * 3
    sampling = Sampling(60, temperature=0.8, seed=1000)
    base = engine.generate(tests, None, sampling)
    examples = [sl.Example.ask(t, r.text) for t, r in zip(tests, base, strict=True) if r.text]
    plain = [scores.clone() for scores in engine.logits(examples[:20])]
    figures: dict[tuple[str, float], list[list[list[float | None]]]] = {}
    costs: dict[tuple[str, float], list[list[list[float | None]]]] = {}
    with shown():
        for seed in range(given.seeds):
            data = contrast(engine, given.pairs, seed)
            for name, (kind, settings) in ARMS.items():
                extra = {"seed": seed} if name == "random" else {}
                steering = method(kind, {**settings, "site": given.site, **extra}).fit(engine, data)
                for s in STRENGTHS:
                    under = steering.scaled(s)
                    replies = engine.generate(tests, under, sampling)
                    figures.setdefault((name, s), [[]])[0].append([valence(r.text, words) for r in replies])
                    moved = [
                        float(kl(p, q).mean()) for p, q in zip(plain, engine.logits(examples[:20], under), strict=True)
                    ]
                    costs.setdefault((name, s), [[]])[0].append(moved)
    print(
        f"stories260k, block {given.site}, {given.seeds} fits of {given.pairs} pairs, {len(tests)} test openings a cell; mean valence of lexicon words [95 %], KL in nats per token"
    )
    print(f"{'arm':20}" + "".join(f"{f'strength {s:+g}':>34}" for s in STRENGTHS))
    for name in ARMS:
        cells = []
        for s in STRENGTHS:
            e, k = bootstrap(figures[name, s]), bootstrap(costs[name, s])
            cells.append(f"{e.mean:+.2f} [{e.low:+.2f}, {e.high:+.2f}] KL {k.mean:.3f}")
        print(f"{name:20}" + "".join(f"{c:>34}" for c in cells))
    missing = sum(v is None for v in figures["cdas", 0.0][0][0])
    print(f"texts without any word of the lexicon (left out): {missing} of {len(tests)} unsteered")
    for name in ARMS:
        up, down = (bootstrap(figures[name, s]).mean or math.nan for s in (1.0, -1.0))
        print(f"bar stories_{name.replace(' ', '_')}_unit_gap {up - down:.3f} 0 {run}")
    readers(engine)


def readers(engine: sl.HFEngine) -> None:
    """The real layouts are read, and two personas are fitted as CAA contrast."""
    for path in ("backdoor_cdas", "axbench_concept10/2b_l20", "axbench_conceptFD/2b_l10"):
        from steerlab import data

        folder = SHARED / "data" / path
        concepts = data.concepts(folder)
        found = sl.Contrast.read(folder, concept=concepts[0].id if concepts else None)
        print(
            f"read {path}: {len(concepts) or 1} concepts, the first with {len(found.positive)} positive and {len(found.negative)} negative examples"
        )
    for persona in ("agreeableness", "extraversion"):
        found = sl.Contrast.read(SHARED / f"data/anthropic_persona/{persona}.jsonl")
        steering = method("diff_means", {"pooling": "response"}).fit(engine, found.sample(100))
        print(
            f"CAA {persona}: {len(found)} pairs read, 100 fitted, norm {float(steering.interventions[0].edit.v.norm()):.3f}"
        )


if __name__ == "__main__":
    main()
