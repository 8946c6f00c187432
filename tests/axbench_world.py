"""What the tests of AxBench share: a model that was taught one thing, two concepts in the published layout, a judge by rule."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from judging import blocks, outside
from steerlab.bench.axbench.folder import FolderAxBench
from steerlab.bench.axbench.run import run
from steerlab.bench.axbench.units import UNSTEERED, AxPlan, Unsteered
from steerlab.bench.axbench.writing import NOBODY, Written, save
from steerlab.evals.unit import ArmPlan
from steerlab.evals.workers import local
from steerlab.sweep.journal import Journal
from steerlab.testing import planted, tiny

CONCEPTS = {"0": ("w10 w11", planted.WITH), "1": ("w30 w31", "w30 w31 w32")}
FACTORS = (0.5, 1.0, 1.5)


def world(folder: Path, n: int = 8) -> Path:
    """The planted model as files, and its data: concept 0 is what it was taught, concept 1 it has never said."""
    engine = planted.engine()
    engine.model.save_pretrained(folder / "model")
    engine.tokenizer.save_pretrained(folder / "model")
    draw = torch.Generator().manual_seed(3)
    texts = [tiny.words(draw, 6) for _ in range(4 * n)]
    out = Written()

    def row(prompt, answer, words, category, key):
        return {"input": prompt, "output": answer, "output_concept": words, "concept_genre": "text", "category": category,
                "dataset_category": "instruction", "concept_id": key}  # fmt: skip

    for key, (words, answer) in CONCEPTS.items():
        out.train += [row(t, answer, words, "positive", key) for t in texts[:n]]
        out.pairs += [
            {"input": t, "winning_output": answer, "losing_output": planted.WITHOUT, "output_concept": words,
             "concept_genre": "text", "concept_id": key} for t in texts[:n]
        ]  # fmt: skip
        out.latent += [row(t, answer, words, "positive", key) for t in texts[n : 2 * n]]
        out.latent += [row(t, planted.WITHOUT, words, "negative", key) for t in texts[2 * n : 3 * n]]
        out.latent += [
            row(t, f"{answer.split()[0]} w40", f"{words}//other", "hard negative", key) for t in texts[3 * n :][:3]
        ]
        out.names.append({"concept_id": int(key), "concept": words, "ref": "", "concept_genres_map": {words: ["text"]}})
    out.train += [row(t, planted.WITHOUT, NOBODY, "negative", "-1") for t in texts[:n]]
    save(out, folder / "data")
    return folder


def suite(folder: Path, judge: str = "") -> FolderAxBench:
    return FolderAxBench(str(folder / "data"), str(folder / "model"), judged_by=judge)


def plan(**settings) -> AxPlan:
    arms = (
        ArmPlan("prompt", "prompt"), Unsteered(UNSTEERED), ArmPlan("diff_means", "diff_means", {"pooling": "token", "site": "1"}),
        ArmPlan("lm_vector", "lm_vector", {"site": "0", "factors": [1.0], "epochs": 2, "batch_size": 4}),
    )  # fmt: skip
    usual = {
        "factors": FACTORS, "suppress_factors": FACTORS[1:], "prompts": 4, "tokens": 4, "rows": 8, "hard": 3, "shared": 8,
        "shots": 1, "together": 2,
    }  # fmt: skip
    return AxPlan(arms, tuple(CONCEPTS), **{**usual, **settings})


def rate(message: str) -> str:
    """A judge by rule, asked in words: each aspect is known by its question, the concept stands in it."""
    text, asked = blocks(message)["TEXT"].split(), outside(message)
    if "INSTRUCTION BEGINS" in asked:
        return f"It says something. Rating: [[{2 if len(text) > 1 else 1}]]"
    named = re.search(r"concept: (w\d+ w\d+)", asked, re.IGNORECASE)
    if named is None:
        return f"Fluent. Rating: [[{2 if len(set(text)) == len(text) else 1}]]"
    return f"Counted. Rating: [[{sum(w in text for w in named.group(1).split())}]]"


def judge(url: str, cache: Path | str, **settings) -> str:
    told = {
        "model": "rules",
        "url": url,
        "cache": cache,
        "wait": 0.01,
        "tries": 4,
        "concurrency": 4,
        "price_in": 1,
        "price_out": 2,
        **settings,
    }
    return "llm," + ",".join(f"{k}={v}" for k, v in told.items())


def ran(folder: Path, out: Path, judged_by: str, **settings):
    """A run in this process."""
    of = suite(folder, judged_by)
    with local(of, 1, threads=1) as pool:
        return run(of, plan(**settings), out, pool)


def digests(out: Path) -> dict[str, str | None]:
    """The digest of each unit's outputs, by what the unit is: inputs hold the judge's address, which differs from run to run."""
    with Journal(out, read_only=True) as journal:
        return {f"{row.kind} {row.name}": row.outputs for row in journal.rows().values()}
