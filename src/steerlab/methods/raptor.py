"""RAPTOR (arXiv 2602.00158): a well-tuned logistic probe at each block, and the exact way to a target probability.

The probe is fitted on standardised activations, its ridge chosen among many on a held-out part, and mapped back to raw
ones: p = σ(w·h + b). An activation whose p falls short of the target is moved along w until p is the target (the published
code moves along the unit vector and leaves b out, and its p isn't the probe's); others are left alone. Blocks whose probe
isn't accurate enough are left alone, too. Of ridges that are equally accurate the paper takes the strongest, whose w is so
small where classes are far apart that p = .9999 lies many times farther than any activation; here the likeliest is taken.
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
from ..steering import Intervention, Steering
from .base import Method, Pooling, assemble, mean_gap, read_classes, sites_or_all
from .probe import fit_probe

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
        sites = sites_or_all(engine, self.site)
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
        n = (1 - self.held_out) * (len(positive) + len(negative))
        ridges = [1 / (c * n) for c in torch.logspace(-4, 2, self.grid).tolist()]  # C as scikit-learn counts it
        weight, bias, accuracy = fit_probe(positive, negative, ridges, self.held_out, self.seed, calibrated=True)
        norm = float(weight.norm())
        far = math.log(self.probability / (1 - self.probability))
        poles = [torch.tensor([(sign * far - bias) / norm], dtype=torch.float32) for sign in (1, -1)]
        return Push((weight / norm)[None], *poles), accuracy
