"""What a pass says about answers, token by token, without any scores until they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engines.base import Batch
from ..engines.head import Head
from .bundles import Bundle
from .fused import Objective, chunk, fused

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Pieces:
    """Tensors `[n_i, d]` one below the other, joined only where they are looked at."""

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        self._pieces = pieces
        self._ends = torch.tensor([len(p) for p in pieces]).cumsum(0).tolist()

    def __getitem__(self, here: slice) -> Tensor:
        start, stop, _ = here.indices(self._ends[-1])
        found: list[Tensor] = []
        for piece, end in zip(self._pieces, self._ends, strict=True):
            begin = end - len(piece)
            if begin < stop and end > start:
                found.append(piece[max(start - begin, 0) : stop - begin])
        return found[0] if len(found) == 1 else torch.cat(found)


@dataclass(frozen=True, eq=False)
class Said:
    """What a pass says about its answers, token by token in the order of the examples."""

    hidden: (
        Float[Tensor, "n d"] | Pieces
    )  # what the head reads; or, where there is none to apply, the scores themselves
    head: Head | None
    tokens: Int[Tensor, " n"]
    row: Int[Tensor, " n"]  # whose
    place: Int[Tensor, " n"]  # 0 for an answer's first token
    rows: int
    normal: bool = False  # whether these scores are log-probabilities

    def each(self, objective: Objective) -> Float[Tensor, " n"]:
        """An objective's value at each token, differentiable."""
        return fused(self.hidden[:], self.head or _SAID, objective)

    def scores(self, here: slice = slice(None)) -> Float[Tensor, "n v"]:
        """Scores of some tokens, in float32."""
        return (self.head or _SAID)(self.hidden[here])

    def log_probs(self, here: slice = slice(None)) -> Float[Tensor, "n v"]:
        """Log-probabilities of some tokens, in float32."""
        scores = self.scores(here)
        return scores if self.normal else torch.log_softmax(scores, dim=-1)

    def all_log_probs(self) -> Float[Tensor, "n v"]:
        """Log-probabilities of all tokens, a few at a time, so that little beside them is in memory."""
        if self.head is None:
            return self.log_probs()
        many, size = len(self.tokens), chunk(self.head)
        whole = torch.empty(many, self.head.vocabulary, device=self.hidden[:0].device)
        for at in range(0, many, size):
            whole[at : at + size] = self.log_probs(slice(at, at + size))
        return whole

    def part(self, start: int, stop: int) -> Said:
        """Those of some of the examples, counted anew."""
        mine = (self.row >= start) & (self.row < stop)
        here = slice(int((self.row < start).sum()), int((self.row < stop).sum()))
        return Said(
            self.hidden[here], self.head, self.tokens[mine], self.row[mine] - start, self.place[mine], stop - start,
            self.normal,
        )  # fmt: skip

    def take(self, rows: Sequence[int]) -> Said:
        """Those of some of the examples, in their order."""
        new = torch.full((self.rows,), -1, device=self.row.device)
        new[torch.tensor(rows, dtype=torch.long, device=new.device)] = torch.arange(len(rows), device=new.device)
        mine = new[self.row] >= 0
        return Said(
            self.hidden[:][mine],
            self.head,
            self.tokens[mine],
            new[self.row[mine]],
            self.place[mine],
            len(rows),
            self.normal,
        )

    def by_row(self, each: Float[Tensor, " n"]) -> Float[Tensor, " b"]:
        """The sum over each example's tokens."""
        return torch.zeros(self.rows, device=each.device).index_add(0, self.row.to(each.device), each)

    @property
    def lengths(self) -> Int[Tensor, " b"]:
        """Tokens of each example's answer."""
        return torch.bincount(self.row, minlength=self.rows)


class _Said(Head):
    """Where scores are given themselves."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0, 0))

    @property
    def vocabulary(self) -> int:
        return 2**16

    def raw(self, hidden: Tensor) -> Tensor:
        return hidden.clone()

    def back(self, gradient: Tensor) -> Tensor:
        return gradient


_SAID = _Said()


def answers(batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Of all answers' tokens in batches of a row for each: which, whose, and how far into the answer."""
    tokens, rows, places, before = list[Tensor](), list[Tensor](), list[Tensor](), 0
    for batch in batches:
        _, token, row, place = Bundle(batch, [], [], None).answered()
        tokens.append(token)
        rows.append(row + before)
        places.append(place)
        before += len(batch.ids)
    return torch.cat(tokens), torch.cat(rows), torch.cat(places)


def in_order(parts: list[Said], order: list[int]) -> Said:
    """One result of several passes, in the order in which the examples were given."""
    if len(parts) == 1 and order == sorted(order):
        return parts[0]
    position = torch.tensor(order).argsort()  # example -> its place among the rows that ran
    hidden = torch.cat([p.hidden[:] for p in parts])
    tokens, place = torch.cat([p.tokens for p in parts]), torch.cat([p.place for p in parts])
    lengths = torch.cat([p.lengths for p in parts])
    first = lengths.cumsum(0) - lengths
    spans = zip(lengths[position].tolist(), first[position].tolist(), strict=True)
    take = torch.cat([torch.arange(begin, begin + n, device=lengths.device) for n, begin in spans])
    row = torch.repeat_interleave(torch.arange(len(order), device=lengths.device), lengths[position])
    return Said(hidden[take], parts[0].head, tokens[take], row, place[take], len(order))
