"""DiReFT (arXiv 2404.03592): h + Rᵀ(W·h + b), LoReFT without taking the old coordinates out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..edits import Affine
from .reft import ReFT, frame

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DiReFT(ReFT):
    """Add a linear function of the activation along orthonormal rows."""

    def map(self, r: Tensor, w: Tensor, b: Tensor) -> Affine:
        return Affine(b @ (q := frame(r)), None, w, q)
