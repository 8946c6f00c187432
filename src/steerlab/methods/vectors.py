"""What methods share that train a vector to be added: h + s·v."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..contrast import Example
from ..edits import Edit, Shift
from ..errors import ConfigError
from ..sites import Site
from .frozen import EditRows
from .fused import CrossEntropy
from .objectives import scaled_preference
from .said import Said
from .trained import Free, Given, Row, Step, Trained

if TYPE_CHECKING:
    from jaxtyping import Float

Pair = tuple[Example, Example]  # with the concept, without


@dataclass(frozen=True)
class TrainedVector(Trained):
    """A vector per site, trained at `factors` times its length, one drawn for each sequence; strength 1 is their median.

    `dropout` is the share of the vector's numbers that a training step leaves out, the rest the larger for it; held-out
    rows and steerings have the whole vector.
    """

    factors: tuple[float, ...] = (1.0,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{type(self).__name__} has the dropout {self.dropout}; expected a share in [0, 1).")
        if not self.factors or min(self.factors) <= 0:
            raise ConfigError(f"{type(self).__name__} has the factors {self.factors}; expected positive numbers.")

    @property
    def unit(self) -> float:
        """The factor that strength 1 stands for."""
        return float(median(self.factors))

    def strength(self, draw: torch.Generator) -> float:
        """One of the factors, in strengths."""
        return self.factors[int(torch.randint(len(self.factors), (1,), generator=draw))] / self.unit

    def alike(self, row: Row) -> Hashable | None:
        return row.strength

    def disturbed(self, rows: list[Row], draw: torch.Generator) -> list[Row]:
        if not self.dropout:
            return rows
        seed = 1 + int(torch.randint(2**31, (1,), generator=draw))  # one mask a step; a seed of 0 is no dropout
        return [row._replace(seed=seed) for row in rows]

    def thinned(self, rows: Sequence[Row], free: Free) -> Free:
        """The free parameters with the vectors as this step's dropout leaves them."""
        if not self.dropout or not rows or not rows[0].seed:
            return free
        draw = torch.Generator().manual_seed(rows[0].seed)
        kept = torch.rand(free["v"].shape, generator=draw, dtype=torch.float64) >= self.dropout
        return {**free, "v": free["v"] * kept.to(free["v"]) / (1 - self.dropout)}

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        return super().touching(rows, self.thinned(rows, free), given)

    def initial(self, given: Given) -> Free:
        width = given.engine.width(given.sites[0])
        return {"v": (2 * torch.rand(len(given.sites), width, generator=given.generator) - 1) / math.sqrt(width)}

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        return [Shift(self.unit * v) for v in free["v"]]


def elicited(pair: Pair) -> Example:
    """The plain prompt with the answer that has the concept."""
    return replace(pair[1], answer=pair[0].answer)


def suppressed(pair: Pair) -> Example:
    """The concept's prompt with the plain answer."""
    return replace(pair[0], answer=pair[1].answer)


def costs(said: Said) -> Float[Tensor, " n"]:
    """−log p of each answer token."""
    return said.each(CrossEntropy(said.tokens))


def preferred(winner: Step, loser: Step) -> Float[Tensor, ""]:
    """The reference-scaled SimPO loss of RePS, row by row of both; the reference is the untouched model."""
    (won, won_before), (lost, lost_before) = ((likely(s.said), likely(s.reference)) for s in (winner, loser))
    return scaled_preference(won, lost, won_before, lost_before, winner.said.lengths, loser.said.lengths).mean()


def likely(said: Said) -> Float[Tensor, " b"]:
    """Each row's log-probability of its answer."""
    return -said.by_row(costs(said))
