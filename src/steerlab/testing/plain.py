"""The definition that the fast passes of training must equal: whole passes, all logits, nothing kept."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contrast import Example
from ..methods.frozen import EditRows, Frozen, _bound  # pyright: ignore[reportPrivateUsage]
from ..methods.fused import Objective
from ..methods.said import Said, answers
from ..positions import Positions
from ..sites import Site


@dataclass(frozen=True, eq=False)
class PlainSaid(Said):
    """Scores of all answer tokens; objectives by autograd through them."""

    def each(self, objective: Objective) -> Tensor:
        return objective.plain(self.scores())


class PlainFrozen(Frozen):
    """Every pass is a whole one of all examples, from the embedding to the logits, every time."""

    def run(
        self,
        examples: Sequence[Example],
        edits: Mapping[Site, EditRows] | None = None,
        alike: Sequence[Hashable | None] | None = None,
    ) -> Said:
        batch, index = self.batch(examples), torch.arange(len(examples))
        bound = {site: _bound(put, index, batch) for site, put in (edits or {}).items()}
        run = self.engine.resume(batch, bound)
        assert run.logits is not None
        return PlainSaid(run.logits, None, *answers([batch]), len(examples))

    def untouched(self, examples: Sequence[Example]) -> Said:
        with torch.no_grad():
            return self.run(examples)

    def means(self, examples: Sequence[Example], site: Site, positions: Positions) -> tuple[Tensor, Tensor]:
        reads = self.reads(examples, site, positions)
        width = self.engine.width(site)
        mean = torch.stack([r.mean(dim=0) if len(r) else torch.zeros(width) for r in reads])
        return mean, torch.tensor([float(len(r)) for r in reads])

    def prepare(
        self, bases: Sequence[Example], untouched: Sequence[Example] = (), *, whole: bool | None = None
    ) -> None:
        return None
