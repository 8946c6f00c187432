"""What the tests of sweeps share: the planted model and two concepts as files, and a sweep of them as YAML."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

import steerlab as sl
from steerlab.data import write
from steerlab.testing import planted

SMALL = {
    "methods": {"diff_means": None, "das": {"epochs": 1, "rank": 1}}, "layers": [0, 1], "seeds": 1, "strengths": [1.0],
    "controls": ["random"], "together": 2, "pairs": 4, "prompts": 2, "capability": 0, "unrelated": 1, "tokens": 3,
}  # fmt: skip


def world(folder: Path) -> Path:
    """The planted model and the data of two concepts, as files."""
    engine = planted.engine()
    engine.model.save_pretrained(folder / "model")
    engine.tokenizer.save_pretrained(folder / "model")
    for name, seed, words in (("key", 1, "w10,w11"), ("again", 2, "w10,w12")):
        sides = planted.pairs(torch.Generator().manual_seed(seed), 20)
        told = [tuple(replace(e, family=f"family {n % 10}") for n, e in enumerate(side)) for side in sides]
        write(sl.Contrast(told[0], told[1], True, name), folder / f"{name}.jsonl")
        (folder / f"{name}.rule").write_text(f"words:{words}")
    write(sl.Contrast(*(tuple(e.without_answer() for e in side) for side in told), True, "mute"), folder / "mute.jsonl")
    return folder


def asked(folder, **settings) -> Path:
    """A YAML file beside the model."""
    concepts = {
        name: {"data": f"{name}.jsonl", "rule": "words:w10,w11"} for name in settings.pop("names", ("key", "again"))
    }
    path = folder / f"{abs(hash(json.dumps(settings, sort_keys=True, default=str))) % 10**8}-{len(concepts)}.yaml"
    path.write_text(sl.config.to_yaml({"model": "model", "concepts": concepts, **SMALL, **settings}))
    return path
