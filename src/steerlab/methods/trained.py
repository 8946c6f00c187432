"""Methods that train an edit through the frozen model: one loop, for one concept or for many at once.

A method says which rows a training item becomes, how its free parameters make edits (`edits` maps any values to valid
ones, so that no loop has to restore anything), and what a step costs (`loss`). All else is here: passes without what
never changes (`frozen`), batches, held-out items, the best iterate, and `fit_many`, in which many fits share passes, each
with its rows under its own edits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import progress
from ..contrast import Contrast, Example
from ..controls import Constant, Control
from ..edits import Edit
from ..engines.base import Trainable
from ..errors import ConfigError, DataError
from ..meter import Meter
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Method, assemble, parse_sites
from .fitting import Fit, lots, together
from .frozen import EditRows, Frozen
from .keep import Keep
from .optimisers import Adam, Optimiser
from .steps import Free, Given, Row, Step, put

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Trained(Method):
    """`site` is a block's number, a site, or several with commas between; `positions` where it is edited.

    `step` is the optimiser's, `held_out` the share of items on which the loss is measured after each epoch and the best
    iterate kept (0: the last one is). `answer_tokens` leaves out all that comes after so many.
    """

    up: ClassVar[float] = 2 / 3  # of the depth, where no site is given
    referring: ClassVar[bool] = False  # whether the loss asks for `Step.reference`
    small: ClassVar[
        Mapping[str, Any]
    ] = {}  # settings for models of some million parameters, where the paper's can't work
    site: str | None = None
    positions: str = "not_template"
    epochs: int = 6
    batch_size: int = 8
    step: float = 0.01
    held_out: float = 0.0
    answer_tokens: int | None = None
    close: bool = True
    seed: int = 0

    served_otherwise: ClassVar[str] = ""  # why a steering's edit isn't what training used at its strengths; "": it is

    def __post_init__(self) -> None:
        counts = [n for n in (self.batch_size, self.answer_tokens) if n is not None]
        if min(counts) < 1 or self.epochs < 0 or not self.step > 0:
            raise ConfigError(
                f"{type(self).__name__} has epochs={self.epochs}, batch_size={self.batch_size}, step={self.step},"
                f" answer_tokens={self.answer_tokens}; expected a batch size and answer tokens (where given) from 1, epochs"
                " from 0 and a positive step."
            )
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}; expected a share in [0, 1).")

    # --- what a method says -------------------------------------------------------------------------------------------

    @abstractmethod
    def initial(self, given: Given) -> Free:
        """The free parameters to begin with, in float32 on the CPU."""

    @abstractmethod
    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        """The edit at each site, differentiable in the free parameters."""

    @abstractmethod
    def rows(self, item: Any, draw: torch.Generator) -> list[Row]:
        """The sequences of one item; what is drawn is drawn anew each time it comes up."""

    def batch(self, items: Sequence[Any], draw: torch.Generator) -> list[Row]:
        """The sequences of a batch."""
        return [row for item in items for row in self.rows(item, draw)]

    def disturbed(self, rows: list[Row], draw: torch.Generator) -> list[Row]:
        """The sequences of a training step, with what training alone disturbs (dropout); held-out ones are left as they are."""
        return rows

    @abstractmethod
    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        """What a step costs, in nats."""

    def items(self, part: Contrast, whole: Contrast) -> list[Any]:
        """What is shuffled and put into batches: the pairs of a part of the data."""
        return list(part.pairs)

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        """What moves the free parameters; Adam with linear decay to 0 unless a method says otherwise."""
        return Adam(free, step=self.step, steps=steps)

    def pools(self, sites: Sequence[Site], positions: Positions) -> list[tuple[Site, Positions]]:
        """Mean activations that `initial` will ask for."""
        return []

    def alike(self, row: Row) -> Hashable | None:
        """What rows of one prompt have in common that are edited alike on it, token by token; None: nothing is known of it.

        Such rows run their prompt once.
        """
        return None

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        """What happens at each site to some of these rows."""
        strength = torch.tensor([row.strength for row in rows])
        return {
            site: put(edit, strength, given.positions)
            for site, edit in zip(given.sites, self.edits(free, given), strict=True)
        }

    def judged(self, step: Step, free: Free) -> dict[str, float]:
        """Figures of held-out rows; `loss` picks the best iterate."""
        return {"loss": float(self.loss(step, free))}

    def served(self, free: Free, given: Given) -> Sequence[Edit]:
        """The edit at each site that a steering gets."""
        return self.edits(free, given)

    def controls(self, free: Free, given: Given) -> Sequence[Control]:
        """How strongly each site's edit acts in a steering: at a strength of 1, unless a method says otherwise."""
        return [Constant()] * len(given.sites)

    def told(self, free: Free, given: Given, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Figures of the fit: those of held-out items before and after each epoch."""
        return {"held_out": {name: [round(c[name], 6) for c in curve] for name in curve[0]}} if curve else {}

    # --- the loop -----------------------------------------------------------------------------------------------------

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        return self.fit_many(engine, [contrast])[0]

    def fit_many(self, engine: Trainable, contrasts: Sequence[Contrast], *, keep: Keep | None = None) -> list[Steering]:
        """A steering for each contrast, trained together: steps of many fits share passes, and what is kept is kept once.

        Equal to fitting each alone, but for rounding.
        """
        sites, positions = self.placed(engine), Positions.parse(self.positions)
        self.check(engine, sites)
        with Meter() as meter:
            frozen = self.frozen(engine, sites, positions, keep)
            fits = [Fit(self, self.given(engine, contrast, sites, positions, frozen)) for contrast in contrasts]
            made: list[tuple[list[Intervention], dict[str, Any]]] = []
            with progress.task(f"training {self.name}", sum(fit.steps for fit in fits)) as bar:
                for lot in lots(fits, [self.scored(fit, frozen) for fit in fits], frozen.room):
                    if made:
                        frozen.forget()
                    self.learn(lot, frozen, bar)
                    with torch.no_grad():
                        made += [fit.made() for fit in lot]
        return [
            assemble(self, engine, fit.given.contrast, interventions, figures={**figures, **meter.figures()})
            for fit, (interventions, figures) in zip(fits, made, strict=True)
        ]

    def learn(self, fits: Sequence[Fit], frozen: Frozen, bar: progress.Task) -> None:
        """Train fits from their beginning to their end, a step of each in turn."""
        with torch.no_grad():
            frozen.prepare(*self.needed([row for fit in fits for row in fit.every_row()]))
            for fit in fits:
                fit.begin()
        while turn := [fit for fit in fits if fit.unfinished]:
            together(turn, frozen)
            bar.advance(len(turn))
            bar.tell(turn[0].told())

    def scored(self, fit: Fit, frozen: Frozen) -> int:
        """Bytes of the untouched model's log-probabilities that a fit is compared with."""
        return frozen.scores(self.needed(fit.every_row())[1])

    def frozen(
        self, engine: Trainable, sites: Sequence[Site], positions: Positions, keep: Keep | None = None
    ) -> Frozen:
        """The passes of its fits."""
        pool = self.pools(sites, positions)
        return Frozen(engine, sites, close=self.close, answer_tokens=self.answer_tokens, pool=pool, keep=keep)

    def needed(self, rows: Sequence[Row]) -> tuple[list[Example], list[Example]]:
        """The examples of rows that are edited, and those that are compared with."""
        edited = [row.example for row in rows]
        compared = [row.source for row in rows if row.source is not None]
        return list(dict.fromkeys(edited)), list(dict.fromkeys([*compared, *edited] if self.referring else compared))

    def placed(self, engine: Trainable) -> tuple[Site, ...]:
        """Where it is edited."""
        return parse_sites(engine, self.site, up=self.up)

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        """Raise `ConfigError` for settings that this model or these sites can't have."""

    def given(
        self, engine: Trainable, contrast: Contrast, sites: tuple[Site, ...], positions: Positions, frozen: Frozen
    ) -> Given:
        """What a fit begins with. Raises `DataError` for data that it can't learn from."""
        without = sum(not e.answer for pair in contrast.pairs for e in pair)
        if without:
            raise DataError(
                f"{self.name} trains on answers, and {without} of {2 * len(contrast.pairs)} examples have none. Add answers"
                " (`steerlab data make` lets the model write them), or use diff_means."
            )
        if all((p.messages, p.answer) == (n.messages, n.answer) for p, n in contrast.pairs):
            raise DataError(
                f"the examples of both classes are identical in all {len(contrast.pairs)} pairs, so there is nothing to learn."
                " Do the columns hold what they should?"
            )
        parts = [contrast]
        if self.held_out and len(contrast.pairs) >= 5:
            parts = self._parts(replace(contrast, neutral=()))
        items, *held_out = [self.items(part, contrast) for part in parts]
        generator = torch.Generator().manual_seed(self.seed)
        return Given(engine, contrast, sites, positions, frozen, items, held_out[0] if held_out else [], generator, {})

    def _parts(self, contrast: Contrast) -> tuple[Contrast, ...]:
        """What is trained on and what is held out: whole families, or rows where that leaves a part without any."""
        shares = (1 - (held_out := max(self.held_out, 1 / len(contrast.pairs))), held_out)
        if len({n.family or p.family for p, n in contrast.pairs}) >= 4:
            with suppress(DataError):
                return contrast.split(*shares, seed=self.seed)
        sides = (contrast.positive, contrast.negative)
        positive, negative = (tuple(replace(e, family=None) for e in side) for side in sides)
        return replace(contrast, positive=positive, negative=negative).split(*shares, seed=self.seed)
