"""Post-block adapters ("Weight Updates as Activation Shifts", arXiv 2603.00425): h + s·φ(h·downᵀ)·up after every block.

To first order, fine-tuning a block is a shift of its output that depends on the activation; a small network after the
block's residual add can make it, with as few parameters as LoRA has. `up` begins at 0, so training begins at the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..edits import ACTIVATIONS, Adapter, Edit
from ..engines.base import Trainable
from ..errors import ConfigError, nearest
from ..sites import Site
from .base import sites_or_all
from .optimisers import Adam, Optimiser
from .trained import Free, Given, Row, Step, Trained
from .vectors import Pair, costs, elicited

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Steerling(Trained):
    """Add a small network after every block (or those named), trained on the concept's answers to plain prompts."""

    paper: ClassVar[str] = "arXiv 2603.00425"
    small: ClassVar[Mapping[str, Any]] = {"step": 0.01, "epochs": 8, "batch_size": 8}
    positions: str = "all"
    rank: int = 8
    activation: str = "silu"
    step: float = 9e-4
    epochs: int = 1
    batch_size: int = 16
    warmup: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation is {self.activation!r}. {nearest(self.activation, ACTIVATIONS)}")

    def placed(self, engine: Trainable) -> tuple[Site, ...]:
        return sites_or_all(engine, self.site)

    def initial(self, given: Given) -> Free:
        shape = (len(given.sites), self.rank, given.engine.width(given.sites[0]))
        down = (2 * torch.rand(shape, generator=given.generator) - 1) / math.sqrt(shape[-1])
        return {"down": 1e-3 * down, "up": torch.zeros(shape)}

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        return Adam(free, step=self.step, steps=steps, warmup=self.warmup)

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        return [Adapter(down, up, self.activation) for down, up in zip(free["down"], free["up"], strict=True)]

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return [Row(elicited(item))]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        return costs(step.said).mean()
