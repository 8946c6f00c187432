"""Rotations inside a plane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from ..errors import EditError
from .base import UNIT, AffineMap, Domain, Edit, Strength
from .checks import keep, orthonormal, random_basis

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class _InPlane(Edit):
    """What the two rotations share: a plane span(q) and an angle in radians, counted from q[0] towards q[1]."""

    q: Float[Tensor, "2 d"]
    angle: float

    def __post_init__(self) -> None:
        keep(self, q=_plane(self.q))
        if not math.isfinite(self.angle):
            raise EditError(f"{self.kind} has the angle {self.angle}; expected finite radians.")

    @property
    def width(self) -> int:
        return self.q.shape[1]

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Self:
        return cls(random_basis(2, width, generator), float(torch.randn((), generator=generator)))


@dataclass(frozen=True, eq=False)
class Rotate(_InPlane):
    """Turn by s·angle inside the plane span(q); the norm is kept. `angle` in radians, from q[0] towards q[1]."""

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        return _turn(h, self.q, s * self.angle)

    def affine(self, s: Strength = 1.0) -> AffineMap:
        theta = self.check(s, self.q.device).squeeze(-1) * self.angle
        cos, sin = torch.cos(theta), torch.sin(theta)
        # a @ turn is the turned coordinates (a1 cos − a2 sin, a1 sin + a2 cos)
        turn = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])])
        return AffineMap(None, self.q, (turn - torch.eye(2, device=turn.device)) @ self.q, None)

    def opposite(self) -> Rotate:
        return Rotate(self.q, -self.angle)


@dataclass(frozen=True, eq=False)
class PointTo(_InPlane):
    """Turn a fraction s of the shorter arc to an absolute angle in the plane span(q): angular steering; norm kept.

    `angle` in radians, from q[0] towards q[1]. A vector without a component in the plane has no angle and stays.
    """

    domain: ClassVar[Domain] = UNIT

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        a = h @ self.q.T
        arc = self.angle - torch.atan2(a[..., 1:], a[..., :1])
        arc = torch.remainder(arc + math.pi, 2 * math.pi) - math.pi
        return _turn(h, self.q, s * arc)


def _plane(t: Tensor) -> Tensor:
    q = orthonormal("q", t)
    if q.shape[0] != 2:
        raise EditError(f"q has {q.shape[0]} rows; a rotation needs the two that span its plane.")
    return q


def _turn(h: Tensor, q: Tensor, theta: Tensor) -> Tensor:
    a = h @ q.T
    cos, sin = torch.cos(theta), torch.sin(theta)
    x, y = a[..., :1], a[..., 1:]
    return h + (torch.cat([x * cos - y * sin, x * sin + y * cos], dim=-1) - a) @ q
