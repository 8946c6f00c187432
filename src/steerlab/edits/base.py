"""What every edit is, and the affine normal form of those that have one."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from ..errors import EditError

if TYPE_CHECKING:
    from jaxtyping import Float

Strength = float | Tensor
Domain = tuple[float, float]
TWO_SIDED: Domain = (-math.inf, math.inf)
UNIT: Domain = (0.0, 1.0)


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

    def __init_subclass__(cls) -> None:
        """A class with a formula of its own doesn't inherit another one's `at`."""
        super().__init_subclass__()
        if "apply" in cls.__dict__ and "at" not in cls.__dict__:
            cls.at = Edit.at

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

    def at(self, s: Float[Tensor, "*n r"]) -> Callable[[Tensor], Tensor]:
        """`apply` at one strength inside the domain, for many calls: what doesn't depend on the activations is worked out once.

        The strength has as many axes as the activations of these calls, and equals `apply` up to float32's rounding.
        """
        return lambda h: self.apply(h, s)

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


def kinds(on: Literal["activations", "weights"] = "activations") -> dict[str, type[Edit]]:
    """Every kind of edit that exists on activations (or on weights), by the name under which it is saved.

    A class of somebody else's never takes the name of one that is here.
    """
    found: dict[str, type[Edit]] = {}
    todo: list[type[Edit]] = [Edit]
    while todo:
        for sub in todo.pop().__subclasses__():
            todo.append(sub)
            if sub.on == on and not getattr(sub, "__abstractmethods__", None):
                known = found.get(sub.__name__)
                if known is None or not known.__module__.startswith("steerlab."):
                    found[sub.__name__] = sub
    return dict(sorted(found.items()))


# --- checks, made once when an edit is built -------------------------------------------------------------------------
