"""LoReFT (arXiv 2404.03592): h + Rᵀ(W·h + b − R·h), the coordinates in R's rows become W·h + b."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..edits import Affine
from .reft import ReFT, frame

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoReFT(ReFT):
    """Set low-rank coordinates to a linear function of the activation."""

    def map(self, r: Tensor, w: Tensor, b: Tensor) -> Affine:
        return Affine(b @ (q := frame(r)), None, w - q, q)
