"""The tables: for every block, row n is what is done to a token that has the number n; row 0 is zero.

They are plain tensors that stand for as long as the engine does, and are read by plain tensor operations in the model's forward
pass, so that a compiled graph or a captured CUDA graph reads what was last written. Nothing in it depends on whether anybody
steers: the operations are always there, and row 0 makes them nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .rows import Row

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Size:
    """`rows` with row 0, at each of `layers`; each row of the model's `width` with `rank` lines, and a diagonal or none."""

    layers: tuple[int, ...]
    rows: int
    width: int
    rank: int
    diag: bool

    @property
    def bytes(self) -> int:
        """Memory on one device."""
        wide = 1 + 2 * self.rank + self.diag
        return 4 * len(self.layers) * self.rows * (wide * self.width + 2 * self.rank + self.rank**2)

    def refused(self, layer: int, row: Row) -> str | None:
        """Why a row doesn't fit, in words, or None."""
        if row.width != self.width:
            return f"it has the width {row.width} at block {layer}, and the model {self.width}"
        if layer not in self.layers:
            return f"it acts at block {layer}, and this server's tables are for {_numbers(self.layers)}"
        if len(row.lines) > self.rank:
            return (
                f"it takes {len(row.lines)} directions at block {layer}, and this server's tables have {self.rank} (start it"
                f' with "rank": {len(row.lines)})'
            )
        if row.diag is not None and not self.diag:
            return (
                f'it scales dimensions at block {layer}, and this server\'s tables do not (start it with "diag": true)'
            )
        return None


class Tables:
    """All blocks' tables on one device, and the row of every token of the step."""

    def __init__(self, size: Size, tokens: int, device: torch.device, *, always: bool) -> None:
        self.size, self.device = size, device
        self.live = False
        n, rows, k, d = len(size.layers), size.rows, size.rank, size.width

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.bias = zeros(n, rows, d)
        self.diag = zeros(n, rows, d) if size.diag else None
        self.down, self.up = (zeros(n, rows, k, d), zeros(n, rows, k, d)) if k else (None, None)
        self.start, self.side = (zeros(n, rows, k), zeros(n, rows, k)) if k else (None, None)
        self.coupling = zeros(n, rows, k, k) if k > 1 else None
        self.rows = zeros(tokens, dtype=torch.long)
        self._at = {layer: n for n, layer in enumerate(size.layers)}
        self.blocks = {layer: Block(self, n, always=always) for layer, n in self._at.items()}

    def write(self, number: int, rows: Mapping[int, Row]) -> None:
        """Let a row be what is done at each block named, and nothing at the others."""
        assert 0 < number < self.size.rows, "row 0 stays zero"
        size = self.size
        n, k, d = len(size.layers), size.rank, size.width
        wide = torch.zeros(n, 1 + 2 * k + size.diag, d)
        small = torch.zeros(n, 2 + k, k)
        for layer, row in rows.items():
            at = self._at[layer]
            if row.bias is not None:
                wide[at, 0] = row.bias
            if row.diag is not None:
                wide[at, 1 + 2 * k] = row.diag
            for j, line in enumerate(row.lines):
                wide[at, 1 + j], wide[at, 1 + k + j] = line.down, line.up
                small[at, 0, j], small[at, 1, j] = line.start, line.side
                for i, weight in line.coupling.items():
                    small[at, 2 + j, i] = weight
        wide, small = wide.to(self.device), small.to(self.device)
        self.bias[:, number].copy_(wide[:, 0])
        if self.diag is not None:
            self.diag[:, number].copy_(wide[:, 1 + 2 * k])
        if self.down is not None and self.up is not None and self.start is not None and self.side is not None:
            self.down[:, number].copy_(wide[:, 1 : 1 + k])
            self.up[:, number].copy_(wide[:, 1 + k : 1 + 2 * k])
            self.start[:, number].copy_(small[:, 0])
            self.side[:, number].copy_(small[:, 1])
        if self.coupling is not None:
            self.coupling[:, number].copy_(small[:, 2:])


