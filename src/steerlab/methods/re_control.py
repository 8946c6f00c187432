"""RE-Control (arXiv 2406.05954) and Pre-Control (attribute intensity, arXiv 2510.12121): a value network moves h.

V reads the activation at each token of an answer and learns, by λ-returns, the score that the whole answer will have
(`Example.score` where the data has scores, else 1 for the positive and 0 for the negative class). At each token of a new
answer h takes a few steps that raise V (`target=None`), or bring it to a wanted score. Unlike the published code: the
returns are constants (no gradient through them), rows never mix, AdamW's weight decay doesn't shrink h, the iterate that
is kept is the one whose loss was measured, and training stops by the
Monte Carlo error (λ = 1) on examples held out for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import progress
from ..contrast import Contrast, Example
from ..edits import ACTIVATIONS, SLOPES, Descend, Rule
from ..engines.base import Captured, Trainable
from ..errors import ConfigError, DataError, EditError, nearest
from ..meter import Meter
from ..positions import Positions
from ..steering import Intervention, Steering
from .base import Method, assemble, mean_gap, parse_sites
from .optimisers import Adam

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class ReControl(Method):
    """Move the activation until a value network likes what will come of it, or gives it the wanted score.

    `hidden` units of the network (0: linear); `lam` is λ; `rate`, `epochs`, `batch_size`, `weight_decay`, `held_out`
    and `patience` (epochs without a better held-out loss) are of its training. `target` (None: as high as it goes),
    `steps`, `step` and `rule` are of the test-time update (`edits.Descend`). The defaults are RE-Control's, but for one
    hidden layer instead of two; `pre_control` has the other paper's update.
    """

    paper: ClassVar[str] = "arXiv 2406.05954"
    small: ClassVar[Mapping[str, Any]] = {"hidden": 32, "rate": 3e-3, "epochs": 40, "activation": "silu", "lam": 1.0}
    site: str | None = "final"
    positions: str = "decoding"
    hidden: int = 3072
    activation: str = "relu"
    lam: float = 0.9
    rate: float = 1e-4
    epochs: int = 100
    batch_size: int = 32
    weight_decay: float = 0.01
    held_out: float = 0.1
    patience: int = 10
    target: float | None = None
    steps: int = 30
    step: float = 1.0
    rule: Rule = "gradient"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.activation not in SLOPES:
            raise ConfigError(f"activation is {self.activation!r}. {nearest(self.activation, SLOPES)}")
        if not (0 <= self.lam <= 1 and 0 < self.held_out < 1 and self.rate > 0 and self.hidden >= 0):
            raise ConfigError(
                f"re_control has lam={self.lam}, held_out={self.held_out}, rate={self.rate}, hidden={self.hidden}; expected"
                " λ in [0, 1], a share in (0, 1), a positive rate and at least 0 hidden units."
            )
        if min(self.epochs, self.batch_size, self.patience, self.steps) < 1:
            raise ConfigError("re_control needs epochs, batch_size, patience and steps of at least 1.")

    @classmethod
    def pre_control(cls, target: float | None = None) -> ReControl:
        """Pre-Control's update: Adam on h at 0.05, at most 1000 steps, until ten bring nothing."""
        return cls(target=target, rule="adam", step=0.05, steps=1000)

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        sites, positions = parse_sites(engine, self.site), Positions.parse(self.positions)
        examples = [*contrast.positive, *contrast.negative]
        scores = scores_of(contrast)
        with Meter() as meter:
            read = engine.capture(examples, sites, positions)
            made: list[Intervention] = []
            told: dict[str, Any] = {}
            for site in sites:
                side = read[site].row < len(contrast.positive)
                mean_gap(read[site].values[side], read[site].values[~side])  # raises where there is nothing to learn
                net, told[str(site)] = self._learned(read[site], scores)
                made.append(Intervention(site, self._edit(net), positions))
        return assemble(self, engine, contrast, made, figures={"value": told, **meter.figures()})

    def _edit(self, net: Mapping[str, Tensor]) -> Descend:
        return Descend(
            net["readout"], net["offset"], net.get("hidden"), net.get("bias"),
            self.activation, self.target, self.steps, self.step, self.rule,
        )  # fmt: skip

    def _initial(self, width: int, centre: float, generator: torch.Generator) -> dict[str, Tensor]:
        def uniform(*shape: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[-1])

        offset = torch.tensor([centre])
        if not self.hidden:
            return {"readout": torch.zeros(width), "offset": offset}
        return {
            "readout": uniform(self.hidden), "offset": offset,
            "hidden": uniform(self.hidden, width), "bias": torch.zeros(self.hidden),
        }  # fmt: skip

    def _values(self, net: Mapping[str, Tensor], x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        if "hidden" in net:
            x = ACTIVATIONS[self.activation](x @ net["hidden"].T + net["bias"])
        return x @ net["readout"] + net["offset"]

    def _learned(self, read: Captured, scores: Float[Tensor, " n"]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The network in raw activations, and how far it is off, on the mean over held-out answers' tokens."""
        counts = torch.bincount(read.row, minlength=len(scores))
        begins = counts.cumsum(0) - counts
        centre, spread = read.values.mean(dim=0), read.values.std(dim=0)
        spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
        x = (read.values - centre) / spread
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(scores), generator=generator)
        test, train = order.tensor_split([max(1, round(self.held_out * len(scores)))])

        def loss(net: Mapping[str, Tensor], chosen: Int[Tensor, " b"], lam: float) -> Tensor:
            along = torch.arange(int(counts[chosen].max()))
            inside = along < counts[chosen][:, None]
            given = self._values(net, x[(begins[chosen][:, None] + along)[inside]])
            value = torch.zeros(inside.shape).masked_scatter(inside, given)
            wanted = returns(value.detach(), counts[chosen], scores[chosen], lam)
            return torch.where(inside, (value - wanted).square(), 0.0).sum() / len(chosen)

        net = self._trained(
            self._initial(read.values.shape[1], float(scores[train].mean()), generator), loss, train, test
        )
        name = "hidden" if self.hidden else "readout"
        raw = {**net, name: net[name] / spread}
        moved = raw[name] @ centre
        raw |= {"bias": net["bias"] - moved} if self.hidden else {"offset": net["offset"] - moved}
        mine = torch.isin(read.row, test)
        off = (self._edit(raw).value(read.values[mine])[:, 0] - scores[read.row[mine]]).abs().mean()
        return raw, {"off": round(float(off), 4), "spread": round(float(scores.std()), 4), "held_out": len(test)}

    def _trained(
        self, net: dict[str, Tensor], loss: Any, train: Int[Tensor, " n"], test: Int[Tensor, " m"]
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        steps = self.epochs * -(-len(train) // self.batch_size)
        adam = Adam(net, step=self.rate, steps=steps, decay="cosine", weight_decay=self.weight_decay)
        best, least, stale = dict(adam.free), math.inf, 0
        with progress.task("training the value network", self.epochs) as bar:
            for _ in range(self.epochs):
                for chosen in train[torch.randperm(len(train), generator=generator)].split(self.batch_size):
                    leaves = {name: t.clone().requires_grad_() for name, t in adam.free.items()}
                    with torch.enable_grad():
                        gradients = torch.autograd.grad(loss(leaves, chosen, self.lam), list(leaves.values()))
                    adam.move(dict(zip(leaves, gradients, strict=True)))
                with torch.no_grad():
                    now = float(loss(adam.free, test, 1.0))  # a bootstrapped one is least for a constant
                bar.advance(1)
                bar.tell(f"held-out loss {now:.4f}")
                stale = 0 if now < least else stale + 1
                if now < least:
                    best, least = {name: t.clone() for name, t in adam.free.items()}, now
                if stale >= self.patience:
                    break
        return best


def towards(steering: Steering, target: float | None) -> Steering:
    """The same steering with another target in each `Descend`: one fit serves every intensity.

    Raises `EditError` where there is none.
    """
    if not any(isinstance(i.edit, Descend) for i in steering.interventions):
        kinds = ", ".join(i.edit.kind for i in steering.interventions) or "none"
        raise EditError(f"there is no Descend to give a target; the edits are: {kinds}.")
    made = [
        replace(i, edit=replace(i.edit, target=target)) if isinstance(i.edit, Descend) else i
        for i in steering.interventions
    ]
    meta = replace(steering.meta, method={**steering.meta.method, "target": target})
    return replace(steering, interventions=tuple(made), meta=meta)


def scores_of(contrast: Contrast) -> Float[Tensor, " n"]:
    """Each example's score, positive ones first: its own where the data has scores, else 1 and 0 for the classes.

    Raises `DataError` for answers or scores that are missing, and where all scores are equal.
    """
    examples: Sequence[Example] = [*contrast.positive, *contrast.negative]
    if without := sum(not e.answer for e in examples):
        raise DataError(
            f"re_control learns what an answer will be worth, and {without} of {len(examples)} examples have no answer. Add"
            " answers (`steerlab data make` lets the model write them)."
        )
    scored = [e.score for e in examples if e.score is not None]
    if scored and len(scored) < len(examples):
        raise DataError(f"{len(scored)} of {len(examples)} examples have a score; give one to all of them, or to none.")
    if len(examples) < 4:
        raise DataError(f"a value network needs at least 4 examples, some to be held out; got {len(examples)}.")
    if not scored:
        scored = [1.0] * len(contrast.positive) + [0.0] * len(contrast.negative)
    if max(scored) == min(scored):
        raise DataError(
            f"all {len(scored)} examples have the identical score {scored[0]:g}, so there is nothing to learn."
        )
    return torch.tensor(scored)


def returns(
    value: Float[Tensor, "b t"], lengths: Int[Tensor, " b"], score: Float[Tensor, " b"], lam: float
) -> Float[Tensor, "b t"]:
    """λ-returns at γ = 1: the score at each row's last token, before it (1 − λ)·V(next) + λ·G(next)."""
    found = score[:, None].expand_as(value).clone()
    for t in reversed(range(value.shape[1] - 1)):
        before = (1 - lam) * value[:, t + 1] + lam * found[:, t + 1]
        found[:, t] = torch.where(t < lengths - 1, before, score)
    return found
