"""What: functions on activations, `edit(h [*n, d], s) -> [*n, d]`, that know no model.

Strength has one unit. `edit(h, 0)` is `h`; +1 is the effect as fitted; an edit with two poles reaches the other one at
−1. Each edit carries the `domain` of its strength and refuses what lies outside.

Arithmetic runs in float32 and is cast back once. An edit that is affine in `h` at a strength says so (`affine`): engines
that batch many steerings, exports and weight baking work on that normal form alone.

A new kind is a subclass of `Edit` with a field for every tensor; saving, loading and the laws find it by itself.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from .errors import EditError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Strength = float | Tensor
Domain = tuple[float, float]
TWO_SIDED: Domain = (-math.inf, math.inf)
UNIT: Domain = (0.0, 1.0)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu, "relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh,
    "linear": lambda h: h,
}  # fmt: skip
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # the derivative of each, written out
    "silu": lambda z: torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z))), "relu": lambda z: (z > 0).to(z.dtype),
    "gelu": lambda z: 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi),
    "tanh": lambda z: 1 - torch.tanh(z).square(), "linear": torch.ones_like,
}  # fmt: skip
Rule = Literal["gradient", "adam", "newton"]
BETA, PATIENCE = 0.5, 10  # of Descend: where its loss turns from quadratic to linear, and steps without a better score
TOLERANCE = 1e-4  # how far from orthonormal a stored basis may be


class AffineMap(NamedTuple):
    """The normal form h + diag⊙h + (h·downᵀ)·up + bias; an absent part is zero."""

    diag: Float[Tensor, " d"] | None
    down: Float[Tensor, "r d"] | None
    up: Float[Tensor, "r d"] | None
    bias: Float[Tensor, " d"] | None

    def __call__(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        x = h.float()
        out = x
        if self.diag is not None:
            out = out + self.diag * x
        if self.down is not None and self.up is not None:
            out = out + (x @ self.down.T) @ self.up
        if self.bias is not None:
            out = out + self.bias
        return out.to(h.dtype)

    def then(self, after: AffineMap) -> AffineMap:
        """The one map that does this and then `after`."""
        d1, d2 = self.diag, after.diag

        def through(rows: Tensor) -> Tensor:  # rows · (I + diag2)
            return rows if d2 is None else rows + rows * d2

        diag = d2 if d1 is None else d1 if d2 is None else d1 + d2 + d1 * d2
        bias = None if self.bias is None else through(self.bias)
        downs, ups = [], []
        if self.down is not None and self.up is not None:
            up = through(self.up)
            if after.down is not None and after.up is not None:
                up = up + (self.up @ after.down.T) @ after.up
            downs.append(self.down)
            ups.append(up)
        if after.down is not None and after.up is not None:
            downs.append(after.down if d1 is None else after.down * (1 + d1))
            ups.append(after.up)
            if self.bias is not None and bias is not None:
                bias = bias + (self.bias @ after.down.T) @ after.up
        if after.bias is not None:
            bias = after.bias if bias is None else bias + after.bias
        return AffineMap(diag, torch.cat(downs) if downs else None, torch.cat(ups) if ups else None, bias)


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """A function on activations with a strength. Subclasses are frozen dataclasses of tensors and plain values."""

    on: ClassVar[Literal["activations", "weights"]] = "activations"
    domain: ClassVar[Domain] = TWO_SIDED
    rank: ClassVar[int] = 1
    bounds: ClassVar[tuple[str, ...]] = ()  # tensors that only say where it acts, and get no gradient

    def __call__(self, h: Float[Tensor, "*n d"], s: Strength = 1.0) -> Float[Tensor, "*n d"]:
        """The edited activations, in the shape, dtype and device of `h`.

        `s` is a number, or a tensor that broadcasts against `[*n, 1]` (or `[*n, r]`: one strength for each row of a
        basis). Raises `EditError` outside the domain or at another width.
        """
        if h.shape[-1] != self.width:
            raise EditError(f"{self.kind} was fitted at width {self.width}; the activations have width {h.shape[-1]}.")
        s = self.check(s, h.device)
        return self.apply(h.float(), s).to(h.dtype)

    @abstractmethod
    def apply(self, h: Float[Tensor, "*n d"], s: Float[Tensor, "*n r"]) -> Float[Tensor, "*n d"]:
        """The formula, on float32 `h` and a strength tensor inside the domain."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The width `d` of the site that it edits."""

    def affine(self, s: Strength = 1.0) -> AffineMap | None:
        """The edit at one strength in normal form, or None where it isn't affine in `h`."""
        return None

    def opposite(self) -> Edit:
        """The edit whose +1 is this one's −1. Raises `EditError` for an edit that has no opposite."""
        raise EditError(f"{self.kind} has no opposite: its strength lies in [{self.domain[0]:g}, {self.domain[1]:g}].")

    @property
    def two_sided(self) -> bool:
        """Whether negative strengths mean the opposite."""
        return self.domain[0] < 0

    @property
    def kind(self) -> str:
        """The name under which it is saved."""
        return type(self).__name__

    def check(self, s: Strength, device: torch.device | None = None) -> Float[Tensor, "*n r"]:
        """The strength as a float32 tensor. Raises `EditError` outside the domain."""
        low, high = self.domain
        if isinstance(s, Tensor):
            t = s.to(device=device, dtype=torch.float32)
            ok = bool(((t >= low) & (t <= high)).all())
        else:
            t = torch.tensor([float(s)], device=device)
            ok = low <= float(s) <= high
        if not ok:
            given = f"{float(s):g}" if not isinstance(s, Tensor) else f"{t.min().item():g} to {t.max().item():g}"
            raise EditError(f"{self.kind} takes strengths in [{low:g}, {high:g}]; got {given}.")
        return t

    def to(self, device: torch.device | str) -> Self:
        """The same edit with its tensors on another device."""
        moved: dict[str, Tensor | Edit] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (Tensor, Edit)):
                moved[f.name] = value.to(device)
        if all(value is getattr(self, name) for name, value in moved.items()):
            return self
        return dataclasses.replace(self, **moved)  # pyright: ignore[reportArgumentType]

    @classmethod
    @abstractmethod
    def random(cls, width: int, generator: torch.Generator) -> Edit:
        """A valid instance drawn at random, so that the laws can be tested on every kind that exists."""


