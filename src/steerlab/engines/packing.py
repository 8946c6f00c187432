"""Examples with one prompt in one row: the prompt's tokens run once, and each answer sees them and itself.

A row is the prompt and then its answers, one after the other; positions begin anew after the prompt with each, and an
attention mask keeps answers apart. Every token has the neighbours and positions that it has alone, so its activations are
the same but for rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .base import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

MOST = 8  # answers in a row


class Item(NamedTuple):
    """A rendered example."""

    prompt: tuple[int, ...]
    head: int
    answer: tuple[int, ...]


class Place(NamedTuple):
    """Where an example stands in a batch: its row, and the columns of its tokens in order."""

    example: int
    row: int
    columns: Int[Tensor, " t"]


class Row(NamedTuple):
    """Examples of one prompt."""

    examples: tuple[int, ...]
    length: int


def rows(items: Sequence[Item], *, longest: int, share: bool) -> list[Row]:
    """Examples in rows of at most `longest` tokens, sorted by length; each alone unless prompts may be shared."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, item in enumerate(items):
        groups.setdefault(item.prompt if share else (n,), []).append(n)
    found: list[Row] = []
    for group in groups.values():
        mine: list[int] = []
        length = 0
        for n in group:
            more = len(items[n].answer)
            if mine and (len(mine) == MOST or length + more > longest):
                found.append(Row(tuple(mine), length))
                mine = []
            length = length + more if mine else len(items[n].prompt) + more
            mine.append(n)
        found.append(Row(tuple(mine), length))
    return sorted(found, key=lambda row: row.length)


def price(device: str) -> int:
    """What a batch more costs, in tokens: an accelerator runs thousands in the time of a launch."""
    return 16 if device == "cpu" else 4096


def batches(ordered: Sequence[Row], size: int, price: int) -> list[Sequence[Row]]:
    """Rows sorted by length, cut into batches of at most `size` where the fewest tokens are run, padding counted.

    `price` is what a batch more costs, in tokens.
    """
    least, begins = [0], list[int]()
    for end in range(1, len(ordered) + 1):
        width = ordered[end - 1].length
        cost, begin = min((least[b] + price + (end - b) * width, b) for b in range(max(0, end - size), end))
        least.append(cost)
        begins.append(begin)
    cuts = [len(ordered)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1] - 1])
    return [ordered[a:b] for b, a in reversed(list(itertools.pairwise(cuts)))]


def packed(items: Sequence[Item], chosen: Sequence[Row], *, left: bool) -> tuple[Batch, list[Place]]:
    """Some rows as one padded batch, and where each example stands in it."""
    width = max(row.length for row in chosen)
    ids, position = torch.zeros(len(chosen), width, dtype=torch.long), torch.full((len(chosen), width), -1)
    branch = torch.full((len(chosen), width), -1)
    places: list[Place] = []
    for n, row in enumerate(chosen):
        first = items[row.examples[0]]
        at = begin = width - row.length if left else 0
        size = len(first.prompt)
        ids[n, at : at + size] = torch.tensor(first.prompt)
        position[n, at : at + size], branch[n, at : at + size] = torch.arange(size), 0
        at += size
        for b, example in enumerate(row.examples):
            answer = items[example].answer
            here = slice(at, at + len(answer))
            ids[n, here] = torch.tensor(answer, dtype=torch.long)
            position[n, here], branch[n, here] = torch.arange(size, size + len(answer)), b + 1
            places.append(
                Place(example, n, torch.cat([torch.arange(begin, begin + size), torch.arange(at, at + len(answer))]))
            )
            at += len(answer)
    prompts = torch.tensor([len(items[row.examples[0]].prompt) for row in chosen])
    heads = torch.tensor([items[row.examples[0]].head for row in chosen])
    apart = branch if any(len(row.examples) > 1 for row in chosen) else None
    return Batch(ids, position, prompts, heads, apart), places


def visible(position: Int[Tensor, "b t"], branch: Int[Tensor, "b t"]) -> Bool[Tensor, "b t t"]:
    """Which tokens (last axis) each token sees: those before it in its prompt or its own answer, and itself."""
    before = position[:, None, :] <= position[:, :, None]
    kin = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    real = (position >= 0)[:, None, :]
    itself = torch.eye(position.shape[1], dtype=torch.bool, device=position.device)
    return (before & kin & real) | itself


def tokens(places: Sequence[Place]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Of all tokens of all examples: whose, in which row, in which column."""
    example = torch.cat([torch.full_like(p.columns, p.example) for p in places])
    row = torch.cat([torch.full_like(p.columns, p.row) for p in places])
    return example, row, torch.cat([p.columns for p in places])
