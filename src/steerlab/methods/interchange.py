"""Distributed interchange training: the loop that CDAS and its variants share (arXiv 2602.05234, section 3).

Each pair gives two ordered runs: the plain prompt with the concept's answer, meant to behave like the concept prompt
with that answer, and the other way round. In the base run the coordinates in span(q) are replaced by those of the
source's last prompt token (or, `source="aligned"`, of the source's own positions, one to one), and an objective says how
far the answer's distributions are from what they should be. Variants differ by `loss` alone.

What is served is a `Clamp`. Its poles are factors read from data at fit time (each class's mean coordinate at the last
prompt token, as published), or they are trained with q: then the clamp itself stands in the base run, and what it begins
from is read where it stands, at the tokens that it touches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .. import progress
from ..contrast import Contrast, Example
from ..edits import Ablate, Clamp, Push, Shift
from ..engines.base import Trainable
from ..errors import ConfigError, DataError
from ..meter import Meter
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Method, assemble, mean_gap, parse_sites, read_classes
from .objectives import jensen_shannon
from .optimisers import Moved, OnSphere, Optimiser, Published, orthonormal
from .runs import Runs, Subspace, Swap

if TYPE_CHECKING:
    from jaxtyping import Float


class Factors(NamedTuple):
    """An activation for each class; its coordinates are where a clamp to that class begins."""

    positive: Float[Tensor, " d"]
    negative: Float[Tensor, " d"]

    @classmethod
    def read(cls, engine: Trainable, contrast: Contrast, site: Site) -> Factors:
        """Each class's mean at the last prompt token: the factors as published."""
        positive, negative = read_classes(engine, contrast, [site], "last")[site]
        return cls(positive.mean(dim=0), negative.mean(dim=0))

    def reached(self, positive: float, negative: float) -> Factors:
        """Each class moved so many times as far from the other one."""
        gap = self.positive - self.negative
        return Factors(self.negative + positive * gap, self.positive - negative * gap)

    def poles(self, q: Float[Tensor, "r d"], moved: Float[Tensor, "2 r"] | None = None) -> Float[Tensor, "2 r"]:
        """The coordinates in q of both, moved by so many of their distances."""
        found = torch.stack([q @ self.positive, q @ self.negative])
        return found if moved is None else found + (self.positive - self.negative).norm() * moved


class Share(NamedTuple):
    """The ordered pairs of a fit: those trained on, those held out, and what has to stay as it is."""

    train: list[tuple[Swap, Swap]]
    held_out: list[Swap]
    neutral: list[list[Swap]]  # of each neutral prompt, the poles under which it is to stay as it is


REACHES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SCANNED = 8  # pairs


