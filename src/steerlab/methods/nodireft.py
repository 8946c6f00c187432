"""NodiReFT (arXiv 2404.03592): h + W₂ᵀ(W₁·h + b), DiReFT without orthonormal rows: an adapter on activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..edits import Affine
from .reft import ReFT

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NodiReFT(ReFT):
    """Add a low-rank linear function of the activation."""

    def map(self, r: Tensor, w: Tensor, b: Tensor) -> Affine:
        return Affine(b @ r, None, w, r)
