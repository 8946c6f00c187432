"""A model that was taught one thing, so that the right answer of a fit is known.

Two blocks, trained for a few seconds when a test run first needs it: a prompt that holds the word `w0` is answered with
one fixed phrase, any other with another. A method that finds what makes the difference can turn it on and off.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from ..contrast import Contrast, Example
from . import tiny

if TYPE_CHECKING:
    from ..engines.hf import HFEngine

KEPT = "STEERLAB_PLANTED"
KEY = "w0"
WITH, WITHOUT = "w10 w11 w12", "w20 w21 w22"


@functools.cache
def engine() -> HFEngine:
    """An engine on the planted model (one CPU thread, the same weights every time).

    Where the environment's STEERLAB_PLANTED names a file, the first process that teaches the model writes it, and others read it.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..engines.hf import HFEngine

    torch.manual_seed(0)
    sizes: dict[str, Any] = {**tiny.GATED, "num_hidden_layers": 2, "hidden_size": 48, "tie_word_embeddings": True}
    config: Any = LlamaConfig.from_dict(sizes)
    model = LlamaForCausalLM(config)
    built = HFEngine(model.eval(), tiny.tokenizer(), name="planted")
    kept = Path(told) if (told := os.environ.get(KEPT)) else None
    if kept is not None and kept.exists():
        with torch.no_grad():
            for name, weight in load_file(kept).items():
                model.get_parameter(name).copy_(weight)
    else:
        _teach(built)
        if kept is not None:
            beside = kept.with_name(f".{kept.name}.{os.getpid()}")
            save_file({name: weight.detach() for name, weight in model.named_parameters()}, beside)
            beside.replace(kept)
    model.eval().requires_grad_(False)
    return built


def _teach(built: HFEngine) -> None:
    model = built.model
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = torch.tensor(float("inf"))
    for _ in range(160):
        rows = [row for pair in zip(*pairs(generator, 16), strict=True) for row in pair]
        batch = built.batch(rows)
        out = model(input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.position.clamp(min=0))
        following = torch.roll(batch.ids, -1, dims=1)
        loss = cross_entropy(out.logits[batch.predicts], following[batch.predicts])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if float(loss.detach()) > 0.05:
        raise RuntimeError(f"the planted model was not learned (loss {float(loss.detach()):.3f})")
    optimiser.zero_grad()


@functools.cache
def engine_in_double() -> HFEngine:
    """The same model in float64, for laws that run in `precision.doubled`."""
    from copy import deepcopy

    from ..engines.hf import HFEngine

    return HFEngine(deepcopy(engine().model).double(), tiny.tokenizer(), name="planted")


def pairs(generator: torch.Generator, n: int) -> tuple[list[Example], list[Example]]:
    """The same random prompts with and without the key word, each with its right answer."""
    positive: list[Example] = []
    negative: list[Example] = []
    for _ in range(n):
        words = [
            w for w in tiny.words(generator, int(torch.randint(4, 9, (1,), generator=generator))).split() if w != KEY
        ]
        at = int(torch.randint(len(words) + 1, (1,), generator=generator))
        positive.append(Example.ask(" ".join([*words[:at], KEY, *words[at:]]), WITH))
        negative.append(Example.ask(" ".join(words), WITHOUT))
    return positive, negative


def contrast(n: int = 24, seed: int = 1) -> Contrast:
    """Paired contrast data for the planted behaviour."""
    positive, negative = pairs(torch.Generator().manual_seed(seed), n)
    return Contrast(tuple(positive), tuple(negative), paired=True, concept=KEY, source=f"planted, seed {seed}")
