"""KL-DAS: the interchange of CDAS trained by a one-way Kullback–Leibler divergence (an ablation of arXiv 2602.05234).

Directions have their usual names: `forward` is KL(source‖intervened), the target first (mass-covering); `reverse` is
KL(intervened‖source). The published code names them the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .fused import KL, Objective
from .interchange import Interchange
from .trained import Step


@dataclass(frozen=True)
class KLDAS(Interchange):
    """Match distributions one way under interchange, and clamp to the poles that this takes."""

    paper: ClassVar[str] = "arXiv 2602.05234"
    matching: ClassVar[bool] = True
    direction: Literal["forward", "reverse"] = "forward"

    def objective(self, step: Step) -> Objective:
        return KL(step.target.log_probs, reverse=self.direction == "reverse")
