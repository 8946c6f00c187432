"""DAS on contrast pairs: the interchange of CDAS trained by cross-entropy on the source's answer (arXiv 2303.02536; the
ablation of arXiv 2602.05234)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .interchange import Interchange
from .objectives import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from .runs import Runs, Subspace, Swap


@dataclass(frozen=True)
class DAS(Interchange):
    """Make the source's answer likely under interchange, and clamp to the poles that this takes."""

    paper: ClassVar[str] = "arXiv 2303.02536"

    def loss(self, runs: Runs, at: Subspace, swaps: Sequence[Swap]) -> Tensor:
        run = runs.swapped(at, swaps)
        return run.mean(cross_entropy(run.scores, run.tokens))
