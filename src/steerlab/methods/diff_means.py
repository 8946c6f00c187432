"""Difference of class means (Marks & Tegmark 2023; CAA, arXiv 2312.06681; DiffMean in AxBench, arXiv 2501.17148).

v = mean(positive) − mean(negative), added as h + s·v. CAA reads the answer letter after the same question and is
`pooling="response"` on persona data; AxBench reads every `token`; Arditi et al. the `last` prompt token. `paired` reads
the same response under both prompts, so that only the prompt differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..edits import Shift
from .base import FromActivations, mean_gap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DiffMeans(FromActivations):
    """Add the difference of the class means; strength 1 adds all of it."""

    symmetric: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2312.06681"

    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Shift:
        return Shift(mean_gap(positive, negative))
