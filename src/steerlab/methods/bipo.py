"""BiPO, bi-directional preference optimisation (arXiv 2406.00045, eq. 3): DPO whose sign turns with the vector's.

For a batch d is −1 or +1: L = −log σ(d·β·[log π(r_T | h + d·v)/π(r_T) − log π(r_O | h + d·v)/π(r_O)]), r_T the answer
with the concept, r_O the one without, both to the plain prompt. v begins at 0, so the loss begins at ln 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .optimisers import Adam, Optimiser
from .trained import Free, Given, Row, Step
from .vectors import Pair, TrainedVector, elicited, likely

if TYPE_CHECKING:
    from jaxtyping import Float

LOSER = "other"


@dataclass(frozen=True)
class BiPO(TrainedVector):
    """Add what makes the concept's answers preferred; take it away, and the others are."""

    paper: ClassVar[str] = "arXiv 2406.00045"
    referring: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"step": 0.03, "warmup": 0.0}
    beta: float = 0.1
    step: float = 5e-4
    batch_size: int = 4
    epochs: int = 20
    warmup: float = 0.1

    def initial(self, given: Given) -> Free:
        return {"v": torch.zeros_like(super().initial(given)["v"])}

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        return Adam(free, step=self.step, steps=steps, decay="cosine", warmup=self.warmup)

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        return self.batch([item], draw)

    def batch(self, items: Sequence[Pair], draw: torch.Generator) -> list[Row]:
        sign = float(2 * torch.randint(2, (1,), generator=draw) - 1)
        return [row for item in items for row in (Row(elicited(item), sign), Row(item[1], sign, tag=LOSER))]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        target, other = step.only(""), step.only(LOSER)
        gained = (likely(target.said) - likely(target.reference)) - (likely(other.said) - likely(other.reference))
        sign = torch.tensor([row.strength for row in target.rows], device=gained.device)
        return -logsigmoid(sign * self.beta * gained).mean()
