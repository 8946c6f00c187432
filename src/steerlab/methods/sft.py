"""Fine-tuning of whole weight matrices on the concept's answers to plain prompts, kept as differences ΔW = θ − θ₀.

AxBench's SFT arm (arXiv 2501.17148), of every matrix of every block. A trained number takes 16 bytes beside the model while
it is trained, and 4 in the file: 1.6 GB for 100 million. On a large model name few blocks, or use lora.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..deltas import Delta
from ..engines.base import Shape
from ..sites import Site
from .trained import Free, Given
from .weights import TrainedWeights


@dataclass(frozen=True)
class SFT(TrainedWeights):
    """Change weights as fine-tuning does, so that plain prompts get the concept's answers. Strength lies in [0, 1]."""

    paper: ClassVar[str] = "arXiv 2501.17148"
    small: ClassVar[Mapping[str, Any]] = {"step": 1e-3}
    step: float = 4e-5
    epochs: int = 8
    batch_size: int = 18

    def begun(self, site: Site, shape: Shape, given: Given) -> dict[str, Tensor]:
        return {"full": torch.zeros(shape.height, shape.width)}

    def change(self, free: Free) -> Delta:
        return Delta(full=free["full"])
