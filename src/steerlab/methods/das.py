"""DAS on contrast pairs: the interchange of CDAS trained by cross-entropy on the source's answer (arXiv 2303.02536; the
ablation of arXiv 2602.05234)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .fused import CrossEntropy, Objective
from .interchange import Interchange
from .trained import Step


@dataclass(frozen=True)
class DAS(Interchange):
    """Make the source's answer likely under interchange, and clamp to the poles that this takes."""

    paper: ClassVar[str] = "arXiv 2303.02536"

    def objective(self, step: Step) -> Objective:
        return CrossEntropy(step.said.tokens)
