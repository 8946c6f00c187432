"""An edit on one side of a boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import EditError
from .base import Domain, Edit
from .checks import keep, vector
from .linear import Clamp

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class OneSided(Edit):
    """`inner`, but only where h·direction < threshold: on the other side of the boundary nothing is touched."""

    inner: Edit
    direction: Float[Tensor, " d"]
    threshold: float

    def __post_init__(self) -> None:
        keep(self, direction=vector("direction", self.direction, self.inner.width))
        if not math.isfinite(self.threshold):
            raise EditError(f"OneSided has the threshold {self.threshold}; expected a finite number.")

    @property
    def domain(self) -> Domain:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner edit's."""
        return self.inner.domain

    @property
    def width(self) -> int:
        return self.inner.width

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner edit's."""
        return self.inner.rank

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        wrong = (h @ self.direction < self.threshold)[..., None]
        return torch.where(wrong, self.inner.apply(h, s), h)

    def opposite(self) -> OneSided:
        return OneSided(self.inner.opposite(), self.direction, self.threshold)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> OneSided:
        inner = Clamp.random(width, generator)
        return cls(inner, torch.randn(width, generator=generator), float(torch.randn((), generator=generator)))
