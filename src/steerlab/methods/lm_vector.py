"""A vector trained by the language-model objective: make the concept's answers likely under plain prompts.

"Lang." of RePS's and CDAS's tables (arXiv 2505.20809; SSV in AxBench, arXiv 2501.17148): mean cross-entropy of the answers
with a factor drawn for each. With `rank` the vector has a low-rank map of the activation beside it,
h + s·((h·downᵀ)·up + v), which has no opposite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..edits import Affine, Edit
from ..errors import ConfigError
from .trained import Free, Given, Row, Step
from .vectors import Pair, TrainedVector, costs, elicited

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class LMVector(TrainedVector):
    """Add what makes the concept's answers likely."""

    paper: ClassVar[str] = "arXiv 2505.20809"
    small: ClassVar[Mapping[str, Any]] = {"factors": (1.0,), "step": 0.2}
    factors: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
    rank: int = 0
    step: float = 0.04
    batch_size: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0 or (self.rank and len(self.factors) > 1):
            raise ConfigError(
                f"lm_vector has rank={self.rank} and {len(self.factors)} factors; expected a rank from 0, and one factor with"
                " any above: a low-rank map is trained at one strength."
            )

    def initial(self, given: Given) -> Free:
        vector = super().initial(given)["v"]
        if not self.rank:
            return {"v": vector}
        shape = (len(given.sites), self.rank, vector.shape[1])
        down = (2 * torch.rand(shape, generator=given.generator) - 1) / math.sqrt(shape[-1])
        return {"v": vector, "down": down, "up": torch.zeros(shape)}

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        if not self.rank:
            return super().edits(free, given)
        parts = zip(free["v"], free["down"], free["up"], strict=True)
        return [Affine(self.unit * v, None, down, up) for v, down, up in parts]

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return [Row(elicited(item), self.strength(draw))]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        return costs(step.said).mean()
