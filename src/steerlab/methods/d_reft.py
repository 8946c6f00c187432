"""D-ReFT, distribution-wise ReFT (arXiv 2506.06686): LoReFT whose target is drawn from a Gaussian that the activation sets.

μ = W·h + b, log σ² = clamp(W_σ·h + b_σ, −14, −3.2), z = μ + σ·ε, h + Rᵀ(z − R·h). Noise is drawn in training, as a function
of the sequence and the position; what is served is the mean. b_σ begins at −6: where the published code begins, the
clamp gives σ's weights no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..edits import Affine
from ..engines.base import Batch
from ..sites import Site
from .frozen import EditRows
from .reft import ReFT, frame
from .trained import Free, Given, Row
from .vectors import Pair, elicited

if TYPE_CHECKING:
    from jaxtyping import Float

LOW, HIGH, BEGINS = -14.0, -3.2, -6.0


@dataclass(frozen=True)
class DReFT(ReFT):
    """Set low-rank coordinates to a noisy function of the activation in training, to its mean when served."""

    served_otherwise: ClassVar[str] = "training draws from the distribution that it learns, a steering takes its mean"
    paper: ClassVar[str] = "arXiv 2506.06686"
    positions: str = "f7+l7"
    rank: int = 8
    step: float = 3e-3
    epochs: int = 9
    batch_size: int = 16
    warmup: float = 0.1

    def initial(self, given: Given) -> Free:
        free = super().initial(given)
        return {**free, "w_spread": torch.zeros_like(free["w"]), "b_spread": torch.full_like(free["b"], BEGINS)}

    def map(self, r: Tensor, w: Tensor, b: Tensor) -> Affine:
        return Affine(b @ (q := frame(r)), None, w - q, q)

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        seed = int(torch.randint(2**31, (1,), generator=draw))
        return [Row(elicited(item), seed=seed)]

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        def at(n: int) -> EditRows:
            def put(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
                x, position = h.float(), batch.position.clamp(min=0).cpu()
                r, w, b, w_spread, b_spread = (free[k][n].to(h.device) for k in ("r", "w", "b", "w_spread", "b_spread"))
                longest, mine = int(position.max()) + 1, zip(index.tolist(), position, strict=True)
                drawn = [_noise(rows[i].seed + n, longest, self.rank)[place] for i, place in mine]
                spread = (0.5 * (x @ w_spread.T + b_spread).clamp(LOW, HIGH)).exp()
                q = frame(r)
                z = x @ w.T + b + spread * torch.stack(drawn).to(h.device)
                mask = batch.mask(given.positions).to(h.device)[..., None]
                return torch.where(mask, x + (z - x @ q.T) @ q, x).to(h.dtype)

            return put

        return {site: at(n) for n, site in enumerate(given.sites)}


def _noise(seed: int, positions: int, rank: int) -> Float[Tensor, "t r"]:
    """Standard normal, each position's numbers the same however many there are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(rank, generator=generator) for _ in range(positions)])
