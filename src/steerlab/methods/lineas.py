"""LinEAS (arXiv 2503.10679): all transport maps trained together, end to end, and sparse where asked.

Affine maps ω⊙h + β at all sites act at once on texts of the plain class; the loss is the squared 1-Wasserstein distance of
each dimension's pooled values to the concept class's (mean squared difference of the sorted values), averaged over sites. A
proximal step after each update pulls ω to 1 and β to 0: dimension by dimension (`l1`), or whole sites (`group`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .. import progress
from ..contrast import Contrast, Example
from ..edits import Affine
from ..engines.base import Batch, EditFunction, Trainable
from ..meter import Meter
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Method, assemble, mean_gap, sites_or_all
from .linear_act import pooled, quantiles
from .optimisers import Adam

if TYPE_CHECKING:
    from jaxtyping import Float

Maps = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LinEAS(Method):
    """Carry the plain class's activations to the concept's by maps that know of each other; strength is the share of the way."""

    paper: ClassVar[str] = "arXiv 2503.10679"
    small: ClassVar[dict[str, float]] = {"steps": 200, "step": 0.02}
    site: str | None = None
    positions: str = "all"
    steps: int = 1000
    step: float = 1e-3
    batch_size: int = 32
    l1: float = 0.0
    group: float = 0.0
    seed: int = 0

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        sites = sites_or_all(engine, self.site)
        positions = Positions.parse(self.positions)
        with Meter() as meter:
            goal = pooled(engine, contrast.positive, sites, positions)
            begin = pooled(engine, contrast.negative, sites, positions)
            for site in sites:
                mean_gap(goal[site], begin[site])  # raises where there is nothing between the classes
            maps, losses = self._train(engine, contrast.negative, goal, positions)
        made = [Intervention(site, Affine(b, w - 1), positions) for site, (w, b) in maps.items()]
        kept = {str(site): int(((w != 1) | (b != 0)).sum()) for site, (w, b) in maps.items()}
        return assemble(self, engine, contrast, made, figures={"loss": losses, "dimensions": kept, **meter.figures()})

    def _train(
        self, engine: Trainable, texts: Sequence[Example], goal: dict[Site, Tensor], positions: Positions
    ) -> tuple[dict[Site, Maps], list[float]]:
        generator = torch.Generator().manual_seed(self.seed)
        size = min(self.batch_size, len(texts))
        targets = {site: quantiles(values, size) for site, values in goal.items()}
        free = {
            f"{k} {site}": torch.full((goal[site].shape[1],), v) for site in goal for k, v in (("w", 1.0), ("b", 0.0))
        }
        optimiser = Adam(free, step=self.step, steps=self.steps, decay="cosine", clip=None, betas=(0.9, 0.9))
        rows = [engine.batch([e]) for e in texts]
        losses: list[float] = []
        with progress.task("training lineas", self.steps) as bar:
            for _ in range(self.steps):
                chosen = torch.randperm(len(rows), generator=generator)[:size].tolist()
                batch = Batch.joined([rows[i] for i in chosen])
                leaves = {name: t.clone().requires_grad_() for name, t in optimiser.free.items()}
                loss = self._distance(engine, batch, leaves, targets, positions)
                gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
                optimiser.move(dict(zip(leaves, gradients, strict=True)))
                optimiser.change(self._pulled)
                losses.append(round(float(loss.detach()), 6))
                bar.advance()
                bar.tell(f"loss {losses[-1]:.4f}")
        found = {site: (optimiser.free[f"w {site}"], optimiser.free[f"b {site}"]) for site in goal}
        every = max(1, len(losses) // 20)
        return found, losses[::every]

    def _distance(
        self,
        engine: Trainable,
        batch: Batch,
        free: dict[str, Tensor],
        targets: dict[Site, Tensor],
        positions: Positions,
    ) -> Float[Tensor, ""]:
        """The mean over sites and dimensions of the squared distance between sorted pooled values."""
        mask = batch.mask(positions)[..., None]
        edits = {site: _mapped(free[f"w {site}"], free[f"b {site}"], mask) for site in targets}
        at = engine.resume(batch, edits, sites=list(targets), logits=False).at
        total: list[Tensor] = []
        for site, target in targets.items():
            here = mask.to(at[site].device)
            mean = torch.where(here, at[site].float(), 0.0).sum(dim=1) / here.sum(dim=1).clamp_min(1)
            total.append((mean.sort(dim=0).values - target.to(mean.device)).square().mean())
        return torch.stack(total).mean()

    def _pulled(self, free: dict[str, Tensor]) -> dict[str, Tensor]:
        """The proximal step: soft thresholds of ω − 1 and β, and of each site's whole map."""
        if not (self.l1 or self.group):
            return free
        away = {name: t - 1 if name.startswith("w") else t for name, t in free.items()}
        away = {name: t.sign() * (t.abs() - self.step * self.l1).clamp_min(0) for name, t in away.items()}
        for site in {name.split(" ", 1)[1] for name in away}:
            norm = torch.cat([away[f"w {site}"], away[f"b {site}"]]).norm()
            keep = (1 - self.step * self.group / norm.clamp_min(1e-12)).clamp_min(0)
            for k in ("w", "b"):
                away[f"{k} {site}"] = away[f"{k} {site}"] * keep
        return {name: t + 1 if name.startswith("w") else t for name, t in away.items()}


def _mapped(w: Tensor, b: Tensor, mask: Tensor) -> EditFunction:
    def put(h: Tensor) -> Tensor:
        x = h.float()
        return torch.where(mask.to(h.device), w.to(h.device) * x + b.to(h.device), x).to(h.dtype)

    return put
