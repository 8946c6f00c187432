"""The tables: for every block, row n is what is done to a token that has the number n; row 0 is zero.

A row may also look at the stream: with a gate's probe, which decides whether the token goes on with its row or with another one
from that block on, and with read-outs, whose numbers are left in a tensor to be fetched after the step.

They are plain tensors that stand for as long as the engine does, and are read by plain tensor operations in the model's forward
pass, so that a compiled graph or a captured CUDA graph reads what was last written. Nothing in it depends on whether anybody
steers: the operations are always there, and row 0 makes them nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .rows import Row

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Size:
    """`rows` with row 0, at each of `layers`; each row of the model's `width` with `rank` lines, and a diagonal or none.

    A row may also look: at `reads` directions of the stream as the block leaves it and, with `gates`, at one as it finds it.
    """

    layers: tuple[int, ...]
    rows: int
    width: int
    rank: int
    diag: bool
    reads: int = 0
    gates: bool = False

    @property
    def columns(self) -> int:
        """Numbers in a row at one block, rounded up so that every row begins at a round address."""
        wide = (1 + 2 * self.rank + self.diag) * self.width + 3 * self.rank + (self.rank**2 if self.rank > 1 else 0)
        return -(-wide // 16) * 16

    @property
    def looks(self) -> int:
        """Numbers in a row at one block that say what is looked at: read-outs' weights, a probe and its threshold."""
        return (self.reads + self.gates) * self.width + self.gates

    @property
    def bytes(self) -> int:
        """Memory on one device."""
        return 4 * len(self.layers) * self.rows * (self.columns + self.looks)

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

    def unseen(self, layer: int, look: Look) -> str | None:
        """Why what a row looks at doesn't fit, in words, or None."""
        if layer not in self.layers:
            return f"block {layer} is looked at, and this server's tables are for {_numbers(self.layers)}"
        if look.probe is not None and not self.gates:
            return 'it has a gate, and this server\'s tables have none (start it with "gates": true)'
        if len(look.reads) > self.reads:
            return (
                f"{len(look.reads)} read-outs are asked for at block {layer}, and this server's tables have {self.reads} (start"
                f' it with "reads": {len(look.reads)})'
            )
        widths = {len(w) for w in (*look.reads, *([] if look.probe is None else [look.probe.direction]))} - {self.width}
        return (
            f"what is looked at in block {layer} has the width {widths.pop()}, and the model {self.width}"
            if widths
            else None
        )


class Probe(NamedTuple):
    """A gate's: it is open where h·direction > threshold."""

    direction: Float[Tensor, " d"]
    threshold: float


@dataclass
class Look:
    """What a token's row looks at in one block: a gate's probe before its edits, read-outs' weights after them."""

    probe: Probe | None = None
    reads: list[Float[Tensor, " d"]] = field(default_factory=list["Float[Tensor, ' d']"])


class Packed(NamedTuple):
    """What a row of the tables holds at every block: edits, and what is looked at."""

    edits: Float[Tensor, "l c"]
    looks: Float[Tensor, "l c"]


