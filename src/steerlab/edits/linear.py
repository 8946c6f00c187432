"""Edits that are affine at each strength: a vector added, coordinates set, pushed or taken out, any affine map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..errors import EditError
from .base import TWO_SIDED, UNIT, AffineMap, Domain, Edit, Strength
from .checks import keep, matrix, orthonormal, random_basis, shape, vector

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Shift(Edit):
    """h + s·v. A direction from class means has the gap between the means as its length, so that +1 closes it."""

    v: Float[Tensor, " d"]

    def __post_init__(self) -> None:
        keep(self, v=vector("v", self.v))

    @property
    def width(self) -> int:
        return self.v.shape[0]

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        return h + s * self.v

    def at(self, s: Tensor) -> Callable[[Tensor], Tensor]:
        added = s * self.v
        return lambda h: h + added

    def affine(self, s: Strength = 1.0) -> AffineMap:
        return AffineMap(None, None, None, self.check(s, self.v.device).squeeze(-1) * self.v)

    def opposite(self) -> Shift:
        return Shift(-self.v)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Shift:
        return cls(torch.randn(width, generator=generator))


@dataclass(frozen=True, eq=False)
class OffsetShift(Shift):
    """h + (s + offset·sign s)·v: a shift that is trained with an offset on its factor, as RePS's is (arXiv 2505.20809, eq. 2).

    At strength 0 nothing is added. An offset of 0 makes it a `Shift`; one of −1 or less would turn strengths near 0 round.
    """

    offset: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.offset):
            raise EditError(f"the offset of an OffsetShift is {self.offset}; expected a finite number.")

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        return h + self._factor(s) * self.v

    def at(self, s: Tensor) -> Callable[[Tensor], Tensor]:
        added = self._factor(s) * self.v
        return lambda h: h + added

    def affine(self, s: Strength = 1.0) -> AffineMap:
        return AffineMap(None, None, None, self._factor(self.check(s, self.v.device)).squeeze(-1) * self.v)

    def opposite(self) -> OffsetShift:
        return OffsetShift(-self.v, self.offset)

    def _factor(self, s: Tensor) -> Tensor:
        """What v is multiplied by at strengths s, in the shape of s."""
        return s + self.offset * s.sign()

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> OffsetShift:
        return cls(torch.randn(width, generator=generator), float(torch.rand((), generator=generator)))


@dataclass(frozen=True, eq=False)
class Clamp(Edit):
    """Set the coordinates in span(q) to a pole: CDAS, DAS and clamping of a direction.

    With a = h·qᵀ, p the pole of the strength's sign and o the other: a moves to a + |s|·(p − a) up to |s| = 1, and
    beyond to p + (|s| − 1)·(p − o) whatever it was. The complement of span(q) is never touched. Continuous in s; a
    distributed interchange (CDAS, section 3) is a Clamp whose pole is read from a source run.
    """

    q: Float[Tensor, "r d"]
    positive: Float[Tensor, " r"]
    negative: Float[Tensor, " r"]

    def __post_init__(self) -> None:
        q = orthonormal("q", self.q)
        positive, negative = (vector(n, getattr(self, n), q.shape[0]) for n in ("positive", "negative"))
        keep(self, q=q, positive=positive, negative=negative)

    @property
    def width(self) -> int:
        return self.q.shape[1]

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Rows of q; each can have a strength of its own."""
        return self.q.shape[0]

    def target(self, a: Float[Tensor, "*n r"], s: Float[Tensor, "*n r"]) -> Float[Tensor, "*n r"]:
        """Where the coordinates `a` end up."""
        p = torch.where(s >= 0, self.positive, self.negative)
        o = torch.where(s >= 0, self.negative, self.positive)
        size = s.abs()
        return torch.where(size <= 1, a + size * (p - a), p + (size - 1) * (p - o))

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        a = h @ self.q.T
        return h + (self.target(a, s) - a) @ self.q

    def at(self, s: Tensor) -> Callable[[Tensor], Tensor]:
        # target(a) − a = target(0) − min(|s|, 1)·a: two products, and no more tensors than that
        q, qt, w, goal = (
            self.q,
            self.q.T.contiguous(),
            s.abs().clamp(max=1),
            self.target(torch.zeros_like(self.positive), s),
        )

        def clamped(h: Tensor) -> Tensor:
            moved = torch.addcmul(goal, w, linear(h, q), value=-1)
            return torch.addcmul(h, moved, q[0]) if len(q) == 1 else h + linear(moved, qt)

        return clamped

    def affine(self, s: Strength = 1.0) -> AffineMap | None:
        s = self.check(s, self.q.device).expand(self.rank)
        zero = torch.zeros_like(self.positive)
        # target(a) = target(0) + (1 − min(|s|, 1))·a
        return AffineMap(None, self.q, -s.abs().clamp(max=1)[:, None] * self.q, self.target(zero, s) @ self.q)

    def opposite(self) -> Clamp:
        return type(self)(self.q, self.negative, self.positive)

    def strength_of_multiplier(self, m: float, pole: Literal["positive", "negative"] = "positive") -> float:
        """The strength at which a rank-1 clamp sets the coordinate to m times a pole: the published multiplier.

        m = 1 is strength ±1. Where m·pole lies beyond the other pole (poles of one sign, the wanted one nearer to zero),
        that is a strength of the other sign: the published multiplier turns round there. Raises `EditError` between the
        poles, where a clamp only moves part of the way and no strength sets that value.
        """
        if self.rank != 1:
            raise EditError(f"a multiplier of one pole is defined for rank 1; this clamp has rank {self.rank}.")
        p, o = self.positive.item(), self.negative.item()
        if p == o:
            raise EditError(f"both poles are {p:g}, so strength has no scale beyond 1.")
        goal = m * (p if pole == "positive" else o)
        beyond_positive, beyond_negative = (goal - p) / (p - o), (goal - o) / (o - p)
        if beyond_positive >= 0:
            return 1 + beyond_positive
        if beyond_negative >= 0:
            return -1 - beyond_negative
        raise EditError(
            f"{m:g} times the {pole} pole is {goal:g}, between the poles {o:g} and {p:g}: no strength sets the coordinate"
            " to it (a strength inside (−1, 1) moves it part of the way)."
        )

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Clamp:
        r = 1 + int(torch.randint(min(3, width), (1,), generator=generator))
        poles = torch.randn(2, r, generator=generator)
        return cls(random_basis(r, width, generator), poles[0], poles[1])


