"""From conversations to rows of token ids: rendered with a steering's prompt, padded, measured against the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

import torch

from ..contrast import Example
from ..errors import DataError
from ..steering import Steering
from .base import Batch, Conversation, Sampling, as_example
from .hf_generate import Row
from .packing import Item
from .render import Extras, Rendered, Renderer
from .sampling import begun, check

Padding = Literal["left", "right"]


def rendered(renderer: Renderer, example: Example, steering: Steering | None) -> Rendered:
    """The prompt as the model reads it, with the text that a steering puts in."""
    messages = renderer.conversation(example.messages)
    if steering is not None and steering.prompt is not None:
        messages = steering.prompt.apply(messages)
    return renderer.prompt(messages, Extras(thinking=example.thinking))


def item(
    renderer: Renderer, context: int, example: Example, steering: Steering | None, n: int = 0, *, close: bool = True,
    cut: int | None = None,
) -> Item:  # fmt: skip
    """An example with its answer, of at most `cut` tokens. Raises `DataError` where it is longer than the context."""
    prompt = rendered(renderer, example, steering)
    answer = [] if example.answer is None else renderer.answer(example.answer, close=close)[:cut]
    length = len(prompt.ids) + len(answer)
    if length > context:
        raise DataError(
            f"example {n} is {length} tokens long with its answer, and the model's context holds {context};"
            " shorten it, or leave it out."
        )
    return Item(tuple(prompt.ids), prompt.head, tuple(answer))


def padded(
    whole: Sequence[Sequence[int]], prompts: Sequence[int], heads: Sequence[int], *, pad: int, padding: Padding
) -> Batch:
    """Rows of ids as one batch; `prompts` and `heads` are how many of them are the prompt's and its template's head."""
    width = max(map(len, whole))
    ids = torch.full((len(whole), width), pad)
    position = torch.full((len(whole), width), -1)
    for n, row in enumerate(whole):
        here = slice(width - len(row), width) if padding == "left" else slice(0, len(row))
        ids[n, here] = torch.tensor(row)
        position[n, here] = torch.arange(len(row))
    return Batch(ids, position, torch.tensor(prompts), torch.tensor(heads))


def decoding(
    renderer: Renderer,
    context: int,
    prompts: Sequence[Conversation],
    each: Sequence[Steering | None],
    sampling: Sampling,
) -> list[Row]:
    """Replies to be made. Raises `DataError` for a prompt that leaves no room."""
    rows: list[Row] = []
    seeds = sampling.seeds(len(prompts))
    check(sampling, renderer)
    for n, (prompt, steering, seed) in enumerate(zip(prompts, each, seeds, strict=True)):
        asked = rendered(renderer, as_example(prompt), steering)
        room = context - len(asked.ids)
        if room < 1:
            raise DataError(
                f"prompt {n} is {len(asked.ids)} tokens long, and the model's context holds {context}; expected"
                " room for at least one token of reply. Shorten the prompt."
            )
        generator = torch.Generator().manual_seed(seed)
        limit = min(sampling.max_new_tokens, room)
        rows.append(Row(n, asked, steering, generator, limit, sampling, matcher=begun(sampling, renderer)))
    return rows


def by_length(rows: Sequence[Row], size: int, *, mixed: bool = True) -> Iterator[list[Row]]:
    """Batches of prompts of like length, so that little is padding; of one length where `mixed` says that none may be."""
    ordered = sorted(rows, key=lambda row: len(row.prompt.ids))
    groups = [ordered] if mixed else [list(g) for _, g in groupby(ordered, key=lambda row: len(row.prompt.ids))]
    for group in groups:
        for start in range(0, len(group), size):
            yield group[start : start + size]
