"""Guiding Giants (arXiv 2505.20309): a small controller reads the prompt and says how strongly each layer is steered.

The directions are fixed, a difference of class means for each block. The controller reads the last prompt token at one
site and gives o₀, whether the prompt is of the positive class at all, and a weight for each block; block l is shifted by
max(0, 2σ(o₀) − 1)·σ(o_l)·alpha along its direction, which leaves other prompts bit-identical. Loss of a pair, as
published: cross-entropy of o₀ for its two prompts, and 0.1·(mean|σ(o_l) − ½| + 0.01·mean σ(o_l)). Unlike the published
code the weights get a gradient from the model: −log p of the answer's first tokens on the positive prompt, its own answer
at strength 1 and the negative's at −1. And the site that is read lies at or below the first that is steered (the code
reads the last four blocks, so that it reaches the last alone), and o₀ never turns a direction round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..contrast import Contrast, Example
from ..controls import Control, Network, levels
from ..edits import Edit, Shift
from ..engines.base import Trainable
from ..errors import ConfigError
from ..positions import LAST_PROMPT, Positions
from ..sites import Site
from .base import mean_gap, parse_sites
from .frozen import EditRows, Frozen
from .optimisers import Adam, Optimiser
from .trained import Free, Given, Row, Step, Trained, put
from .vectors import costs, suppressed

if TYPE_CHECKING:
    from jaxtyping import Float

Item = tuple[Example, Example, Example]  # a pair, and another prompt of no concern


@dataclass(frozen=True)
class Giants(Trained):
    """Shift each block as a controller says, on prompts of the positive class alone.

    `reads` is the site that the controller reads (None: the first that is steered). `alpha` is the length of each
    direction (None: the gap between the class means), `hidden` the controller's units. `ahead` has it decide by a pass of
    the prompt before everything else, for positions that begin before the last prompt token.
    """

    served_otherwise: ClassVar[str] = (
        "the controller decides a strength for each prompt, in a steering by a gate of its own"
    )
    paper: ClassVar[str] = "arXiv 2505.20309"
    selective: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"alpha": None, "hidden": 32, "step": 0.01, "epochs": 12}
    positions: str = "decoding"
    reads: str | None = None
    alpha: float | None = 4.0
    hidden: int = 1024
    ahead: bool = False
    step: float = 5e-5
    epochs: int = 10
    answer_tokens: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1 or not (self.alpha is None or self.alpha > 0):
            raise ConfigError(
                f"giants has hidden={self.hidden} and alpha={self.alpha}; expected at least one unit, and a positive length"
                " or None."
            )

    def placed(self, engine: Trainable) -> tuple[Site, ...]:
        """The sites that are named, in the order of a pass; None is every block's output from a third of the depth up."""
        named = (
            parse_sites(engine, self.site) if self.site else [Site(n) for n in range(engine.depth // 3, engine.depth)]
        )
        return tuple(sorted(named, key=lambda s: s.depth))

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        read = self._read(sites)
        engine.width(read)
        if self.ahead:
            return
        if read.depth > sites[0].depth:
            raise ConfigError(f"reads={read} lies above {sites[0]}, the first site that is steered; give ahead=True.")
        if not Positions.parse(self.positions).decides_at_last_prompt:
            raise ConfigError(
                f"the controller decides at the last prompt token, and positions={self.positions!r} begin before it; give"
                " 'decoding', or ahead=True."
            )

    def _read(self, sites: Sequence[Site]) -> Site:
        return sites[0] if self.reads is None else Site.parse(self.reads)

    # --- the controller ---------------------------------------------------------------------------------------------------

    def initial(self, given: Given) -> Free:
        """Drawn as a linear layer is for standardised activations; the directions are set aside."""
        prompts = [e for p, n, other in given.train for e in (p, n, other)]
        z = last_prompt(given.frozen, prompts, self._read(given.sites))
        spread = z.std(dim=0).clamp_min(1e-4 * float(z.std().clamp_min(1e-6)))
        drawn = (2 * torch.rand(self.hidden, z.shape[1], generator=given.generator) - 1) / math.sqrt(z.shape[1])
        out = (2 * torch.rand(1 + len(given.sites), self.hidden, generator=given.generator) - 1) / math.sqrt(
            self.hidden
        )
        for site in given.sites:
            sides = [last_prompt(given.frozen, side, site) for side in list(zip(*given.train, strict=True))[:2]]
            gap = mean_gap(*sides)
            given.constants[str(site)] = gap if self.alpha is None else self.alpha * gap / gap.norm()
        hidden = drawn / spread
        return {
            "hidden": hidden,
            "bias": -hidden @ z.mean(dim=0),
            "out": out,
            "offset": torch.zeros(1 + len(given.sites)),
        }

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        return Adam(free, step=self.step, steps=steps, decay="none", weight_decay=0.01)

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        return [Shift(given.constants[str(site)]) for site in given.sites]

    def controls(self, free: Free, given: Given) -> Sequence[Control]:
        read, parts = self._read(given.sites), [free[name] for name in ("hidden", "bias", "out", "offset")]
        return [
            Network(read, *parts, output=n + 1, held=not self.ahead, ahead=self.ahead) for n in range(len(given.sites))
        ]

    def _outputs(self, free: Free, frozen: Frozen, examples: Sequence[Example]) -> Float[Tensor, "b m"]:
        z = last_prompt(frozen, examples, self._read(frozen.sites))
        return torch.relu(z @ free["hidden"].T + free["bias"]) @ free["out"].T + free["offset"]

    # --- training -----------------------------------------------------------------------------------------------------------

    def items(self, part: Contrast, whole: Contrast) -> list[Item]:
        others = whole.neutral or part.negative
        return [(p, n, others[i % len(others)]) for i, (p, n) in enumerate(part.pairs)]

    def rows(self, item: Item, draw: torch.Generator) -> list[Row]:
        positive, negative, other = item
        return [
            Row(positive, 1.0, negative, "as it is"),
            Row(suppressed((positive, negative)), -1.0, other, "turned round"),
        ]

    def needed(self, rows: Sequence[Row]) -> tuple[list[Example], list[Example]]:
        return list(dict.fromkeys(row.example for row in rows)), []

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        strength = torch.tensor([row.strength for row in rows])[:, None]
        wanted = strength * levels(self._outputs(free, given.frozen, [row.example for row in rows]))
        return {
            site: put(edit, wanted[:, n], given.positions)
            for n, (site, edit) in enumerate(zip(given.sites, self.edits(free, given), strict=True))
        }

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        meant = self._outputs(free, step.frozen, [row.example for row in step.rows])
        others = self._outputs(free, step.frozen, [row.source for row in step.rows if row.source is not None])
        told_apart = softplus(-meant[:, 0]).mean() + softplus(others[:, 0]).mean()
        weight = torch.sigmoid(meant[:, 1:])
        held = 0.1 * ((weight - 0.5).abs().mean() + 0.01 * weight.mean())
        return costs(step.said).mean() + told_apart + held

    def told(self, free: Free, given: Given, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """The mean weight of each site on positive prompts, and how often the controller acts on each class."""
        sides = dict(
            zip(("positive", "negative", "other"), (list(s) for s in zip(*given.train, strict=True)), strict=True)
        )
        acting = {name: self._outputs(free, given.frozen, side)[:, 0] > 0 for name, side in sides.items()}
        acts = {name: round(float(found.float().mean()), 4) for name, found in acting.items()}
        weights = torch.sigmoid(self._outputs(free, given.frozen, sides["positive"])[:, 1:]).mean(dim=0)
        named = {str(site): round(float(w), 4) for site, w in zip(given.sites, weights, strict=True)}
        return {**super().told(free, given, curve), "weights": named, "acts": acts}


def last_prompt(frozen: Frozen, examples: Sequence[Example], site: Site) -> Float[Tensor, "b d"]:
    """Each example's untouched activation at its last prompt token."""
    return frozen.means(examples, site, LAST_PROMPT)[0]
