"""SPLIT, preference and utility in one loss (arXiv 2602.02343, section 6): λ_p·L_p + λ_n·L_n + γ·ReLU(θ − (L_n − L_p)).

L_p and L_n are the mean costs of the answers with and without the concept under the vector: both stay likely, which is
utility, and a hinge keeps the one with the concept likelier by a margin, which is preference. The hinge is taken for each
pair (the published code takes it of a batch's means, where one easy pair hides the hard ones: `batch_hinge=True`). A tenth of
the vector's numbers are dropped at each step, as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .trained import Free, Row, Step
from .vectors import Pair, TrainedVector, costs, elicited

if TYPE_CHECKING:
    from jaxtyping import Float

OTHER = "other"


@dataclass(frozen=True)
class Split(TrainedVector):
    """Add what makes the concept's answers likelier than others, and leaves both likely."""

    paper: ClassVar[str] = "arXiv 2602.02343"
    small: ClassVar[Mapping[str, Any]] = {"factors": (0.5, 1.0, 1.5), "step": 0.04}
    factors: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
    preference: float = 1.0
    utility: float = 0.6
    hinge: float = 4.0
    margin: float = 0.5
    dropout: float = 0.1
    batch_hinge: bool = False
    step: float = 0.08
    batch_size: int = 4
    epochs: int = 18

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return [Row(elicited(item), self.strength(draw)), Row(item[1], self.strength(draw), tag=OTHER)]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        with_it, without = (costs_by_row(step.only(tag)) for tag in ("", OTHER))
        gap = without - with_it
        if self.batch_hinge:
            gap = gap.mean()
        lost = torch.relu(self.margin - gap).mean()
        return self.preference * with_it.mean() + self.utility * without.mean() + self.hinge * lost


def costs_by_row(step: Step) -> Float[Tensor, " b"]:
    """Each row's mean cost per answer token."""
    return step.said.by_row(costs(step.said)) / step.said.lengths.to(torch.float32)
