"""What the ReFT family shares (arXiv 2404.03592): low-rank edits at a few prompt tokens of several blocks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..edits import Affine, Edit
from ..engines.base import Trainable
from ..errors import ConfigError
from ..sites import Site
from .optimisers import Adam, Optimiser
from .trained import Free, Given, Row, Step, Trained
from .vectors import Pair, costs, elicited

if TYPE_CHECKING:
    from jaxtyping import Float

SHARES = (0.2, 0.4, 0.6, 0.8)  # of the depth, where AxBench edits a model of 26 blocks: 5, 10, 15, 20


@dataclass(frozen=True)
class ReFT(Trained):
    """`site` None edits four blocks at equal distances. Trained on the concept's answers to plain prompts."""

    paper: ClassVar[str] = "arXiv 2404.03592"
    small: ClassVar[Mapping[str, Any]] = {"step": 0.01}
    positions: str = "f5+l5"
    rank: int = 4
    step: float = 9e-4
    epochs: int = 24
    batch_size: int = 18
    warmup: float = 0.0
    weight_decay: float = 0.0

    def placed(self, engine: Trainable) -> tuple[Site, ...]:
        if self.site is not None:
            return super().placed(engine)
        return tuple(Site(n) for n in dict.fromkeys(int(engine.depth * share) for share in SHARES))

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        widest = min(engine.width(site) for site in sites)
        if not 1 <= self.rank < widest:
            raise ConfigError(
                f"{self.name} has rank={self.rank} at a width of {widest}; expected from 1 to less than that."
            )

    def initial(self, given: Given) -> Free:
        shape = (len(given.sites), self.rank, given.engine.width(given.sites[0]))
        frame = torch.randn(shape, generator=given.generator)
        w, b = ((2 * torch.rand(s, generator=given.generator) - 1) / math.sqrt(shape[-1]) for s in (shape, shape[:2]))
        return {"r": torch.linalg.qr(frame.transpose(1, 2))[0].transpose(1, 2).contiguous(), "w": w, "b": b}

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        return Adam(free, step=self.step, steps=steps, warmup=self.warmup, weight_decay=self.weight_decay)

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        return [self.map(r, w, b) for r, w, b in zip(free["r"], free["w"], free["b"], strict=True)]

    @abstractmethod
    def map(self, r: Float[Tensor, "r d"], w: Float[Tensor, "r d"], b: Float[Tensor, " r"]) -> Affine:
        """The edit of one site."""

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return [Row(elicited(item))]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        return costs(step.said).mean()


def frame(r: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Orthonormal rows that span the same space, differentiable."""
    q, upper = torch.linalg.qr(r.T)
    return (q * torch.sign(torch.diagonal(upper))).T
