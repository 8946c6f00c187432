"""Examples as the rows of passes: like lengths together, and a prompt that several share run once where that costs less.

Answers to one prompt under one edit stand behind it in one row (`engines.packing`). That saves the prompt's tokens, and costs
attention: every answer's scores with the others' are computed and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engines import packing
from ..engines.base import Batch

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LEAST = 16  # tokens that a shared prompt must save beyond that, which pay for the mask
APART = 96  # tokens that a pass of its own costs, when rows are sorted by length
PAIRS = 0.2  # of an attention pair per channel of the stream, against a token through a block; counting gives 1/6


@dataclass(frozen=True, eq=False)
class Bundle:
    """Rows of one pass: their batch, which of the asked examples stand in it, in order, and one of each row's examples."""

    batch: Batch
    examples: list[int]
    first: list[int]
    places: list[packing.Place] | None  # None: a row each

    def split(self, h: Float[Tensor, "b t d"]) -> list[Float[Tensor, "t d"]]:
        """Each example's tokens."""
        if self.places is None:
            real = self.batch.position >= 0
            return [row[here.to(row.device)] for row, here in zip(h, real, strict=True)]
        return [h[p.row, p.columns.to(h.device)] for p in self.places]

    def joined(self, rows: Sequence[Float[Tensor, "t d"]]) -> Float[Tensor, "b t d"]:
        """Each example's tokens in their places, zeros elsewhere."""
        whole = torch.zeros(*self.batch.ids.shape, rows[0].shape[-1], dtype=rows[0].dtype, device=rows[0].device)
        if self.places is None:
            whole[(self.batch.position >= 0).to(whole.device)] = torch.cat(list(rows))
        else:
            for place, row in zip(self.places, rows, strict=True):
                whole[place.row, place.columns.to(whole.device)] = row
        return whole

    def answered(self) -> tuple[Int[Tensor, " n"] | None, Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Of all answers' tokens: which of the batch's `predicts` each is read at (None: in order), which token, whose (by its
        place in the bundle), and how far into the answer."""
        batch = self.batch
        if self.places is None:
            chosen = batch.predicts
            place = (batch.position - (batch.prompt_length[:, None] - 1))[chosen]
            return None, torch.roll(batch.ids, -1, dims=1)[chosen], chosen.nonzero()[:, 0], place
        device, predicts = batch.ids.device, batch.predicts
        order = torch.full(batch.ids.shape, -1, device=device)
        order[predicts] = torch.arange(int(predicts.sum()), device=device)
        prompts = batch.prompt_length.tolist()
        columns = [p.columns[prompts[p.row] - 1 :] for p in self.places]
        lengths = torch.tensor([len(c) - 1 for c in columns])
        row = torch.repeat_interleave(torch.tensor([p.row for p in self.places]), lengths).to(device)
        read, told = torch.cat([c[:-1] for c in columns]).to(device), torch.cat([c[1:] for c in columns]).to(device)
        whose = torch.repeat_interleave(torch.arange(len(columns)), lengths).to(device)
        return (
            order[row, read],
            batch.ids[row, told],
            whose,
            torch.cat([torch.arange(int(n)) for n in lengths]).to(device),
        )


def bundles(
    single: Sequence[Batch],
    alike: Sequence[Hashable | None],
    *,
    longest: int,
    width: int,
    most: int | None,
    join: Callable[[list[int]], Batch],
) -> list[Bundle]:
    """Examples, each a batch of its own, in passes.

    Those with one prompt and equal `alike` (not None) share a row of up to `longest` tokens where that is cheaper at a stream's
    `width`. A pass has at most `most` rows; `join` makes a plain batch.
    """
    items = [_item(b) for b in single] if longest and any(a is not None for a in alike) else []
    rows = _rows(items, alike, longest, width) if items else []
    if all(len(row.examples) == 1 for row in rows):
        lengths = [int(b.ids.shape[1]) for b in single]
        groups = by_length(lengths, most)
        return [Bundle(join(group), group, group, None) for group in groups]
    found: list[Bundle] = []
    for group in by_length([row.length for row in rows], most):
        chosen = [rows[n] for n in group]
        examples = [n for row in chosen for n in row.examples]
        if len(examples) == len(chosen):
            found.append(Bundle(join(examples), examples, examples, None))
            continue
        batch, places = packing.packed(items, chosen, left=False)
        found.append(Bundle(batch.to(single[0].ids.device), examples, [row.examples[0] for row in chosen], places))
    return found


def _item(single: Batch) -> packing.Item:
    ids, prompt = single.ids[0].tolist(), int(single.prompt_length[0])
    return packing.Item(tuple(ids[:prompt]), int(single.head[0]), tuple(ids[prompt:]))


def _rows(
    items: Sequence[packing.Item], alike: Sequence[Hashable | None], longest: int, width: int
) -> list[packing.Row]:
    """Rows of one or more examples: those that may be together, where it is cheaper than each alone."""
    groups: dict[Hashable, list[int]] = {}
    for n, (item, key) in enumerate(zip(items, alike, strict=True)):
        groups.setdefault((n,) if key is None or not item.answer else (item.prompt, key), []).append(n)
    found: list[packing.Row] = []
    for group in groups.values():
        together = packing.rows([items[n] for n in group], longest=longest, share=True)
        for row in together:
            mine = tuple(group[n] for n in row.examples)
            if len(mine) > 1 and _cheaper([items[n] for n in mine], width):
                found.append(packing.Row(mine, row.length))
            else:
                found += [packing.Row((n,), len(items[n].prompt) + len(items[n].answer)) for n in mine]
    return found


def _cheaper(items: Sequence[packing.Item], width: int) -> bool:
    """Whether one row costs less than one for each, counted in tokens through a block."""
    prompt, lengths = len(items[0].prompt), [len(i.answer) for i in items]
    saved = (len(items) - 1) * prompt
    pairs = (prompt + sum(lengths)) ** 2 - sum((prompt + n) ** 2 for n in lengths)
    return saved > LEAST + PAIRS * pairs / width


def by_length(lengths: Sequence[int], most: int | None = None) -> list[list[int]]:
    """Rows in groups of like length: where padding would cost more than a pass of its own, a new group begins."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    least, cut = [0.0], [0]  # the cost of the first n, and where their last group begins
    for n in range(1, len(order) + 1):
        first = 0 if most is None else max(0, n - most)
        costs = [least[k] + (n - k) * lengths[order[n - 1]] + APART for k in range(first, n)]
        cut.append(first + min(range(n - first), key=costs.__getitem__))
        least.append(costs[cut[-1] - first])
    groups: list[list[int]] = []
    n = len(order)
    while n:
        groups.append(order[cut[n] : n])
        n = cut[n]
    return groups[::-1]
