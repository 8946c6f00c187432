"""PDAS: the interchange of CDAS trained by preference (an ablation of arXiv 2602.05234).

Under the interchange the base prompt is to prefer the source's answer to its own, by the reference-scaled SimPO loss;
the reference is the base without any intervention. The scale has RePS's sign (the published code's is turned round).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from .fused import CrossEntropy, Objective
from .interchange import OWN, Interchange, Item
from .trained import Row, Step
from .vectors import preferred

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class PDAS(Interchange):
    """Prefer the source's answer to the base's own under interchange, and clamp to the poles that this takes."""

    paper: ClassVar[str] = "arXiv 2602.05234"
    referring: ClassVar[bool] = True
    early: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early:
            raise ConfigError(
                f"pdas has early={self.early}, and its loss compares whole answers, each token alike; leave early=0."
            )

    def rows(self, item: Item, draw: torch.Generator) -> list[Row]:
        rows = super().rows(item, draw)
        own = [
            replace(rows[0].example, answer=item.negative.answer),
            replace(rows[1].example, answer=item.positive.answer),
        ]
        return [*rows, *(Row(e, row.strength, row.source, OWN) for e, row in zip(own, rows, strict=False))]

    def objective(self, step: Step) -> Objective:
        return CrossEntropy(step.said.tokens)

    def cost(self, step: Step) -> Float[Tensor, ""]:
        return preferred(step.only(""), step.only(OWN))
