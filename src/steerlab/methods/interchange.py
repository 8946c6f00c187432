"""Distributed interchange training: what CDAS and its variants share (arXiv 2602.05234, section 3).

Each pair gives two ordered runs: the plain prompt with the concept's answer, meant to behave like the concept prompt
with that answer, and the other way round. In the base run the coordinates in span(q) are replaced by those of the
source's last prompt token (or, `source="aligned"`, of the source's own positions, one to one), and an objective says how
far the answer's distributions are from what they should be. Variants differ by `objective` alone.

What is served is a `Clamp`. Its poles are factors read from data at fit time (each class's mean coordinate at the last
prompt token, as published), or they are trained with q: then the clamp itself stands in the base run, and what it begins
from is read where it stands, at the tokens that it touches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..contrast import Contrast, Example
from ..edits import Ablate, Clamp, Edit, Push, Shift
from ..engines.base import Batch, Trainable
from ..errors import ConfigError, DataError
from ..positions import GENERATED, LAST_PROMPT, Positions
from ..sites import Site
from ..steering import Steering
from .base import mean_gap, same_responses
from .fitting import ran
from .frozen import EditRows, Frozen
from .fused import JensenShannon, Objective
from .optimisers import Adam, OnSphere, Optimiser, Renormalised, Several, orthonormal
from .trained import Free, Given, Row, Step, Trained, put

if TYPE_CHECKING:
    from jaxtyping import Float

REACHES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SCANNED = 8  # pairs
SPARED = "spared"  # rows of neutral prompts, which are to stay as they are
OWN = "own"  # rows of base prompts with their own answers, which some objectives compare


class Item(NamedTuple):
    """A pair, and the neutral prompts that are drawn from beside it: of each, the poles under which it is to stay."""

    positive: Example
    negative: Example
    neutral: Sequence[Sequence[Row]]


@dataclass(frozen=True)
class Interchange(Trained):
    """Learn a subspace whose coordinates, swapped between two runs, make one answer like the other; then clamp them.

    `site` is a block's number or a site (None: the block a third of the way up); `rank` the subspace's. `start` is
    `touched`, `paired` or `diff_means` (the difference of class means over the tokens that the clamp will touch, over the
    same responses, or at the last prompt token), `random`, or the file of a steering whose directions are taken. Where
    they are fewer than the rank, random ones follow: a clamp across the strongest directions of the rest would do harm.
    `optimiser` is `sphere` (`step` in radians) or `published` (Adam, renormalised; `step` is its learning rate), or `tangent`,
    which is that without the gradient's part along q. `poles` are the `factors` read from data; or those with a `gain` γ for each
    direction, trained with q (the interchange moves the coordinate γ times as far, and each pole p moves to o + γ(p − o) from
    the other one's o); or `trained`: the clamp that is served takes the interchange's place in the loss, and
    its poles are trained with q. They begin at the class means over the touched tokens, each moved as far from the other
    as lowers the divergence most. `early` weighs the answer's t-th token by t^(−early): 0 all alike, as published; more
    where the first words decide how a reply goes on. `answer_tokens` leaves out all that comes after so many, which is
    faster, and loses what shows only later (a list's second line). `held_out` is the share of pairs on which the divergence
    is measured and the best iterate kept; at 0 the last one is. `spare` adds to the loss so many times what the clamp does to the
    contrast's neutral prompts (Jensen–Shannon divergence from the untouched model): at the negative pole of all of them,
    at the positive one of those that have no family or one that no pair has. `one_sided` serves a `Push` instead of a `Clamp`.
    Small batches learn more from as many passes: after six epochs, 2 pairs at a time left less of the divergence than 4 on
    five of six of the pilot's concepts (LOG.md); on an accelerator, larger ones or `fit_many` may be worth it.
    `micro_batches` and `close=False` are the published loop's: two halves of a batch averaged alike, no end token after
    answers.
    """

    symmetric: ClassVar[bool] = True
    matching: ClassVar[bool] = False  # whether all that it learns is what the other prompt does to the model
    up: ClassVar[float] = 1 / 3
    rank: int = 8
    source: Literal["last", "aligned"] = "last"
    start: str = "touched"
    optimiser: Literal["sphere", "tangent", "published"] = "sphere"
    early: float = 0.75
    step: float = 0.4
    poles: Literal["factors", "gain", "trained"] = "trained"
    batch_size: int = 2
    held_out: float = 0.2
    spare: float = 0.0
    one_sided: bool = False
    micro_batches: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ConfigError(f"{type(self).__name__} has rank={self.rank}; expected a rank from 1.")
        if self.source == "aligned" and self.poles == "trained":
            raise ConfigError(
                "source='aligned' swaps with each source's own positions, and poles='trained' puts constants there instead;"
                " give poles='factors' with it, or leave source='last'."
            )
        if self.spare < 0 or (self.spare and self.poles != "trained"):
            raise ConfigError(
                f"spare={self.spare} with poles={self.poles!r}; expected a weight from 0, and poles='trained' with any above:"
                " an interchange has nothing to put into a prompt that no pair has."
            )

    @abstractmethod
    def objective(self, step: Step) -> Objective:
        """What each answer token of a step costs."""

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        if len(sites) != 1:
            raise ConfigError(f"{self.name} trains one site; got {self.site!r}. Fit one steering a site and add them.")
        if self.rank >= engine.width(sites[0]):
            raise ConfigError(
                f"rank is {self.rank} at {sites[0]}, which is {engine.width(sites[0])} wide; expected less."
            )

    def given(
        self, engine: Trainable, contrast: Contrast, sites: tuple[Site, ...], positions: Positions, frozen: Frozen
    ) -> Given:
        if self.matching and all(p.messages == n.messages for p, n in contrast.pairs):
            raise DataError(
                f"both prompts are identical in all {len(contrast.pairs)} pairs, and {self.name} learns what one prompt does to"
                " the model and the other doesn't. Ask for the behaviour in the positive prompts (a system prompt, or a"
                " sentence), or take a method that learns from the answers, such as reps, das or lm_vector."
            )
        return super().given(engine, contrast, sites, positions, frozen)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def items(self, part: Contrast, whole: Contrast) -> list[Any]:
        neutral = self._neutral(whole)
        return [Item(positive, negative, neutral) for positive, negative in part.pairs]

    def rows(self, item: Item, draw: torch.Generator) -> list[Row]:
        rows = both_ways(item.positive, item.negative)
        if item.neutral:
            rows += item.neutral[int(torch.randint(len(item.neutral), (1,), generator=draw))]
        return rows

    def _neutral(self, contrast: Contrast) -> list[list[Row]]:
        """Neutral prompts under the poles that must leave them as they are."""
        if not self.spare:
            return []
        pairs_have = {e.family for pair in contrast.pairs for e in pair}
        found = [
            [
                Row(e, strength, e, SPARED)
                for strength in (-1.0, *([1.0] if e.family is None or e.family not in pairs_have else []))
            ]
            for e in contrast.neutral
            if e.answer
        ]
        if not found:
            raise DataError(
                f"spare={self.spare} needs neutral prompts with answers, and the contrast has {len(contrast.neutral)} neutral"
                " prompts, none with one. Add rows with the label 'neutral', or leave spare=0."
            )
        return found

    # --- start --------------------------------------------------------------------------------------------------------

    def pools(self, sites: Sequence[Site], positions: Positions) -> list[tuple[Site, Positions]]:
        wanted = [] if self.poles != "trained" and self.start != "touched" else [positions]
        if self.poles != "trained" or self.start == "diff_means":
            wanted.append(LAST_PROMPT)
        if self.start == "paired":
            wanted.append(GENERATED)
        return [(sites[0], where) for where in dict.fromkeys(wanted)]

    def initial(self, given: Given) -> Free:
        contrast, (site,) = given.contrast, given.sites
        width = given.engine.width(site)
        more = torch.randn(self.rank, width, generator=given.generator)
        q = orthonormal(more) if self.start == "random" else self._towards(given, more)
        if self.poles != "trained":
            poles = _means(given, contrast, LAST_PROMPT)
            given.constants.update(zip(("positive", "negative"), poles, strict=True))
            return {"q": q, "gain": torch.ones(self.rank)} if self.poles == "gain" else {"q": q}
        touched = _means(given, contrast, given.positions)
        reach = self._reach(given, q, *touched)
        positive, negative = _reached(*touched, *reach)
        given.constants.update(positive=positive, negative=negative, reach=torch.tensor(reach))
        return {"q": q, "moved": torch.zeros(2, self.rank)}

    def _towards(self, given: Given, more: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
        """The basis that begins with the start's direction, filled up with random ones."""
        contrast, (site,) = given.contrast, given.sites
        if self.start == "touched":
            sides = (_weighted(given, side, given.positions) for side in (contrast.positive, contrast.negative))
            first = mean_gap(*sides)
        elif self.start == "paired":
            first = mean_gap(*(given.frozen.means(side, site, GENERATED)[0] for side in same_responses(contrast)))
        elif self.start == "diff_means":
            first = mean_gap(
                *(given.frozen.means(side, site, LAST_PROMPT)[0] for side in (contrast.positive, contrast.negative))
            )
        else:
            first = self._loaded(site)
        first = first.reshape(-1, first.shape[-1])[: self.rank]
        return orthonormal(torch.cat([first, more[len(first) :]]))

    def _loaded(self, site: Site) -> Float[Tensor, "r d"]:
        steering = Steering.load(self.start)
        for i in steering.interventions:
            rows = (
                i.edit.v[None]
                if isinstance(i.edit, Shift)
                else i.edit.q
                if isinstance(i.edit, Clamp | Ablate)
                else None
            )
            if i.site == site and rows is not None:
                return orthonormal(rows)
        raise ConfigError(
            f"start={self.start!r} has no direction at {site} (it edits {', '.join(str(s) for s in steering.sites)}). Give"
            " one that has, or start='touched'."
        )

    def _reach(self, given: Given, q: Tensor, positive: Tensor, negative: Tensor) -> tuple[float, float]:
        """How far from the other class each pole begins: what lowers the divergence most along the first direction."""
        rows = [row for item in given.train[:SCANNED] for row in both_ways(item.positive, item.negative)]
        found: list[float] = []
        for sign in (1.0, -1.0):
            mine = [row for row in rows if row.strength == sign]
            left = [
                float(self._divergence(ran(given, mine, _clamping(Clamp(q[:1], p, n), mine, given))))
                for reach in REACHES
                for p, n in [_coordinates(q[:1], *_reached(positive, negative, reach, reach))]
            ]
            found.append(REACHES[left.index(min(left))])
        return found[0], found[1]

    # --- a step -------------------------------------------------------------------------------------------------------

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        parts: list[Optimiser] = [
            OnSphere(free["q"], step=self.step, steps=steps)
            if self.optimiser == "sphere"
            else Renormalised(free["q"], step=self.step, steps=steps, tangent=self.optimiser == "tangent")
        ]
        if rest := {name: t for name, t in free.items() if name != "q"}:
            parts.append(Adam(rest, step=0.03, steps=steps, decay="cosine", clip=None))
        return Several(*parts)

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        q, (far, near) = free["q"], (given.constants["positive"], given.constants["negative"])
        positive, negative = _coordinates(q, far, near)
        if "gain" in free:
            more = (free["gain"] - 1) * (positive - negative)
            positive, negative = positive + more, negative - more
        if "moved" in free:
            gap = (far - near).norm()
            positive, negative = positive + gap * free["moved"][0], negative + gap * free["moved"][1]
        return [Clamp(q, positive, negative)]

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        if self.poles == "trained":
            return super().touching(rows, free, given)
        (site,), sources = given.sites, [row.source or row.example for row in rows]
        if self.source == "last":
            values = list(given.frozen.means(sources, site, LAST_PROMPT)[0][:, None])
        else:
            values = given.frozen.reads(sources, site, given.positions)
        aligned, gain = self.source == "aligned", free.get("gain")
        return {site: _swapping(free["q"], values, given.positions, aligned=aligned, gain=gain)}

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        cost, spared = self.cost(step.only("", OWN)), step.only(SPARED)
        return cost + self.spare * self._divergence(spared) if spared.rows else cost

    def cost(self, step: Step) -> Float[Tensor, ""]:
        """What the rows of pairs cost; the published loop averages two halves of a batch, whatever their lengths."""
        each, half = step.said.each(self.objective(step)), len(step.rows) // 2 if self.micro_batches else len(step.rows)
        row = step.said.row.to(each.device)
        halves = [(row >= at) & (row < at + half) for at in range(0, len(step.rows), half)]
        return torch.stack([self._mean(step, each, here) for here in halves]).mean()

    def judged(self, step: Step, free: Free) -> dict[str, float]:
        return {"loss": float(self.loss(step, free)), "divergence": float(self._divergence(step.only("")))}

    def _divergence(self, step: Step) -> Float[Tensor, ""]:
        """Mean Jensen–Shannon divergence per token to the sources."""
        return self._mean(step, step.said.each(JensenShannon(step.target.log_probs)))

    def _mean(self, step: Step, each: Float[Tensor, " n"], which: Tensor | None = None) -> Float[Tensor, ""]:
        """The mean over tokens, the t-th of an answer weighted by t^(−early)."""
        weight = ((1 + step.said.place.float()) ** -self.early).to(each.device)
        weight = weight if which is None else weight * which
        return (each * weight).sum() / weight.sum()

    # --- what is served -----------------------------------------------------------------------------------------------

    def served(self, free: Free, given: Given) -> Sequence[Edit]:
        (clamp,) = self.edits(free, given)
        assert isinstance(clamp, Clamp)
        return [(Push if self.one_sided else Clamp)(clamp.q, clamp.positive, clamp.negative)]

    def told(self, free: Free, given: Given, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        (clamp,) = self.served(free, given)
        assert isinstance(clamp, Clamp)
        told: dict[str, Any] = {"factors": {"positive": clamp.positive.tolist(), "negative": clamp.negative.tolist()}}
        if "gain" in free:
            told["gain"] = free["gain"].tolist()
        if "reach" in given.constants:
            positive, negative = given.constants["reach"].tolist()
            told["reach"] = {"positive": positive, "negative": negative}
        if curve:
            rows = [row for item in given.held_out for row in both_ways(item.positive, item.negative)]
            plain, under = (ran(given, rows, how) for how in (None, _clamping(clamp, rows, given)))
            told["divergence"] = {
                "unsteered": round(float(self._divergence(plain)), 6), "held_out": [round(c["divergence"], 6) for c in curve],
            }  # fmt: skip
            told["divergence_served"] = round(float(self._divergence(under)), 6)
        return told


def both_ways(positive: Example, negative: Example) -> list[Row]:
    """The ordered pairs neg+pos and pos+neg, in this order, as the published loop interleaves them."""
    return [
        Row(replace(negative, answer=positive.answer), 1.0, positive),
        Row(replace(positive, answer=negative.answer), -1.0, negative),
    ]


def _clamping(edit: Edit, rows: Sequence[Row], given: Given) -> Mapping[Site, EditRows]:
    strength = torch.tensor([row.strength for row in rows])
    return {given.sites[0]: put(edit, strength, given.positions)}


def _swapping(
    q: Float[Tensor, "r d"],
    values: Sequence[Float[Tensor, "k d"]],
    positions: Positions,
    *,
    aligned: bool,
    gain: Float[Tensor, " r"] | None = None,
) -> EditRows:
    """The interchange: coordinates in span(q) become those of one activation, or of as many as there are positions.

    With a gain they move that many times as far.
    """

    def at(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
        x, basis, mask = h.float(), q.to(h.device), batch.mask(positions).to(h.device)
        mine = [values[i].to(h.device) for i in index.tolist()]
        wanted = _aligned(mine, mask, positions) @ basis.T if aligned else torch.stack(mine) @ basis.T
        moved = wanted - x @ basis.T
        moved = moved if gain is None else moved * gain.to(h.device)
        return torch.where(mask[..., None], x + moved @ basis, x).to(h.dtype)

    return at


def _aligned(values: Sequence[Float[Tensor, "k d"]], mask: Tensor, positions: Positions) -> Float[Tensor, "b t d"]:
    """Each source activation in its base position."""
    given = torch.zeros(*mask.shape, values[0].shape[1], device=mask.device)
    for n, value in enumerate(values):
        here = int(mask[n].sum())
        if here != len(value):
            raise DataError(
                f"source='aligned' needs as many positions in the base as in the source; {positions} gives {here} and"
                f" {len(value)}. Use positions such as 'f3+l2', or source='last'."
            )
        given[n, mask[n]] = value
    return given


def _weighted(given: Given, side: Sequence[Example], positions: Positions) -> Float[Tensor, "n d"]:
    """Rows whose mean is the mean over all tokens of all examples, whole answers also where training cuts them."""
    if given.frozen.cuts:
        read = given.engine.capture(side, given.sites, positions)[given.sites[0]].values
        mean, count = read, torch.ones(len(read))
    else:
        mean, count = given.frozen.means(side, given.sites[0], positions)
    if not bool(count.sum() > 0):
        raise DataError(
            f"positions={str(positions)!r} touch no token of {given.contrast.concept or 'the contrast'}'s examples."
        )
    return mean * (count / count.mean())[:, None]


def _means(given: Given, contrast: Contrast, positions: Positions) -> tuple[Tensor, Tensor]:
    """Each class's mean activation over the tokens at some positions, `[d]`."""
    positive, negative = (
        _weighted(given, side, positions).mean(dim=0) for side in (contrast.positive, contrast.negative)
    )
    return positive, negative


def _reached(positive: Tensor, negative: Tensor, far: float, near: float) -> tuple[Tensor, Tensor]:
    """Each class's mean moved so many times as far from the other one."""
    gap = positive - negative
    return negative + far * gap, positive - near * gap


def _coordinates(q: Float[Tensor, "r d"], positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    return q @ positive, q @ negative
