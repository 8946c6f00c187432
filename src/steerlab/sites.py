"""Where: one tensor inside a model.

`resid` is the OUTPUT of block `layer` (0-based), stated once, here. Every other tool's numbering is converted when its
files are read or written.

| part | tensor | width |
|---|---|---|
| `embed` | what the first block reads (no layer) | model |
| `norm_attn` | what block `layer`'s attention reads, where a norm stands before it | model |
| `q`, `k`, `v` | the projections, before norms and rotary embedding | heads · head size |
| `heads` | what the attention's output projection reads: a head is a slice | heads · head size |
| `attn` | what the attention module returns, before any later norm and the residual add | model |
| `norm_mlp` | what the MLP reads, where a norm stands before it | model |
| `neurons` | what the MLP's down projection reads: a neuron is a slice | MLP |
| `mlp` | what the MLP module returns, before any later norm and the residual add | model |
| `resid` | the block's output | model |
| `final` | the output of the last norm (no layer) | model |
| `logits` | the output head's scores (no layer) | vocabulary |
| `cache_k`, `cache_v` | the keys and values kept after prefill | heads · head size |
| `w:<matrix>` | a weight matrix of the block, by its module's name there, e.g. `w:mlp.down_proj` | what it reads |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from .errors import SiteError, nearest

WITHOUT_LAYER = ("embed", "final", "logits")
IN_BLOCK = (
    "norm_attn", "q", "k", "v", "cache_k", "cache_v", "heads", "attn", "norm_mlp", "neurons", "mlp", "resid",
)  # fmt: skip
PARTS = ("embed", *IN_BLOCK, "final", "logits")
SLICED = ("q", "k", "v", "heads", "neurons")

_TEXT = re.compile(r"(?P<part>[^@\[]+)(?:@(?P<layer>-?\d+))?(?:\[(?P<index>\d+)\])?")


@dataclass(frozen=True, slots=True)
class Site:
    """One tensor inside a model: `Site(12)` is the output of block 12, `Site(3, "heads", 5)` head 5 of block 3.

    `layer` counts blocks from 0 and is None for `embed`, `final` and `logits`. `index` picks one head or neuron. Written
    as text, a site is `resid@12`, `heads@3[5]` or `final`.
    """

    layer: int | None = None
    part: str = "resid"
    index: int | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS and not re.fullmatch(r"w:[^@\[\]\s]+", self.part):
            raise SiteError(f"a site has the part {self.part!r}. {nearest(self.part, PARTS)}")
        if (self.layer is None) != (self.part in WITHOUT_LAYER):
            need = "has no layer; leave it out" if self.layer is not None else "needs a layer (0-based)"
            if self.on_weights:
                need += ", since weights are those of a block (the embedding and the head, often tied, are none)"
            raise SiteError(f"the site {self.part!r} {need}; got layer={self.layer}.")
        if self.layer is not None and self.layer < 0:
            raise SiteError(f"a site has the layer {self.layer}; layers count from 0 at the first block.")
        if self.index is not None and (self.part not in SLICED or self.index < 0):
            raise SiteError(
                f"the site {self.part!r} has the index {self.index}; an index (from 0) picks a head or a neuron, so only"
                f" {', '.join(SLICED)} take one."
            )

    @classmethod
    def parse(cls, text: str | int) -> Self:
        """The site that `str` wrote: `12` or `"12"` is the output of block 12, as is `"resid@12"`."""
        text = str(text).strip()
        if re.fullmatch(r"-?\d+", text):
            return cls(int(text))
        found = _TEXT.fullmatch(text)
        if not found:
            raise SiteError(
                f"a site is {text!r}; expected a block number, or like 'resid@12', 'heads@3[5]' or 'final'."
            )
        layer, index = found["layer"], found["index"]
        return cls(None if layer is None else int(layer), found["part"], None if index is None else int(index))

    @property
    def on_weights(self) -> bool:
        """Whether it is a weight matrix rather than an activation."""
        return self.part.startswith("w:")

    @property
    def matrix(self) -> str:
        """The name of the weight matrix in its block."""
        return self.part.removeprefix("w:")

    @property
    def depth(self) -> tuple[int, int]:
        """Sorts sites in the order in which edits act: as a forward pass reaches them, and weights first of all."""
        return (-2, 0) if self.on_weights else self.reached

    @property
    def reached(self) -> tuple[int, int]:
        """Where a forward pass reaches it: a weight matrix as its block begins."""
        if self.on_weights and self.layer is not None:
            return (self.layer, -1)
        if self.layer is None:
            return (-1, 0) if self.part == "embed" else (2**31, PARTS.index(self.part))
        return (self.layer, IN_BLOCK.index(self.part))

    def __str__(self) -> str:
        where = self.part if self.layer is None else f"{self.part}@{self.layer}"
        return where if self.index is None else f"{where}[{self.index}]"
