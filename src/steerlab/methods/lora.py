"""LoRA (arXiv 2106.09685): W + (alpha/rank)·left·right, trained on the concept's answers to plain prompts.

The sceptic's arm: whoever may train a vector may train weights as well. Defaults are AxBench's (arXiv 2501.17148): rank 4,
alpha 32, attention's output projection in the four blocks that ReFT edits, no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..deltas import Delta
from ..engines.base import Shape, Trainable
from ..errors import ConfigError
from ..sites import Site
from .reft import SHARES
from .trained import Free, Given
from .weights import TrainedWeights, check_rank, factors


@dataclass(frozen=True)
class LoRA(TrainedWeights):
    """Change weights by a low rank, so that plain prompts get the concept's answers. Strength lies in [0, 1]."""

    paper: ClassVar[str] = "arXiv 2106.09685"
    small: ClassVar[Mapping[str, Any]] = {"step": 0.01, "epochs": 8}
    matrices: str = "heads"
    rank: int = 4
    alpha: float = 32.0
    step: float = 9e-4
    epochs: int = 24
    batch_size: int = 18

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ConfigError(f"lora has alpha={self.alpha}; expected a positive number.")

    def blocks(self, engine: Trainable) -> Sequence[int]:
        return list(dict.fromkeys(int(engine.depth * share) for share in SHARES))

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        check_rank(self.name, self.rank, engine, sites)

    def begun(self, site: Site, shape: Shape, given: Given) -> dict[str, Tensor]:
        return factors(shape, self.rank, given.generator)

    def change(self, free: Free) -> Delta:
        return Delta(self.alpha / self.rank * free["left"], free["right"])