@dataclass(frozen=True, eq=False)
class Push(Clamp):
    """A Clamp that only ever moves a coordinate towards its pole, never back: what is already beyond stays.

    One-sided, coordinate by coordinate: those with (p − o)·(target − a) > 0 move, where `target` is where the clamp
    would put them (for |s| ≤ 1 that is the same as being short of the pole). Prompts that are already at the pole, as
    unrelated ones often are when a behaviour is suppressed, are left bit-identical.
    """

    def target(self, a: Tensor, s: Tensor) -> Tensor:
        goal = super().target(a, s)
        away = torch.sign(self.positive - self.negative) * torch.sign(s)
        return torch.where(away * (goal - a) > 0, goal, a)

    def at(self, s: Tensor) -> Callable[[Tensor], Tensor]:
        return Edit.at(self, s)  # its target isn't affine

    def affine(self, s: Strength = 1.0) -> AffineMap | None:
        return None


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """h − s·((h·qᵀ − centre)·q): directional ablation (Arditi et al. 2024, eq. 4, at centre 0 and s = 1)."""

    domain: ClassVar[Domain] = UNIT
    q: Float[Tensor, "r d"]
    centre: Float[Tensor, " r"] | None = None

    def __post_init__(self) -> None:
        q = orthonormal("q", self.q)
        centre = torch.zeros(q.shape[0]) if self.centre is None else self.centre
        keep(self, q=q, centre=vector("centre", centre.to(q.device), q.shape[0]))

    @property
    def width(self) -> int:
        return self.q.shape[1]

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Rows of q."""
        return self.q.shape[0]

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        assert self.centre is not None  # set in __post_init__
        return h - (s * (h @ self.q.T - self.centre)) @ self.q

    def affine(self, s: Strength = 1.0) -> AffineMap:
        s = self.check(s, self.q.device).expand(self.rank)
        assert self.centre is not None  # set in __post_init__
        return AffineMap(None, self.q, -s[:, None] * self.q, (s * self.centre) @ self.q)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Ablate:
        r = 1 + int(torch.randint(min(2, width), (1,), generator=generator))
        return cls(random_basis(r, width, generator), torch.randn(r, generator=generator))


@dataclass(frozen=True, eq=False)
class Affine(Edit):
    """h + s·(diag⊙h + (h·downᵀ)·up + bias): transport, ReFT and LM-Steer.

    One-sided (strength in [0, 1]) unless the method that made it says that its negative means the opposite
    (`symmetric=True`).
    """

    bias: Float[Tensor, " d"]
    diag: Float[Tensor, " d"] | None = None
    down: Float[Tensor, "r d"] | None = None
    up: Float[Tensor, "r d"] | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        bias = vector("bias", self.bias)
        d = bias.shape[0]
        if (self.down is None) != (self.up is None):
            raise EditError("Affine has one of down and up; give both, or neither.")
        diag = None if self.diag is None else vector("diag", self.diag, d)
        down = None if self.down is None else matrix("down", self.down, d)
        up = None if self.up is None else matrix("up", self.up, d)
        if down is not None and up is not None and down.shape != up.shape:
            raise EditError(f"Affine's down is {shape(down)} and up {shape(up)}; expected the same shape [r, d].")
        keep(self, bias=bias, diag=diag, down=down, up=up)

    @property
    def domain(self) -> Domain:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Two-sided where the method says so."""
        return TWO_SIDED if self.symmetric else UNIT

    @property
    def width(self) -> int:
        return self.bias.shape[0]

    def _map(self) -> AffineMap:
        return AffineMap(self.diag, self.down, self.up, self.bias)

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        return h + s * (self._map()(h) - h)

    def affine(self, s: Strength = 1.0) -> AffineMap:
        s = self.check(s, self.bias.device).squeeze(-1)
        diag, down, up, _ = self._map()
        return AffineMap(None if diag is None else s * diag, down, None if up is None else s * up, s * self.bias)

    def opposite(self) -> Edit:
        if not self.symmetric:
            return super().opposite()
        diag, _, up, _ = self._map()
        return Affine(
            -self.bias, None if diag is None else -diag, self.down, None if up is None else -up, symmetric=True
        )

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Affine:
        draw = [torch.randn(n, width, generator=generator) / math.sqrt(width) for n in (1, 1, 2, 2)]
        full, symmetric = torch.randint(2, (2,), generator=generator).bool().tolist()
        if not full:
            return cls(draw[0][0], symmetric=symmetric)
        return cls(draw[0][0], draw[1][0], draw[2], draw[3], symmetric=symmetric)


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Chosen dimensions multiplied: h_i·(1 + s·(factor_i − 1)) for i in `index` (AUSteer). `size` is the site's width."""

    index: Int[Tensor, " k"]
    factor: Float[Tensor, " k"]
    size: int

    def __post_init__(self) -> None:
        index = self.index.detach().to(torch.int64)
        if index.ndim != 1 or index.numel() == 0 or index.unique().numel() != index.numel():
            raise EditError(f"Scale has the index {index.tolist()}; expected distinct dimensions, at least one.")
        if int(index.min()) < 0 or int(index.max()) >= self.size:
            raise EditError(f"Scale touches dimensions {index.tolist()} of {self.size}; they count from 0.")
        keep(self, index=index, factor=vector("factor", self.factor, index.shape[0]))

    @property
    def width(self) -> int:
        return self.size

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        return h + h * (s * self._diag())

    def affine(self, s: Strength = 1.0) -> AffineMap:
        return AffineMap(self.check(s, self.factor.device).squeeze(-1) * self._diag(), None, None, None)

    def _diag(self) -> Tensor:
        return torch.zeros(self.size, device=self.factor.device).index_put((self.index,), self.factor - 1)

    def opposite(self) -> Scale:
        return Scale(self.index, 2 - self.factor, self.size)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Scale:
        k = min(3, width)
        return cls(torch.randperm(width, generator=generator)[:k], torch.rand(k, generator=generator) * 3, width)
