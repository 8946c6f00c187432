"""LoReFT trained by distribution matching (`CDASLoReFT` of the code to arXiv 2602.05234).

The plain prompt under h + Rᵀ(W·h + b − R·h) is to say of the concept's answers what the concept's prompt says of them, in
Jensen–Shannon divergence. One way only: there is no source vector, so nothing to swap back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..edits import Affine
from .fused import JensenShannon
from .reft import ReFT, frame
from .trained import Free, Row, Step
from .vectors import Pair, elicited

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class CDASReFT(ReFT):
    """Match the concept prompt's distributions by low-rank maps at several blocks."""

    paper: ClassVar[str] = "arXiv 2602.05234"
    small: ClassVar[Mapping[str, Any]] = {}
    positions: str = "not_template"
    step: float = 0.02
    epochs: int = 20
    batch_size: int = 16

    def map(self, r: Tensor, w: Tensor, b: Tensor) -> Affine:
        return Affine(b @ (q := frame(r)), None, w - q, q)

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return [Row(elicited(item), source=item[0])]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        return step.said.each(JensenShannon(step.target.log_probs)).mean()
