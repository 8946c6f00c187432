"""Preference vectors from fine-tuning alone: φ = θ₊ − θ₋, θ₊ fine-tuned on the concept's answers, θ₋ on the others.

The plainest of contrasts in weights: no reference model and half of DPO's passes, and nothing that tells a training what
not to say. What both answers share (format, length) cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .trained import Free, Row, Step
from .vectors import Pair, costs
from .weight_contrast import MINUS, NO, PLUS, YES, WeightContrast

if TYPE_CHECKING:
    from jaxtyping import Float

LEARNT = (f"{PLUS} {YES}", f"{MINUS} {NO}")


@dataclass(frozen=True)
class PreferenceVectorSFT(WeightContrast):
    """Add the difference of a model fine-tuned on the concept's answers and one on the others."""

    paper: ClassVar[str] = "arXiv 2504.20106"
    small: ClassVar[Mapping[str, Any]] = {"step": 5e-3, "epochs": 4, "batch_size": 8}

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return [row for row in super().rows(item, draw) if row.tag in LEARNT]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        plus, minus = (costs(step.only(tag).said).mean() for tag in LEARNT)
        return plus + minus
