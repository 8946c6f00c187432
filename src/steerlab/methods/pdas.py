"""PDAS: the interchange of CDAS trained by preference (an ablation of arXiv 2602.05234).

Under the interchange the base prompt is to prefer the source's answer to its own, by the reference-scaled SimPO loss;
the reference is the base without any intervention. The scale has RePS's sign (the published code's is turned round).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..errors import ConfigError
from .interchange import Interchange
from .objectives import cross_entropy, scaled_preference

if TYPE_CHECKING:
    from torch import Tensor

    from .runs import Runs, Subspace, Swap, Swapped


@dataclass(frozen=True)
class PDAS(Interchange):
    """Prefer the source's answer to the base's own under interchange, and clamp to the poles that this takes."""

    paper: ClassVar[str] = "arXiv 2602.05234"
    early: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early:
            raise ConfigError(
                f"pdas has early={self.early}, and its loss compares whole answers, each token alike; leave early=0."
            )

    def loss(self, runs: Runs, at: Subspace, swaps: Sequence[Swap]) -> Tensor:
        chosen, chosen_tokens = _summed(runs.swapped(at, swaps), len(swaps))
        rejected, rejected_tokens = _summed(runs.swapped(at, swaps, own=True), len(swaps))
        reference_chosen, _ = _summed(runs.plain(swaps), len(swaps))
        reference_rejected, _ = _summed(runs.plain(swaps, own=True), len(swaps))
        return scaled_preference(
            chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens
        ).mean()


def _summed(run: Swapped, rows: int) -> tuple[Tensor, Tensor]:
    """Each row's log-probability of its answer, and the answer's number of tokens."""
    each = -cross_entropy(run.scores, run.tokens)
    total = torch.zeros(rows, device=each.device).index_add(0, run.row, each)
    return total, torch.bincount(run.row, minlength=rows)
