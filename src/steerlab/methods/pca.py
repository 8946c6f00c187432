"""The first principal component of paired differences, or of centred classes (RepE, arXiv 2310.01405; repeng).

Paired rows: the first right singular vector of the differences, NOT centred: centring ordered differences would remove
their mean, which is the component that is wanted. Otherwise: of both classes around the midpoint of their means. A
component's sign is arbitrary; it is turned so that the positive class projects higher on the whole. Its length is the
gap between the class means along it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..edits import Shift
from .base import FromActivations, along

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PCA(FromActivations):
    """Add the direction along which the classes, or the pairs, vary most."""

    symmetric: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2310.01405"

    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Shift:
        if paired:
            rows = positive - negative
        else:
            midpoint = (positive.mean(dim=0) + negative.mean(dim=0)) / 2
            rows = torch.cat([positive, negative]) - midpoint
        component = torch.linalg.svd(rows.double(), full_matrices=False).Vh[0].float()
        return Shift(along(component, positive, negative))
