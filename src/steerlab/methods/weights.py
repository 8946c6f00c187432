"""What methods share that train a change of weight matrices: W + s·ΔW.

A step runs the change beside the frozen matrix, x·Wᵀ + x·ΔWᵀ, whose gradient in ΔW is the matrix's own. So the model is
never written to, passes begin at the lowest changed block, and many fits share one. Memory beside the model, in bytes: 16
for each trained number (itself, its gradient, Adam's two moments, float32), and at each matrix one input per token.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..deltas import Delta
from ..engines.base import Batch, Shape, Trainable
from ..errors import ConfigError, SiteError, nearest
from ..sites import Site
from .base import parse_sites
from .frozen import EditRows
from .trained import Free, Given, Row, Step, Trained
from .vectors import Pair, costs, elicited

if TYPE_CHECKING:
    from jaxtyping import Float

ALL = "all"


@dataclass(frozen=True)
class TrainedWeights(Trained):
    """`site` names blocks (`3,4`; none: the method's own choice), or single matrices (`w:mlp.down_proj@3`).

    `matrices` says which of a block's: `all`, or names with commas between, each a matrix's (`mlp.down_proj`), the last
    part of one (`down_proj`), or of what it reads (`heads`: attention's output projection, `neurons`: the MLP's). Norms,
    biases, the embedding and the head stay as they are. A weight edit acts on every token, so `positions` is `all`.
    """

    positions: str = "all"
    matrices: str = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions != "all":
            raise ConfigError(
                f"{self.name} has positions={self.positions!r}; a change of weights acts on every token: expected 'all'."
            )

    def blocks(self, engine: Trainable) -> Sequence[int]:
        """The blocks that it changes where no site is given."""
        return range(engine.depth)

    @abstractmethod
    def begun(self, site: Site, shape: Shape, given: Given) -> dict[str, Tensor]:
        """The free parameters of one matrix to begin with, by names of its own."""

    @abstractmethod
    def change(self, free: Free) -> Delta:
        """The change of one matrix, from its free parameters."""

    # --- what the loop asks -------------------------------------------------------------------------------------------

    def placed(self, engine: Trainable) -> tuple[Site, ...]:
        named = [Site(n) for n in self.blocks(engine)] if self.site is None else parse_sites(engine, self.site)
        found: dict[Site, None] = {}
        for site in named:
            if site.on_weights:
                found[site] = None
            elif site.part == "resid" and site.layer is not None:
                found |= dict.fromkeys(self._chosen(engine, site.layer))
            else:
                raise SiteError(
                    f"{self.name} changes weights, and {site} is an activation; name blocks like '3', or matrices like"
                    " 'w:mlp.down_proj@3'."
                )
        return tuple(sorted(found, key=lambda s: s.reached))

    def _chosen(self, engine: Trainable, layer: int) -> list[Site]:
        known = engine.matrices(layer)
        if self.matrices == ALL and known:
            return list(known)
        chosen: list[Site] = []
        for name in (piece.strip() for piece in self.matrices.split(",")):
            mine = [s for s, m in known.items() if name in (s.matrix, s.matrix.rsplit(".", 1)[-1], m.reads)]
            if not mine:
                reads = {m.reads for m in known.values() if m.reads}
                raise ConfigError(
                    f"block {layer} has no weight matrix {name!r} that can be changed."
                    f" {nearest(name, [ALL, *reads, *(s.matrix for s in known)] if known else [])}"
                )
            chosen += mine
        return list(dict.fromkeys(chosen))

    def initial(self, given: Given) -> Free:
        found: dict[str, Tensor] = {}
        for site in given.sites:
            assert site.layer is not None
            shape = given.engine.matrices(site.layer)[site]
            found |= {f"{name} {site}": t for name, t in self.begun(site, shape, given).items()}
        return found

    def edits(self, free: Free, given: Given) -> Sequence[Delta]:
        return [self.change(at(free, site)) for site in given.sites]

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        strength = torch.tensor([row.strength for row in rows])
        return {s: beside(e, strength) for s, e in zip(given.sites, self.edits(free, given), strict=True)}

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return [Row(elicited(item))]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        return costs(step.said).mean()

    def told(self, free: Free, given: Given, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        norms = {str(s): round(e.norm, 6) for s, e in zip(given.sites, self.edits(free, given), strict=True)}
        trained = sum(t.numel() for t in free.values())
        return {**super().told(free, given, curve), "norm": norms, "trained_numbers": trained}


def at(free: Free, site: Site) -> dict[str, Tensor]:
    """The free parameters of one matrix."""
    end = f" {site}"
    return {name.removesuffix(end): t for name, t in free.items() if name.endswith(end)}


def beside(delta: Delta, strength: Float[Tensor, " b"]) -> EditRows:
    """What a change adds to its matrix's output, each row at its own strength."""

    def add(x: Tensor, index: Tensor, batch: Batch) -> Tensor:
        return delta.to(x.device).added(x, strength.to(x.device)[index][:, None, None])

    return add


def factors(shape: Shape, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """LoRA's start: `right` uniform in ±1/√in (PyTorch's for a linear layer), `left` zeros, so that ΔW is zero."""
    right = (2 * torch.rand(rank, shape.width, generator=generator) - 1) / math.sqrt(shape.width)
    return {"left": torch.zeros(shape.height, rank), "right": right}


def check_rank(name: str, rank: int, engine: Trainable, sites: Sequence[Site]) -> None:
    """Raise `ConfigError` for a rank that is none, or more than the matrices have."""
    shapes = {s: engine.matrices(s.layer)[s] for s in sites if s.layer is not None}
    least, most = min(((min(m.height, m.width), s) for s, m in shapes.items()), key=lambda pair: pair[0])
    if not 1 <= rank <= least:
        raise ConfigError(f"{name} has rank={rank}; expected from 1 to {least}, the most that {most} can have.")
