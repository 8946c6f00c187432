"""KL-DAS: the interchange of CDAS trained by a one-way Kullback–Leibler divergence (an ablation of arXiv 2602.05234).

Directions have their usual names: `forward` is KL(source‖intervened), the target first (mass-covering); `reverse` is
KL(intervened‖source). The published code names them the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .interchange import Interchange
from .objectives import kl

if TYPE_CHECKING:
    from torch import Tensor

    from .runs import Runs, Subspace, Swap


@dataclass(frozen=True)
class KLDAS(Interchange):
    """Match distributions one way under interchange, and clamp to the poles that this takes."""

    paper: ClassVar[str] = "arXiv 2602.05234"
    direction: Literal["forward", "reverse"] = "forward"

    def loss(self, runs: Runs, at: Subspace, swaps: Sequence[Swap]) -> Tensor:
        run = runs.swapped(at, swaps)
        each = kl(run.source, run.scores) if self.direction == "forward" else kl(run.scores, run.source)
        return run.mean(each)
