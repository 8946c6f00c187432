"""RePS, reference-free preference steering (arXiv 2505.20809): a vector preferred both ways.

Added at a drawn factor α it has to prefer the concept's answer to the plain one; taken out, the other way round:
h + (α + b)·v (eq. 2), and h − ReLU(h·v + b)/‖v‖²·v (eq. 3). The loss is SimPO with a scale from the untouched model
(`vectors.preferred`, eq. 4). Winner and loser of a pair share one factor, as in the paper (its code draws two).

Served is what was trained: strength s stands for the factor α = s·u, u the median factor, so that (s·u + b)·v is added, and
with α < 0 (s·u − b)·v, as the authors' suppression by addition has it (axbench, `models/interventions.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..edits import Edit, OffsetShift
from ..engines.base import Batch
from ..sites import Site
from .frozen import EditRows
from .trained import Free, Given, Row, Step
from .vectors import Pair, TrainedVector, elicited, preferred

if TYPE_CHECKING:
    from jaxtyping import Float

NULL = "null"  # rows whose direction is taken out
LOSER = "+loses"


@dataclass(frozen=True)
class RePS(TrainedVector):
    """Add what makes the concept's answers preferred; without it they aren't."""

    paper: ClassVar[str] = "arXiv 2505.20809"
    referring: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"factors": (0.5, 1.0, 1.5)}
    factors: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
    step: float = 0.04
    batch_size: int = 6
    epochs: int = 18

    def initial(self, given: Given) -> Free:
        return {**super().initial(given), "b": torch.zeros(len(given.sites), 1)}

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        vectors = zip(free["v"], free["b"], strict=True)
        return [OffsetShift(self.unit * v, float(b.detach()) / self.unit) for v, b in vectors]

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        strength, concept, plain = self.strength(draw), elicited(item), item[1]
        return [
            Row(concept, strength), Row(plain, strength, tag=LOSER),
            Row(plain, 0.0, tag=NULL), Row(concept, 0.0, tag=NULL + LOSER),
        ]  # fmt: skip

    def alike(self, row: Row) -> Hashable | None:
        return row.strength, row.tag.startswith(NULL)

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        free = self.thinned(rows, free)
        factor = torch.tensor([row.strength * self.unit for row in rows])
        null = torch.tensor([row.tag.startswith(NULL) for row in rows])

        def at(v: Tensor, b: Tensor) -> EditRows:
            def put(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
                x, w, more, here = h.float(), v.to(h.device), b.to(h.device), index.cpu()
                added = x + (factor[here].to(h.device)[:, None, None] + more) * w
                over = torch.relu(x @ w + more) / w.square().sum()
                edited = torch.where(null[here].to(h.device)[:, None, None], x - over[..., None] * w, added)
                mask = batch.mask(given.positions).to(h.device)[..., None]
                return torch.where(mask, edited, x).to(h.dtype)

            return put

        vectors = zip(given.sites, free["v"], free["b"], strict=True)
        return {site: at(v, b) for site, v, b in vectors}

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        return torch.stack([preferred(step.only(tag), step.only(tag + LOSER)) for tag in ("", NULL)]).mean()
