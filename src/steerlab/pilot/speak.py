"""Plain greedy replies from a pilot's folder, for its card. (To steer one, use `steerlab.engines`.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..contrast import Example
from ..errors import ArtefactError
from .tokenizer import encode, rendered


def load(folder: Path) -> tuple[Any, Any]:
    """The model (float32, for speed on a CPU) and the tokenizer of a folder. Raises `ArtefactError` without weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "model.safetensors").is_file():
        raise ArtefactError(
            f"{folder} holds no model.safetensors; expected a trained pilot. Train one with"
            " `python -m steerlab.pilot.train`, or name another folder."
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def replies(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    limit: int = 150,
    rows: int = 64,
    told: Callable[[int], None] | None = None,
) -> list[str]:
    """The greedy reply to each example, in order. `told` hears of each batch how many rows it had."""
    prompts = encode(tokenizer, [rendered(e)[0] for e in examples])
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [""] * len(prompts)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for r, i in enumerate(chosen):
            ids[r, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[r, longest - len(prompts[i]) :] = 1
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        for r, i in enumerate(chosen):
            new = out[r, longest:].tolist()
            if tokenizer.eos_token_id in new:
                new = new[: new.index(tokenizer.eos_token_id)]
            found[i] = tokenizer.decode(new)
        if told is not None:
            told(len(chosen))
    return found


def negative_log_likelihood(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[float, int]:
    """The sum of -log p over the tokens of free texts (the first one given the begin token), and their number."""
    total, n = 0.0, 0
    ids = [tokenizer(text)["input_ids"] for text in texts]
    with torch.inference_mode():
        for row in ids:
            tokens = torch.tensor([row])
            logits = model(tokens).logits[0, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
            total += float(losses)
            n += len(row) - 1
    return total, n