@dataclass(frozen=True, eq=False)
class Shift(Edit):
    """h + s·v. A direction from class means has the gap between the means as its length, so that +1 closes it."""

    v: Float[Tensor, " d"]

    def __post_init__(self) -> None:
        _keep(self, v=_vector("v", self.v))

    @property
    def width(self) -> int:
        return self.v.shape[0]

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        return h + s * self.v

    def affine(self, s: Strength = 1.0) -> AffineMap:
        return AffineMap(None, None, None, self.check(s, self.v.device).squeeze(-1) * self.v)

    def opposite(self) -> Shift:
        return Shift(-self.v)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Shift:
        return cls(torch.randn(width, generator=generator))


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
        q = _orthonormal("q", self.q)
        positive, negative = (_vector(n, getattr(self, n), q.shape[0]) for n in ("positive", "negative"))
        _keep(self, q=q, positive=positive, negative=negative)

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
        return cls(_random_basis(r, width, generator), poles[0], poles[1])


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

    def affine(self, s: Strength = 1.0) -> AffineMap | None:
        return None


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """h − s·((h·qᵀ − centre)·q): directional ablation (Arditi et al. 2024, eq. 4, at centre 0 and s = 1)."""

    domain: ClassVar[Domain] = UNIT
    q: Float[Tensor, "r d"]
    centre: Float[Tensor, " r"] | None = None

    def __post_init__(self) -> None:
        q = _orthonormal("q", self.q)
        centre = torch.zeros(q.shape[0]) if self.centre is None else self.centre
        _keep(self, q=q, centre=_vector("centre", centre.to(q.device), q.shape[0]))

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
        return cls(_random_basis(r, width, generator), torch.randn(r, generator=generator))


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
        bias = _vector("bias", self.bias)
        d = bias.shape[0]
        if (self.down is None) != (self.up is None):
            raise EditError("Affine has one of down and up; give both, or neither.")
        diag = None if self.diag is None else _vector("diag", self.diag, d)
        down = None if self.down is None else _matrix("down", self.down, d)
        up = None if self.up is None else _matrix("up", self.up, d)
        if down is not None and up is not None and down.shape != up.shape:
            raise EditError(f"Affine's down is {_shape(down)} and up {_shape(up)}; expected the same shape [r, d].")
        _keep(self, bias=bias, diag=diag, down=down, up=up)

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
class _InPlane(Edit):
    """What the two rotations share: a plane span(q) and an angle in radians, counted from q[0] towards q[1]."""

    q: Float[Tensor, "2 d"]
    angle: float

    def __post_init__(self) -> None:
        _keep(self, q=_plane(self.q))
        if not math.isfinite(self.angle):
            raise EditError(f"{self.kind} has the angle {self.angle}; expected finite radians.")

    @property
    def width(self) -> int:
        return self.q.shape[1]

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Self:
        return cls(_random_basis(2, width, generator), float(torch.randn((), generator=generator)))


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


