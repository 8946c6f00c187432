"""ReFT-r1 (AxBench, arXiv 2501.17148, section 4): one direction that detects and steers.

In training h + mean(top-k of ReLU(h·w) over the sequence)·w, by the language-model objective on the concept's answers and,
with the same loss, on plain ones, where the edit must not be needed; an L1 penalty on the latents outside the top k grows
from 0 over the run. w is a unit vector, moved in its tangent space. Served is h + s·a·w, a the greatest latent of the
training data: detection reads h·w, steering adds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..edits import Edit, Shift
from ..engines.base import Batch, Trainable
from ..errors import ConfigError
from ..sites import Site
from .frozen import EditRows
from .optimisers import Optimiser, Renormalised
from .trained import Free, Given, Row, Step, Trained
from .vectors import costs, elicited

if TYPE_CHECKING:
    from jaxtyping import Float

WITHOUT_LATENT = 50.0  # AxBench's length where no latent is positive


@dataclass(frozen=True)
class ReFTR1(Trained):
    """Add a direction that the concept's answers need, as long as it reads at most."""

    paper: ClassVar[str] = "arXiv 2501.17148"
    served_otherwise: ClassVar[str] = (
        "training adds the mean of the sequence's k largest latents, a steering the largest one of the training data (AxBench)"
    )
    small: ClassVar[Mapping[str, Any]] = {"step": 0.05, "epochs": 12}
    k: int = 8
    sparsity: float = 0.005
    epochs: int = 3
    batch_size: int = 6

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        if len(sites) != 1:
            raise ConfigError(f"reft_r1 trains one direction at one site; got {self.site!r}.")

    def initial(self, given: Given) -> Free:
        return {"q": torch.randn(1, given.engine.width(given.sites[0]), generator=given.generator)}

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        return Renormalised(free["q"], step=self.step, steps=steps, tangent=True)

    def items(self, part: Any, whole: Any) -> list[Any]:
        return [e for pair in part.pairs for e in (elicited(pair), pair[1])]

    def rows(self, item: Any, draw: torch.Generator) -> list[Row]:
        return [Row(item)]

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        def put(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
            x, w, mask = h.float(), free["q"][0].to(h.device), batch.mask(given.positions).to(h.device)
            latent = torch.relu(x @ w) * mask
            most = latent.topk(min(self.k, latent.shape[1]), dim=1).values.sum(dim=1) / self.k
            return torch.where(mask[..., None], x + most[:, None, None] * w, x).to(h.dtype)

        return {given.sites[0]: put}

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        reads = given.frozen.reads(given.contrast.positive, given.sites[0], given.positions)
        w = free["q"][0]
        most = max(float((r @ w.to(r.device)).max()) for r in reads if len(r))
        return [Shift((most if most > 0 else WITHOUT_LATENT) * w)]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        cost = costs(step.said).mean()
        if not self.sparsity:
            return cost
        reads = step.frozen.reads([row.example for row in step.rows], step.frozen.sites[0], step.positions)
        small: list[Tensor] = []
        for read in reads:
            latent = torch.relu(read @ free["q"][0].to(read.device))
            small.append(latent.sort(descending=True).values[self.k :])
        rest = torch.cat(small)
        return cost + self.sparsity * step.gone * (rest.mean().to(cost.device) if len(rest) else 0.0)
