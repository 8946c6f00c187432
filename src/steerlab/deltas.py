"""What, on weights: a change ΔW of a matrix W `[out, in]`, as strong as a strength says: W + s·ΔW.

A weight edit is an `Edit` whose argument is the matrix itself: `delta(W, 0)` is W bit for bit, arithmetic is float32 and
cast back once. It has no positions: it acts wherever the matrix is used. An engine needn't write it into the model:
`added` is what it adds to the matrix's output, x·(s·ΔW)ᵀ, which is the same by linearity, row by row and strength by strength.

A new kind is a subclass of `WeightEdit` with a field for every tensor; saving, loading and the laws find it by itself.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from .edits import TWO_SIDED, UNIT, Domain, Edit, Strength
from .errors import EditError

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class WeightEdit(Edit):
    """A change of a weight matrix `[height, width]` (out, in) that is linear in the strength."""

    on: ClassVar[Literal["activations", "weights"]] = "weights"

    @property
    @abstractmethod
    def height(self) -> int:
        """Rows of the matrix: the width of what it gives."""

    @abstractmethod
    def change(self) -> Float[Tensor, "out in"]:
        """ΔW as one matrix."""

    @abstractmethod
    def added(self, x: Float[Tensor, "*n in"], s: Strength = 1.0) -> Float[Tensor, "*n out"]:
        """What it adds to the matrix's output at inputs `x`, x·(s·ΔW)ᵀ, in float32. Raises `EditError` outside the domain."""

    def apply(self, h: Float[Tensor, "out in"], s: Float[Tensor, "*n"]) -> Float[Tensor, "*n out in"]:
        if h.shape[-2:] != (self.height, self.width):
            raise EditError(
                f"{self.kind} changes a matrix of {self.height} × {self.width} (out × in); this one is"
                f" {' × '.join(str(n) for n in h.shape)}."
            )
        return h + s * self.change()

    @classmethod
    @abstractmethod
    def random(cls, width: int, generator: torch.Generator, height: int | None = None) -> WeightEdit:
        """A valid instance drawn at random, for a matrix of `height` (as many as `width`) × `width`."""


@dataclass(frozen=True, eq=False)
class Delta(WeightEdit):
    """W + s·ΔW with ΔW = left·right, or `full` where it has no low rank: LoRA, fine-tuning, preference vectors.

    One-sided (strength in [0, 1]) unless the method that made it says that its negative means the opposite
    (`symmetric=True`).
    """

    left: Float[Tensor, "out r"] | None = None
    right: Float[Tensor, "r in"] | None = None
    full: Float[Tensor, "out in"] | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        given = {n: t for n in ("left", "right", "full") if (t := getattr(self, n)) is not None}
        if set(given) not in ({"left", "right"}, {"full"}):
            raise EditError(f"Delta has {sorted(given) or 'nothing'}; give left and right, or full.")
        for name, t in given.items():
            if t.ndim != 2 or t.numel() == 0:
                raise EditError(f"Delta's {name} has the shape {list(t.shape)}; expected a matrix.")
            if not bool(torch.isfinite(t).all()):
                raise EditError(f"Delta's {name} has values that are NaN or infinite; look at the data it came from.")
            object.__setattr__(self, name, t.to(torch.float32))
        if self.left is not None and self.right is not None and self.left.shape[1] != self.right.shape[0]:
            raise EditError(
                f"Delta's left is {list(self.left.shape)} and right {list(self.right.shape)}; expected [out, r] and [r, in]."
            )

    @property
    def domain(self) -> Domain:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Two-sided where the method says so."""
        return TWO_SIDED if self.symmetric else UNIT

    @property
    def height(self) -> int:
        return self._first.shape[0]

    @property
    def width(self) -> int:
        return self._last.shape[1]

    @property
    def low_rank(self) -> int | None:
        """The columns of `left`; None for a full difference."""
        return None if self.left is None else self.left.shape[1]

    @property
    def _first(self) -> Tensor:
        found = self.full if self.left is None else self.left
        assert found is not None  # checked in __post_init__
        return found

    @property
    def _last(self) -> Tensor:
        found = self.full if self.right is None else self.right
        assert found is not None  # checked in __post_init__
        return found

    def change(self) -> Tensor:
        return self._first if self.right is None else self._first @ self.right

    def added(self, x: Tensor, s: Strength = 1.0) -> Tensor:
        s, narrow = self.check(s, x.device), x.float() @ self._last.T
        return s * (narrow if self.left is None else narrow @ self.left.T)

    def opposite(self) -> Edit:
        if not self.symmetric:
            return super().opposite()
        if self.left is None:
            return Delta(full=-self._first, symmetric=True)
        return Delta(-self.left, self.right, symmetric=True)

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius, without making ΔW of a low rank."""
        if self.left is None or self.right is None:
            return float(self._first.norm())
        left, right = self.left.double(), self.right.double()
        return math.sqrt(max(float(((left.T @ left) * (right @ right.T)).sum()), 0.0))

    @classmethod
    def random(cls, width: int, generator: torch.Generator, height: int | None = None) -> Delta:
        height = height or width
        full, symmetric = torch.randint(2, (2,), generator=generator).bool().tolist()
        if full:
            return cls(full=torch.randn(height, width, generator=generator) / math.sqrt(width), symmetric=symmetric)
        left, right = torch.randn(height, 2, generator=generator), torch.randn(2, width, generator=generator)
        return cls(left / 2, right / math.sqrt(width), symmetric=symmetric)
