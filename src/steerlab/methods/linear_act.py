"""Linear-AcT, activation transport (arXiv 2410.23054): each neuron's values carried from one class to the other.

Activations are averaged over each text's tokens; for each dimension the optimal map between the two samples of one number
is affine by least squares of the sorted values: z ↦ ω·z + β. It acts on each token inside the range that was seen
(`support="seen"`; `"all"` everywhere). Sites are fitted in the order of a pass, each with the earlier maps in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from .. import progress
from ..contrast import Contrast, Example
from ..edits import Transport
from ..engines.base import Trainable
from ..meter import Meter
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Method, assemble, mean_gap, sites_or_all

if TYPE_CHECKING:
    from jaxtyping import Float

BEYOND = 1e6


@dataclass(frozen=True)
class LinearAcT(Method):
    """Carry the plain class's activations to the concept's, dimension by dimension; strength is the share of the way.

    `site` None takes every block's output. `fit` is `linear`, `gaussian` (means and standard deviations matched) or `mean`.
    """

    paper: ClassVar[str] = "arXiv 2410.23054"
    site: str | None = None
    positions: str = "all"
    map: Literal["linear", "gaussian", "mean"] = "linear"
    support: Literal["seen", "all"] = "seen"
    incremental: bool = True
    seed: int = 0

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        sites = sites_or_all(engine, self.site)
        positions = Positions.parse(self.positions)
        made: list[Intervention] = []
        with Meter() as meter:
            goal = pooled(engine, contrast.positive, sites, positions)
            begin = {} if self.incremental else pooled(engine, contrast.negative, sites, positions)
            for site in progress.track(sites, "transporting"):
                if self.incremental:
                    under = Steering(tuple(made)) if made else None
                    begin |= pooled(engine, contrast.negative, (site,), positions, under)
                if not made:
                    mean_gap(goal[site], begin[site])  # raises where there is nothing between the classes
                made.append(Intervention(site, self._solve(begin[site], goal[site]), positions))
        return assemble(self, engine, contrast, made, figures=meter.figures())

    def _solve(self, source: Float[Tensor, "n d"], target: Float[Tensor, "m d"]) -> Transport:
        scale, shift = transport(source.double(), target.double(), self.map)
        low, high = source.min(dim=0).values, source.max(dim=0).values
        if self.support == "all":
            low, high = torch.full_like(low, -BEYOND), torch.full_like(high, BEYOND)
        return Transport(scale.float(), shift.float(), low, high)


def pooled(
    engine: Trainable,
    examples: Sequence[Example],
    sites: Sequence[Site],
    positions: Positions,
    under: Steering | None = None,
) -> dict[Site, Float[Tensor, "n d"]]:
    """Each example's mean activation over its tokens at each site."""
    found = engine.capture(examples, sites, positions, under)
    return {site: read.mean_by_row(len(examples)) for site, read in found.items()}


def transport(source: Float[Tensor, "n d"], target: Float[Tensor, "m d"], how: str) -> tuple[Tensor, Tensor]:
    """ω and β of each dimension's map from one sample to the other (unequal counts: at the source's quantiles)."""
    x, y = source.sort(dim=0).values, quantiles(target, len(source))
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    one = torch.ones_like(mean_x)
    if how == "mean":
        scale = one
    elif how == "gaussian":
        spread_x, spread_y = x.std(dim=0), y.std(dim=0)
        scale = torch.where((spread_x > 1e-4) & (spread_y > 1e-4), spread_y / spread_x.clamp_min(1e-12), one)
    else:
        across = (x - mean_x).square().sum(dim=0)
        scale = ((x - mean_x) * (y - mean_y)).sum(dim=0) / across.clamp_min(1e-12)
        scale = torch.where(across > 1e-12, scale, one)
    return scale, mean_y - scale * mean_x


def quantiles(sample: Float[Tensor, "m d"], n: int) -> Float[Tensor, "n d"]:
    """A sample's sorted values, read at n equally spaced ranks."""
    y = sample.sort(dim=0).values
    if len(y) == n:
        return y
    at = torch.linspace(0, len(y) - 1, n, dtype=y.dtype)
    low = at.floor().long()
    high = (low + 1).clamp(max=len(y) - 1)
    return y[low] + (at - low)[:, None] * (y[high] - y[low])
