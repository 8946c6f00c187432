"""CDAS, Concept Distributed Alignment Search (arXiv 2602.05234, "Faithful Bi-Directional Model Steering via
Distribution Matching and Distributed Interchange Interventions").

Learn q so that swapping the coordinate q·h of a base run for the source's makes the answer's next-token distributions
match, in Jensen–Shannon divergence, both ways; then steer by clamping the coordinate: to factors read from data, as
published, or to poles that are trained with q (the default; the clamp then stands in the loss as it is served). The
published recipe is `CDAS.published()`; the defaults are what this repository's own measurements favour (LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from .interchange import Interchange
from .objectives import jensen_shannon

if TYPE_CHECKING:
    from torch import Tensor

    from .runs import Runs, Subspace, Swap


@dataclass(frozen=True)
class CDAS(Interchange):
    """Match whole distributions under interchange, and clamp to the poles that this takes."""

    paper: ClassVar[str] = "arXiv 2602.05234"
    chooses_by: ClassVar[Literal["loss", "divergence"]] = "divergence"

    def loss(self, runs: Runs, at: Subspace, swaps: Sequence[Swap]) -> Tensor:
        run = runs.swapped(at, swaps)
        return run.mean(jensen_shannon(run.scores, run.source))

    @classmethod
    def published(
        cls, *, site: str | None = None, rank: int = 1, step: float = 0.04, epochs: int = 18, seed: int = 42
    ) -> Self:
        """The published recipe: random start, Adam with linear decay and renormalising, all data, the last iterate.

        `step` is the learning rate: .04 for 2B, .06 to .08 for larger models; the paper trains 18 epochs in batches of 8
        on AxBench.
        """
        return cls(
            site=site, rank=rank, start="random", optimiser="published", step=step, poles="factors", early=0.0,
            epochs=epochs, batch_size=8, held_out=0.0, micro_batches=True, close=False, seed=seed,
        )  # fmt: skip
