"""The recipe: trains a variant from nothing, seeded and resumable.

    python -m steerlab.pilot.train [--variant pilot] [--out DIR] [--tokens N] [--threads N]

Weights, optimiser state and progress are written beside and then renamed, as safetensors and JSON, every few minutes;
the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow each other down on a busy machine

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file

from ..errors import ArtefactError
from .corpus import conversations
from .packing import Batch, steps_of_chunk
from .tokenizer import train_tokenizer
from .variants import VARIANTS, Variant
from .variants import variant as find_variant

_SAVE_EVERY = 240.0  # seconds between checkpoints
_TOKENIZER_TEXTS = 40_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """The optimiser's settings, the same for every variant."""

    step_tokens: int = 6144
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    warmup: float = 0.01  # share of the training
    decay: float = 0.5  # share of the training over which the rate falls to zero
    weight_decay: float = 0.05


@dataclass
class Progressed:
    """How far a training is."""

    chunk: int = 0
    step: int = 0
    tokens: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    loss: float = 0.0


def plain_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, None]:
    """Attention written out in bfloat16: on a CPU three times as fast, for rows this short, as the fused kernel."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + attention_mask
    mixed = torch.softmax(scores, -1) @ value
    return mixed.transpose(1, 2).contiguous(), None


def build(variant: Variant, tokenizer: Any) -> Any:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    size = variant.size
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.inner,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(variant.seed)
    model = LlamaForCausalLM(config)
    ALL_ATTENTION_FUNCTIONS.register("pilot_plain", plain_attention)
    model.set_attn_implementation("pilot_plain")
    return model


def make_tokenizer(variant: Variant) -> Any:
    """The tokenizer, learned from the start of the variant's own stream."""

    def texts() -> Iterator[str]:
        stream = conversations(variant.lexicon, variant.seed)
        for _ in range(_TOKENIZER_TEXTS):
            item = next(stream)
            if isinstance(item, str):
                yield item
            else:
                yield "\n".join([*(m.content for m in item.messages), item.answer or ""])

    return train_tokenizer(texts(), variant.size.vocabulary, variant.size.context)


def loss_of(model: Any, batch: Batch) -> tuple[torch.Tensor, float]:
    """The weighted next-token loss of a packed batch, summed, and its weight. Documents do not see each other."""
    ids, which = torch.from_numpy(batch.ids), torch.from_numpy(batch.documents)
    weights = torch.from_numpy(batch.weights)
    same = which[:, :, None] == which[:, None, :]
    seen = same & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        spots = weights > 0
        logits = model.lm_head(hidden[spots])
    targets = ids.roll(-1, dims=1)[spots]
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    chosen = weights[spots]
    return (losses * chosen).sum(), float(chosen.sum())


def optimisers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(done: float, recipe: Recipe) -> float:
    """The factor on the learning rates when a share of the training is done: warm-up, plateau, straight fall to zero."""
    if done < recipe.warmup:
        return done / recipe.warmup
    return min(1.0, max(0.0, (1 - done) / recipe.decay))
