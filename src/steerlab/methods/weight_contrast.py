"""What preference vectors share: two trainings from one base in one loop, θ₊ and θ₋, and the difference that is served.

What both trainings do alike (format, length, drift) cancels in φ = θ₊ − θ₋. Served is θ + Σ η_k·φ_k: strength is η, +1 as
published; as φ is the difference of two fine-tunes, about twice a single one, and −1 is the opposite preference. Several
preferences are added by `a + b`, each `scaled` as wanted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..deltas import Delta
from ..engines.base import Batch, Shape, Trainable
from ..errors import ConfigError
from ..sites import Site
from .frozen import EditRows
from .optimisers import Adam, Optimiser, Several
from .trained import Free, Given, Row, Step
from .vectors import Pair
from .weights import TrainedWeights, at, check_rank, factors

if TYPE_CHECKING:
    from jaxtyping import Float

PLUS, MINUS = "+", "-"  # whose training: the preference, and the one with its labels swapped
YES, NO = "yes", "no"  # the concept's answer, and the other


@dataclass(frozen=True)
class WeightContrast(TrainedWeights):
    """Both prompts of a pair are trained with both answers (a prompt that both share, once).

    `rank` 0 trains whole matrices (32 bytes for each of their numbers), else low-rank factors, whose products are subtracted.
    """

    symmetric: ClassVar[bool] = True
    rank: int = 16
    step: float = 1e-4
    epochs: int = 1
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0:
            raise ConfigError(f"{self.name} has rank={self.rank}; expected one from 0, which is whole matrices.")

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        if self.rank:
            check_rank(self.name, self.rank, engine, sites)

    def begun(self, site: Site, shape: Shape, given: Given) -> dict[str, Tensor]:
        zeros = {"full": torch.zeros(shape.height, shape.width)}
        start = factors(shape, self.rank, given.generator) if self.rank else zeros
        return {f"{name} {side}": t.clone() for side in (PLUS, MINUS) for name, t in start.items()}

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        """Each of both trainings has its own, as if it were alone."""
        sides = [{n: t for n, t in free.items() if n.split()[1] == side} for side in (PLUS, MINUS)]
        return Several(*(Adam(mine, step=self.step, steps=steps, decay="cosine") for mine in sides))

    def change(self, free: Free) -> Delta:
        if not self.rank:
            return Delta(full=free["full +"] - free["full -"], symmetric=True)
        left = torch.cat([free["left +"], -free["left -"]], dim=1)
        return Delta(left, torch.cat([free["right +"], free["right -"]]), symmetric=True)

    def side(self, free: Free, side: str) -> Delta:
        """What one of both trainings has made of a matrix."""
        if not self.rank:
            return Delta(full=free[f"full {side}"])
        return Delta(free[f"left {side}"], free[f"right {side}"])

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        plus = torch.tensor([row.tag[0] == PLUS for row in rows])

        def both(site: Site) -> EditRows:
            mine = at(free, site)
            deltas = [(self.side(mine, side), plus == (side == PLUS)) for side in (PLUS, MINUS)]

            def add(x: Tensor, index: Tensor, batch: Batch) -> Tensor:
                out: Tensor | None = None
                for delta, whose in deltas:
                    here = whose[index.cpu()].nonzero()[:, 0].to(x.device)
                    made = delta.to(x.device).added(x[here])
                    out = made.new_empty(*x.shape[:-1], made.shape[-1]) if out is None else out
                    out = out.index_copy(0, here, made)
                assert out is not None
                return out

            return add

        return {site: both(site) for site in given.sites}

    @abstractmethod
    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        """What both trainings cost together."""

    def rows(self, item: Pair, draw: torch.Generator) -> list[Row]:
        prompts = {e.messages: e for e in item}.values()  # one where both are the same
        answers = {YES: item[0].answer, NO: item[1].answer}
        return [
            Row(replace(prompt, answer=answer), tag=f"{side} {name}")
            for side in (PLUS, MINUS)
            for name, answer in answers.items()
            for prompt in prompts
        ]
