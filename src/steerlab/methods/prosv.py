"""PrOSV, prompt-only steering vectors (arXiv 2605.05983): a vector and its factor, trained together, at a few prompt tokens.

h + α·v at the first p and last s tokens of the whole templated prompt, BOS included; generated tokens are left alone. α
(begun at β·√d) and v (begun in ±λ/√d) have step sizes of their own, whose product stays of order 1 (section 4); clipping
takes v alone. `objective` is the language-model one, or the reference-scaled SimPO of RePS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..edits import Edit, Shift
from .optimisers import Adam, Optimiser, Several
from .trained import Free, Given, Row, Step, Trained
from .vectors import Pair, costs, elicited, preferred

if TYPE_CHECKING:
    from jaxtyping import Float

LOSER = "loses"


@dataclass(frozen=True)
class PrOSV(Trained):
    """Add a vector to a few prompt tokens, as strongly as the data wants it."""

    paper: ClassVar[str] = "arXiv 2605.05983"
    referring: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {
        "factor_begins": 0.05, "factor_step": 0.05, "vector_begins": 1.0, "positions": "p2+s4", "epochs": 18,
    }  # fmt: skip
    positions: str = "p2+s2"
    objective: Literal["language", "simpo"] = "language"
    factor_begins: float = 4.0
    factor_step: float = 10.0
    vector_begins: float = 8.0
    step: float = 0.04
    epochs: int = 12
    batch_size: int = 12

    def initial(self, given: Given) -> Free:
        width, sites = given.engine.width(given.sites[0]), len(given.sites)
        spread = self.vector_begins / math.sqrt(width)
        v = (2 * torch.rand(sites, width, generator=given.generator) - 1) * spread
        return {"v": v, "factor": torch.full((sites, 1), self.factor_begins * math.sqrt(width))}

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        return Several(
            Adam({"v": free["v"]}, step=self.step, steps=steps),
            Adam({"factor": free["factor"]}, step=self.factor_step, steps=steps, clip=None),
        )

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        return [Shift(factor * v) for factor, v in zip(free["factor"], free["v"], strict=True)]

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        winner = Row(elicited(item))
        return [winner] if self.objective == "language" else [winner, Row(item[1], tag=LOSER)]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        if self.objective == "language":
            return costs(step.said).mean()
        return preferred(step.only(""), step.only(LOSER))