class Block(nn.Module):
    """One block's tables, as a module of that block: what a compiled graph finds there, it reads anew at each step."""

    def __init__(self, tables: Tables, n: int, *, always: bool) -> None:
        super().__init__()
        self._all, self._always, self.rank = tables, always, tables.size.rank

        def keep(name: str, tensor: Tensor | None) -> None:
            self.register_buffer(name, tensor, persistent=False)

        for name in ("bias", "diag", "down", "up", "start", "side", "coupling"):
            whole: Tensor | None = getattr(tables, name)
            keep(name, None if whole is None else whole[n])
        keep("rows", tables.rows)

    def forward(self, h: Float[Tensor, "n d"], rest: Float[Tensor, "n d"] | None) -> Float[Tensor, "n d"]:
        """`h`, with the edit of the stream h + rest added to it."""
        if not (self._always or self._all.live):
            return h
        at = torch.narrow(self._rows, 0, 0, h.shape[0])
        added = self._tensor("bias")[at]
        diag = self._buffer("diag")
        if diag is None and not self.rank:
            return (h.float() + added).to(h.dtype)
        x = h.float() if rest is None else h.float() + rest.float()
        if diag is not None:
            added = added + diag[at] * x
        found: list[Tensor] = []
        for j in range(self.rank):
            c = (x * self._tensor("down")[:, j][at]).sum(dim=-1) + self._tensor("start")[:, j][at]
            for i in range(j):
                c = c + self._tensor("coupling")[:, j, i][at] * found[i]
            found.append(torch.where(self._tensor("side")[:, j][at] * c < 0, torch.zeros_like(c), c))
            added = added + found[-1][:, None] * self._tensor("up")[:, j][at]
        return (h.float() + added).to(h.dtype)

    @property
    def _rows(self) -> Int[Tensor, " m"]:
        return self._tensor("rows")

    def _buffer(self, name: str) -> Tensor | None:
        found: Any = getattr(self, name)
        return found

    def _tensor(self, name: str) -> Tensor:
        found: Any = getattr(self, name)
        return found


def hook(module: nn.Module, _args: Any, output: Any) -> Any:
    """A block's output through its tables. vLLM's blocks give the stream in two parts, (h, rest), or whole."""
    block: Any = module.steerlab
    if isinstance(output, Tensor):
        return block(output, None)
    if isinstance(output, tuple) and len(output) == 2:
        h, rest = output
        if isinstance(h, Tensor) and isinstance(rest, Tensor) and h.shape == rest.shape:
            return block(h, rest), rest
    raise UnsupportedError(
        f"a {type(module).__name__} gives something other than the stream, whole or in two parts; this model can't be steered"
        " in vLLM."
    )


def attach(model: nn.Module, tables: Tables) -> None:
    """Let every block's output pass through its tables, before the model is compiled. Raises `UnsupportedError`."""
    found = blocks(model, max(tables.size.layers) + 1)
    for layer, block in tables.blocks.items():
        module = found[layer]
        module.steerlab = block
        module.register_forward_hook(hook)


def blocks(model: nn.Module, depth: int) -> nn.ModuleList:
    """The blocks: the one list of at least that many modules, all of one kind. Raises `UnsupportedError`."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) >= depth]
    if len(lists) != 1:
        raise UnsupportedError(
            f"{type(model).__name__} has {len(lists)} lists of {depth} or more modules; expected one, of its blocks, so it is"
            " not known where to steer."
        )
    missing = [type(m).__name__ for m in lists[0] if "Missing" in type(m).__name__]
    if missing:
        raise UnsupportedError("some blocks are on another pipeline stage; start vLLM with pipeline_parallel_size 1.")
    return lists[0]


def _numbers(layers: Sequence[int]) -> str:
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"blocks {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"block {layers[0]}"
    return "blocks " + ", ".join(map(str, layers))