class Tables:
    """All blocks' tables on one device, and the row of every token of the step."""

    def __init__(self, size: Size, tokens: int, device: torch.device, *, always: bool) -> None:
        self.size, self.device, self.live = size, device, False
        count = len(size.layers)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.edits, self.looks = zeros(count, size.rows, size.columns), zeros(count, size.rows, size.looks)
        self.rows = zeros(tokens, dtype=torch.long)
        self.opened = zeros(tokens if size.gates else 0, dtype=torch.long)  # the row from where a token's gate opens on
        self.open = zeros(tokens if size.gates else 0, dtype=torch.bool)  # what the graph found: which gates did open
        self.seen = zeros(count, tokens if size.reads else 0, size.reads)  # and read
        self._at = {layer: n for n, layer in enumerate(size.layers)}
        self.blocks = {layer: Block(self, n, always=always) for layer, n in self._at.items()}

    def place(self, layer: int) -> int:
        """A block's number among those that have tables."""
        return self._at[layer]

    def packed(self, rows: Mapping[int, Row], looks: Mapping[int, Look] | None = None) -> Packed:
        """What a row of the tables holds: that of each block named, and nothing at the others."""
        size = self.size
        made = Packed(torch.zeros(len(size.layers), size.columns), torch.zeros(len(size.layers), size.looks))
        for layer, row in rows.items():
            part = Columns(size, made.edits[self._at[layer]][None])
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
        d = size.width
        for layer, look in (looks or {}).items():
            into = made.looks[self._at[layer]]
            for j, weight in enumerate(look.reads):
                into[j * d : (j + 1) * d] = weight
            if look.probe is not None:
                into[size.reads * d : -1], into[-1] = look.probe.direction, look.probe.threshold
        return made

    def write(self, number: int, rows: Mapping[int, Row], looks: Mapping[int, Look] | None = None) -> None:
        """Let a row be what is done and looked at in each block named, and nothing at the others."""
        self.fill([number], [self.packed(rows, looks)])

    def fill(self, numbers: Sequence[int], packed: Sequence[Packed]) -> None:
        """Let rows hold what is packed, in one copy."""
        assert all(0 < number < self.size.rows for number in numbers), "row 0 stays zero"
        at = torch.tensor(numbers, device=self.device)
        self.edits.index_copy_(1, at, torch.stack([one.edits for one in packed], dim=1).to(self.device))
        if self.size.looks:
            self.looks.index_copy_(1, at, torch.stack([one.looks for one in packed], dim=1).to(self.device))


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
        self._all, self._always, self._size, self._first = tables, always, tables.size, n == 0
        parts = {"edits": tables.edits[n], "looks": tables.looks[n], "seen": tables.seen[n]}
        for name, part in {**parts, "rows": tables.rows, "opened": tables.opened, "open": tables.open}.items():
            self.register_buffer(name, part, persistent=False)

    def forward(self, h: Float[Tensor, "n d"], rest: Float[Tensor, "n d"] | None) -> Float[Tensor, "n d"]:
        """`h`, with the edit of the stream h + rest added to it."""
        if not (self._always or self._all.live):
            return h
        size = self._size
        rows = torch.narrow(self._tensor("rows"), 0, 0, h.shape[0])
        x = h.float() if rest is None or not (size.rank or size.diag or size.looks) else h.float() + rest.float()
        looks = self._tensor("looks").index_select(0, rows) if size.looks else x
        if size.gates:
            rows = self._gated(x, looks, rows)
        new = (h.float() + self._added(x, rows)).to(h.dtype)
        if size.reads:
            left = new.float() if rest is None else new.float() + rest.float()
            weights = looks[:, : size.reads * size.width].view(-1, size.reads, size.width)
            torch.narrow(self._tensor("seen"), 0, 0, h.shape[0]).copy_((left[:, None] * weights).sum(dim=-1))
        return new

    def _added(self, x: Float[Tensor, "n d"], rows: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """What the rows' edits add to the stream."""
        size = self._size
        part = Columns(size, self._tensor("edits").index_select(0, rows))
        added = part.bias
        if size.diag:
            added = torch.addcmul(added, part.diag, x)
        found: list[Tensor] = []
        for j in range(size.rank):
            c = (x * part.down(j)).sum(dim=-1, keepdim=True) + part.start(j)
            for i in range(j):
                c = torch.addcmul(c, part.coupling(j, i), found[i])
            found.append(torch.clamp(c, part.least(j), part.most(j)))
            added = torch.addcmul(added, found[-1], part.up(j))
        return added

    def _gated(
        self, x: Float[Tensor, "n d"], looks: Float[Tensor, "n c"], rows: Int[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """The rows of tokens, those of open gates where one opens here or did at a block before."""
        size, count = self._size, x.shape[0]
        open_ = (x * looks[:, size.reads * size.width : -1]).sum(dim=-1) > looks[:, -1]
        held = torch.narrow(self._tensor("open"), 0, 0, count)
        if not self._first:
            open_ = open_ | held
        held.copy_(open_)
        return torch.where(open_, torch.narrow(self._tensor("opened"), 0, 0, count), rows)

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
