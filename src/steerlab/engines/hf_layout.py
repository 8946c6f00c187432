"""Tells an attention's query, key and value projections apart by where their outputs arrive.

One token at position 0 is run, where rotary embedding is the identity, and the tensors are caught at the moment
attention multiplies queries with keys (in `scaled_dot_product_attention`, or in the two plain matrix products of an
eager implementation). Each projection's output is replaced by noise: what changes tells its role. A projection that
feeds several roles (a fused one) is filled with its own column numbers, in digits that every dtype holds exactly, and
the numbers are read where they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BASE = 128  # digits 0 to 127: exact in float16 and bfloat16
_PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__)


class Arrived(NamedTuple):
    """What attention multiplied, for one token."""

    query: Float[Tensor, "1 heads 1 size"]
    key: Float[Tensor, "1 heads 1 size"]
    value: Float[Tensor, "1 heads 1 size"]


@dataclass
class Layout:
    """Heads and their size; for each of q, k, v: which projection, its columns (None: all, in order), the width."""

    heads: int
    key_heads: int
    head_size: int
    roles: dict[str, tuple[int, Int[Tensor, " w"] | None, int]] = field(
        default_factory=dict[str, tuple[int, "Tensor | None", int]]
    )


def find_layout(
    attention: nn.Module, projections: list[nn.Module], widths: tuple[int, ...], forward: Callable[[], None]
) -> Layout | str:
    """The layout, or the reason why it can't be told. `forward` runs the model on one token."""

    def arrived(module: nn.Module | None = None, change: Callable[[Tensor], Tensor] | None = None) -> Arrived | None:
        with _watching(attention, module, change) as tap:
            forward()
        return tap.arrived

    base = arrived()
    if base is None:
        return "its attention multiplies queries and keys in a way that could not be watched"
    layout = Layout(base.query.shape[1], base.query.shape[1], base.query.shape[-1])
    for n, (module, width) in enumerate(zip(projections, widths, strict=True)):
        noisy = arrived(module, _noise)
        moved = [r for r in Arrived._fields if noisy and not torch.equal(getattr(base, r), getattr(noisy, r))]
        if len(moved) == 1:
            layout.roles[moved[0][0]] = (n, None, width)
        elif len(moved) > 1 and (columns := _columns(module, width, arrived, layout.head_size)):
            for role, mine in columns.items():
                layout.roles[role] = (n, mine, len(mine))
    for part in ("k", "v"):
        if part in layout.roles:
            layout.key_heads = max(layout.roles[part][2] // layout.head_size, 1)
    return layout


def _noise(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)


def _columns(
    module: nn.Module, width: int, arrived: Callable[..., Arrived | None], size: int
) -> dict[str, Int[Tensor, " w"]] | None:
    """For a fused projection: the columns that become q, k and v, in the order in which they arrive."""
    number = torch.arange(width)
    read = {role: torch.zeros(0) for role in Arrived._fields}
    place = 1
    while place <= max(width - 1, 1):
        digit = (number // place % BASE).float()
        seen = arrived(module, _filled(digit))
        if seen is None:
            return None
        for role in Arrived._fields:
            heads = getattr(seen, role)[0, :, 0].float().cpu()
            read[role] = place * heads + (read[role] if read[role].numel() else 0)
        place *= BASE
    columns: dict[str, Tensor] = {}
    for role, heads in read.items():
        distinct = torch.stack(list({tuple(row.tolist()): row for row in heads}.values()))  # keys may come repeated
        flat = distinct.flatten()
        if distinct.shape[-1] != size or not torch.equal(flat, flat.round()) or flat.unique().numel() != flat.numel():
            return None
        if flat.min() < 0 or flat.max() >= width:
            return None
        columns[role[0]] = flat.long()
    return columns


def _filled(row: Float[Tensor, " w"]) -> Callable[[Tensor], Tensor]:
    return lambda out: row.to(out).expand_as(out).clone()


class _Tap(TorchFunctionMode):
    """Catches the first attention product while `inside` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.arrived: Arrived | None = None
        self._queries: tuple[Tensor, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside and self.arrived is None:
            self._look(func, args, kwargs)
        return func(*args, **kwargs)

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if func is torch.nn.functional.scaled_dot_product_attention:
            names = ("query", "key", "value")
            given = [*args[:3], *(kwargs[n] for n in names[len(args[:3]) :])]
            self.arrived = Arrived(*(t.detach().clone() for t in given))
        elif func in _PRODUCTS and len(args) > 1 and args[0].ndim == 4 and args[1].ndim == 4:
            a, b = args[0], args[1]
            if self._queries is None:
                self._queries = (a.detach().clone(), b.detach().transpose(-1, -2).clone())
            else:
                self.arrived = Arrived(*self._queries, b.detach().clone())


@contextmanager
def _watching(
    attention: nn.Module, module: nn.Module | None, change: Callable[[Tensor], Tensor] | None
) -> Generator[_Tap]:
    """Catch what `attention` multiplies, with one of its projections' outputs changed."""
    tap = _Tap()

    def enter(_module: nn.Module, _args: Any) -> None:
        tap.inside = True

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        tap.inside = False

    def replaced(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        assert change is not None
        return change(output)

    hooks = [attention.register_forward_pre_hook(enter), attention.register_forward_hook(leave)]
    if module is not None and change is not None:
        hooks.append(module.register_forward_hook(replaced))
    try:
        with tap:
            yield tap
    finally:
        for hook in hooks:
            hook.remove()
