"""The control that every table carries: a random direction with as much data behind it as the methods beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from ..edits import Clamp, Shift
from ..errors import ConfigError
from .base import Aim, FromActivations, mean_gap
from .optimisers import orthonormal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Random(FromActivations):
    """A random direction that the seed decides, in two forms.

    `shift` adds it with the norm that `diff_means` would have; `clamp` sets the coordinates in `rank` random directions to
    the class means, as the methods do that learn a subspace.
    """

    aim: ClassVar[Aim] = "control"
    form: Literal["shift", "clamp"] = "shift"
    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.rank > 1 and self.form == "shift"):
            raise ConfigError(f"random has rank={self.rank} and form={self.form!r}; expected rank 1, or form='clamp'.")

    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Shift | Clamp:
        gap = mean_gap(positive, negative)
        q = orthonormal(torch.randn(self.rank, len(gap), generator=torch.Generator().manual_seed(self.seed)))
        if self.form == "shift":
            return Shift(q[0] * gap.norm())
        return Clamp(q, (positive @ q.T).mean(dim=0), (negative @ q.T).mean(dim=0))
