"""Directional ablation (Arditi et al., arXiv 2406.11717, eq. 4): h − s·(h·q)·q, the coordinate set to 0.

q is the difference of class means, normalised. The paper edits every block and both sub-modules; name the sites to do
that (`site="0,1,2"`), the default is one. Pole 0 is a choice: where neither class has its mean at 0, a clamp to a
class's own mean is the gentler edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..edits import Ablate
from .base import Aim, FromActivations, mean_gap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ablation(FromActivations):
    """Remove the direction between the classes; strength in [0, 1]."""

    aim: ClassVar[Aim] = "suppress"
    paper: ClassVar[str] = "arXiv 2406.11717"

    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Ablate:
        gap = mean_gap(positive, negative)
        return Ablate((gap / gap.norm())[None])