@dataclass(frozen=True, eq=False)
class OneSided(Edit):
    """`inner`, but only where h·direction < threshold: on the other side of the boundary nothing is touched."""

    inner: Edit
    direction: Float[Tensor, " d"]
    threshold: float

    def __post_init__(self) -> None:
        _keep(self, direction=_vector("direction", self.direction, self.inner.width))
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


@dataclass(frozen=True, eq=False)
class Transport(Edit):
    """One map for each dimension, scale·h + shift, where low < h < high; elsewhere nothing (Linear-AcT, arXiv 2410.23054).

    h + s·(scale⊙h + shift − h) inside the range that the maps were fitted on, strength in [0, 1].
    """

    domain: ClassVar[Domain] = UNIT
    bounds: ClassVar[tuple[str, ...]] = ("low", "high")
    scale: Float[Tensor, " d"]
    shift: Float[Tensor, " d"]
    low: Float[Tensor, " d"]
    high: Float[Tensor, " d"]

    def __post_init__(self) -> None:
        scale = _vector("scale", self.scale)
        rest = {n: _vector(n, getattr(self, n), scale.shape[0]) for n in ("shift", "low", "high")}
        _keep(self, scale=scale, **rest)

    @property
    def width(self) -> int:
        return self.scale.shape[0]

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        inside = (h > self.low) & (h < self.high)
        return torch.where(inside, h + s * ((self.scale - 1) * h + self.shift), h)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Transport:
        scale, shift, low, size = torch.randn(4, width, generator=generator)
        return cls(scale, shift, low - 1, low + size.abs())


@dataclass(frozen=True, eq=False)
class Adapter(Edit):
    """h + s·φ(h·downᵀ)·up, strength in [0, 1]: a small network beside the stream (arXiv 2603.00425)."""

    domain: ClassVar[Domain] = UNIT
    down: Float[Tensor, "r d"]
    up: Float[Tensor, "r d"]
    activation: str = "silu"

    def __post_init__(self) -> None:
        down = _matrix("down", self.down)
        up = _matrix("up", self.up, down.shape[1])
        if down.shape != up.shape:
            raise EditError(f"Adapter's down is {_shape(down)} and up {_shape(up)}; expected the same shape [r, d].")
        if self.activation not in ACTIVATIONS:
            raise EditError(f"Adapter has the activation {self.activation!r}. {nearest(self.activation, ACTIVATIONS)}")
        _keep(self, down=down, up=up)

    @property
    def width(self) -> int:
        return self.down.shape[1]

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        return h + s * (ACTIVATIONS[self.activation](h @ self.down.T) @ self.up)

    def affine(self, s: Strength = 1.0) -> AffineMap | None:
        if self.activation != "linear":
            return None
        return AffineMap(None, self.down, self.check(s, self.down.device) * self.up, None)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Adapter:
        down, up = torch.randn(2, 2, width, generator=generator) / math.sqrt(width)
        kinds = sorted(ACTIVATIONS)
        return cls(down, up, kinds[int(torch.randint(len(kinds), (1,), generator=generator))])


