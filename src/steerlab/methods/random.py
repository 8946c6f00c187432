"""The control that every table carries: a random direction, as long as the difference of the class means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..edits import Shift
from .base import Aim, FromActivations, mean_gap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Random(FromActivations):
    """Add a random direction of the same norm as `diff_means` would; the seed decides which."""

    aim: ClassVar[Aim] = "control"

    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Shift:
        gap = mean_gap(positive, negative)
        drawn = torch.randn(gap.shape, generator=torch.Generator().manual_seed(self.seed))
        return Shift(drawn / drawn.norm() * gap.norm())
