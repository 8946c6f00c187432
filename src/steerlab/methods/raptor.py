"""RAPTOR (arXiv 2602.00158): a well-tuned logistic probe at each block, and the exact way to a target probability.

The probe is fitted on standardised activations, its ridge chosen among many on a held-out part, and mapped back to raw
ones: p = σ(w·h + b). An activation whose p falls short of the target is moved along w until p is the target (the published
code moves along the unit vector and leaves b out, and its p isn't the probe's); others are left alone. Blocks whose probe
isn't accurate enough are left alone, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..contrast import Contrast
from ..edits import Push
from ..engines.base import Trainable
from ..errors import ConfigError, DataError
from ..meter import Meter
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Method, Pooling, assemble, mean_gap, parse_sites, read_classes
from .probe import fit_logistic, split_rows

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Raptor(Method):
    """Push activations to where a probe is as sure as it is told to be.

    `site` None looks at every block. `probability` is the probe's at strength 1 (and 1 − it at −1), `accuracy` what a
    block's probe needs on held-out rows, `grid` how many ridges are tried between 1e-4 and 100 of their inverse.
    """

    symmetric: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2602.00158"
    site: str | None = None
    pooling: Pooling = "last"
    positions: str = "decoding"
    probability: float = 0.9999
    accuracy: float = 0.9
    grid: int = 100
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 < self.probability < 1:
            raise ConfigError(f"probability is {self.probability}; expected one in (0.5, 1): the other pole is 1 − it.")
        if self.grid < 1 or not 0 < self.held_out < 1:
            raise ConfigError(
                f"raptor has grid={self.grid}, held_out={self.held_out}; expected from 1, and a share in (0, 1)."
            )

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        sites = parse_sites(engine, self.site) if self.site is not None else tuple(Site(n) for n in range(engine.depth))
        positions = Positions.parse(self.positions)
        made: list[Intervention] = []
        told: dict[str, float] = {}
        with Meter() as meter:
            read = read_classes(engine, contrast, sites, self.pooling)
            for site in sites:
                mean_gap(*read[site])  # raises where there is nothing between the classes
                edit, told[str(site)] = self._solve(*read[site])
                if told[str(site)] > self.accuracy or len(sites) == 1:
                    made.append(Intervention(site, edit, positions))
        if not made:
            best = max(told.values())
            raise DataError(
                f"no block's probe is right in more than {self.accuracy:g} of held-out rows (the best: {best:.2f}); give more"
                " data, a lower accuracy, or one site."
            )
        return assemble(self, engine, contrast, made, figures={"accuracy": told, **meter.figures()})

    def _solve(self, positive: Float[Tensor, "n d"], negative: Float[Tensor, "m d"]) -> tuple[Push, float]:
        if min(len(positive), len(negative)) < 4:
            raise DataError(
                f"a probe needs at least 4 rows of each class to choose its ridge; got {len(positive)} and {len(negative)}."
            )
        x = torch.cat([positive, negative]).double()
        y = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double()
        train, test = split_rows(len(positive), len(negative), self.held_out, self.seed)
        centre, spread = x[train].mean(dim=0), x[train].std(dim=0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        z = (x - centre) / spread
        best, chosen = -1.0, 1.0
        for c in torch.logspace(-4, 2, self.grid).tolist():  # the strongest ridge first, ties go to it
            weight, bias = fit_logistic(z[train], y[train], 1 / (c * len(train)))
            accuracy = float(((z[test] @ weight + bias) * y[test] > 0).double().mean())
            if accuracy > best + 1e-9:
                best, chosen = accuracy, c
        weight, bias = fit_logistic(z, y, 1 / (chosen * len(x)))
        raw = weight / spread
        shift, norm = float(bias - raw @ centre), float(raw.norm())
        far = math.log(self.probability / (1 - self.probability))
        poles = [torch.tensor([(sign * far - shift) / norm], dtype=torch.float32) for sign in (1, -1)]
        return Push((raw / norm).float()[None], *poles), best