@dataclass(frozen=True, eq=False)
class Descend(Edit):
    """A few steps on h towards a target score of a value network: h + s·(z − h), strength in [0, 1] (arXiv 2510.12121).

    V(h) = φ(h·hiddenᵀ + bias)·readout + offset, or h·readout + offset where `hidden` is None. From z = h, each row by
    itself, `steps` times z ← z − step·move on the loss smooth-L1(V(z), target) with β = ½, or on −V(z) where `target` is
    None (arXiv 2406.05954); the iterate of the least loss counts, and a row stops after 10 steps without a lesser one.
    The move is the gradient ∇; that of `adam` (∇ clipped at norm 1); or `newton`'s (V − target)·∇V/‖∇V‖², the shortest
    way to the target where V is linear, which one step of 1 reaches. Derivatives are written out, so that it runs
    without autograd and gradients still reach the tensors.
    """

    domain: ClassVar[Domain] = UNIT
    readout: Float[Tensor, " m"]
    offset: Float[Tensor, " 1"]
    hidden: Float[Tensor, "m d"] | None = None
    bias: Float[Tensor, " m"] | None = None
    activation: str = "relu"
    target: float | None = None
    steps: int = 30
    step: float = 1.0
    rule: Rule = "gradient"

    def __post_init__(self) -> None:
        readout = _vector("readout", self.readout)
        hidden = None if self.hidden is None else _matrix("hidden", self.hidden)
        if (hidden is None) != (self.bias is None) or (hidden is not None and hidden.shape[0] != readout.shape[0]):
            raise EditError(
                f"Descend has hidden {None if hidden is None else _shape(hidden)}, bias"
                f" {None if self.bias is None else _shape(self.bias)} and readout {_shape(readout)}; expected hidden [m, d],"
                " bias [m] and readout [m], or a readout [d] alone."
            )
        bias = None if self.bias is None else _vector("bias", self.bias, readout.shape[0])
        if self.activation not in SLOPES:
            raise EditError(f"Descend has the activation {self.activation!r}. {nearest(self.activation, SLOPES)}")
        if self.rule not in ("gradient", "adam", "newton") or (self.rule == "newton" and self.target is None):
            raise EditError(
                f"Descend has the rule {self.rule!r} and the target {self.target}; expected gradient or adam, or newton with a"
                " target to reach."
            )
        if self.steps < 1 or not 0 < self.step < math.inf or not math.isfinite(self.target or 0.0):
            raise EditError(
                f"Descend has steps={self.steps}, step={self.step}, target={self.target}; expected at least 1 step, a"
                " positive step, and a finite target or None."
            )
        _keep(self, readout=readout, offset=_vector("offset", self.offset, 1), hidden=hidden, bias=bias)

    @property
    def width(self) -> int:
        return self.readout.shape[0] if self.hidden is None else self.hidden.shape[1]

    def value(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 1"]:
        """The score that the network gives to activations."""
        return self._scored(h.float())[0]

    def _scored(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """V [*n, 1] and ∇V [*n, d]."""
        if self.hidden is None or self.bias is None:
            return h @ self.readout[:, None] + self.offset, self.readout.expand_as(h)
        z = h @ self.hidden.T + self.bias
        value = ACTIVATIONS[self.activation](z) @ self.readout[:, None] + self.offset
        return value, (SLOPES[self.activation](z) * self.readout) @ self.hidden

    def _cost(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its derivative by the score."""
        if self.target is None:
            return -value, -torch.ones_like(value)
        off = value - self.target
        near = off.abs() < BETA
        return torch.where(near, off.square() / (2 * BETA), off.abs() - BETA / 2), (off / BETA).clamp(-1, 1)

    def apply(self, h: Tensor, s: Tensor) -> Tensor:
        z = best = h
        least = torch.full_like(h[..., :1], math.inf)
        stale = torch.zeros_like(least)
        first = second = torch.zeros_like(h)  # Adam's moments
        for n in range(self.steps + 1):  # the last turn only looks
            value, slope = self._scored(z)
            cost, pull = self._cost(value)
            better = (cost < least) & (stale < PATIENCE)
            best, least = torch.where(better, z, best), torch.where(better, cost, least)
            stale = torch.where(better, 0.0, stale + 1)
            if n == self.steps or bool((stale >= PATIENCE).all()):
                break
            move = pull * slope
            if self.rule == "newton":
                move = (value - (self.target or 0.0)) * slope / slope.square().sum(-1, keepdim=True).clamp_min(1e-12)
            elif self.rule == "adam":
                move = move / move.norm(dim=-1, keepdim=True).clamp_min(1)
                first, second = 0.9 * first + 0.1 * move, 0.999 * second + 0.001 * move.square()
                move = first / (1 - 0.9 ** (n + 1)) / (second / (1 - 0.999 ** (n + 1)) + 1e-16).sqrt()
            z = z - self.step * move
        return h + s * (best - h)

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Descend:
        readout, bias, offset, target = (torch.randn(n, generator=generator) for n in (3, 3, 1, 1))
        kind, deep, how = (int(torch.randint(n, (1,), generator=generator)) for n in (len(SLOPES), 2, 3))
        hidden = torch.randn(3, width, generator=generator) / math.sqrt(width)
        rules: tuple[Rule, ...] = ("gradient", "adam", "newton")
        return cls(
            readout if deep else torch.randn(width, generator=generator), offset, hidden if deep else None,
            bias if deep else None, sorted(SLOPES)[kind], float(target), 3, 0.2, rules[how],
        )  # fmt: skip


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
        _keep(self, index=index, factor=_vector("factor", self.factor, index.shape[0]))

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


def kinds(on: Literal["activations", "weights"] = "activations") -> dict[str, type[Edit]]:
    """Every kind of edit that exists on activations (or on weights), by the name under which it is saved."""
    found: dict[str, type[Edit]] = {}
    todo: list[type[Edit]] = [Edit]
    while todo:
        for sub in todo.pop().__subclasses__():
            todo.append(sub)
            if sub.on == on and not getattr(sub, "__abstractmethods__", None):
                found[sub.__name__] = sub
    return dict(sorted(found.items()))


# --- checks, made once when an edit is built -------------------------------------------------------------------------


def _keep(edit: Edit, **values: Tensor | None) -> None:
    for name, value in values.items():
        object.__setattr__(edit, name, value)


def _shape(t: Tensor) -> str:
    return "[" + ", ".join(str(n) for n in t.shape) + "]"


def _finite(name: str, t: Tensor) -> Tensor:
    """Float32 and without NaN. The graph is kept: a method trains through an edit's tensors."""
    t = t.to(torch.float32)
    if not bool(torch.isfinite(t).all()):
        bad = int((~torch.isfinite(t)).sum())
        raise EditError(
            f"{name} has {bad} of {t.numel()} values that are NaN or infinite; look at the data it came from."
        )
    return t


def _vector(name: str, t: Tensor, length: int | None = None) -> Tensor:
    if t.ndim != 1 or t.numel() == 0 or (length is not None and t.shape[0] != length):
        expected = "[d]" if length is None else f"[{length}]"
        raise EditError(f"{name} has the shape {_shape(t)}; expected {expected}.")
    return _finite(name, t)


def _matrix(name: str, t: Tensor, width: int | None = None) -> Tensor:
    if t.ndim != 2 or t.numel() == 0 or (width is not None and t.shape[1] != width):
        raise EditError(f"{name} has the shape {_shape(t)}; expected [r, {width if width else 'd'}].")
    return _finite(name, t)


def _orthonormal(name: str, t: Tensor) -> Tensor:
    q = _matrix(name, t)
    if q.shape[0] > q.shape[1]:
        raise EditError(f"{name} has {q.shape[0]} rows in {q.shape[1]} dimensions; expected at most as many rows.")
    off = float((q.detach() @ q.detach().T - torch.eye(q.shape[0], device=q.device)).abs().max())
    if off > TOLERANCE:
        raise EditError(
            f"{name}'s rows are not orthonormal: q·qᵀ is off the identity by {off:.2g} (at most {TOLERANCE:g}), so the"
            " coordinates would not be set exactly. Pass it through torch.linalg.qr first."
        )
    return q


def _plane(t: Tensor) -> Tensor:
    q = _orthonormal("q", t)
    if q.shape[0] != 2:
        raise EditError(f"q has {q.shape[0]} rows; a rotation needs the two that span its plane.")
    return q


def _turn(h: Tensor, q: Tensor, theta: Tensor) -> Tensor:
    a = h @ q.T
    cos, sin = torch.cos(theta), torch.sin(theta)
    x, y = a[..., :1], a[..., 1:]
    return h + (torch.cat([x * cos - y * sin, x * sin + y * cos], dim=-1) - a) @ q


def _random_basis(r: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(width, r, generator=generator))[0].T.contiguous()
