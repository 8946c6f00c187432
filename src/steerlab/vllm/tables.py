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
    from jaxtyping import Float


@dataclass(frozen=True)
class Size:
    """`rows` with row 0, at each of `layers`; each row of the model's `width` with `rank` lines, and a diagonal or none."""

    layers: tuple[int, ...]
    rows: int
    width: int
    rank: int
    diag: bool

    @property
    def columns(self) -> int:
        """Numbers in a row at one block, rounded up so that every row begins at a round address."""
        wide = (1 + 2 * self.rank + self.diag) * self.width + 3 * self.rank + (self.rank**2 if self.rank > 1 else 0)
        return -(-wide // 16) * 16

    @property
    def bytes(self) -> int:
        """Memory on one device."""
        return 4 * len(self.layers) * self.rows * self.columns

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
        self.size, self.device, self.live = size, device, False
        self.edits = torch.zeros(len(size.layers), size.rows, size.columns, device=device)
        self.rows = torch.zeros(tokens, dtype=torch.long, device=device)
        self._at = {layer: n for n, layer in enumerate(size.layers)}
        self.blocks = {layer: Block(self, n, always=always) for layer, n in self._at.items()}

    def packed(self, rows: Mapping[int, Row]) -> Float[Tensor, "l c"]:
        """What a row of the tables holds at every block: that of each block named, and nothing at the others."""
        made = torch.zeros(len(self.size.layers), self.size.columns)
        for layer, row in rows.items():
            part = Columns(self.size, made[self._at[layer]][None])
            if row.bias is not None:
                part.bias[0] = row.bias
            if row.diag is not None:
                part.diag[0] = row.diag
            for j, line in enumerate(row.lines):
                part.down(j)[0], part.up(j)[0], part.start(j)[0] = line.down, line.up, line.start
                part.least(j)[0] = 0.0 if line.side > 0 else -torch.inf
                part.most(j)[0] = 0.0 if line.side < 0 else torch.inf
                for i, weight in line.coupling.items():
                    part.coupling(j, i)[0] = weight
        return made

    def write(self, number: int, rows: Mapping[int, Row]) -> None:
        """Let a row be what is done at each block named, and nothing at the others."""
        self.fill([number], [self.packed(rows)])

    def fill(self, numbers: Sequence[int], packed: Sequence[Float[Tensor, "l c"]]) -> None:
        """Let rows hold what is packed, in one copy."""
        assert all(0 < number < self.size.rows for number in numbers), "row 0 stays zero"
        self.edits.index_copy_(
            1, torch.tensor(numbers, device=self.device), torch.stack(list(packed), dim=1).to(self.device)
        )


class Columns:
    """The parts of rows [n, columns] at one block, as views: bias, diagonal, up and down of each line, then single numbers.

    A line's number is kept between `least` and `most`: a side is 0 on one end, no side infinite on both, no line 0 on both.
    """

    def __init__(self, size: Size, rows: Float[Tensor, "n c"]) -> None:
        self._size, self._rows = size, rows

    def _wide(self, n: int) -> Float[Tensor, "n d"]:
        return self._rows[:, n * self._size.width : (n + 1) * self._size.width]

    def _single(self, n: int) -> Float[Tensor, "n 1"]:
        at = (1 + 2 * self._size.rank + self._size.diag) * self._size.width + n
        return self._rows[:, at : at + 1]

    @property
    def bias(self) -> Float[Tensor, "n d"]:
        """What is added."""
        return self._wide(0)

    @property
    def diag(self) -> Float[Tensor, "n d"]:
        """What each dimension is multiplied by and added."""
        return self._wide(1 + 2 * self._size.rank)

    def up(self, j: int) -> Float[Tensor, "n d"]:
        """What a line writes."""
        return self._wide(1 + j)

    def down(self, j: int) -> Float[Tensor, "n d"]:
        """What a line reads."""
        return self._wide(1 + self._size.rank + j)

    def start(self, j: int) -> Float[Tensor, "n 1"]:
        """What is added to the number that a line reads."""
        return self._single(j)

    def least(self, j: int) -> Float[Tensor, "n 1"]:
        """The least that a line's number may be."""
        return self._single(self._size.rank + j)

    def most(self, j: int) -> Float[Tensor, "n 1"]:
        """The most that a line's number may be."""
        return self._single(2 * self._size.rank + j)

    def coupling(self, j: int, i: int) -> Float[Tensor, "n 1"]:
        """How much of an earlier line's number goes into a line's."""
        return self._single((3 + j) * self._size.rank + i)


class Block(nn.Module):
    """One block's tables, as a module of that block: what a compiled graph finds there, it reads anew at each step."""

    def __init__(self, tables: Tables, n: int, *, always: bool) -> None:
        super().__init__()
        self._all, self._always, self._size = tables, always, tables.size
        self.register_buffer("edits", tables.edits[n], persistent=False)
        self.register_buffer("rows", tables.rows, persistent=False)

    def forward(self, h: Float[Tensor, "n d"], rest: Float[Tensor, "n d"] | None) -> Float[Tensor, "n d"]:
        """`h`, with the edit of the stream h + rest added to it."""
        if not (self._always or self._all.live):
            return h
        size = self._size
        part = Columns(
            size, self._tensor("edits").index_select(0, torch.narrow(self._tensor("rows"), 0, 0, h.shape[0]))
        )
        added = part.bias
        if size.rank or size.diag:
            x = h.float() if rest is None else h.float() + rest.float()
            if size.diag:
                added = torch.addcmul(added, part.diag, x)
            found: list[Tensor] = []
            for j in range(size.rank):
                c = (x * part.down(j)).sum(dim=-1, keepdim=True) + part.start(j)
                for i in range(j):
                    c = torch.addcmul(c, part.coupling(j, i), found[i])
                found.append(torch.clamp(c, part.least(j), part.most(j)))
                added = torch.addcmul(added, found[-1], part.up(j))
        return (h.float() + added).to(h.dtype)

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
