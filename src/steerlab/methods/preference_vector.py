"""Preference vectors (arXiv 2504.20106): φ = θ₊ − θ₋, two models trained by DPO from one base, θ₋ with the labels swapped.

DPO: −log σ(β·[log π(y_w)/π₀(y_w) − log π(y_l)/π₀(y_l)]), for θ₊ with the concept's answer as the winner y_w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..errors import ConfigError
from .trained import Free, Step
from .vectors import likely
from .weight_contrast import MINUS, NO, PLUS, YES, WeightContrast

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class PreferenceVector(WeightContrast):
    """Add the difference of a model that prefers the concept's answers and one that prefers the others."""

    paper: ClassVar[str] = "arXiv 2504.20106"
    referring: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"step": 1e-3, "epochs": 6, "batch_size": 8}
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ConfigError(f"{self.name} has beta={self.beta}; expected a positive number.")

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        plus, minus = ({name: step.only(f"{side} {name}") for name in (YES, NO)} for side in (PLUS, MINUS))
        return self.prefer(plus[YES], plus[NO]) + self.prefer(minus[NO], minus[YES])

    def prefer(self, winner: Step, loser: Step) -> Float[Tensor, ""]:
        """What one training costs: the DPO loss, row by row of both."""
        won, lost = (likely(s.said) - likely(s.reference) for s in (winner, loser))
        return -logsigmoid(self.beta * (won - lost)).mean()
