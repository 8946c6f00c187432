"""Checks that are made once, when an edit is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import EditError

if TYPE_CHECKING:
    from .base import Edit

TOLERANCE = 1e-4  # how far from orthonormal a stored basis may be


def keep(edit: Edit, **values: Tensor | None) -> None:
    """Set fields of a frozen edit."""
    for name, value in values.items():
        object.__setattr__(edit, name, value)


def shape(t: Tensor) -> str:
    """A shape in words."""
    return "[" + ", ".join(str(n) for n in t.shape) + "]"


def finite(name: str, t: Tensor) -> Tensor:
    """Float32 and without NaN. The graph is kept: a method trains through an edit's tensors."""
    t = t.to(torch.float32)
    if not bool(torch.isfinite(t).all()):
        bad = int((~torch.isfinite(t)).sum())
        raise EditError(
            f"{name} has {bad} of {t.numel()} values that are NaN or infinite; look at the data it came from."
        )
    return t


def vector(name: str, t: Tensor, length: int | None = None) -> Tensor:
    """`[d]`, of that length where one is given, finite and in float32; else `EditError`."""
    if t.ndim != 1 or t.numel() == 0 or (length is not None and t.shape[0] != length):
        expected = "[d]" if length is None else f"[{length}]"
        raise EditError(f"{name} has the shape {shape(t)}; expected {expected}.")
    return finite(name, t)


def matrix(name: str, t: Tensor, width: int | None = None) -> Tensor:
    """`[r, d]`, of that width where one is given, finite and in float32; else `EditError`."""
    if t.ndim != 2 or t.numel() == 0 or (width is not None and t.shape[1] != width):
        raise EditError(f"{name} has the shape {shape(t)}; expected [r, {width if width else 'd'}].")
    return finite(name, t)


def orthonormal(name: str, t: Tensor) -> Tensor:
    """`[r, d]` with orthonormal rows; else `EditError`."""
    q = matrix(name, t)
    if q.shape[0] > q.shape[1]:
        raise EditError(f"{name} has {q.shape[0]} rows in {q.shape[1]} dimensions; expected at most as many rows.")
    off = float((q.detach() @ q.detach().T - torch.eye(q.shape[0], device=q.device)).abs().max())
    if off > TOLERANCE:
        raise EditError(
            f"{name}'s rows are not orthonormal: q·qᵀ is off the identity by {off:.2g} (at most {TOLERANCE:g}), so the"
            " coordinates would not be set exactly. Pass it through torch.linalg.qr first."
        )
    return q


def random_basis(r: int, width: int, generator: torch.Generator) -> Tensor:
    """`[r, width]` with orthonormal rows."""
    return torch.linalg.qr(torch.randn(width, r, generator=generator))[0].T.contiguous()