@dataclass(frozen=True)
class Interchange(Method):
    """Learn a subspace whose coordinates, swapped between two runs, make one answer like the other; then clamp them.

    `site` is a block's number or a site (None: the block a third of the way up); `rank` the subspace's. `start` is
    `touched`, `paired` or `diff_means` (the difference of class means over the tokens that the clamp will touch, over the
    same responses, or at the last prompt token), `random`, or the file of a steering whose directions are taken. Where
    they are fewer than the rank, random ones follow: a clamp across the strongest directions of the rest would do harm.
    `optimiser` is `sphere` (`step` in radians) or `published` (Adam, renormalised; `step` is its learning rate). `poles`
    are the `factors` read from data, or `trained`: the clamp that is served takes the interchange's place in the loss, and
    its poles are trained with q. They begin at the class means over the touched tokens, each moved as far from the other
    as lowers the divergence most. `early` weighs the answer's t-th token by t^(−early): 0 all alike, as published; more
    where the first words decide how a reply goes on. `answer_tokens` leaves out all that comes after so many, which is
    faster, and loses what shows only later (a list's second line). `held_out` is the share of pairs on which the divergence
    is measured and the best iterate kept; at 0 the last one is. `spare` adds to the loss so many times what the clamp does to the
    contrast's neutral prompts (Jensen–Shannon divergence from the untouched model): at the negative pole of all of them,
    at the positive one of those that have no family or one that no pair has. `one_sided` serves a `Push` instead of a `Clamp`.
    `micro_batches` and `close=False` are the published loop's: two halves of a batch averaged alike, no end token after
    answers.
    """

    symmetric: ClassVar[bool] = True
    chooses_by: ClassVar[Literal["loss", "divergence"]] = "loss"  # what picks the best iterate on held-out pairs
    site: str | None = None
    rank: int = 4
    positions: str = "not_template"
    source: Literal["last", "aligned"] = "last"
    start: str = "touched"
    optimiser: Literal["sphere", "published"] = "sphere"
    early: float = 0.75
    answer_tokens: int | None = None
    step: float = 0.4
    poles: Literal["factors", "trained"] = "trained"
    epochs: int = 6
    batch_size: int = 4
    held_out: float = 0.2
    spare: float = 0.0
    one_sided: bool = False
    micro_batches: bool = False
    close: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = [n for n in (self.rank, self.batch_size, self.answer_tokens) if n is not None]
        if min(counts) < 1 or self.epochs < 0 or not self.step > 0:
            raise ConfigError(
                f"{type(self).__name__} has rank={self.rank}, epochs={self.epochs}, batch_size={self.batch_size},"
                f" step={self.step}, answer_tokens={self.answer_tokens}; expected a rank, batch size and answer tokens (where"
                " given) from 1, epochs from 0 and a positive step."
            )
        if self.source == "aligned" and self.poles == "trained":
            raise ConfigError(
                "source='aligned' swaps with each source's own positions, and poles='trained' puts constants there instead;"
                " give poles='factors' with it, or leave source='last'."
            )
        if self.spare < 0 or (self.spare and self.poles == "factors"):
            raise ConfigError(
                f"spare={self.spare} with poles={self.poles!r}; expected a weight from 0, and poles='trained' with any above:"
                " an interchange has nothing to put into a prompt that no pair has."
            )
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}; expected a share in [0, 1).")

    @abstractmethod
    def loss(self, runs: Runs, at: Subspace, swaps: Sequence[Swap]) -> Float[Tensor, ""]:
        """The objective of some ordered pairs, in nats, differentiable in what is trained."""

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        with Meter() as meter:
            site, positions = self._site(engine), Positions.parse(self.positions)
            share = self._share(contrast)
            runs = Runs(
                engine, site, positions, aligned=self.source == "aligned", close=self.close, early=self.early,
                answer_tokens=self.answer_tokens,
            )  # fmt: skip
            q, touched = self._start(engine, contrast, site, positions)
            if self.poles == "trained":
                factors, reach = self._reach(runs, share, q, touched)
                moved = Moved(self.rank, steps=self._steps(share))
            else:
                factors, reach, moved = Factors.read(engine, contrast, site), {}, None
            kept, told = self._train(runs, share, q, factors, moved)
            edit = self._clamp(kept, factors)
            told |= self._measured(runs, share, edit) | reach
        made = [Intervention(site, edit, positions)]
        return assemble(self, engine, contrast, made, figures={**told, **meter.figures()})

    # --- data and start -----------------------------------------------------------------------------------------------

    def _site(self, engine: Trainable) -> Site:
        sites = parse_sites(engine, self.site, up=1 / 3)
        if len(sites) != 1:
            raise ConfigError(f"{self.name} trains one site; got {self.site!r}. Fit one steering a site and add them.")
        if self.rank >= engine.width(sites[0]):
            raise ConfigError(
                f"rank is {self.rank} at {sites[0]}, which is {engine.width(sites[0])} wide; expected less."
            )
        return sites[0]

    def _share(self, contrast: Contrast) -> Share:
        """Ordered pairs, both ways; families are held out whole where there are several."""
        without = sum(not e.answer for pair in contrast.pairs for e in pair)
        if without:
            raise DataError(
                f"{self.name} compares answers under both prompts, and {without} of {2 * len(contrast.pairs)} examples have"
                " none. Add answers (`steerlab data make` lets the model write them), or use diff_means."
            )
        neutral = self._neutral(contrast)
        if self.held_out == 0 or len(contrast.pairs) < 5:
            return Share([both_ways(p, n) for p, n in contrast.pairs], [], neutral)
        train, rest = self._parts(replace(contrast, neutral=()))
        held_out = [s for p, n in rest.pairs for s in both_ways(p, n)]
        return Share([both_ways(p, n) for p, n in train.pairs], held_out, neutral)

    def _parts(self, contrast: Contrast) -> tuple[Contrast, ...]:
        """What is trained on and what is held out: whole families, or rows where that leaves a part without any."""
        shares = (1 - (held_out := max(self.held_out, 1 / len(contrast.pairs))), held_out)
        if len({n.family or p.family for p, n in contrast.pairs}) >= 4:
            with suppress(DataError):
                return contrast.split(*shares, seed=self.seed)
        sides = (contrast.positive, contrast.negative)
        positive, negative = (tuple(replace(e, family=None) for e in side) for side in sides)
        return replace(contrast, positive=positive, negative=negative).split(*shares, seed=self.seed)

    def _neutral(self, contrast: Contrast) -> list[list[Swap]]:
        """Neutral prompts as swaps with themselves."""
        if not self.spare:
            return []
        pairs_have = {e.family for pair in contrast.pairs for e in pair}
        found = [
            [
                Swap(bare, bare, e.answer, e.answer, wants_positive=positive)
                for positive in (False, *([True] if e.family is None or e.family not in pairs_have else []))
            ]
            for e in contrast.neutral
            if e.answer
            for bare in [e.without_answer()]
        ]
        if not found:
            raise DataError(
                f"spare={self.spare} needs neutral prompts with answers, and the contrast has {len(contrast.neutral)} neutral"
                " prompts, none with one. Add rows with the label 'neutral', or leave spare=0."
            )
        return found

    def _start(
        self, engine: Trainable, contrast: Contrast, site: Site, positions: Positions
    ) -> tuple[Float[Tensor, "r d"], Factors]:
        """The basis to begin with, and the class means over the touched tokens."""
        read = [engine.capture(side, [site], positions)[site].values for side in (contrast.positive, contrast.negative)]
        if not all(len(values) for values in read):
            raise DataError(
                f"positions={self.positions!r} touch no token of {contrast.concept or 'the contrast'}'s examples."
            )
        touched = Factors(*(values.mean(dim=0) for values in read))
        generator = torch.Generator().manual_seed(self.seed)
        more = torch.randn(self.rank, engine.width(site), generator=generator)
        if self.start == "random":
            return orthonormal(more), touched
        if self.start == "touched":
            first = mean_gap(*read)
        elif self.start in ("paired", "diff_means"):
            first = mean_gap(
                *read_classes(engine, contrast, [site], "paired" if self.start == "paired" else "last")[site]
            )
        else:
            first = self._given(site)
        first = first.reshape(-1, first.shape[-1])[: self.rank]
        return orthonormal(torch.cat([first, more[len(first) :]])), touched

    def _given(self, site: Site) -> Float[Tensor, "r d"]:
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

    def _reach(
        self, runs: Runs, share: Share, q: Float[Tensor, "r d"], touched: Factors
    ) -> tuple[Factors, dict[str, Any]]:
        """How far from the other class each pole begins: what lowers the divergence most along the first direction."""
        some = [swap for pair in share.train[:SCANNED] for swap in pair]
        found: list[float] = []
        for positive in (True, False):
            mine = [s for s in some if s.wants_positive == positive]
            tried: dict[float, float] = {}
            for reach in REACHES:
                left = runs.divergence(Subspace(q[:1], touched.reached(reach, reach).poles(q[:1])), mine)
                assert left is not None  # some pair is trained on, and goes both ways
                tried[left] = reach
            found.append(tried[min(tried)])
        return touched.reached(*found), {"reach": {"positive": found[0], "negative": found[1]}}

    # --- training -----------------------------------------------------------------------------------------------------

    def _steps(self, share: Share) -> int:
        return -(-len(share.train) // self.batch_size) * self.epochs

    def _train(
        self, runs: Runs, share: Share, start: Tensor, factors: Factors, moved: Moved | None
    ) -> tuple[Subspace, dict[str, Any]]:
        make: type[Optimiser] = Published if self.optimiser == "published" else OnSphere
        optimiser = make(start, step=self.step, steps=self._steps(share))
        generator = torch.Generator().manual_seed(self.seed)
        neutral = _endless(share.neutral, torch.Generator().manual_seed(self.seed))
        scale = runs.divergence(None, share.held_out)
        kept, losses = _reached(optimiser, moved, factors), list[float]()
        best, reached = self._judged(runs, kept, share)
        curve = [] if reached is None else [reached]
        with progress.task(f"training {self.name}", self._steps(share)) as bar:
            for _ in range(self.epochs):
                order = torch.randperm(len(share.train), generator=generator).tolist()
                total = 0.0
                for at in range(0, len(order), self.batch_size):
                    swaps = [s for i in order[at : at + self.batch_size] for s in share.train[i]]
                    spared = [s for one in islice(neutral, self.batch_size) for s in one]
                    total += self._step(runs, optimiser, moved, factors, swaps, spared) * len(swaps)
                    bar.advance()
                    bar.tell(_told(total / (2 * min(at + self.batch_size, len(order))), curve, scale))
                losses.append(round(total / (2 * len(order)), 6))
                at_end = _reached(optimiser, moved, factors)
                now, reached = self._judged(runs, at_end, share)
                if now is None or best is None or now < best:
                    best, kept = now, at_end
                if reached is not None:
                    curve.append(reached)
        told: dict[str, Any] = {"loss": losses}
        if scale is not None:
            told["divergence"] = {"unsteered": round(scale, 6), "held_out": [round(v, 6) for v in curve]}
        return kept, told

    def _judged(self, runs: Runs, at: Subspace, share: Share) -> tuple[float | None, float | None]:
        """What the best iterate is chosen by, and the divergence: both on held-out pairs, the first with what is spared."""
        swaps = share.held_out
        reached = runs.divergence(at, swaps)
        if reached is None:
            return None, None
        chosen = reached
        if self.chooses_by == "loss":
            parts = [swaps[n : n + 32] for n in range(0, len(swaps), 32)]
            with torch.no_grad():
                chosen = sum(float(self.loss(runs, at, part)) * len(part) for part in parts) / len(swaps)
        disturbed = runs.divergence(at, [s for one in share.neutral for s in one])
        return chosen + self.spare * (disturbed or 0.0), reached

    def _step(
        self,
        runs: Runs,
        optimiser: Optimiser,
        moved: Moved | None,
        factors: Factors,
        swaps: list[Swap],
        spared: list[Swap],
    ) -> float:
        """Moves along one batch; the published loop averages its two halves, whatever their token counts."""
        half = len(swaps) // 2 if self.micro_batches else len(swaps)
        parts = [swaps[n : n + half] for n in range(0, len(swaps), half)]
        leaves = [optimiser.q.detach().clone()] + ([] if moved is None else [moved.values.detach().clone()])
        total, gradients = 0.0, [torch.zeros_like(leaf) for leaf in leaves]
        for part in parts:
            q, *g = [leaf.requires_grad_(True) for leaf in leaves]
            here = Subspace(q, factors.poles(q, g[0]) if g else None)
            loss = (self.loss(runs, here, part) + self._disturbed(runs, here, spared)) / len(parts)
            for gradient, more in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
                gradient += more
            total += float(loss.detach())
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            raise DataError(
                f"the gradient of {self.name} is not finite (loss {total}); the model overflows on this data. Try bfloat16"
                " or float32, or look for empty or damaged rows with `steerlab data check`."
            )
        optimiser.move(gradients[0])
        if moved is not None:
            moved.move(gradients[1])
        return total

    def _disturbed(self, runs: Runs, at: Subspace, spared: list[Swap]) -> Float[Tensor, ""] | float:
        if not spared:
            return 0.0
        run = runs.swapped(at, spared)
        return self.spare * run.mean(jensen_shannon(run.scores, run.source))

    # --- what is served -----------------------------------------------------------------------------------------------

    def _clamp(self, kept: Subspace, factors: Factors) -> Clamp:
        positive, negative = factors.poles(kept.q) if kept.poles is None else kept.poles
        return (Push if self.one_sided else Clamp)(kept.q, positive, negative)

    def _measured(self, runs: Runs, share: Share, edit: Clamp) -> dict[str, Any]:
        told: dict[str, Any] = {"factors": {"positive": edit.positive.tolist(), "negative": edit.negative.tolist()}}
        if share.held_out:
            served = runs.clamped(edit, share.held_out)
            told["divergence_served"] = round(served, 6)
        return told


def _reached(optimiser: Optimiser, moved: Moved | None, factors: Factors) -> Subspace:
    q = optimiser.q
    return Subspace(q, None if moved is None else factors.poles(q, moved.values))


def _endless(of: list[list[Swap]], generator: torch.Generator) -> Iterator[list[Swap]]:
    """All in a drawn order, again and again in others; nothing where there are none."""
    while of:
        for i in torch.randperm(len(of), generator=generator).tolist():
            yield of[i]


def both_ways(positive: Example, negative: Example) -> tuple[Swap, Swap]:
    """The ordered pairs neg+pos and pos+neg, in this order, as the published loop interleaves them. Both have answers."""
    assert positive.answer and negative.answer  # checked before
    return (
        Swap(
            negative.without_answer(), positive.without_answer(), positive.answer, negative.answer, wants_positive=True
        ),
        Swap(
            positive.without_answer(), negative.without_answer(), negative.answer, positive.answer, wants_positive=False
        ),
    )


def _told(loss: float, curve: list[float], scale: float | None) -> str:
    words = f"loss {loss:.4f}"
    if scale and curve:
        words += f", held-out divergence {curve[-1] / scale:.3f} of the unsteered"
    return words
