"""The control that every table carries: a random direction with as much data behind it as the methods beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from ..edits import Clamp, Shift
from .base import Aim, FromActivations, mean_gap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Random(FromActivations):
    """A random direction that the seed decides, in two forms.

    `shift` adds it with the norm that `diff_means` would have; `clamp` sets the coordinate along it to the class means,
    as the methods do that learn a subspace.
    """

    aim: ClassVar[Aim] = "control"
    form: Literal["shift", "clamp"] = "shift"

    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Shift | Clamp:
        gap = mean_gap(positive, negative)
        drawn = torch.randn(gap.shape, generator=torch.Generator().manual_seed(self.seed))
        unit = drawn / drawn.norm()
        if self.form == "shift":
            return Shift(unit * gap.norm())
        return Clamp(unit[None], (positive @ unit).mean()[None], (negative @ unit).mean()[None])
