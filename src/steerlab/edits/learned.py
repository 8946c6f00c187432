"""Edits that are functions of their own: one map a dimension, a small network, steps towards a score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import EditError, nearest
from .base import UNIT, AffineMap, Domain, Edit, Strength
from .checks import keep, matrix, shape, vector

if TYPE_CHECKING:
    from jaxtyping import Float

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
        scale = vector("scale", self.scale)
        rest = {n: vector(n, getattr(self, n), scale.shape[0]) for n in ("shift", "low", "high")}
        keep(self, scale=scale, **rest)

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
        down = matrix("down", self.down)
        up = matrix("up", self.up, down.shape[1])
        if down.shape != up.shape:
            raise EditError(f"Adapter's down is {shape(down)} and up {shape(up)}; expected the same shape [r, d].")
        if self.activation not in ACTIVATIONS:
            raise EditError(f"Adapter has the activation {self.activation!r}. {nearest(self.activation, ACTIVATIONS)}")
        keep(self, down=down, up=up)

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
        readout = vector("readout", self.readout)
        hidden = None if self.hidden is None else matrix("hidden", self.hidden)
        if (hidden is None) != (self.bias is None) or (hidden is not None and hidden.shape[0] != readout.shape[0]):
            raise EditError(
                f"Descend has hidden {None if hidden is None else shape(hidden)}, bias"
                f" {None if self.bias is None else shape(self.bias)} and readout {shape(readout)}; expected hidden [m, d],"
                " bias [m] and readout [m], or a readout [d] alone."
            )
        bias = None if self.bias is None else vector("bias", self.bias, readout.shape[0])
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
        keep(self, readout=readout, offset=vector("offset", self.offset, 1), hidden=hidden, bias=bias)

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
