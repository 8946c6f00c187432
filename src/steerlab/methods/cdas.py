"""CDAS, Concept Distributed Alignment Search (arXiv 2602.05234, "Faithful Bi-Directional Model Steering via
Distribution Matching and Distributed Interchange Interventions").

Learn q so that swapping the coordinate q·h of a base run for the source's makes the answer's next-token distributions
match, in Jensen–Shannon divergence, both ways; then steer by clamping the coordinate: to factors read from data, as
published, or to poles that are trained with q (the default; the clamp then stands in the loss as it is served). The
published recipe is `CDAS.published()`; the defaults are what this repository's own measurements favour (LOG.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from ..errors import ConfigError
from .fused import JensenShannon, Objective
from .interchange import Interchange
from .trained import Step


@dataclass(frozen=True)
class CDAS(Interchange):
    """Match whole distributions under interchange, and clamp to the poles that this takes.

    Where a source's token is all but impossible under the base (a refusal's or a backdoor's first words), the
    Jensen–Shannon divergence is at its bound ln 2, and flat: its derivative has the token's own probability as a factor.
    Tokens above the share `flat` of that bound are led by KL(source‖intervened), whose derivative doesn't vanish there
    (1: none are, as published).
    """

    paper: ClassVar[str] = "arXiv 2602.05234"
    matching: ClassVar[bool] = True
    flat: float = 0.98

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.flat <= 1:
            raise ConfigError(f"flat is {self.flat}; expected a share of ln 2 in [0, 1].")

    def objective(self, step: Step) -> Objective:
        return JensenShannon(step.target.log_probs, self.flat * math.log(2) if self.flat < 1 else math.inf)

    @classmethod
    def published(
        cls,
        *,
        site: str | None = None,
        rank: int = 1,
        step: float = 0.04,
        epochs: int = 18,
        batch_size: int = 8,
        seed: int = 42,
    ) -> Self:
        """The published recipe: random start, Adam with linear decay and renormalising, all data, the last iterate.

        `step` is the learning rate. The defaults are AxBench's on Gemma-2-2B; other models have others, in the authors'
        `experiments/*/configs` (9B: .06 in batches of 6; refusal on Llama-3.1-8B: .08, batches of 16, 50 epochs; on Phi-3.5-mini:
        .02, 16, 20), which `reproduce` takes for each model.
        """
        return cls(
            site=site, rank=rank, start="random", optimiser="published", step=step, poles="factors", early=0.0,
            epochs=epochs, batch_size=batch_size, held_out=0.0, micro_batches=True, close=False, flat=1.0, seed=seed,
        )  # fmt: skip
